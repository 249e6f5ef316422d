"""Fixtures: a real Redis, and stores in it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.memory_store import MemoryStore
from app.redis_server import RedisServer
from app.redis_store import RedisStore
from app.sealing import Seal
from app.sessions import SessionStore
from app.tasks import running
from tests.redis_process import SECRET, RedisProcess, redis_process

MAX_SESSIONS = 3

OpenStore = Callable[..., Awaitable[SessionStore]]


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis for all tests that do it no harm."""
    with redis_process(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisProcess) -> RedisProcess:
    """An empty Redis."""
    shared_redis.client.flushall()
    return shared_redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis to be treated badly, that keeps what it is told."""
    with redis_process(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@asynccontextmanager
async def redis_store(
    redis: RedisProcess,
    *,
    ttl_seconds: float = 600,
    max_sessions: int = 1000,
    timeout_seconds: float = 5,
    secrets: tuple[str, ...] = (SECRET,),
    url: SecretStr | None = None,
) -> AsyncIterator[RedisStore]:
    """A store as a gateway has it, with what it does on its own."""
    seal = Seal([SecretStr(secret) for secret in secrets])
    async with aclosing(RedisServer(url or SecretStr(redis.url), timeout_seconds)) as server:
        store = RedisStore(server, seal, ttl_seconds, max_sessions)
        async with running(store.run()):
            yield store


@pytest.fixture(params=["memory", "redis"])
async def open_store(request: pytest.FixtureRequest) -> AsyncIterator[OpenStore]:
    """Opens a store of either kind."""
    async with AsyncExitStack() as opened:

        async def open_one(ttl_seconds: float = 600, max_sessions: int = MAX_SESSIONS) -> SessionStore:
            if request.param == "memory":
                return MemoryStore(ttl_seconds, max_sessions)
            redis = request.getfixturevalue("redis")
            store = redis_store(redis, ttl_seconds=ttl_seconds, max_sessions=max_sessions)
            return await opened.enter_async_context(store)

        yield open_one


@pytest.fixture
async def store(open_store: OpenStore) -> SessionStore:
    """A store of either kind."""
    return await open_store()
