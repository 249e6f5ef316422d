"""Processes of this machine by their ids, any of which may end while it is looked at."""

from contextlib import suppress
from pathlib import Path

_GONE = (FileNotFoundError, ProcessLookupError)


def descendants(pid: int) -> set[int]:
    """All processes that a process has started, and they in turn."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(*_GONE):
            for child in map(int, task.read_text(encoding="ascii").split()):
                found |= {child} | descendants(child)
    return found


def command_of(pid: int) -> str:
    """A process's own words for itself; empty for one that has ended."""
    with suppress(*_GONE):
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
    return ""


def is_alive(pid: int) -> bool:
    """Whether a process is there and more than the memory of it."""
    with suppress(*_GONE):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return False
