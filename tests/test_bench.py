"""The measurements say how they are used, and what bench.overhead measures with understands each other."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from bench.load import BadAnswer, Connection, opened
from bench.quick_vllm import serve
from bench.saturation import arguments, measure
from bench.talks import CompletionsTalk, GatewayTalk, ResponsesTalk, Talk
from demo.stand import free_port
from tests.conftest import gateways_before

pytestmark = pytest.mark.anyio


BENCH = Path(__file__).parents[1] / "bench"
PROGRAMS = sorted(path.stem for path in BENCH.glob("*.py") if "__main__" in path.read_text())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_measurement_says_how_it_is_used(name: str) -> None:
    command = [sys.executable, "-m", f"bench.{name}", "--help"]
    shown = subprocess.run(command, cwd=BENCH.parent, capture_output=True, text=True, check=True).stdout
    assert shown.startswith("usage: ")
    assert f"python -m bench.{name}" in shown


async def lead(url: str, talk_with: Callable[[Connection], Talk]) -> None:
    """A talk of every kind of turn; every token of a stream is seen once."""
    [connection] = await opened(url, 1)
    talk = talk_with(connection)
    for _ in range(2):
        await talk.begin()
        for _ in range(3):
            await talk.turn()
        await talk.stream(20)
        assert connection.events == 20
        assert 1 <= len(connection.arrivals) <= 20
    with pytest.raises(BadAnswer):
        await connection.get("/nothing")
    connection.close()


async def listening(url: str) -> None:
    with anyio.fail_after(10):
        while True:
            with suppress(ConnectionError):
                [connection] = await opened(url, 1)
                connection.close()
                return
            await asyncio.sleep(0.01)


@pytest.fixture
async def upstream() -> AsyncIterator[str]:
    """The URL of the fast upstream."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serving = asyncio.create_task(serve(port))
    await listening(url)
    yield url
    serving.cancel()


async def test_talks(upstream: str, model_folder: Path) -> None:
    await lead(upstream, CompletionsTalk)
    await lead(upstream, ResponsesTalk)
    with gateways_before(upstream, model_folder)() as gateway:
        await lead(gateway.url, GatewayTalk)


async def test_saturation(upstream: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with gateways_before(upstream, model_folder)() as gateway:
        await measure(arguments([upstream, gateway.url, "--key=k", "--streams", "2", "--tokens=20", "--rounds=1"]))
    head, columns, *rows = capsys.readouterr().out.splitlines()[1:]
    assert (head, columns.split()[0]) == ("streams: 2", "tokens/s")
    names, rates, *_ = zip(*(row.split() for row in rows), strict=True)
    assert names == ("direct", "gateway")
    assert all(float(rate) > 0 for rate in rates)
