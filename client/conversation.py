"""One conversation with a gateway: its session, what was said, what it cost. Knows nothing of terminals."""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from client.api import (
    Answer,
    Context,
    Done,
    Event,
    GatewayClient,
    GatewayError,
    GatewayProblem,
    History,
    HistoryMessage,
    Message,
    message_of,
)
from client.state import State

# What comes faster has come at once, and tells nothing of the speed.
_LEAST_SECONDS = 0.05


@dataclass(frozen=True)
class Turn:
    """A turn that has ended.

    Attributes:
        answer: the gateway's.
        seconds: from the request to its end.
        first_token_seconds: from the request to the first token of the reply or of the reasoning; None: there was none.
    """

    answer: Answer
    seconds: float
    first_token_seconds: float | None

    @property
    def tokens_per_second(self) -> float | None:
        """Completion tokens after the first one, over the time since it; None where nothing can be told."""
        tokens = self.answer["output_tokens"]
        if tokens is None or self.first_token_seconds is None:
            return None
        since = self.seconds - self.first_token_seconds
        return (tokens - 1) / since if tokens > 1 and since >= _LEAST_SECONDS else None

    @property
    def cached_share(self) -> float | None:
        """Of the prompt tokens, those that vLLM had in its prefix cache: 0 to 1; None where it does not tell."""
        cached, tokens = self.answer["context"].get("cached_tokens"), self.answer["input_tokens"]
        return None if cached is None or not tokens else cached / tokens


