"""A gateway, and behind it a network and a scripted vLLM that fail and recover without anyone touching the gateway."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.types import ASGIApp, Receive, Scope, Send

from app.config import Settings
from app.main import create_app
from tests.conftest import Gateway
from tests.proxy import Network, network_to
from tests.scripted_vllm import ScriptedVLLM
from tests.servers import serve, unanswering

_HOST = "vllm.invalid"


class Names:
    """Tells the loop of an app's server where vLLM is. Left to itself, the resolver knows no name in `.invalid`."""

    def __init__(self, app: ASGIApp) -> None:
        self.are_known = True
        self._app = app
        self._loop: asyncio.AbstractEventLoop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self.tell(asyncio.get_running_loop())
        await self._app(scope, receive, send)

    def tell(self, loop: asyncio.AbstractEventLoop) -> None:
        look_up = loop.getaddrinfo

        async def getaddrinfo(host: str, port: int, **more: int) -> Any:
            return await look_up("127.0.0.1" if host == _HOST and self.are_known else host, port, **more)

        loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign, assignment]


class World:
    """What a test of faults has before it.

    Attributes:
        script: of the vLLM.
        network: the way to it, while there is one.
        settings: of the gateway.
        names: what it knows.
        gateway: the gateway, which nobody touches.
    """

    def __init__(self, script: ScriptedVLLM, url: str) -> None:
        self.script = script
        self._url = url
        self._up = ExitStack()
        self._port = 0
        self.settings: Settings
        self.names: Names
        self.gateway: Gateway
        self.come_up()

    def come_up(self) -> None:
        self.network: Network = self._up.enter_context(network_to(self._url, self._port))
        self._port = int(self.network.url.rpartition(":")[2])

    def go_down(self) -> None:
        """From now on connections are refused, and there are none."""
        self._up.close()

    @property
    def base_url(self) -> str:
        return f"http://{_HOST}:{self._port}/v1"

    @contextmanager
    def refusing(self) -> Iterator[None]:
        self.go_down()
        try:
            yield
        finally:
            self.come_up()

    @contextmanager
    def nameless(self) -> Iterator[None]:
        """As when Docker has stopped vLLM's container: not even its name is there."""
        self.names.are_known = False
        try:
            with self.refusing():
                yield
        finally:
            self.names.are_known = True

    @contextmanager
    def unanswering(self) -> Iterator[None]:
        with self.refusing(), unanswering(port=self._port):
            yield

    def chats(self) -> int:
        """How many times vLLM was asked over the present network."""
        return sum(data.startswith(b"POST /v1/chat/") for data in self.network.seen)


@contextmanager
def world(model_folder: Path, **settings: Any) -> Iterator[World]:
    """A world with a gateway's settings of its own."""
    script = ScriptedVLLM()
    with ExitStack() as stack:
        made = World(script, stack.enter_context(serve(script.app)))
        stack.callback(made.go_down)
        made.settings = Settings(vllm_base_url=made.base_url, tokenizer_path=str(model_folder), **settings)
        made.names = Names(create_app(made.settings))
        url = stack.enter_context(serve(made.names))
        made.gateway = Gateway(url, stack.enter_context(httpx2.Client(base_url=url, timeout=60)))
        yield made
