"""The client's own words on the screen."""

import io
import signal
from contextlib import suppress

import pytest
from rich.console import Console

from client.console import waiting

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Interrupted(io.StringIO):
    """A terminal at which Ctrl-C is pressed while something certain is written."""

    def __init__(self, awaited: str) -> None:
        super().__init__()
        self._awaited = awaited

    def write(self, text: str) -> int:
        if self._awaited and self._awaited in text:
            self._awaited = ""
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.mark.parametrize("awaited", [HIDE_CURSOR, SHOW_CURSOR], ids=["as it begins", "as it ends"])
def test_nothing_goes_on_moving_when_waiting_is_interrupted(awaited: str) -> None:
    terminal = Interrupted(awaited)
    console = Console(file=terminal, force_terminal=True)
    with suppress(KeyboardInterrupt):
        with waiting(console, "Жду"):
            pass
        pytest.fail("Ctrl-C was swallowed")
    shown = len(terminal.getvalue())
    console.print("Дальше.")
    assert terminal.getvalue()[shown:] == "Дальше.\n"
