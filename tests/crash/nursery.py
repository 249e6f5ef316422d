"""Gateways that start in a moment: processes forked from one that has imported everything.

Started as a program it reads a JSON object with `port` and `environ` from each line, forks a gateway, and answers with
its process id.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any, Self

import uvicorn

import app.main  # noqa: F401 - what takes long to import
from app.protocol import BoundedProtocol


class Nursery:
    """The program, as a test uses it; all gateways that it has started end with it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.crash.nursery"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._pids: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in list(self._pids):
            self.kill(pid)
        self._process.communicate(timeout=10)

    def start(self, port: int, **environ: str) -> int:
        """Start a gateway; returns the id of its process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"port": port, "environ": environ}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self._pids.add(pid)
        return pid

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a gateway; after the usual one it is gone."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        if number == signal.SIGKILL:
            self._pids.discard(pid)


def _serve(asked: Any) -> None:
    os.environ.update(asked["environ"])
    with open(os.devnull) as nothing, open(os.environ["GATEWAY_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    uvicorn.run("app.main:app", port=asked["port"], http=BoundedProtocol, timeout_graceful_shutdown=5)


def _main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for their ends
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _serve(json.loads(line))
            return
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
