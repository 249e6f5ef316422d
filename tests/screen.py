"""A terminal that remembers all it was shown: a pseudo-terminal with an emulator behind it."""

import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pexpect
import pyte

from tests.readme import ROOT
from tests.servers import wait_until

KEYS = {
    "enter": "\r",
    "alt-enter": "\x1b\r",
    "ctrl-c": "\x03",
    "ctrl-d": "\x04",
    "ctrl-r": "\x12",
    "ctrl-u": "\x15",
    "tab": "\t",
    "up": "\x1b[A",
    "backspace": "\x7f",
}
_SCROLLBACK_LINES = 5000


class _Emulator(pyte.HistoryScreen):
    """A terminal that answers when a program asks where the cursor is."""

    answer: Callable[[str], object]

    def write_process_input(self, data: str) -> None:
        """See pyte."""
        with suppress(OSError):  # the program has ended, or was ended, before the answer
            self.answer(data)


class Screen:
    """A program in a terminal of its own; what it is shown is read in a thread, as a terminal does."""

    def __init__(
        self, command: Sequence[str], folder: Path, environ: Mapping[str, str], columns: int = 80, rows: int = 24
    ) -> None:
        self._screen = _Emulator(columns, rows, history=_SCROLLBACK_LINES)
        self._stream = pyte.Stream(self._screen)
        self._lock = threading.Lock()
        self.child: pexpect.spawn[str] = pexpect.spawn(
            command[0],
            list(command[1:]),
            cwd=folder,
            env={"TERM": "xterm-256color", **environ},
            encoding="utf-8",
            dimensions=(rows, columns),
        )
        self.child.delaybeforesend = None
        self._screen.answer = self.child.send
        self.received = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.child.close(force=True)
        self._reader.join(5)

    def press(self, *keys: str) -> None:
        """Press keys of `KEYS`."""
        for key in keys:
            self.child.send(KEYS[key])

    def type(self, text: str) -> None:
        """Type letters."""
        self.child.send(text)

    def paste(self, text: str) -> None:
        """Paste as a terminal with bracketed paste does."""
        self.child.send(f"\x1b[200~{text}\x1b[201~")

    def say(self, text: str) -> None:
        """Type a line at an empty prompt and send it."""
        self.wait_for_prompt()
        self.type(text)
        self.wait_for_line(f"Вы> {text}"[: self._screen.columns])
        self.press("enter")

    def wait_for(self, text: str, seconds: float = 10.0) -> None:
        """Wait until a text is anywhere on the screen or has scrolled away; line ends count as spaces."""
        wanted = " ".join(text.split())
        self._wait(lambda: wanted in " ".join(self.text().split()), repr(text), seconds)

    def wait_for_prompt(self, draft: str = "") -> None:
        """Wait until the prompt is there, with this in it."""
        self.wait_for_line(f"Вы> {draft}".rstrip())

    def wait_for_line(self, text: str) -> None:
        """Wait until the cursor stands in a line that begins the screen's line with this text and has no other."""
        self._wait(lambda: self.cursor_line() == text.rstrip(), f"the line {text!r}", 10.0)

    def wait_for_reply_to(self, message: str) -> None:
        """Wait until the first words of a reply are shown and more may come: what Ctrl-C stops now is kept."""
        begun = re.compile(rf"Вы> {re.escape(message)}\s+\S.*\s\d:\d\d · Ctrl-C — остановить", re.DOTALL)
        self._wait(lambda: begun.search(self.text()) is not None, f"a reply to {message!r}", 60.0)

    def wait_for_end(self) -> int:
        """Wait until the program has ended; returns its exit code."""
        self._reader.join(15)
        assert not self._reader.is_alive(), f"it has not ended:\n{self.text()}"
        self.child.wait()
        assert self.child.exitstatus is not None, f"killed by {self.child.signalstatus}"
        return self.child.exitstatus

    def cursor_line(self) -> str:
        """The line where the cursor is."""
        with self._lock:
            return self._screen.display[self._screen.cursor.y].rstrip()

    def text(self) -> str:
        """All lines, those that have scrolled away first, without what is empty at their ends."""
        with self._lock:
            scrolled = [_text_of(line, self._screen.columns) for line in self._screen.history.top]
            lines = [*scrolled, *(line.rstrip() for line in self._screen.display)]
        return "\n".join(lines).rstrip()

    def resize(self, columns: int, rows: int) -> None:
        """Make the terminal larger or smaller."""
        with self._lock:
            self._screen.resize(rows, columns)
        self.child.setwinsize(rows, columns)

    def _wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        with suppress(AssertionError):
            wait_until(lambda: condition() or not self._reader.is_alive(), seconds)
        assert condition(), f"waited in vain for {what}:\n{self.text()}"

    def _read(self) -> None:
        while True:
            try:
                data = self.child.read_nonblocking(65536, timeout=None)
            except (pexpect.EOF, OSError, ValueError):
                return
            with self._lock:
                self.received += data
                self._stream.feed(data)


def client_on_screen(
    *arguments: str, folder: Path, environ: Mapping[str, str], columns: int = 80, rows: int = 24
) -> Screen:
    """The client, started in a folder that is also its home, with nothing of this machine's environment."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(folder), "LANG": "C.UTF-8"}
    return Screen([sys.executable, "-m", "client", *arguments], folder, {**own, **environ}, columns, rows)


Talk = Callable[..., Screen]
"""Starts the client in a terminal: its arguments, `columns`, `rows`, and variables of its environment."""


def program(path: Path, script: str) -> Path:
    """Write a shell script that can be run; returns where it is."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def leave(screen: Screen) -> None:
    """Leave the client at an empty prompt."""
    screen.wait_for_prompt()
    screen.press("ctrl-d")
    assert screen.wait_for_end() == 0
    assert screen.text().endswith("Сессия закрыта.")


def _text_of(line: "Mapping[int, pyte.screens.Char]", columns: int) -> str:
    return "".join(line[x].data for x in range(columns)).rstrip()
