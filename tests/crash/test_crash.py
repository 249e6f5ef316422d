"""`kill -9` at any moment of busy sessions. CRASH_TIMES=20 makes it a long run."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from app.redis_store import LEASE_SECONDS
from tests.conftest import Upstream
from tests.crash.nursery import Nursery
from tests.crash.talks import Talk, open_talks
from tests.redis_process import RedisProcess, redis_process
from tests.servers import lasting_port, wait_until

TIMES = int(os.environ.get("CRASH_TIMES", "1"))
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60 + 60 * TIMES)]
GATEWAYS = 3
SESSIONS = 50
TURNS = 20 if TIMES > 1 else 8
SECONDS = 5.0


class Gateways:
    """Gateways on one Redis, each at an address that it keeps when it is killed and started again."""

    def __init__(self, nursery: Nursery, environ: dict[str, str]) -> None:
        self._nursery = nursery
        self._environ = environ
        self.ports = [lasting_port() for _ in range(GATEWAYS)]
        self.pids = [nursery.start(port, **environ) for port in self.ports]

    def kill(self, number: int) -> None:
        """Have one end at once, and start it anew."""
        self.stop(number, signal.SIGKILL)
        self.start(number)

    def stop(self, number: int, how: signal.Signals) -> None:
        """Send a signal to one."""
        self._nursery.kill(self.pids[number], how)

    def start(self, number: int) -> None:
        """Start one anew."""
        self.pids[number] = self._nursery.start(self.ports[number], **self._environ)

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[list[httpx2.AsyncClient]]:
        """One of each, once it serves."""
        async with AsyncExitStack() as opened:
            limits = httpx2.Limits(max_connections=None)
            clients = [
                await opened.enter_async_context(
                    httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits)
                )
                for port in self.ports
            ]
            for client in clients:
                await serving(client)
            yield clients


async def serving(client: httpx2.AsyncClient) -> None:
    """Wait until a gateway serves."""
    for _ in range(200):
        with suppress(httpx2.HTTPError):
            if (await client.get("/ready")).status_code == 200:
                return
        await asyncio.sleep(0.05)
    raise AssertionError("it does not serve")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis that loses nothing that it has acknowledged."""
    with redis_process(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as started:
        yield started


@pytest.fixture
def gateways(
    nursery: Nursery, redis: RedisProcess, upstream: Upstream, model_folder: Path, tmp_path: Path
) -> Iterator[Gateways]:
    environ = {
        "VLLM_BASE_URL": f"{upstream.url}/v1",
        "TOKENIZER_PATH": str(model_folder),
        **redis.environ,
        "GATEWAY_LOG": str(tmp_path / "gateways.log"),
        "LOG_LEVEL": "WARNING",
    }
    started = Gateways(nursery, environ)
    yield started
    for pid in started.pids:
        nursery.kill(pid)
    assert "Traceback" not in (tmp_path / "gateways.log").read_text(encoding="utf-8")


async def check(talks: list[Talk], clients: list[httpx2.AsyncClient]) -> str:
    """Whether all is there that was acknowledged, whichever gateway is asked, and every session free in time."""
    until = time.monotonic() + LEASE_SECONDS + 1
    kept = 0
    for talk in talks:
        client = random.choice(clients)
        history = await client.post("/history", json={"session_id": talk.id})
        kept += talk.check(history.json()["messages"])
        while (await client.post("/set_system_prompt", json={"session_id": talk.id, "system_prompt": ""})).is_error:
            assert time.monotonic() < until, "locked for longer than the lease"
            await asyncio.sleep(0.1)
    assert max(talk.busy_seconds for talk in talks) < LEASE_SECONDS + 1
    acknowledged, in_doubt = sum(len(talk.answers) for talk in talks), sum(len(talk.in_doubt) for talk in talks)
    assert acknowledged > len(talks)
    return f"turns acknowledged: {acknowledged}; in doubt to the end: {in_doubt}, of them kept: {kept}"


async def test_killed_at_any_moment(gateways: Gateways, redis: RedisProcess) -> None:
    killed = {"gateway": 0, "redis": 0}

    def kill() -> None:
        victim = random.choice(list(killed))
        killed[victim] += 1
        if victim == "gateway":
            gateways.kill(random.randrange(GATEWAYS))
        else:
            redis.kill()
            redis.start()

    async with gateways.clients() as clients:
        talks = await open_talks(clients[0], SESSIONS)
        until = time.monotonic() + SECONDS * TIMES
        talking = [asyncio.create_task(talk.lead(clients, lambda _: time.monotonic() < until)) for talk in talks]
        while time.monotonic() < until - 1:
            await asyncio.sleep(random.uniform(0.02, 0.3))
            await asyncio.to_thread(kill)
        await asyncio.gather(*talking)
        for client in clients:
            await serving(client)
        found = await check(talks, clients)
    print(f"killed: {killed}; {found}")  # noqa: T201 - for `pytest -s`


async def test_sessions_spread_over_gateways_of_which_one_dies_and_one_is_restarted(gateways: Gateways) -> None:
    async with gateways.clients() as clients:
        talks = await open_talks(clients[0], SESSIONS * TIMES)
        for talk in talks:
            talk.asks_again = True
        talking = [asyncio.create_task(talk.lead(clients, lambda number: number < TURNS)) for talk in talks]

        def share_done() -> float:
            return sum(len(talk.answers) for talk in talks) / len(talks) / TURNS

        await asyncio.to_thread(wait_until, lambda: share_done() > 0.2, 600)
        gateways.stop(0, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: share_done() > 0.4, 600)
        gateways.stop(1, signal.SIGTERM)
        await asyncio.sleep(0.5)
        gateways.start(1)
        await asyncio.gather(*talking)
        found = await check(talks, clients[1:])
    assert all(list(talk.answers) == list(range(TURNS)) for talk in talks)
    assert not any(talk.in_doubt for talk in talks)
    print(found)  # noqa: T201 - for `pytest -s`
