"""Long steps that show that they move."""

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_SECONDS = 0.2
_PLAIN_REPORT_SECONDS = 30.0
_TAIL_LINES = 8
_ERRORS = 5
_ERROR = re.compile(r"\b(?:\w*(?:Error|ERROR|Exception)\b: |Value error, ).+")
_NO_ERROR = re.compile(r"\bWARNING\b")


class StepFailed(Exception):
    """A step cannot be done; the message is Russian and says what to do."""


class Step:
    """One line on the terminal: what is being done, for how long, and at the end how long it took."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._live = sys.stdout.isatty()
        self._reported = 0.0
        print(f"… {title}", end="" if self._live else "\n", flush=True)

    def tick(self) -> None:
        """Show the seconds so far; without a terminal, a line now and then."""
        seconds = time.monotonic() - self._started
        if self._live:
            print(f"\r… {self._title}: {seconds:.0f} с", end="", flush=True)
        elif seconds - self._reported >= _PLAIN_REPORT_SECONDS:
            self._reported = seconds
            print(f"  … {seconds:.0f} с", flush=True)

    def done(self) -> None:
        """Show that it is finished."""
        self._end(f"✓ {self._title}: {time.monotonic() - self._started:.0f} с")

    def fail(self, reason: str, log: Path) -> StepFailed:
        """Show the end of the log; returns the error to raise."""
        self._end(f"✗ {self._title}")
        return StepFailed(f"{reason} Из журнала {log}:\n{_telling_lines(log)}")

    def _end(self, line: str) -> None:
        print(f"\r{line}" if self._live else line, flush=True)


def run_step(
    title: str, commands: Sequence[Sequence[str]], log: Path, environ: Mapping[str, str] | None = None
) -> None:
    """Run commands one after another, their output in a log.

    Raises:
        StepFailed: one of them failed.
    """
    step = Step(title)
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in commands:
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environ
            )
            try:
                wait_for(step, lambda: process.poll() is not None)  # noqa: B023 - used up within the loop
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            raise step.fail(f"Команда «{' '.join(command[:6])} …» не удалась.", log)
    step.done()


def wait_for(step: Step, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds, showing the time."""
    while not condition():
        time.sleep(_POLL_SECONDS)
        step.tick()


def _telling_lines(log: Path) -> str:
    """The errors that a log names, each once, and its end: the cause often stands long before the end."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = dict.fromkeys(match[0] for line in lines if not _NO_ERROR.search(line) and (match := _ERROR.search(line)))
    return "\n".join((*deque(errors, _ERRORS), "…", *lines[-_TAIL_LINES:]))
