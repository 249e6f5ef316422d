"""Markdown for a terminal: nothing that the model wrote is hidden, and nothing is wider than the screen."""

import io
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from wcwidth import wcwidth

from client.live import printable
from client.markdown import blocks, decided
from client.rendering import render_block

ESCAPE_CODES = re.compile(r"\x1b\[[0-9;]*m")
FRAGMENTS = [
    *"* ** *** _ __ ~~ ` `` ``` ~~~ # | \\ [ ]( ] ) > $ $$ \\( \\) \\[ \\] % @ ^ ; , ? « » — …".split(" "),
    *[
        "# ",
        "## ",
        "#\n",
        "- ",
        "  - ",
        "    - ",
        "* ",
        "1. ",
        "10) ",
        "   2. ",
        "> ",
        ">> ",
        "\n",
        "\n\n",
        "    ",
        "\t",
    ],
    *[
        "слово ",
        "два слова, ",
        "x",
        "2024",
        "длинноесловодлинноесловодлинноеслово",
        "snake_case",
        "a*b*c",
        "שלום ",
        "中文字",
    ],
    *[
        "```python\n",
        "```js title=x\n",
        "~~~ a b\n",
        "---\n",
        "===\n",
        "- - -\n",
        "\\\n",
        "<think>",
        "</b>",
        "<!-- c -->",
    ],
    *["| a | b |\n", "|---|:-:|\n", "| 1 | 2 | 3 |\n", "a | b\n", "--|--\n", '[т](http://e.org/%20я "т")', "![i](u)"],
    *[
        "[1]: http://x\n",
        "[^1]: сноска\n",
        "<http://a.b>",
        "\\( x_1 \\)",
        "$a_1*b$",
        "👨‍👩‍👧",
        "🇷🇺",
        "👍🏽",
        "❤️",
        "e\u0301",
    ],
    *["\x1b[2J", "\r\n", "\x9b1m", "\x00", "\u2028", "\u200b", "\ud83d", "&"],
]
MARKDOWN = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=4)), max_size=30).map("".join)


def rendered(text: str, width: int = 80, console: Console | None = None) -> list[str]:
    """A text's lines on the screen, an empty one between blocks; with their escape codes."""
    shown = console or Console(
        file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, height=24
    )
    lines: list[str] = []
    for block in blocks(text):
        new = render_block(shown, width, block.text)
        lines += [""] * block.gap * bool(lines and new) + new
    return lines


def plain(text: str, width: int = 80) -> str:
    """What of a text is on the screen."""
    return ESCAPE_CODES.sub("", "\n".join(rendered(text, width)))


def visible(text: str) -> Counter[str]:
    """The characters of a text that are never Markdown."""
    return Counter(c for c in text if wcwidth(c) > 0 and (c.isalnum() or c in "{}%@^;,?«»—…'$&"))


@settings(max_examples=300, deadline=None)
@given(MARKDOWN, st.integers(2, 200))
def test_every_character_is_shown_once_within_the_width(text: str, width: int) -> None:
    text = printable(text)
    lines = [ESCAPE_CODES.sub("", line) for line in rendered(text, width)]
    assert visible("".join(lines)) == visible(text)
    assert all(sum(max(0, wcwidth(character)) for character in line) <= width for line in lines)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines))


@settings(max_examples=100, deadline=None)
@given(MARKDOWN)
def test_one_column_is_enough(text: str) -> None:
    rendered(printable(text), 1)


