"""A reply on the screen while it comes: what is final is final, nothing flickers, nothing is lost."""

import io
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from wcwidth import wcwidth

from client.live import LiveReply, PlainReply, Region, printable, reply_on, show
from tests.readme import ROOT
from tests.servers import wait_until
from tests.test_markdown import FRAGMENTS, visible

# All that may reach a terminal: upwards and clear to the end, text, and its colours.
WRITTEN = re.compile(r"(?:\r(?:\x1b\[(?P<up>\d+)A)?\x1b\[J)?(?:[^\x00-\x09\x0b-\x1f\x7f-\x9f]|\x1b\[[0-9;]*m)*")
PIECES = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=30)
REPLY = """# Заголовок

Абзац с **важным** словом, `кодом` и [ссылкой](https://example.org), который длиннее одной строки терминала.
Вторая строка.

1. Раз
   - под ним
2. Два:

   ```python
   print("привет")
   ```

| имя | что делает |
|:----|-----------:|
| первый | `ничего` |
| второй | **всё остальное**, и ещё немного |

> цитата

\\[
x = y
- z
\\]
"""


class Terminal(io.StringIO):
    """A terminal that remembers all it was shown, and refuses whatever would make it flicker."""

    def __init__(self, width: int = 80, height: int = 24) -> None:
        super().__init__()
        self.screen = pyte.HistoryScreen(width, height, history=10_000, ratio=0.1)
        self.console = Console(file=self, force_terminal=True, color_system="256", width=width, height=height)
        self.writes: list[str] = []
        self._stream = pyte.Stream(self.screen)

    def write(self, text: str) -> int:
        found = WRITTEN.fullmatch(text)
        assert found, repr(text)
        assert int(found["up"] or 0) <= self.screen.cursor.y, "it may not go up to what has scrolled away"
        self.writes += [text] * bool(text)
        # pyte stumbles over what takes no room.
        self._stream.feed("".join(c for c in text.replace("\n", "\r\n") if c < "\x80" or wcwidth(c) > 0))
        return len(text)

    def text(self) -> str:
        scrolled = ["".join(line[x].data for x in range(self.screen.columns)) for line in self.screen.history.top]
        return "\n".join(line.rstrip() for line in (*scrolled, *self.screen.display)).rstrip()


def streamed(terminal: Terminal, pieces: list[str], draws: list[bool]) -> str:
    """What is on the screen after a reply in pieces; `draws`: after which of them it was drawn."""
    reply = LiveReply(terminal.console, "")
    for piece, drawn in zip(pieces, draws, strict=True):
        reply.say(piece)
        if drawn:
            reply.draw()
    reply.finish()
    return terminal.text()


def whole(text: str, width: int = 80) -> str:
    """What is on the screen when a reply is shown at once."""
    terminal = Terminal(width, 24)
    show(terminal.console, text)
    return terminal.text()


def pieces_of(text: str, size: int = 4) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def seen(text: str) -> Counter[str]:
    return visible(unicodedata.normalize("NFKD", text))


@settings(max_examples=100, deadline=None)
@given(PIECES, st.integers(2, 100), st.data())
def test_however_it_comes_it_ends_as_if_said_at_once(pieces: list[str], width: int, data: st.DataObject) -> None:
    draws = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    assert streamed(Terminal(width, 300), pieces, draws) == whole("".join(pieces), width)


@settings(max_examples=100, deadline=None)
@given(PIECES, st.integers(4, 60), st.integers(2, 8), st.data())
def test_nothing_is_lost_on_a_tiny_screen(pieces: list[str], width: int, height: int, data: st.DataObject) -> None:
    draws = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    text = streamed(Terminal(width, height), pieces, draws)
    assert not seen(printable("".join(pieces))) - seen(text)


@pytest.mark.parametrize("size", [1, 3, 7, 50])
@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_whole_reply_in_pieces(size: int, width: int) -> None:
    pieces = pieces_of(REPLY, size)
    assert streamed(Terminal(width, 24), pieces, [True] * len(pieces)) == whole(REPLY, width)


