"""The client's own words on the screen."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.theme import Theme

from client.live import printable

# The terminal's own colours, on its own background.
_THEME = Theme(
    {"markdown.code": "cyan"}
    | dict.fromkeys(("markdown.h1", "markdown.h2"), "bold underline")
    | dict.fromkeys(("markdown.h3", "markdown.h4", "markdown.h5", "markdown.h6"), "bold")
)


def make_console() -> Console:
    """What writes to standard output; a terminal only if that is one, whatever FORCE_COLOR says."""
    return Console(theme=_THEME, force_terminal=sys.stdout.isatty())


def note(console: Console, text: str) -> None:
    """Say something beside the talk."""
    _print(console, text, "dim")


def warn(console: Console, text: str) -> None:
    """Say what should be seen to."""
    _print(console, f"Внимание: {text}", "yellow")


def error(console: Console, text: str) -> None:
    """Say what went wrong."""
    _print(console, f"Ошибка: {text}", "red")


@contextmanager
def waiting(console: Console, text: str) -> Iterator[None]:
    """Say what is waited for, beside something that moves; Ctrl-C ends it, also while it begins."""
    status = console.status(text)
    try:
        with _interrupts_held():
            status.start()
        yield
    finally:
        with _interrupts_held():
            status.stop()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C through on leaving: rich goes on drawing for ever when it comes in the middle of its own work."""
    pressed = False

    def remember(_signum: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        signal.raise_signal(signal.SIGINT)


def _print(console: Console, text: str, style: str) -> None:
    console.print(printable(text), style=style, markup=False, highlight=False, emoji=False)
