"""Sessions, and what a store of them can do."""

import copy
import uuid
from asyncio import Event
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol, Self, TypeVar

import msgspec
from pydantic import SecretStr

from app.context import NO_SURPLUS, Pair, Surplus
from app.errors import GatewayError, NothingToUndo
from app.idempotency import KeptAnswer

T = TypeVar("T")


class TurnInFlight(Protocol):
    """What a store knows of the turn that occupies a session.

    Attributes:
        finished: set by the store when the session is free again.
        cancelled: whether it was stopped before its answer was complete.
    """

    finished: Event
    cancelled: bool

    def cancel(self) -> None:
        """Stop it, soon."""

    def lose(self, error: GatewayError) -> None:
        """Stop it, soon, with this error: there is nothing that it could commit to any more."""


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
        public_id: an opaque stable name for logs and for `X-Session-Id`.
    """

    vllm_api_key: SecretStr
    system_prompt: str = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()), repr=False)
    pairs: list[Pair] = field(default_factory=list, repr=False)
    dropped_pairs: int = 0
    forgotten_pairs: int = 0
    surplus: Surplus = NO_SURPLUS
    public_id: str = field(init=False)
    _text_bytes: int = 0

    def __post_init__(self) -> None:
        """A hash, from which the secret cannot be told."""
        self.public_id = public_id(self.id)

    def copied(self) -> Self:
        """The same, to be changed while this one stays."""
        other = copy.copy(self)
        other.pairs = list(self.pairs)
        return other

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

    def catch_up(self, forgotten_pairs: int, pairs: Sequence[Pair]) -> None:
        """Have so many pairs forgotten in all, and append others, as it was done elsewhere."""
        count = forgotten_pairs - self.forgotten_pairs
        self._text_bytes += sum([pair.size_bytes for pair in pairs])
        self._text_bytes -= sum([pair.size_bytes for pair in self.pairs[:count]])
        del self.pairs[:count]
        self.pairs += pairs
        self.forgotten_pairs = forgotten_pairs

    def undo(self) -> Pair:
        """Remove and return the last pair.

        Raises:
            NothingToUndo: there is none.
        """
        if not self.pairs:
            raise NothingToUndo
        pair = self.pairs.pop()
        self._text_bytes -= pair.size_bytes
        self.dropped_pairs = min(self.dropped_pairs, len(self.pairs))
        return pair

    def reset(self) -> None:
        """Empty the history; the system prompt and the key stay."""
        self.pairs.clear()
        self.dropped_pairs = self.forgotten_pairs = self._text_bytes = 0


def public_id(session_id: str) -> str:
    """The opaque name of a session; any string has one."""
    return sha256(session_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class SessionStore(Protocol):
    """Where sessions live between requests, of which one turn at a time may occupy each.

    Sessions that it hands out are to be looked at only, but for the one that a turn has begun with and the one in
    `change`. What says so in its name or returns whole seconds to live starts a session's time anew.

    Raises, all of them: SessionNotFound for a session that is not there (any more), StoreUnavailable.
    """

    @property
    def warnings(self) -> Sequence[str]:
        """What the gateway's owner should change, in Russian."""

    async def ailment(self) -> str | None:
        """Why it cannot be used, in Russian; None where it can. Takes at most a second."""

    async def run(self) -> None:
        """What it does on its own while the gateway runs."""

    async def add(self, session: Session) -> int:
        """Keep a new session; returns its seconds to live. Raises Overloaded when there is no room."""

    async def require(self, session_id: str) -> None:
        """Raise SessionNotFound where there is none; its time goes on."""

    async def read(self, session_id: str) -> tuple[Session, int]:
        """The committed state, and the seconds to live."""

    async def begin(self, session_id: str, turn: TurnInFlight) -> Session:
        """Have a turn occupy a session, until `commit` or `release`; returns it, for the turn to change.

        Raises:
            SessionBusy: another one does.
        """

    async def commit(self, session: Session, turn: TurnInFlight) -> int:
        """Keep what the turn has changed, all of it or nothing, and free the session. Returns the seconds to live."""

    async def release(self, session: Session, turn: TurnInFlight) -> int:
        """Free a session, and keep no change. Returns the seconds to live, 0 where it is known to be gone; no error."""

    async def change(self, session_id: str, change: Callable[[Session], T]) -> tuple[T, int]:
        """Change an idle session at once, all of it or nothing; returns what `change` does, and the seconds to live.

        Raises:
            SessionBusy: a turn is in flight.
        """

    async def replace_key(self, session_id: str, vllm_api_key: SecretStr) -> int:
        """Give a session another key; a turn in flight goes on with the old one. Returns the seconds to live."""

    async def cancel(self, session_id: str) -> tuple[bool, int]:
        """Stop the turn in flight, wait until the session is free; whether it was stopped, and the seconds to live."""

    async def stop(self, session_id: str) -> None:
        """End the session: it is gone for everyone at once, then its turn in flight is stopped, and waited for."""

    async def require_room(self) -> None:
        """Raise Overloaded when one more session would be refused."""

    async def sweep(self) -> int:
        """Remove what has expired; returns how many."""

    async def count(self) -> int:
        """Live sessions, those included that have expired since the last sweep."""
