"""The clipboard of the desktop, or that of the terminal."""

import base64
import os
import shutil
import subprocess

from rich.console import Console

_SECONDS = 5.0
# What sets the clipboard, and the variable without which it would not find its desktop.
_PROGRAMS = (
    (("wl-copy",), "WAYLAND_DISPLAY"),
    (("xclip", "-selection", "clipboard"), "DISPLAY"),
    (("xsel", "--clipboard", "--input"), "DISPLAY"),
    (("pbcopy",), "PATH"),
)


def copy_by_desktop(text: str) -> bool:
    """Copy by the desktop's own program. False: there is none, or it could not."""
    for command, variable in _PROGRAMS:
        if not os.environ.get(variable) or shutil.which(command[0]) is None:
            continue
        try:
            # Its output goes nowhere: it stays in the background and would keep a pipe open.
            subprocess.run(  # noqa: S603 - a program of the list
                command,
                input=text.encode(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        return True
    return False


def copy_by_terminal(text: str, console: Console) -> bool:
    """Hand the text to the terminal (OSC 52), also through ssh and docker. Whether it takes it, it does not tell.

    False: this terminal would print it.
    """
    if console.is_dumb_terminal:
        return False
    console.file.write(f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07")
    console.file.flush()
    return True
