"""The client's own words on the screen."""

import sys

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


def _print(console: Console, text: str, style: str) -> None:
    console.print(printable(text), style=style, markup=False, highlight=False, emoji=False)
