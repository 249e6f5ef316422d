"""The real vLLM, started once for all tests of this folder, and a gateway in front of it."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from bench.cancel import in_flight
from demo.stand import free_port, start_vllm
from tests.conftest import StartGateway, gateways_before
from tests.e2e.pairs import PAIRS, count_with_the_default_pair, resolve
from tests.processes import command_of, descendants
from tests.scripted_vllm import KEY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting the real vLLM counts as part of the first test that needs it."""
    for item in items:
        if "real_vllm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


class RealVLLM:
    """The running server; started again, it listens where it did.

    Attributes:
        url: where that is.
    """

    def __init__(self, model_folder: Path) -> None:
        self._model_folder = model_folder
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it and wait until it serves."""
        self._server = start_vllm(self._model_folder, KEY, port=self._port)
        self._http = httpx2.Client(base_url=self.url, timeout=60)
        try:
            self._server.wait_until_ready()
            self.running()  # the first /metrics takes seconds
        except BaseException:
            self.kill()
            raise

    def running(self) -> int:
        """Its own count of requests in flight, running or waiting."""
        return in_flight(self._http)

    @contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """Its engine hangs, while its server goes on."""
        [engine] = [pid for pid in descendants(self._server.process.pid) if "VLLM::EngineCore" in command_of(pid)]
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, its engine included."""
        self._http.close()
        self._server.kill()

    def stop(self) -> None:
        """End it."""
        self._http.close()
        self._server.stop()


@dataclass(frozen=True)
class Begun:
    """Work that takes minutes and is begun before it is asked for: it goes on beside tests that wait for a vLLM.

    Attributes:
        resolved: what pip would install, by pair of versions.
        counted: the tests of counting with the default pair's libraries, see `count_with_the_default_pair`.
    """

    resolved: dict[str, "Future[dict[str, str]]"]
    counted: "Future[tuple[list[str], str]]"


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Begun]:
    del model_folder  # only that not both make it
    with ThreadPoolExecutor(1) as one_by_one:
        counted = one_by_one.submit(count_with_the_default_pair, tmp_path_factory.mktemp("default-pair"))
        yield Begun({pair: one_by_one.submit(resolve, pair) for pair in PAIRS}, counted)
        one_by_one.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="session", autouse=True)
def _begin(request: pytest.FixtureRequest) -> None:
    if any("begun" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("begun")


@pytest.fixture(scope="session")
def real_vllm(model_folder: Path) -> Iterator[RealVLLM]:
    vllm = RealVLLM(model_folder)
    yield vllm
    vllm.stop()


@pytest.fixture
def start_gateway(real_vllm: RealVLLM, model_folder: Path) -> StartGateway:
    """Starts a gateway in front of the real vLLM."""
    return gateways_before(real_vllm.url, model_folder, timeout_seconds=60)
