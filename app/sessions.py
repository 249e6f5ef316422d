"""Sessions and the store that keeps them."""

import asyncio
import math
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import msgspec
from pydantic import SecretStr

from app.context import NO_SURPLUS, Pair, Surplus
from app.errors import NothingToUndo, Overloaded, SessionBusy, SessionNotFound
from app.idempotency import KeptAnswer

# How long the cleaner may keep everybody waiting at a time, and how many sessions it looks for meanwhile.
_SWEEP_AT_ONCE_SECONDS = 0.002
_SWEEP_AT_ONCE = 100


class TurnInFlight(Protocol):
    """What a session knows of the turn that occupies it."""

    finished: asyncio.Event
    cancelled: bool

    def cancel(self) -> None:
        """Stop it; `finished` is set when the session is free again."""


@dataclass(slots=True, eq=False)
class Session:
    """One conversation.

    Attributes:
        id: bearer secret; never logged in full.
        vllm_api_key: sent to vLLM with every turn.
        system_prompt: empty means no system message.
        pairs: committed turns, oldest first.
        dropped_pairs: how many of the oldest `pairs` the last committed turn left out of its prompt.
        forgotten_pairs: how many were removed from `pairs` to keep the text within its bound.
        surplus: what vLLM counted more of the last prompt than the gateway.
        turn: the one in flight.
        public_id: an opaque stable name for logs and for `X-Session-Id`.
        expires_at: the store's clock, seconds.
    """

    vllm_api_key: SecretStr
    system_prompt: str = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()), repr=False)
    pairs: list[Pair] = field(default_factory=list, repr=False)
    dropped_pairs: int = 0
    forgotten_pairs: int = 0
    surplus: Surplus = NO_SURPLUS
    turn: TurnInFlight | None = None
    expires_at: float = 0.0
    public_id: str = field(init=False)
    _text_bytes: int = 0

    def __post_init__(self) -> None:
        """A hash, from which the secret cannot be told."""
        self.public_id = _public_id(self.id)

    def begin(self, turn: TurnInFlight) -> None:
        """Let a turn occupy the session.

        Raises:
            SessionBusy: another one does.
        """
        self.require_idle()
        self.turn = turn

    def end(self) -> None:
        """The turn in flight is over."""
        assert self.turn is not None
        self.turn.finished.set()
        self.turn = None

    def require_idle(self) -> None:
        """Raise SessionBusy while a turn is in flight."""
        if self.turn is not None:
            raise SessionBusy

    def commit(self, pair: Pair, dropped_pairs: int, max_text_bytes: int, *, replaces_last: bool = False) -> None:
        """Append a finished turn, then forget the oldest pairs that are over `max_text_bytes`.

        With `replaces_last` it takes the place of the last one.
        """
        if replaces_last:
            self._text_bytes -= self.pairs.pop().size_bytes
        self.dropped_pairs = dropped_pairs
        self.extend([pair], max_text_bytes)

    def keep(self, pair: Pair, answer: KeptAnswer) -> None:
        """Have the last pair, unless it was forgotten at once, found again by the key that its question came with.

        What this takes counts as the session's text when the next pair is committed.
        """
        if self.pairs and self.pairs[-1] is pair:
            self.pairs[-1] = msgspec.structs.replace(pair, kept=answer)
            self._text_bytes += answer.size_bytes

    def asked_with(self, key: str) -> Pair | None:
        """The pair whose question came with this key."""
        return next((pair for pair in reversed(self.pairs) if pair.kept and pair.kept.key == key), None)

    def extend(self, pairs: Sequence[Pair], max_text_bytes: int) -> None:
        """Append finished turns, then forget the oldest pairs that are over `max_text_bytes`."""
        self.pairs += pairs
        self._text_bytes += sum(pair.size_bytes for pair in pairs)
        self._forget(max_text_bytes)

    def set_system_prompt(self, system_prompt: str, max_text_bytes: int) -> None:
        """Replace the system prompt; a longer one may cost the oldest pairs."""
        self.require_idle()
        self.system_prompt = system_prompt
        self._forget(max_text_bytes)

    def _forget(self, max_text_bytes: int) -> None:
        """Keep the text within its bound, which a single huge pair may exceed on its own."""
        room = max_text_bytes - len(self.system_prompt.encode())
        forgotten = 0
        while self._text_bytes > room and forgotten < len(self.pairs):
            self._text_bytes -= self.pairs[forgotten].size_bytes
            forgotten += 1
        del self.pairs[:forgotten]
        self.forgotten_pairs += forgotten
        self.dropped_pairs = max(0, self.dropped_pairs - forgotten)

    def undo(self) -> Pair:
        """Remove and return the last pair.

        Raises:
            NothingToUndo: there is none.
        """
        self.require_idle()
        if not self.pairs:
            raise NothingToUndo
        pair = self.pairs.pop()
        self._text_bytes -= pair.size_bytes
        self.dropped_pairs = min(self.dropped_pairs, len(self.pairs))
        return pair

    def reset(self) -> None:
        """Empty the history; the system prompt and the key stay."""
        self.require_idle()
        self.pairs.clear()
        self.dropped_pairs = self.forgotten_pairs = self._text_bytes = 0


