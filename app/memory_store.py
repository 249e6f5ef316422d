"""Sessions in the memory of this process."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from app.errors import Overloaded, SessionBusy, SessionNotFound
from app.sessions import Session, T, TurnInFlight, public_id

# How long the cleaner may keep everybody waiting at a time, and how many sessions it looks for meanwhile.
_SWEEP_AT_ONCE_SECONDS = 0.002
_SWEEP_AT_ONCE = 100


@dataclass(slots=True, eq=False)
class _Entry:
    """A session that is kept, with the turn that occupies it and, by the store's clock, when its time is up."""

    session: Session
    turn: TurnInFlight | None = None
    expires_at: float = 0.0

    def require_idle(self) -> None:
        if self.turn is not None:
            raise SessionBusy


class MemoryStore:
    """A dict of sessions by a hash of their ids: how long a look-up takes tells nothing of an id. See SessionStore.

    All sessions live equally long, so the dict is kept in the order of expiry: `sweep` looks only at what it removes
    (and at sessions with a turn in flight, which do not expire).
    """

    def __init__(self, ttl_seconds: float, max_sessions: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds and never goes back."""
        self._ttl_seconds = ttl_seconds
        self._max_sessions = max_sessions
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @property
    def warnings(self) -> Sequence[str]:
        """See SessionStore: nothing."""
        return ()

    async def ailment(self) -> str | None:
        """See SessionStore: nothing can be wrong."""
        return None

    async def run(self) -> None:
        """See SessionStore: nothing."""

    async def add(self, session: Session) -> int:
        """See SessionStore."""
        await self.require_room()
        entry = self._entries[session.public_id] = _Entry(session)
        return self._renew(entry)

    async def require(self, session_id: str) -> None:
        """See SessionStore."""
        self._find(session_id)

    async def read(self, session_id: str) -> tuple[Session, int]:
        """See SessionStore."""
        entry = self._find(session_id)
        return entry.session, self._renew(entry)

    async def begin(self, session_id: str, turn: TurnInFlight) -> Session:
        """See SessionStore."""
        entry = self._find(session_id)
        entry.require_idle()
        entry.turn = turn
        self._renew(entry)
        return entry.session

    async def commit(self, session: Session, turn: TurnInFlight) -> int:
        """See SessionStore; what is changed is kept already."""
        expires_in = await self.release(session, turn)
        if session.public_id not in self._entries:
            raise SessionNotFound
        return expires_in

    async def release(self, session: Session, turn: TurnInFlight) -> int:
        """See SessionStore."""
        turn.finished.set()
        entry = self._entries.get(session.public_id)
        if entry is None or entry.turn is not turn:
            return 0
        entry.turn = None
        return self._renew(entry)

    async def change(self, session_id: str, change: Callable[[Session], T]) -> tuple[T, int]:
        """See SessionStore."""
        entry = self._find(session_id)
        entry.require_idle()
        return change(entry.session), self._renew(entry)

    async def replace_key(self, session_id: str, vllm_api_key: SecretStr) -> int:
        """See SessionStore."""
        entry = self._find(session_id)
        entry.session.vllm_api_key = vllm_api_key
        return self._renew(entry)

    async def cancel(self, session_id: str) -> tuple[bool, int]:
        """See SessionStore."""
        entry = self._find(session_id)
        cancelled = await _stop(entry.turn)
        return cancelled, self._renew(entry)

    async def stop(self, session_id: str) -> None:
        """See SessionStore."""
        entry = self._find(session_id)
        del self._entries[entry.session.public_id]
        await _stop(entry.turn)

    async def require_room(self) -> None:
        """See SessionStore. `retry_after` is when the next session may expire."""
        if len(self._entries) < self._max_sessions or await self.sweep():
            return
        next_expiry = next(iter(self._entries.values())).expires_at
        raise no_room(self._max_sessions, next_expiry - self._clock())

    async def sweep(self) -> int:
        """See SessionStore."""
        removed = 0
        while some := self._remove_some():
            removed += some
            await asyncio.sleep(0)
        return removed

    async def count(self) -> int:
        """See SessionStore."""
        return len(self._entries)

    def _find(self, session_id: str) -> _Entry:
        name = public_id(session_id)
        entry = self._entries.get(name)
        if entry is None:
            raise SessionNotFound
        if self._expired(entry):
            del self._entries[name]
            raise SessionNotFound
        return entry

    def _renew(self, entry: _Entry) -> int:
        """Start an entry's time anew; returns the whole seconds it now has, 0 for one that is no longer kept."""
        if entry.session.public_id not in self._entries:
            return 0
        entry.expires_at = self._clock() + self._ttl_seconds
        self._entries.move_to_end(entry.session.public_id)
        return int(self._ttl_seconds)

    def _remove_some(self) -> int:
        """Remove what has expired, the oldest first, for no longer than others may be kept waiting."""
        end = time.perf_counter() + _SWEEP_AT_ONCE_SECONDS
        expired = []
        for name, entry in self._entries.items():
            if self._expired(entry):
                expired.append(name)
            elif entry.turn is None:
                break
            if len(expired) == _SWEEP_AT_ONCE:
                break
        for removed, name in enumerate(expired):
            if time.perf_counter() > end:
                return removed
            del self._entries[name]
        return len(expired)

    def _expired(self, entry: _Entry) -> bool:
        return entry.turn is None and entry.expires_at <= self._clock()


async def _stop(turn: TurnInFlight | None) -> bool:
    """Stop a turn and wait for its end; whether it was stopped before its answer was complete."""
    if turn is None:
        return False
    turn.cancel()
    await turn.finished.wait()
    return turn.cancelled


def no_room(max_sessions: int, seconds_left: float) -> Overloaded:
    """The error where all sessions are taken and the next one ends in so many seconds."""
    return Overloaded(
        f"Открыто сессий: {max_sessions}, это предел (MAX_SESSIONS). Повторите позже, остановите ненужные "
        "сессии или увеличьте MAX_SESSIONS.",
        retry_after=max(1, math.ceil(seconds_left)),
    )
