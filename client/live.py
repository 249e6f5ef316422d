"""A reply on the screen while it comes.

On a terminal that can move its cursor the reply is Markdown: lines that can no longer change are printed once, the few
that can are rewritten in place, and what has scrolled away is never touched. Elsewhere the text is written as it comes.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

from rich.cells import chop_cells
from rich.console import Console
from rich.text import Text

from client.keyboard import quiet_keyboard
from client.markdown import Block, blocks, decided
from client.rendering import Columns, lines_of, render_block

FRAME_SECONDS = 1 / 15
# Of the time between two frames, drawing takes a fifth at most.
_REST_FACTOR = 4
_ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*m")
_ESCAPE_CODES_AND_CHARACTERS = re.compile(r"\x1b\[[0-9;]*m|.")
# What comes and goes as Markdown is recognised and broken into lines.
_FLEETING = dict.fromkeys(map(ord, " *_~`[]()\\|"))
# A model's text must not steer the terminal, nor break its encoding: what would becomes a visible sign.
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), *range(0xD800, 0xE000)), "\ufffd")
_CONTROLS |= {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): ""}


def printable(text: str) -> str:
    """A text that does nothing to a terminal but appear on it."""
    return text.translate(_CONTROLS)


class Reply(Protocol):
    """Where a reply appears."""

    def think(self, text: str) -> None:
        """The next piece of what the model thinks."""

    def say(self, text: str) -> None:
        """The next piece of what it says."""

    def hint(self, text: str) -> None:
        """What stands under it from now on."""


def reply_on(console: Console, hint: str) -> AbstractContextManager[Reply]:
    """A place for one reply, complete on leaving. `hint` stands under it while it comes, beside the time."""
    if console.is_terminal and not console.is_dumb_terminal:
        return _live_reply(console, hint)
    return _plain_reply(console)


def show(console: Console, text: str) -> None:
    """A whole reply of an earlier time."""
    with _plain_reply(console) if console.is_dumb_terminal else _whole_reply(console) as reply:
        reply.say(text)


@contextmanager
def _whole_reply(console: Console) -> Iterator[Reply]:
    reply = LiveReply(console, "")
    yield reply
    reply.finish()


@contextmanager
def _plain_reply(console: Console) -> Iterator[Reply]:
    reply = PlainReply(console)
    try:
        yield reply
    finally:
        reply.finish()


class PlainReply:
    """A reply where the cursor cannot be moved: the text as it comes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._thinking: bool | None = None
        self._at_line_start = True

    def think(self, text: str) -> None:
        """See Reply."""
        self._write(text, thinking=True)

    def say(self, text: str) -> None:
        """See Reply."""
        self._write(text, thinking=False)

    def hint(self, text: str) -> None:
        """See Reply; there is no place for it."""

    def finish(self) -> None:
        """End the last line."""
        if not self._at_line_start:
            self._console.print()

    def _write(self, text: str, *, thinking: bool) -> None:
        shown = printable(text)
        if thinking is not self._thinking:
            shown = shown.lstrip("\n")
            if not shown:
                return
            if self._thinking is not None:
                shown = ("\n" if self._at_line_start else "\n\n") + shown
            self._thinking = thinking
        self._at_line_start = shown.endswith("\n") if shown else self._at_line_start
        self._console.print(shown, end="", markup=False, highlight=False, soft_wrap=True, emoji=False)


@contextmanager
def _live_reply(console: Console, hint: str) -> Iterator[Reply]:
    reply = LiveReply(console, hint)
    ended = threading.Event()
    thread = threading.Thread(target=reply.keep_drawing, args=(ended,), daemon=True)
    with quiet_keyboard():
        try:
            thread.start()
            yield reply
        finally:
            ended.set()
            try:
                if thread.ident is not None:
                    thread.join()
            finally:
                reply.finish()