def _public_id(session_id: str) -> str:
    """Any string has one."""
    return sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class SessionStore(Protocol):
    """Where sessions live between requests."""

    async def add(self, session: Session) -> int:
        """Keep a new session; returns the whole seconds it has. Raises Overloaded when there is no room."""

    async def get(self, session_id: str) -> Session:
        """The live session with this id; raises SessionNotFound."""

    async def renew(self, session: Session) -> int:
        """Start the session's time anew; returns the whole seconds it now has, 0 for one that is no longer kept."""

    async def remove(self, session: Session) -> None:
        """End the session; it is no error that it has ended already."""

    async def require_room(self) -> None:
        """Raise Overloaded when one more session would be refused."""

    async def sweep(self) -> int:
        """Remove what has expired; returns how many."""

    async def count(self) -> int:
        """Live sessions, those included that have expired since the last sweep."""


class MemoryStore:
    """Sessions in a dict of this process, by a hash of their ids: how long a look-up takes tells nothing of an id.

    All sessions live equally long, so the dict is kept in the order of expiry: `sweep` looks only at what it removes
    (and at sessions with a turn in flight, which do not expire).
    """

    def __init__(self, ttl_seconds: float, max_sessions: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds and never goes back."""
        self._ttl_seconds = ttl_seconds
        self._max_sessions = max_sessions
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    async def add(self, session: Session) -> int:
        """See SessionStore."""
        await self.require_room()
        self._sessions[session.public_id] = session
        return await self.renew(session)

    async def get(self, session_id: str) -> Session:
        """See SessionStore."""
        session = self._sessions.get(_public_id(session_id))
        if session is None:
            raise SessionNotFound
        if self._expired(session):
            del self._sessions[session.public_id]
            raise SessionNotFound
        return session

    async def renew(self, session: Session) -> int:
        """See SessionStore."""
        if session.public_id not in self._sessions:
            return 0
        session.expires_at = self._clock() + self._ttl_seconds
        self._sessions.move_to_end(session.public_id)
        return int(self._ttl_seconds)

    async def remove(self, session: Session) -> None:
        """See SessionStore."""
        self._sessions.pop(session.public_id, None)

    async def require_room(self) -> None:
        """See SessionStore. `retry_after` is when the next session may expire."""
        if len(self._sessions) < self._max_sessions or await self.sweep():
            return
        next_expiry = next(iter(self._sessions.values())).expires_at
        raise Overloaded(
            f"Открыто сессий: {self._max_sessions}, это предел (MAX_SESSIONS). Повторите позже, остановите ненужные "
            "сессии или увеличьте MAX_SESSIONS.",
            retry_after=max(1, math.ceil(next_expiry - self._clock())),
        )

    async def sweep(self) -> int:
        """See SessionStore."""
        removed = 0
        while some := self._remove_some():
            removed += some
            await asyncio.sleep(0)
        return removed

    def _remove_some(self) -> int:
        """Remove what has expired, the oldest first, for no longer than others may be kept waiting."""
        end = time.perf_counter() + _SWEEP_AT_ONCE_SECONDS
        expired = []
        for session in self._sessions.values():
            if self._expired(session):
                expired.append(session.public_id)
            elif session.turn is None:
                break
            if len(expired) == _SWEEP_AT_ONCE:
                break
        for removed, public_id in enumerate(expired):
            if time.perf_counter() > end:
                return removed
            del self._sessions[public_id]
        return len(expired)

    async def count(self) -> int:
        """See SessionStore."""
        return len(self._sessions)

    def _expired(self, session: Session) -> bool:
        return session.turn is None and session.expires_at <= self._clock()
