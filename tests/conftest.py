"""Fixtures: a model folder, a scripted vLLM, gateways in front of it, and sessions on them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.config import Settings
from app.main import create_app
from demo import stand
from tests.screen import Screen, Talk, client_on_screen
from tests.scripted_vllm import KEY, ScriptedVLLM
from tests.servers import serve, wait_until

SHARED = Path(__file__).resolve().parents[2] / "shared"
SHARED_TOKENIZERS = SHARED / "tokenizers"
# What tests of a marker need beside the project.
NEEDS = {"shared_tokenizers": SHARED_TOKENIZERS, "docker": SHARED / "docker"}


@dataclass
class Gateway:
    """A running gateway and a client of it."""

    url: str
    http: httpx2.Client

    def post(self, path: str, **body: Any) -> httpx2.Response:
        """POST a JSON body."""
        return self.http.post(path, json=body)

    def ok(self, path: str, **body: Any) -> Any:
        """POST a JSON body; the answer must be a 200."""
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, status: int, code: str, path: str, **body: Any) -> Any:
        """POST a JSON body; the answer must be this problem."""
        return problem(self.post(path, **body), status, code)

    def session_count(self) -> int:
        """How many sessions are open."""
        return int(self.http.get("/health").json()["sessions"])

    def metrics(self) -> Callable[..., float]:
        """Its /metrics now; the value gives a sample by its name and labels, 0 where there is none."""
        response = self.http.get("/metrics")
        assert response.status_code == 200
        samples = {
            (sample.name.removeprefix("chat_gateway_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }
        return lambda name, *labels: samples.get((name, *labels), 0.0)

    def open(self, **body: Any) -> "SessionOf":
        """Open a session."""
        return SessionOf(self, self.ok("/init_session", **{"vllm_api_key": KEY, **body})["session_id"])


@dataclass
class SessionOf:
    """A session on a gateway."""

    gateway: Gateway
    id: str

    def ok(self, path: str, **body: Any) -> Any:
        """POST with this session's id; the answer must be a 200."""
        return self.gateway.ok(path, session_id=self.id, **body)

    def refused(self, status: int, code: str, path: str, **body: Any) -> Any:
        """POST with this session's id; the answer must be this problem."""
        return self.gateway.refused(status, code, path, session_id=self.id, **body)

    def stream(self, message: str, **body: Any) -> AbstractContextManager[httpx2.EventSource]:
        """POST a streamed /chat."""
        return self.gateway.http.sse(
            "/chat", method="POST", json={"session_id": self.id, "message": message, "stream": True, **body}
        )

    def events(self, message: str, **body: Any) -> list[tuple[str, Any]]:
        """POST a streamed /chat and read it to its end."""
        with self.stream(message, **body) as source:
            assert source.response.status_code == 200
            return [(event.event, event.json()) for event in source]

    def contents(self) -> list[str]:
        """The texts of /history; they must alternate."""
        messages = self.ok("/history")["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        return [message["content"] for message in messages]


def problem(response: httpx2.Response, status: int, code: str) -> Any:
    """Check that a response is this RFC 9457 problem; returns the object."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert body["type"].endswith(code)
    assert body["title"]
    assert body["detail"]
    return body


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The small generated model."""
    return stand.generated_model()


@pytest.fixture
def linked_model(model_folder: Path, tmp_path: Path) -> Path:
    """A folder of links to the small model's files, for tests that put something else in place of one."""
    folder = tmp_path / "linked"
    folder.mkdir()
    for path in model_folder.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@dataclass
class Upstream:
    """The scripted vLLM and where it listens."""

    script: ScriptedVLLM
    url: str


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    script = ScriptedVLLM()
    with serve(script.app) as url:
        yield Upstream(script, url)


@pytest.fixture
def vllm(upstream: Upstream) -> ScriptedVLLM:
    """The script of the vLLM behind `gateway`."""
    return upstream.script


StartGateway = Callable[..., AbstractContextManager[Gateway]]


def gateways_before(vllm_url: str, model_folder: Path, timeout_seconds: float = 30) -> StartGateway:
    """What starts gateways in front of a vLLM, with settings of the test's own."""

    @contextmanager
    def start(port: int = 0, **settings: Any) -> Iterator[Gateway]:
        defaults = {"vllm_base_url": f"{vllm_url}/v1", "tokenizer_path": str(model_folder)}
        app = create_app(Settings(**{**defaults, **settings}))
        with serve(app, port) as url, httpx2.Client(base_url=url, timeout=timeout_seconds) as http:
            yield Gateway(url, http)

    return start


@contextmanager
def gateway_process(vllm_url: str, model_folder: Path, **environ: str) -> Iterator[tuple[Gateway, int]]:
    """A gateway in a process of its own, as it is shipped, and the process's id."""
    with stand.start_gateway(Path(sys.executable), vllm_url, model_folder, **environ) as server:
        server.wait_until_ready()
        with httpx2.Client(base_url=server.url, timeout=30) as http:
            yield Gateway(server.url, http), server.process.pid


@pytest.fixture
def start_gateway(upstream: Upstream, model_folder: Path) -> StartGateway:
    """Starts a gateway in front of the scripted vLLM."""
    return gateways_before(upstream.url, model_folder)


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Iterator[Gateway]:
    with start_gateway() as started:
        yield started


@pytest.fixture
def session(gateway: Gateway) -> SessionOf:
    return gateway.open()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Talk]:
    """Starts the terminal client in a terminal, with the key and a home of the test's own."""
    with ExitStack() as started:

        def open_screen(*arguments: str, columns: int = 80, rows: int = 24, **more: str) -> Screen:
            environ = {"VLLM_API_KEY": KEY, **more}
            screen = client_on_screen(*arguments, folder=tmp_path, environ=environ, columns=columns, rows=rows)
            return started.enter_context(screen)

        yield open_screen


@pytest.fixture
def talk(start: Talk, gateway: Gateway) -> Talk:
    """Starts it before the gateway."""

    def open_screen(*arguments: str, **more: Any) -> Screen:
        return start("--url", gateway.url, *arguments, **more)

    return open_screen


def wait_until_idle(vllm: ScriptedVLLM, seconds: float = 10.0) -> float:
    """Wait until no chat runs on the scripted vLLM; returns how long it took."""
    return wait_until(lambda: vllm.running == 0, seconds)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What async tests run on."""
    return "asyncio"


def lacking(item: pytest.Item) -> Path | None:
    """What a test needs beside the project and is not there."""
    needed = [folder for marker, folder in NEEDS.items() if item.get_closest_marker(marker)]
    return next((folder for folder in needed if not folder.is_dir()), None)


@cache
def docker_runs() -> bool:
    """Whether there is an engine to talk to."""
    return shutil.which("docker") is not None and (
        subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def pytest_configure() -> None:
    """A shell starts background jobs with SIGINT ignored, and what they start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what cannot run here, saying why."""
    if folder := lacking(item):
        pytest.skip(f"there is no {folder}")
    if item.get_closest_marker("docker") and not docker_runs():
        pytest.skip("no Docker engine runs")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failed one, unless what it needs beside the project is absent."""
    report = yield
    if report.skipped and os.environ.get("CI") and not lacking(item):
        report.outcome = "failed"
    return report
