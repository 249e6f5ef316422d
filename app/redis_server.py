"""Talking with Redis, or Valkey: one script, its errors in our words, and messages from other gateways."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from pydantic import SecretStr
from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.errors import StoreUnavailable

log = logging.getLogger(__name__)

Keys = Sequence[str]
Arguments = Sequence[str | bytes | int]

# So many operations at once; one takes a fraction of a millisecond.
_CONNECTIONS = 32
_SCRIPT = "redis_store.lua"
_LISTEN_AGAIN_SECONDS = 1.0
_PING_SECONDS = 1.0
_SHOWN_LETTERS = 200

_NO_ANSWER = "Redis не отвечает: проверьте, что он запущен, и SESSION_STORE_URL."
_NOT_ALLOWED = "Redis не принимает имя и пароль из SESSION_STORE_URL, или у этого пользователя мало прав."
# The first that fits: the words for it, and whether it may well be over in a moment.
_ERRORS: tuple[tuple[type[redis_errors.RedisError], str, bool], ...] = (
    (redis_errors.AuthenticationError, _NOT_ALLOWED, False),
    (redis_errors.AuthenticationWrongNumberOfArgsError, _NOT_ALLOWED, False),
    (redis_errors.AuthorizationError, _NOT_ALLOWED, False),
    (redis_errors.NoPermissionError, _NOT_ALLOWED, False),
    (redis_errors.BusyLoadingError, "Redis запускается и ещё читает свои данные.", True),
    (redis_errors.OutOfMemoryError, "У Redis кончилась память: увеличьте его maxmemory.", False),
    (redis_errors.ReadOnlyError, "В SESSION_STORE_URL — реплика Redis, а нужен главный: реплика не пишет.", True),
    (redis_errors.ConnectionError, _NO_ANSWER, True),
    (redis_errors.TimeoutError, _NO_ANSWER, True),
    (redis_errors.ResponseError, "Redis отказал: {words}", False),
    (redis_errors.RedisError, "Redis ответил не то, что должен.", False),
)


class RedisServer:
    """Runs the operations of a script, any number at once.

    An operation whose connection breaks is sent once more over a new one, as after a restart of Redis; it may have been
    done already.
    """

    def __init__(self, url: SecretStr, timeout_seconds: float) -> None:
        """`timeout_seconds` is the bound on any operation."""
        pool = BlockingConnectionPool.from_url(
            url.get_secret_value(),
            max_connections=_CONNECTIONS,
            timeout=None,  # an operation has one bound for all that it waits for
            socket_timeout=None,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 1),
            protocol=2,  # nothing here needs the third, which takes longer to parse
        )
        self._redis = Redis.from_pool(pool)
        self._script = self._redis.register_script(files("app").joinpath(_SCRIPT).read_text(encoding="utf-8"))
        self.timeout_seconds = timeout_seconds

    async def aclose(self) -> None:
        """Close all connections."""
        await self._redis.aclose()

    async def run(self, keys: Keys, arguments: Arguments, timeout_seconds: float | None = None) -> list[Any]:
        """Run the script. Raises StoreUnavailable, see `_ERRORS`."""
        async with self._bounded(self.timeout_seconds if timeout_seconds is None else timeout_seconds):
            return list(await self._script(keys, arguments))

    async def run_all(
        self, calls: Sequence[tuple[Keys, Arguments]], timeout_seconds: float
    ) -> list[list[Any] | StoreUnavailable]:
        """Run the script many times, one after the other. Raises StoreUnavailable where none of them was answered."""
        async with self._bounded(timeout_seconds), self._redis.pipeline(transaction=False) as pipeline:
            for keys, arguments in calls:
                await self._script(keys, arguments, client=pipeline)
            replies = await pipeline.execute(raise_on_error=False)
        return [translated(reply) if isinstance(reply, redis_errors.RedisError) else reply for reply in replies]

    async def ailment(self) -> str | None:
        """Why it does not answer, in Russian; None where it does. Takes at most a second."""
        try:
            async with self._bounded(min(_PING_SECONDS, self.timeout_seconds)):
                await self._redis.ping()
        except StoreUnavailable as exc:
            return exc.detail
        return None

    async def about(self) -> dict[str, str | int]:
        """What it says of itself (INFO). Raises StoreUnavailable."""
        async with self._bounded(self.timeout_seconds):
            return dict(await self._redis.info())

    async def listen(self, channel: str, hear: Callable[[bytes], None]) -> None:
        """Pass every message on a channel on, for ever; those are missed that come while there is no connection."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as messages:
                    await messages.subscribe(channel)
                    async for message in messages.listen():
                        hear(message["data"])
            except redis_errors.RedisError as exc:
                log.debug("Связь с Redis для сообщений прервалась: %s", type(exc).__name__)
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)

    @asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """Give what is done inside so much time, and translate its errors."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise StoreUnavailable("Redis не ответил вовремя (SESSION_STORE_TIMEOUT_SECONDS).") from None
        except redis_errors.RedisError as exc:
            raise translated(exc) from exc
        except OSError as exc:  # files of TLS
            raise StoreUnavailable(f"{_NO_ANSWER} ({exc.strerror or type(exc).__name__})", passes=True) from exc


def translated(error: redis_errors.RedisError) -> StoreUnavailable:
    """An error of the library in our words."""
    _, detail, passes = next(row for row in _ERRORS if isinstance(error, row[0]))
    return StoreUnavailable(detail.format(words=str(error)[:_SHOWN_LETTERS]), passes=passes)