@pytest.mark.parametrize(
    "text",
    [
        "```python\n" + "".join(f"def f{n}():\n    return {n}\n\n" for n in range(60)) + "```\n\nконец",
        "".join(f"{n}. **пункт** `{n}` {'слово ' * (n % 17)}\n" for n in range(1, 200)),
        "1. список\n" + "".join(f"   {n}. **пункт** {'слово ' * (n % 17)}\n" for n in range(1, 60)),
        "|a|b|\n|-|-|\n" + "".join(f"|{n}|**текст** {'ю' * (99 - n)}|\n" for n in range(10, 50)),
        " ".join(f"**слово{n}** и `код{n}`" for n in range(150)),
        "".join(f"> цитата {n}\n" for n in range(60)),
    ],
    ids=["code", "a list", "a list within a list", "a table", "a paragraph", "a quote"],
)
def test_a_block_higher_than_the_screen_is_shown_once(text: str) -> None:
    terminal = Terminal(80, 16)
    pieces = pieces_of(text, 12)
    assert streamed(terminal, pieces, [number % 4 == 0 for number in range(len(pieces))]) == whole(text)


def test_a_table_that_grows_wider_after_it_has_scrolled_loses_no_row() -> None:
    terminal = Terminal(30, 8)
    table = "|№|что|\n|-|-|\n" + "".join(f"|{n}|{'слово ' * (n // 3)}|\n" for n in range(20))
    text = streamed(terminal, pieces_of(table), [True] * len(pieces_of(table)))
    assert seen(text) == seen(table)


def test_markdown_that_closes_after_it_has_scrolled_breaks_nothing() -> None:
    words = [f"слово{number}" for number in range(80)]
    stressed = " ".join(f"**{word}**" for word in words)
    pieces = pieces_of(f"`{stressed}` и [{' '.join(words)}](адрес)", 9)
    text = streamed(Terminal(40, 8), pieces, [True] * len(pieces))
    assert re.findall(r"\w+", text) == [*words, "и", *words, "адрес"]


def test_drawing_again_writes_nothing_but_the_time() -> None:
    terminal = Terminal()
    reply = LiveReply(terminal.console, "")
    reply.think("мысль")
    reply.say(REPLY)
    reply.draw()
    before = len(terminal.writes)
    reply.draw()
    assert re.fullmatch(r"(\r\x1b\[J\x1b\[2m0:\d\d · *\x1b\[0m)?", "".join(terminal.writes[before:]))


def test_only_what_has_changed_is_written_again() -> None:
    terminal = Terminal()
    region = Region(terminal.console)
    region.show(["раз"], ["два", "три"])
    region.show([], ["два", "четыре"])
    region.show(["два"], [])
    region.show([], ["пять"])
    region.leave()
    assert terminal.writes == ["раз\nдва\nтри", "\r\x1b[Jчетыре", "\r\x1b[J", "пять", "\n"]
    assert terminal.text() == "раз\nдва\nпять"


def test_a_growing_paragraph_rewrites_only_its_last_line() -> None:
    terminal = Terminal(40, 24)
    reply = LiveReply(terminal.console, "")
    reply.say("слово " * 30)
    reply.draw()
    reply.say("ещё")
    reply.draw()
    assert terminal.writes[-1].startswith("\r\x1b[1A\x1b[J")


def test_under_it_stand_the_time_and_the_hint_until_it_ends() -> None:
    terminal = Terminal(20, 10)
    reply = LiveReply(terminal.console, "Ctrl-C — остановить")
    reply.draw()
    assert terminal.text() == "0:00 · Ctrl-C — ост…"
    reply.say("Да.\n\n")
    reply.hint("стоп")
    reply.draw()
    assert terminal.text() == "Да.\n0:00 · стоп"
    reply.finish()
    assert (terminal.text(), terminal.screen.cursor.x, terminal.screen.cursor.y) == ("Да.", 0, 1)