class LiveReply:
    """A reply as Markdown, what the model thinks dimmed before it, and under both a line that tells the time."""

    def __init__(self, console: Console, hint: str) -> None:
        self._console = console
        self._hint = hint
        self._region = Region(console)
        self._parts: list[_Part] = []
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def think(self, text: str) -> None:
        """See Reply."""
        self._add(_THOUGHTS, text)

    def say(self, text: str) -> None:
        """See Reply."""
        self._add(_MARKDOWN, text)

    def hint(self, text: str) -> None:
        """See Reply."""
        self._hint = text

    def keep_drawing(self, ended: threading.Event) -> None:
        """Draw what has come, several times a second, until the event is set."""
        rest = 0.0
        with suppress(OSError):  # the terminal has gone
            while not ended.wait(max(FRAME_SECONDS, rest)):
                began = time.monotonic()
                self.draw()
                rest = (time.monotonic() - began) * _REST_FACTOR

    def draw(self) -> None:
        """Draw what has come, and the line under it."""
        with self._lock:
            width, height = self._console.size
            settled: list[str] = []
            open_lines: list[str] = []
            for part in self._parts:
                more, open_lines = part.take(width, end=part is not self._parts[-1])
                settled += more
            del self._parts[:-1]
            rows_from_below = accumulate(_rows(line, width) for line in reversed(open_lines))
            fitting = sum(rows <= height - 2 for rows in rows_from_below)
            if surplus := open_lines[: -max(1, fitting)]:
                self._parts[-1].settle(surplus)
            self._region.show([*settled, *surplus], [*open_lines[len(surplus) :], self._status(width)])

    def finish(self) -> None:
        """Draw all that is left, without the line under it."""
        with self._lock:
            settled = [line for part in self._parts for line in part.take(self._console.width, end=True)[0]]
            self._region.show(settled, [])
            self._region.leave()

    def _add(self, form: "_Form", text: str) -> None:
        if not text:
            return
        with self._lock:
            if not self._parts or self._parts[-1].form is not form:
                self._parts.append(_Part(form, self._console, first=not self._parts or self._parts[-1].is_blank))
            self._parts[-1].add(printable(text))

    def _status(self, width: int) -> str:
        passed = int(time.monotonic() - self._started)
        told = Text(f"{passed // 60}:{passed % 60:02} · {self._hint}", style="dim", no_wrap=True, overflow="ellipsis")
        return lines_of(self._console, width, told)[0]


