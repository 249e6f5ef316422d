"""The real vLLM, started once for all tests of this folder, and a gateway in front of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.config import Settings
from app.main import create_app
from demo.stand import Server, start_vllm
from tests.conftest import Gateway, StartGateway
from tests.scripted_vllm import KEY
from tests.servers import serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting the real vLLM counts as part of the first test that needs it."""
    for item in items:
        if "real_vllm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))


class RealVLLM:
    """The running server."""

    def __init__(self, server: Server) -> None:
        self.url = server.url
        self._http = httpx2.Client(base_url=server.url, timeout=60)

    def running(self) -> int:
        """Its own count of requests in flight, running or waiting."""
        text = self._http.get("/metrics").text
        counts = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*?\} (\S+)$", text, re.MULTILINE)
        assert len(counts) >= 2, text
        return int(sum(map(float, counts)))

    def tokenize(self, messages: list[dict[str, Any]]) -> int:
        """Its own count of prompt tokens."""
        return int(self._http.post("/tokenize", json={"messages": messages}).json()["count"])

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


@pytest.fixture(scope="session")
def real_vllm(model_folder: Path) -> Iterator[RealVLLM]:
    with start_vllm(model_folder, KEY) as server:
        server.wait_until_ready()
        vllm = RealVLLM(server)
        vllm.running()  # the first /metrics takes seconds
        yield vllm
        vllm.close()


@pytest.fixture
def start_gateway(real_vllm: RealVLLM, model_folder: Path) -> StartGateway:
    """Starts a gateway in front of the real vLLM."""

    @contextmanager
    def start(**settings: Any) -> Iterator[Gateway]:
        defaults = {"vllm_base_url": f"{real_vllm.url}/v1", "tokenizer_path": str(model_folder)}
        with (
            serve(create_app(Settings(**{**defaults, **settings}))) as url,
            httpx2.Client(base_url=url, timeout=60) as http,
        ):
            yield Gateway(url, http)

    return start