def test_an_empty_reply_leaves_nothing() -> None:
    terminal = Terminal()
    reply = LiveReply(terminal.console, "подсказка")
    reply.say(" \n")
    reply.draw()
    reply.finish()
    assert (terminal.text(), terminal.screen.cursor.y) == ("", 0)


def test_thoughts_are_dim_and_apart() -> None:
    terminal = Terminal()
    reply = LiveReply(terminal.console, "")
    for think, text in [
        *[
            (True, "\n\n"),
            (False, "\n"),
            (True, "Думаю **так**.\n \n\n\nИ "),
            (True, "так.\n\n"),
            (False, "\n\n# Да"),
            (False, "\n"),
        ],
        *[(True, "\n"), (True, "Ещё мысль."), (False, "\n \n"), (True, " Она же.\n"), (False, "Нет.\n\n\n\n")],
    ]:
        (reply.think if think else reply.say)(text)
        reply.draw()
    reply.finish()
    assert terminal.text() == "Думаю **так**.\n\nИ так.\n\nДа\n\nЕщё мысль.\n\n Она же.\n\nНет."
    assert "\x1b[2;3mИ так." in "".join(terminal.writes)
    assert "\x1b[2;3mНет" not in "".join(terminal.writes)


def test_without_a_cursor_to_move_the_text_is_written_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    file = io.StringIO()
    console = Console(file=file, force_terminal=True)
    with reply_on(console, "подсказка") as reply:
        for think, text in [
            (True, "\n"),
            (True, "ду"),
            (True, "маю\n"),
            (False, "\n\n"),
            (False, "**Да**"),
            (False, ""),
            (True, "[b]"),
        ]:
            (reply.think if think else reply.say)(text)
    assert file.getvalue() == "думаю\n\n**Да**\n\n[b]\n"
    show(console, "# a")
    assert file.getvalue().endswith("[b]\n# a\n")


def test_a_plain_reply_without_text_writes_nothing() -> None:
    file = io.StringIO()
    reply = PlainReply(Console(file=file))
    reply.say("")
    reply.finish()
    assert file.getvalue() == ""


@given(st.text())
def test_printable_text_does_nothing_but_appear(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t"]
    assert printable("a\r") + printable("\nb") == "a\nb", "wherever a line end is cut"


def test_it_is_drawn_by_itself() -> None:
    terminal = Terminal()
    with reply_on(terminal.console, "") as reply:
        reply.say("Привет")
        wait_until(lambda: "Привет" in "".join(terminal.writes))
    assert terminal.text() == "Привет"


def test_a_terminal_that_has_gone_does_not_stop_the_drawing_with_an_error() -> None:
    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError

    LiveReply(Console(file=Gone(), force_terminal=True), "").keep_drawing(threading.Event())


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux: pyte does not reflow")
def test_a_reply_survives_resizing(tmp_path: Path) -> None:
    program = f"""
import sys, time
from rich.console import Console
from client.live import reply_on
with reply_on(Console(), "") as reply:
    for piece in {pieces_of(REPLY * 2)!r}:
        reply.say(piece)
        time.sleep(0.01)
"""
    (tmp_path / "program.py").write_text(program)
    command = f"cd {ROOT} && PYTHONPATH=. {sys.executable} {tmp_path / 'program.py'}; echo READY; cat"

    def tmux(*arguments: str) -> str:
        return subprocess.check_output(
            ["tmux", "-L", f"test-live-{tmp_path.name}", "-f", "/dev/null", *arguments], text=True
        )

    def text() -> str:
        return tmux("capture-pane", "-p", "-J", "-S", "-1000")

    tmux("new-session", "-d", "-x", "80", "-y", "24", f"LANG=C.UTF-8 sh -c {shlex.quote(command)}")
    try:
        wait_until(lambda: "Раз" in text())
        for width, height in [("40", "24"), ("100", "10"), ("30", "24")]:
            tmux("resize-window", "-x", width, "-y", height)
            time.sleep(0.4)
        wait_until(lambda: "READY" in text(), 15)
        assert not seen(re.sub(r"\W", "", REPLY * 2)) - seen(text())
    finally:
        tmux("kill-server")
