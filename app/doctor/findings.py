"""What a check has found: all that a person needs to go on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failure", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        status: `failure` is what the stand does not work with, `warning` what it works with badly or unsafely.
        code: stable, snake_case; for programs and tests.
        what: what was seen, in Russian.
        why: why it matters; of something unchecked, why it is.
        command: what to type, or what to write where; several lines are several things to do.
    """

    status: Status
    code: str
    what: str
    why: str = ""
    command: str = ""


def ok(code: str, what: str) -> Finding:
    """It is as it should be."""
    return Finding("ok", code, what)


def warning(code: str, what: str, why: str, command: str) -> Finding:
    """The stand works with it, but badly or unsafely."""
    return Finding("warning", code, what, why, command)


def failure(code: str, what: str, why: str, command: str) -> Finding:
    """The stand does not work with it."""
    return Finding("failure", code, what, why, command)


def unchecked(code: str, what: str, why: str, command: str = "") -> Finding:
    """It could not be looked at, or need not be."""
    return Finding("unchecked", code, what, why, command)


def or_else(found: Iterable[Finding], fine: Finding) -> Iterator[Finding]:
    """What was found, or that all is fine where nothing was."""
    nothing = True
    for finding in found:
        nothing = False
        yield finding
    if nothing:
        yield fine


def some(names: Iterable[str]) -> str:
    """The first few of many names."""
    listed = list(names)
    return ", ".join(listed[:3]) + (f" и ещё {len(listed) - 3}" if listed[3:] else "")


def gib(size: float) -> str:
    """A number of bytes as a person reads it."""
    return f"{size / 2**30:.1f} ГиБ" if size >= 2**30 / 10 else f"{size / 2**20:.1f} МиБ"