class Region:
    """The last lines of the terminal, rewritten in place from the first one that has changed.

    The cursor stays at the end of the last line.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: list[str] = []
        self._at_line_start = True

    def show(self, settled: list[str], open_lines: list[str]) -> None:
        """Replace what is shown by both; only `open_lines` can be replaced again."""
        wanted = settled + open_lines
        same = 0
        while same < min(len(self._shown), len(wanted)) and self._shown[same] == wanted[same]:
            same += 1
        changed, written = self._shown[same:], wanted[same:]
        output = ""
        if changed:
            width, height = self._console.size
            up = min(sum(_rows(line, width) for line in changed), height) - 1
            output = "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"
            self._at_line_start = True
        if written:
            output += ("" if self._at_line_start else "\n") + "\n".join(written)
            self._at_line_start = False
        self._shown = open_lines
        if output:
            self._console.file.write(output)
            self._console.file.flush()

    def leave(self) -> None:
        """Move the cursor to a line of its own."""
        if not self._at_line_start:
            self._console.file.write("\n")
            self._console.file.flush()


@dataclass(frozen=True)
class _Form:
    """How a kind of text becomes lines.

    Attributes:
        blocks: cuts a text into blocks of which only the last can change as it grows.
        decided: the beginning of a growing text that can be shown already.
        render: the lines of a block, for a console and a width; with the columns that its tables have or get.
    """

    blocks: Callable[[str], list[Block]]
    decided: Callable[[str], str]
    render: Callable[[Console, int, str, Columns], list[str]]


def _thoughts(text: str) -> list[Block]:
    """Every line is a block: in plain text nothing changes what is above it."""
    first, *others = re.split(r"\n((?:[ \t]*\n)*)", text)
    lines_below = zip(others[::2], others[1::2], strict=True)
    return [Block(first, 0), *(Block(line, 1 if empty else 0) for empty, line in lines_below)]


def _render_thought(console: Console, width: int, text: str, _columns: Columns) -> list[str]:
    return lines_of(console, width, Text(text, style="dim italic")) if text.strip() else []


_MARKDOWN = _Form(blocks, decided, render_block)
_THOUGHTS = _Form(_thoughts, str.rstrip, _render_thought)


class _Part:
    """A growing text of one form.

    Attributes:
        form: what it is.
        is_blank: nothing of it, nor of what is above it, can be seen.
    """

    def __init__(self, form: _Form, console: Console, *, first: bool) -> None:
        """`first`: nothing stands above it that it would keep a distance from."""
        self.form = form
        self.is_blank = first
        self._console = console
        self._text = ""
        self._gap = 0 if first else 1
        self._settled: list[str] = []
        self._width = 0
        self._columns: Columns = {}
        self._rendered = ("", 0)
        self._rendered_lines: list[str] = []

    def add(self, text: str) -> None:
        """It grows."""
        self._text += text
        self.is_blank = self.is_blank and not text.strip()

    def settle(self, lines: Sequence[str]) -> None:
        """The first of the open lines are on the screen for good, whatever becomes of them."""
        self._settled += lines

    def take(self, width: int, *, end: bool) -> tuple[list[str], list[str]]:
        """Lines that are settled since the last call, and lines that are still open; `end`: nothing more will come.

        A block of which lines have settled keeps the width it was begun with.
        """
        shown = self._text.rstrip() if end else self.form.decided(self._text)
        found = self.form.blocks(shown)
        settled: list[str] = []
        for block, following in pairwise(found):
            lines = self._lines(block.text, width)
            settled += self._unsettled(lines)
            self._settled = []
            self._gap = following.gap if lines else self._gap
        growing = found[-1].text
        open_lines = self._unsettled(self._lines(growing, width))
        if end:
            return settled + open_lines, []
        self._text = growing + self._text[len(shown) :]
        return settled, open_lines

    def _lines(self, block: str, width: int) -> list[str]:
        if not self._settled:
            self._width = width
        if self._rendered != (block, self._width):
            self._rendered = (block, self._width)
            self._columns = self._columns if self._settled else {}
            self._rendered_lines = self.form.render(self._console, self._width, block, self._columns)
        return [""] * self._gap + self._rendered_lines if self._rendered_lines else []

    def _unsettled(self, lines: list[str]) -> list[str]:
        """The lines of a block after those that have settled.

        As it grows, Markdown may appear in what was text until then, and what has settled would be broken differently
        now. Then its characters tell where to go on.
        """
        before = _lasting(self._settled)
        if _lasting(lines[: len(self._settled)]) == before:
            return lines[len(self._settled) :]
        left = len(before)
        for number, line in enumerate(lines):
            if not left:
                return lines[number:]
            in_line = len(_lasting([line]))
            if left < in_line:
                return [_without_lasting(line, left), *lines[number + 1 :]]
            left -= in_line
        return []


def _lasting(lines: Sequence[str]) -> str:
    """The characters that are there however Markdown is understood and broken into lines."""
    return _ESCAPE_CODES.sub("", "".join(lines)).translate(_FLEETING)


def _without_lasting(line: str, count: int) -> str:
    """A line without the first of those characters."""
    kept = ""
    for piece in _ESCAPE_CODES_AND_CHARACTERS.findall(line):
        if count and not piece.startswith("\x1b"):
            count -= ord(piece) not in _FLEETING
        else:
            kept += piece
    return kept


def _rows(line: str, width: int) -> int:
    """Rows of the terminal that a line takes, even if the terminal has become narrower than it."""
    return max(1, len(chop_cells(_ESCAPE_CODES.sub("", line), width)))
