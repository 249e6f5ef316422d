"""Real servers on loopback for tests: uvicorn in a thread, on a port of its own."""

import asyncio
import itertools
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from app.protocol import BoundedProtocol


class QuickServer(uvicorn.Server):
    """Looks ten times as often whether it is to stop: hundreds of tests wait for two of them."""

    async def main_loop(self) -> None:
        """See uvicorn.Server."""
        for counter in itertools.cycle(range(100)):
            if await self.on_tick(counter):
                return
            await asyncio.sleep(0.01)


@contextmanager
def serve(app: ASGIApp, port: int = 0, address: str = "127.0.0.1") -> Iterator[str]:
    """Serve an ASGI app as the gateway is; yields its base URL, and stops it on leaving even if requests hang."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    config = uvicorn.Config(app, http=BoundedProtocol, log_config=None, timeout_graceful_shutdown=1)
    server = QuickServer(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield f"http://{address}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive(), "the server did not stop"


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> float:
    """Wait for a condition; returns how long it took, fails if it never holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - started


def lasting_port() -> int:
    """A free port that stays so while its server is down.

    Below those that the system gives to connections: who tries to connect to one of these in vain may get that very
    port for his own end, and is connected to himself.
    """
    while True:
        port = random.randint(10_000, 30_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def unused_url() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@contextmanager
def unanswering(address: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port at which nobody answers, not even to refuse; yields it."""
    with socket.create_server((address, port), backlog=0) as listener, ExitStack() as waiting:
        while True:
            client = waiting.enter_context(socket.socket())
            client.settimeout(1.0)
            try:
                client.connect(listener.getsockname())
            except TimeoutError:
                break
        yield int(listener.getsockname()[1])
