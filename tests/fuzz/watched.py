"""A gateway that is watched while it is fuzzed."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Settings
from app.main import create_app
from tests.conftest import Gateway
from tests.servers import serve, wait_until

# For a long run: so many times as many examples, and other ones each time.
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


class Watched:
    """An app whose answers are counted, and whose tasks can be looked at.

    Attributes:
        answers: how many there were, by path and status.
        loop: the one that the app runs on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._app = app
        self._usual: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.loop = asyncio.get_running_loop()

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.answers[scope["path"], message["status"]] += 1
            await send(message)

        await self._app(scope, receive, send_and_count)

    def statuses(self, path: str) -> set[int]:
        """What a path has answered with."""
        return {status for answered, status in self.answers if answered == path}

    def settle(self) -> None:
        """Take the tasks that are there now for those that always are."""
        assert self.loop is not None
        self._usual = asyncio.all_tasks(self.loop)

    def left(self) -> set[asyncio.Task[Any]]:
        """Tasks that were not there when it had settled."""
        assert self.loop is not None
        return {task for task in asyncio.all_tasks(self.loop) - self._usual if not task.done()}

    def wait_until_quiet(self) -> None:
        """Wait until no request has left anything running."""
        wait_until(lambda: not self.left())


@contextmanager
def watched_gateway(vllm_url: str, model_folder: Path, **settings: Any) -> Iterator[tuple[Gateway, Watched]]:
    """Start one, with settings of the test's own."""
    # Whoever tries wrong keys all the time would have no sessions after a while; and vLLM is to hear of turns only.
    unlimited = {"max_key_failures_per_minute": 0, "vllm_stall_seconds": 0}
    defaults = {"vllm_base_url": f"{vllm_url}/v1", "tokenizer_path": str(model_folder), **unlimited}
    watched = Watched(create_app(Settings(**{**defaults, **settings})))
    with serve(watched) as url, httpx2.Client(base_url=url, timeout=30) as http:
        watched.settle()
        yield Gateway(url, http), watched
