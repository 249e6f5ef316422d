"""A real Redis for tests, which can be killed, stopped and started again on its data."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.readme import ROOT
from tests.servers import lasting_port

PASSWORD = "of-the-tests"
PROGRAMS = ("redis-server", "valkey-server")
SECRET = "a secret of the tests' own and long enough"


def program() -> str | None:
    """Where the server is; None where none is installed."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


def documented_rights() -> list[str]:
    """What a gateway is allowed to do by the line in docs/scaling.md, as Redis has it."""
    [line] = re.findall(r"^user gateway .*$", (ROOT / "docs/scaling.md").read_text(encoding="utf-8"), re.MULTILINE)
    rights: list[str] = line.replace("ПАРОЛЬ", PASSWORD).split()[2:]
    return rights


class RedisProcess:
    """A server on a port of its own, with its data in a folder.

    Attributes:
        address: where it listens.
        url: for SESSION_STORE_URL; a gateway may do there what it has to, and no more.
        client: speaks with it, past the gateways, and may do anything.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._port = lasting_port()
        self.address = f"127.0.0.1:{self._port}"
        self.url = f"redis://gateway:{PASSWORD}@{self.address}/0"
        self.client: Any = Redis(port=self._port, retry=Retry(NoBackoff(), 0))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Of a gateway that keeps its sessions there."""
        return {"session_store_url": self.url, "session_secret": SECRET}

    @property
    def environ(self) -> dict[str, str]:
        """The same as variables."""
        return {name.upper(): value for name, value in self.settings.items()}

    @property
    def pid(self) -> int:
        """Of the server that runs now."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, on the data that it had, and wait until it serves."""
        path = program()
        assert path is not None
        command = [path, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        command += ["--user", "gateway", *documented_rights()]
        self._process = subprocess.Popen([*command, *self._options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while True:
            with suppress(redis_errors.RedisError):
                self.client.ping()
                return
            assert time.monotonic() < until, "Redis does not start"
            time.sleep(0.01)

    def kill(self) -> None:
        """Have it end at once, as when the power fails or memory runs out."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While inside it keeps its connections and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def sessions(self) -> list[bytes]:
        """The keys of all sessions."""
        return [key for key in self.client.keys("*:session:*") if key.count(b":") == 3]


@contextmanager
def redis_process(folder: Path, *options: str) -> Iterator[RedisProcess]:
    """A server for as long as the block lasts; the test is skipped where none is installed."""
    if program() is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    server = RedisProcess(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.client.close()
        server.kill()