@settings(max_examples=300, deadline=None)
@given(MARKDOWN, st.data())
def test_all_blocks_but_the_last_stay_whatever_follows(text: str, data: st.DataObject) -> None:
    beginning = decided(text[: data.draw(st.integers(0, len(text)), label="length")])
    whole = blocks(text)
    assert blocks(beginning)[:-1] == whole[: len(blocks(beginning)) - 1]
    assert "\n".join(block.text for block in whole) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<think>a</think> <b>", "<think>a</think> <b>"),
        ("<div>\n\n*a*\n</div>", "<div>\n\na\n</div>"),
        ("раз\nдва\\\nтри  \nчетыре", "раз\nдва\\\nтри\nчетыре"),
        ("[к](http://пример.рф/путь%20 'имя')", 'к (http://пример.рф/путь%20 "имя")'),
        ("![к](http://e.org)", "!к (http://e.org)"),
        ("[a][1] <http://e.org>\n\n[1]: http://e.org 'b'", "[a][1] <http://e.org>\n\n[1]: http://e.org 'b'"),
        ("a[^1]\n\n[^1]: b", "a[^1]\n\n[^1]: b"),
        ("- [ ] a\n- [x] b", " • [ ] a\n • [x] b"),
        ("1. a\n1. b\n\n3) c", " 1. a\n 1. b\n\n 3) c"),
        ("9. a\n10. b\n100. c", " 9. a\n10. b\n100. c"),
        ("-\n- a", " •\n • a"),
        ("1. a\n   - b\n\n     c", " 1. a\n     • b\n\n       c"),
        ("> a\n>\n> > b", "▌ a\n▌\n▌ ▌ b"),
        ("```py title='x'\na\n\n\n```", "```py title='x'\na\n\n\n```"),
        ("````\n```\n````", "````\n```\n````"),
        ("~~~\na\n~~~", "~~~\na\n~~~"),
        ("a\n\n    b\n      c", "a\n\n    b\n      c"),
        ("a\n***\nb", f"a\n\n{'─' * 80}\n\nb"),
        ("|a|b|\n|-|-|\n|1|2|3|\n|4|\n|5|6|", "a  b\n────────\n1  2 | 3\n4\n5  6"),
        (r"\( a_1 * b_1 * c \) и \[ \{x\} \\ y \]", r"\( a_1 * b_1 * c \) и \[ \{x\} \\ y \]"),
        ("где\n\\[\na\n= b \\\\\n- c\n\\]\nда", "где\n\n\\[\na\n= b \\\\\n- c\n\\]\n\nда"),
        ("$$\n# a\n$$", "$$\n# a\n$$"),
        ("$a*b*c$ и $5 за *2*, $", "$a*b*c$ и $5 за 2, $"),
        ("&lt;a&gt; &#13;b", "<a> b"),
        ("# a #b\n## c\nd", "a #b\n\nc\n\nd"),
    ],
)
def test_this_is_how_it_looks(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_a_table_folds_its_widest_column_and_breaks_words_last() -> None:
    assert plain("| имя | что |\n|---|---|\n| идентификатор | длинный рассказ |", 24) == (
        "имя            что\n────────────────────────\nидентификатор  длинный\n               рассказ"
    )


def test_a_table_with_more_columns_than_fit_is_written_as_it_was() -> None:
    head = "|".join("abcdefgh")
    assert plain(f"{head}\n{'|'.join('-' * 8)}\n{head}", 30) == "\n".join([" | ".join("abcdefgh")] * 2)


def test_a_table_keeps_the_columns_it_was_given() -> None:
    console = Console(file=io.StringIO(), width=80, height=24)
    columns: dict[int, list[int]] = {}
    table = "|a|b|\n|-|-|\n|один|два|\n"
    before = render_block(console, 80, table, columns)
    assert render_block(console, 80, table + "|семнадцать|четыре|", columns)[: len(before)] == before


def test_what_is_nested_deeper_than_a_screen_is_wide_stays_readable() -> None:
    text = "".join(f"{'  ' * depth}- уровень{depth}\n" for depth in range(80)) + "\n" + "> " * 200 + "цитата"
    shown = re.sub(r"\W", "", plain(text, 30))
    assert "".join(f"уровень{depth}" for depth in range(80)) + "цитата" in shown


@pytest.mark.parametrize(
    "undecided", ["-", "1", "**важ", "`код", "[ссылка](http", "```pyth", "| a | b", "| a |\n|-", "$", "="]
)
def test_what_would_soon_look_otherwise_is_not_shown_yet(undecided: str) -> None:
    assert decided(f"текст\n{undecided}") == "текст\n"


@pytest.mark.parametrize("text", ["a * b", "**важно** и", "`код` и", "[1] и", "f(a[1", "- пункт", "-" * 300, "* пункт"])
def test_what_is_plain_is_shown_at_once(text: str) -> None:
    assert decided(text) == text


@pytest.mark.parametrize("colours", [None, "standard", "256", "truecolor"])
def test_code_is_coloured_where_there_are_colours(colours: str | None) -> None:
    def shown(*, no_color: bool) -> str:
        console = Console(file=io.StringIO(), force_terminal=True, color_system=colours, no_color=no_color)  # type: ignore[arg-type]
        return "\n".join(rendered("```python\nimport os\n```", console=console))

    code = r"\x1b\[[0-9;]*3[0-9;]*m|\x1b\[[0-9;]*9[0-9;]*m"
    assert bool(re.search(code, shown(no_color=False))) is (colours is not None)
    assert not re.search(code, shown(no_color=True))


@pytest.mark.parametrize(
    "piece", ["-", "|", "`", "*", "_", "[", "![", "> ", "- ", "\\(", "$", "[a](", "a*", "\n", " ", "|a"]
)
def test_a_model_that_repeats_itself_does_not_block_the_screen(piece: str) -> None:
    text = piece * 4000
    assert len(blocks(decided(text))) >= 1
    rendered(text)
