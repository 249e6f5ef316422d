"""Sessions in Redis: they outlive the gateway, and several gateways share them."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from app.errors import SessionBusy, SessionNotFound, StoreUnavailable
from app.memory_store import no_room
from app.redis_copy import NOTHING_KNOWN, Copy, Unreadable, first_written, new_id
from app.redis_server import Arguments, Keys, RedisServer
from app.sealing import CannotUnseal, Seal
from app.sessions import Session, T, TurnInFlight, public_id
from app.tasks import running

log = logging.getLogger(__name__)

# How long a session stays occupied by a gateway that is no more, and how often a living one says that it lives.
LEASE_SECONDS = 10.0
_LEASE_MS = int(LEASE_SECONDS * 1000)
_HOLD_SECONDS = 3.0
_HOLD_AT_ONCE = 100
_HOLD_WITHIN_SECONDS = 1.0

_PREFIX = "chat-gateway:1"  # the number is that of the form in which sessions are kept
_STOP_CHANNEL = f"{_PREFIX}:stop"

_TRY_AGAIN_SECONDS = 0.1
_RELEASE_SECONDS = 1.0
_COUNT_SECONDS = 1.0
_LOOK_SECONDS = 5.0
_FIRST_ASK_SECONDS, _LAST_ASK_SECONDS = 0.01, 0.25

_LOST = (
    "Шлюз надолго терял связь с Redis, и сессией успел воспользоваться кто-то другой. Скорее всего, ответ не записан: "
    "посмотрите /history и, если его там нет, повторите вопрос."
)
_NOT_SURE = "Записан ли ответ, покажет /history; если его там нет, повторите вопрос."
_CHANGE_NOT_SURE = "Сделано ли то, о чём вы просили, покажет /history."
_EVICTING = (
    "Redis настроен вытеснять записи, когда кончается память (maxmemory-policy={policy}): вместе с ними пропадут живые "
    "сессии. Задайте maxmemory-policy noeviction."
)
_FORGETFUL = (
    "Redis не ведёт журнал (appendonly no): его сбой потеряет все сессии или то, что изменилось в них после последнего "
    "снимка. Включите appendonly yes."
)


@dataclass(slots=True)
class _Held:
    """What a turn of this gateway occupies, and the token by which it does."""

    seen: Copy
    token: bytes


class _Changed(Exception):
    """Somebody has changed the session since it was seen."""


class RedisStore:
    """See SessionStore. All that is decided about a session is decided in Redis, by `redis_store.lua`.

    A gateway keeps copies of the sessions that it has served, and asks only for what has happened since; it changes a
    copy of the copy and sends what is new. A turn occupies a session by a lease, which its gateway renews. What it
    commits is taken only if nobody else has begun a turn or changed the session meanwhile.
    """

    def __init__(self, server: RedisServer, seal: Seal, ttl_seconds: float, max_sessions: int) -> None:
        """Sessions of all gateways together are at most `max_sessions`."""
        self._server = server
        self._seal = seal
        self._ttl_seconds = ttl_seconds
        self._max_sessions = max_sessions
        self._copies: OrderedDict[str, tuple[Copy, float]] = OrderedDict()  # by the time of their last use
        self._held: dict[TurnInFlight, _Held] = {}
        self._seconds_ahead = 0.0  # how much later it is by Redis's clock than by the monotonic one here, at least
        self._warnings: list[str] = []
        self._is_up: bool | None = None

    @property
    def warnings(self) -> list[str]:
        """See SessionStore."""
        return self._warnings

    async def ailment(self) -> str | None:
        """See SessionStore."""
        return await self._server.ailment()

    async def run(self) -> None:
        """See SessionStore. Renews leases, hears which turn is to be stopped, and looks after Redis."""
        async with running(self._keep_leases()), running(self._server.listen(_STOP_CHANNEL, self._stop_turn)):
            while True:
                await self._look()
                await asyncio.sleep(_LOOK_SECONDS)

    async def add(self, session: Session) -> int:
        """See SessionStore."""
        written = first_written(session, self._seal)
        status, *more = await self._run("add", session.public_id, new_id(), self._max_sessions, *written)
        if status == b"full":
            raise no_room(self._max_sessions, more[0] / 1000)
        return int(self._ttl_seconds)

    async def require(self, session_id: str) -> None:
        """See SessionStore."""
        await self._run("require", public_id(session_id))

    async def read(self, session_id: str) -> tuple[Session, int]:
        """See SessionStore."""
        return (await self._see(session_id, "read")).session, int(self._ttl_seconds)

    async def begin(self, session_id: str, turn: TurnInFlight) -> Session:
        """See SessionStore."""
        token = new_id()
        until = time.monotonic() + self._server.timeout_seconds
        seen = await self._see(session_id, "begin", token, until)
        self._held[turn] = _Held(seen, token)
        return seen.session.copied()

    async def commit(self, session: Session, turn: TurnInFlight) -> int:
        """See SessionStore. Tries as long as an operation may take, so that a restart of Redis costs no turn."""
        held = self._held[turn]
        until = time.monotonic() + self._server.timeout_seconds
        while True:
            try:
                await self._write(held.seen, session, held.token, until, turn)
                break
            except _Changed:
                raise StoreUnavailable(_LOST) from None
            except StoreUnavailable as exc:
                if not exc.passes or time.monotonic() + _TRY_AGAIN_SECONDS > until:
                    raise StoreUnavailable(f"{exc.detail} {_NOT_SURE}") from exc
            await asyncio.sleep(_TRY_AGAIN_SECONDS)
        del self._held[turn]
        turn.finished.set()
        return int(self._ttl_seconds)

    async def release(self, session: Session, turn: TurnInFlight) -> int:
        """See SessionStore. Where Redis does not answer, the lease ends by itself."""
        held = self._held.pop(turn)
        turn.finished.set()
        return int(self._ttl_seconds) if await self._free(session.public_id, held.token, turn) else 0

    async def change(self, session_id: str, change: Callable[[Session], T]) -> tuple[T, int]:
        """See SessionStore. Begins anew where somebody else was quicker."""
        until = time.monotonic() + self._server.timeout_seconds
        while True:
            seen = await self._see(session_id, "read_idle")
            session = seen.session.copied()
            result = change(session)
            try:
                await self._write(seen, session, new_id(), until)
            except _Changed:
                continue
            except StoreUnavailable as exc:
                raise StoreUnavailable(f"{exc.detail} {_CHANGE_NOT_SURE}") from exc
            return result, int(self._ttl_seconds)

    async def replace_key(self, session_id: str, vllm_api_key: SecretStr) -> int:
        """See SessionStore."""
        await self._run("replace_key", public_id(session_id), "", self._seal.sealed(vllm_api_key))
        return int(self._ttl_seconds)

    async def cancel(self, session_id: str) -> tuple[bool, int]:
        """See SessionStore."""
        name = public_id(session_id)
        status, *more = await self._run("cancel", name, _STOP_CHANNEL)
        cancelled = status != b"idle" and await self._ended(name, more[0])
        return cancelled, int(self._ttl_seconds)

    async def stop(self, session_id: str) -> None:
        """See SessionStore."""
        name = public_id(session_id)
        _, token = await self._run("stop", name, _STOP_CHANNEL)
        self._copies.pop(name, None)
        if token is not None:
            await self._ended(name, token)

    async def require_room(self) -> None:
        """See SessionStore. `retry_after` is when the next session may expire."""
        _, _, count, next_end_ms = await self._run("count", "")
        if count >= self._max_sessions:
            raise no_room(self._max_sessions, next_end_ms / 1000)

    async def sweep(self) -> int:
        """See SessionStore. Redis removes sessions by itself; this removes their names and the copies of them."""
        unused_since = time.monotonic() - self._ttl_seconds
        while self._copies and next(iter(self._copies.values()))[1] < unused_since:
            self._copies.popitem(last=False)
        _, removed, *_ = await self._run("count", "")
        return int(removed)

    async def count(self) -> int:
        """See SessionStore. Takes at most a second."""
        _, _, count, _ = await self._run("count", "", timeout_seconds=_COUNT_SECONDS)
        return int(count)

    async def _run(
        self, operation: str, name: str, *arguments: str | bytes | int, timeout_seconds: float | None = None
    ) -> list[Any]:
        """Run an operation of the script on the session of this name.

        Raises:
            SessionNotFound, SessionBusy: that is what it has found.
            StoreUnavailable
        """
        reply = await self._server.run(*self._call(operation, name, *arguments), timeout_seconds)
        if reply[0] == b"gone":
            self._copies.pop(name, None)
            raise SessionNotFound
        if reply[0] == b"busy":
            raise SessionBusy
        return reply

    def _call(self, operation: str, name: str, *arguments: str | bytes | int) -> tuple[Keys, Arguments]:
        """An operation on the session of this name as the script takes it."""
        return _keys(name), [operation, name, int(self._ttl_seconds * 1000), *arguments]

    async def _run_until(
        self, until: float, operation: str, name: str, token: bytes, *arguments: str | bytes | int
    ) -> list[Any]:
        """Run an operation that is not to be done after `until` of the monotonic clock, whenever it comes to Redis."""
        while True:
            deadline_ms = int((until + self._seconds_ahead) * 1000)
            timeout_seconds = max(0.0, until - time.monotonic())
            reply = await self._run(operation, name, token, deadline_ms, *arguments, timeout_seconds=timeout_seconds)
            if reply[0] != b"late":
                return reply
            self._set_clock(reply[1])

    def _set_clock(self, redis_now_ms: int) -> None:
        self._seconds_ahead = redis_now_ms / 1000 - time.monotonic()

    async def _see(self, session_id: str, operation: str, token: bytes | None = None, until: float = 0) -> Copy:
        """Run an operation that tells what is new in a session; one with a token is not to be done after `until`."""
        name = public_id(session_id)
        known, _ = self._copies.get(name, (None, 0))
        what_is_known = known.place() if known else NOTHING_KNOWN
        if token is None:
            reply = await self._run(operation, name, *what_is_known)
        else:
            reply = await self._run_until(until, operation, name, token, _LEASE_MS, *what_is_known)
        self._set_clock(reply[1])
        try:
            seen = Copy.seen(session_id, known, reply, self._seal)
        except (*Unreadable, CannotUnseal) as exc:
            log.warning("Сессия %s не читается: она записана с другим SESSION_SECRET или испорчена.", name[:8])
            if token is not None:  # it may be other gateways' session, who know its secret
                await self._free(name, token)
            raise SessionNotFound from exc
        is_known_key = known is not None and known.sealed_key == seen.sealed_key
        if is_known_key or self._seal.is_newest(seen.sealed_key) or await self._reseal(seen):
            self._remember(seen)
        return seen

    async def _reseal(self, seen: Copy) -> bool:
        """Seal the key with the newest secret, so that the older ones can be given up; whether that was done."""
        sealed_key = self._seal.sealed(seen.session.vllm_api_key)
        with suppress(SessionNotFound, StoreUnavailable):
            await self._run("replace_key", seen.session.public_id, seen.sealed_key, sealed_key)
            return True
        return False

    async def _free(self, name: str, token: bytes, turn: TurnInFlight | None = None) -> bool:
        """Have a turn occupy a session no more; whether the session is still there, as far as is known."""
        cancelled = int(turn is not None and turn.cancelled)
        try:
            await self._run("release", name, token, cancelled, new_id(), timeout_seconds=_RELEASE_SECONDS)
        except SessionNotFound:
            return False
        except StoreUnavailable:  # the lease ends by itself
            return True
        return True

    async def _write(
        self, seen: Copy, session: Session, token: bytes, until: float, turn: TurnInFlight | None = None
    ) -> None:
        """Write what has changed in a session since it was seen.

        Args:
            seen: the session then.
            session: the session now.
            token: of this operation, which is done once however often it is sent; of `turn`, where it is one's.
            until: the monotonic clock; it is not done later, whenever it comes to Redis.
            turn: is over then.

        Raises:
            _Changed: somebody else was quicker.
            SessionBusy, SessionNotFound, StoreUnavailable
        """
        name, change, fence = session.public_id, seen.change(session), new_id()
        cancelled = int(turn is not None and turn.cancelled)
        numbers = (cancelled, change.oldest, change.newest)
        written = change.written()
        reply = await self._run_until(until, "write", name, token, seen.fence, fence, *numbers, *written)
        if reply[0] == b"changed":
            raise _Changed
        known = seen.after(session, change, fence)
        if known is None:
            self._copies.pop(name, None)
        else:
            self._remember(known)

    def _remember(self, seen: Copy) -> None:
        """Keep a copy. An older one that comes late does no harm: it only lacks more."""
        name = seen.session.public_id
        self._copies[name] = (seen, time.monotonic())
        self._copies.move_to_end(name)
        if len(self._copies) > self._max_sessions:
            self._copies.popitem(last=False)

    async def _ended(self, name: str, token: bytes) -> bool:
        """Have a turn stopped, wherever it is, and wait for its end; whether it was stopped before it was complete."""
        self._stop_turn(token)
        seconds = _FIRST_ASK_SECONDS
        while True:
            status, *more = await self._run("outcome", name, token)
            if status != b"running":
                return bool(more[0])
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LAST_ASK_SECONDS)

    def _stop_turn(self, token: bytes) -> None:
        """Stop a turn, if it is one of this gateway's."""
        for turn, held in self._held.items():
            if held.token == token:
                turn.cancel()

    async def _keep_leases(self) -> None:
        """Renew all leases so often that two renewals in a row may fail."""
        while True:
            begun = time.monotonic()
            turns = list(self._held)
            some = (turns[first : first + _HOLD_AT_ONCE] for first in range(0, len(turns), _HOLD_AT_ONCE))
            await asyncio.gather(*map(self._hold, some))
            await asyncio.sleep(_HOLD_SECONDS - (time.monotonic() - begun))

    async def _hold(self, turns: Sequence[TurnInFlight]) -> None:
        """Renew leases, and stop turns that are to be stopped, or have nothing to commit to any more."""
        held = [self._held[turn] for turn in turns]
        calls = [self._call("hold", one.seen.session.public_id, one.token, _LEASE_MS) for one in held]
        with suppress(StoreUnavailable):  # until next time
            replies = await self._server.run_all(calls, _HOLD_WITHIN_SECONDS)
            for turn, reply in zip(turns, replies, strict=True):
                if turn in self._held:
                    _obey(turn, reply)

    async def _look(self) -> None:
        """Tell the log when Redis comes and goes, and learn what the one that came is like."""
        ailment = await self._server.ailment()
        if ailment is not None:
            if self._is_up is not False:
                log.warning("%s%s", "Связь с Redis потеряна. " if self._is_up else "", ailment)
            self._is_up = False
        elif not self._is_up:
            with suppress(StoreUnavailable):
                self._warnings = _warnings(await self._server.about())
                log.info("Redis отвечает, открытых сессий: %d", await self.count())
                for warning in self._warnings:
                    log.warning("ВНИМАНИЕ! %s", warning)
                self._is_up = True


def _obey(turn: TurnInFlight, reply: list[Any] | StoreUnavailable) -> None:
    """What the renewal of a turn's lease has found."""
    match reply:
        case [b"stop"]:
            turn.cancel()
        case [b"gone"]:
            turn.lose(SessionNotFound())
        case [b"lost"]:
            turn.lose(StoreUnavailable(_LOST))


def _keys(name: str) -> list[str]:
    """As the script takes them."""
    session = f"{_PREFIX}:session:{name}"
    return [session, f"{session}:pairs", f"{session}:turn", f"{_PREFIX}:sessions"]


def _warnings(about: Mapping[str, str | int]) -> list[str]:
    """What Redis says of itself that the owner of the gateway would want otherwise."""
    warnings = []
    if about.get("maxmemory") and about.get("maxmemory_policy") != "noeviction":
        warnings.append(_EVICTING.format(policy=about.get("maxmemory_policy")))
    if not about.get("aof_enabled"):
        warnings.append(_FORGETFUL)
    return warnings