@dataclass
class Conversation:
    """A session on a gateway, and a copy of what was said in it, which outlives the session.

    Attributes:
        client: the gateway.
        state: where the session's id is kept while it lives.
        key: vLLM's; None is not known, which is enough for a session that lives.
        system_prompt: None is the gateway's default.
        options: what every turn is sent beside the message.
        session_id: empty before a session is opened.
        messages: whole pairs.
        turns: those that have ended since the start.
        commits: how many turns have become part of the talk since the start.
        context: the last receipt, None after what has made it void.
        stale: a call got no answer, so that `messages` may not be what the gateway has; `settle` finds out.
    """

    client: GatewayClient
    state: State
    key: str | None
    system_prompt: str | None
    options: dict[str, Any]
    session_id: str = ""
    messages: list[Message] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    commits: int = 0
    context: Context | None = None
    stale: bool = False
    _ttl_seconds: int = 0
    _renewed_at: float = 0.0

    @property
    def pairs(self) -> int:
        """How many pairs were said."""
        return len(self.messages) // 2

    @property
    def seconds_left(self) -> int:
        """Until the session expires, if nothing more is asked of it."""
        return max(0, math.ceil(self._renewed_at + self._ttl_seconds - time.monotonic()))

    # --- the session ---

    def open(self, system_prompt: str | None, messages: Sequence[Message]) -> None:
        """Open a session that begins with these messages; what was the session before is left as it is."""
        opened = self.client.init_session(self.key or "", system_prompt, messages or None)
        self._move_to(opened["session_id"], messages)
        self.system_prompt, self.context = system_prompt, opened.get("context")
        self._ttl_seconds = opened["expires_in"]
        self._renew()

    def open_newest(self, system_prompt: str | None, messages: Sequence[Message]) -> int:
        """As `open`, with as many of the newest messages as the gateway takes; returns how many pairs it did not."""
        newest = messages
        while True:
            try:
                self.open(system_prompt, newest)
            except GatewayProblem as exc:
                if exc.code != "request_too_large" or len(newest) <= 2:
                    raise
                newest = newest[max(1, len(newest) // 4) * 2 :]
            else:
                return (len(messages) - len(newest)) // 2

    def resume(self, session_id: str) -> None:
        """Go on with a session that lives; raises GatewayProblem session_not_found for one that does not."""
        self.session_id = session_id
        self._refresh()

    def load(self, system_prompt: str | None, messages: Sequence[Message]) -> int:
        """Go on with another talk, in a session of its own; returns how many pairs the gateway did not take."""
        before = self.session_id
        left_out = self.open_newest(system_prompt, messages)
        self._end(before)
        return left_out

    @contextmanager
    def instead_of_last_pair(self) -> Iterator[int]:
        """Let what is said here take the place of the last pair.

        It is said in a session of its own, so that nothing is lost if no reply comes of it. Yields how many pairs of
        the talk the gateway did not take for that.
        """
        before, commits = copy(self), self.commits
        try:
            yield self.open_newest(self.system_prompt, self.messages[:-2])
        finally:
            ended = before.session_id
            if self.commits == commits:
                ended = self.session_id
                vars(self).update(vars(before))
                self.state.remember(self.client.address, self.session_id)
            if ended != self.session_id:
                self._end(ended)

    def replace_key(self) -> None:
        """Let the session that lives use `key` from now on."""
        self.client.replace_key(self.session_id, self.key or "")

    def stop(self) -> None:
        """End the session; it is no error that it has ended already."""
        try:
            self.client.stop_session(self.session_id)
        except GatewayProblem as exc:
            if exc.code != "session_not_found":
                raise
        self.state.forget(self.client.address, self.session_id)

    def _move_to(self, session_id: str, messages: Sequence[Message]) -> None:
        self.session_id, self.messages, self.stale = session_id, list(messages), False
        self.state.remember(self.client.address, session_id)

    def _end(self, session_id: str) -> None:
        """End a session that is not the present one any more, or let it expire."""
        with suppress(GatewayError):
            self.client.stop_session(session_id)

    # --- the talk ---

    def stream(self, message: str) -> Generator[Event]:
        """Say something; the events of the reply as they come. The pair is part of the talk when `Done` has come."""
        started = time.monotonic()
        first_token_seconds = None
        with (
            self._unanswered(),
            closing(self.client.stream(self.session_id, message, **self.options)) as events,
        ):
            for event in events:
                now = time.monotonic() - started
                if isinstance(event, Done):
                    self._take(message, Turn(event.answer, now, first_token_seconds))
                elif first_token_seconds is None:
                    first_token_seconds = now
                yield event

    def reply(self, message: str) -> Answer:
        """Say something and wait for the whole answer."""
        started = time.monotonic()
        with self._unanswered():
            answer = self.client.chat(self.session_id, message, **self.options)
        self._take(message, Turn(answer, time.monotonic() - started, None))
        return answer

    def settle(self) -> bool:
        """After a call that got no answer, take over what the gateway has; returns whether that is a pair more."""
        before = self.messages
        self.client.cancel(self.session_id)
        self._refresh()
        # Not by their number alone: the gateway may have forgotten the first ones.
        is_new = bool(self.messages) and self.messages[-2:] not in (before[-2:], before[-4:-2])
        kept = is_new or len(self.messages) > len(before)
        self.commits += kept
        return kept

    def cancel(self) -> bool:
        """Stop the turn in flight. False: there was none."""
        return self.client.cancel(self.session_id)

    def set_system_prompt(self, system_prompt: str) -> None:
        """Replace the system prompt; the talk goes on."""
        with self._unanswered():
            self.client.set_system_prompt(self.session_id, system_prompt)
        self.system_prompt = system_prompt

    def undo(self) -> str:
        """Remove the last pair; returns what the user said."""
        with self._unanswered():
            said, _ = self.client.undo(self.session_id)
        del self.messages[-2:]
        self.context = None
        return said

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        with self._unanswered():
            self.client.reset(self.session_id)
        self.messages.clear()
        self.context = None

    def history(self) -> list[HistoryMessage]:
        """What was said, as the gateway has it."""
        return self._refresh()["messages"]

    @contextmanager
    def _unanswered(self) -> Iterator[None]:
        """A call that changes the session. Until its answer comes, nobody knows whether it has."""
        self.stale = True
        try:
            yield
        except GatewayProblem as exc:
            self.stale = False
            if exc.code != "session_not_found":
                self._renew()
            raise
        self.stale = False
        self._renew()

    def _refresh(self) -> History:
        """Take over what the gateway has."""
        history = self.client.history(self.session_id)
        self.system_prompt = history["system_prompt"]
        self.messages = [
            message_of(said["role"], said["content"], said.get("finish_reason")) for said in history["messages"]
        ]
        self.stale = False
        self._ttl_seconds = history["expires_in"]
        self._renew()
        return history

    def _take(self, message: str, turn: Turn) -> None:
        answer = turn.answer
        self.turns.append(turn)
        self.context = answer["context"]
        if answer["reply"] or answer["finish_reason"] != "cancelled":  # as the gateway commits it
            self.messages += [
                message_of("user", message),
                message_of("assistant", answer["reply"], answer["finish_reason"]),
            ]
            self.commits += 1

    def _renew(self) -> None:
        self._renewed_at = time.monotonic()
