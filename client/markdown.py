"""What is Markdown in a model's text: its blocks, of which all but the last are settled, and its formulas."""

import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_block.paragraph import paragraph
from markdown_it.rules_block.table import escapedSplit, getLine, table
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_UNDECIDED = re.compile(
    r"""
    (?:^|(?<=\n))
    (?: [ \t\-=\#*`|>+~_:.)\d$\\\[]{1,200}      # may become a list, a heading, a rule, a formula
      | [ \t>*+\-\d.)]*```[^`\n]*               # a fence, or code within a line
      | [ ]{0,3}\|[^\n]*(?:\n[ \t|:\-]*)? )\Z   # a row of a table, which is wanted whole, or its head
    | (?<![^\s("«|>])                           # stressed words, code and links are wanted whole, too
    (?: \*{1,3}(?:[^\s*][^*\n]{0,80}\*{0,2})?
      | `[^`\n]{0,80}
      | \[[^\]\n]{0,80}(?:\](?:\([^)\n]{0,200})?)? )\Z
    """,
    re.VERBOSE,
)
# What in a formula looks like Markdown is none. A backslash before a bracket is LaTeX, one at a line's end is text.
_FORMULA = re.compile(
    r"\$\$.{1,2000}?\$\$|\\\(.{1,2000}?\\\)|\\\[.{1,2000}?\\\]|(?<![\w$])\$(?=\S)[^$\n]+(?<=\S)\$(?!\w)|\\(?:[()\[\]]|(?=\n))",
    re.DOTALL,
)
_FORMULA_ENDS = {"$$": "$$", "\\[": "\\]"}
_DEEPEST_LEVEL = 16


class Block(NamedTuple):
    """A part of a text that is rendered on its own."""

    text: str
    gap: int
    """Empty lines above it, unless it is the first."""


def blocks(text: str) -> list[Block]:
    """Cut a text into its top-level blocks and list items. All but the last one stay as they are, whatever follows."""
    parser = markdown_parser()
    tokens: list[Token] = []
    parser.block.parse(text, parser, {}, tokens)
    lines = text.split("\n")
    starts = []
    for before, token in pairwise([Token("", "", 1), *tokens]):
        is_item = token.type == "list_item_open" and token.level == 1
        if is_item and before.nesting < 0:
            starts.append((first_line(token), int(is_empty_above(token, lines))))
        elif token.level == 0 and token.nesting >= 0:
            starts.append((first_line(token), 1))
    bounds = [(0, 1), *starts[1:], (len(lines), 0)]
    return [Block("\n".join(lines[start:end]), gap) for (start, gap), (end, _) in pairwise(bounds)]


def decided(text: str) -> str:
    """A growing text without its end, as far as it would soon look otherwise."""
    last_two_lines = text.rfind("\n", 0, max(0, text.rfind("\n"))) + 1
    undecided = _UNDECIDED.search(text, last_two_lines)
    return text[: undecided.start()] if undecided else text


def first_line(token: Token) -> int:
    """The line of the text where a block begins, from 0."""
    assert token.map is not None, "every block knows its lines"
    return token.map[0]


def is_empty_above(token: Token, lines: Sequence[str]) -> bool:
    """Whether a block has an empty line above it, be it within a quote."""
    line = first_line(token)
    return line > 0 and not lines[line - 1].strip(" \t>")


class _Parser(MarkdownIt):
    def normalizeLink(self, url: str) -> str:  # noqa: N802 - markdown-it's own
        """Addresses are shown as they were written."""
        return url


@cache
def markdown_parser() -> MarkdownIt:
    """Markdown of which nothing becomes invisible; and formulas are left alone."""
    parser = _Parser("commonmark", {"html": False, "maxNesting": 100})
    parser.enable(["strikethrough", "table"]).disable(["image", "autolink", "reference"])
    parser.block.ruler.at("table", _table, {"alt": ["paragraph"]})
    parser.block.ruler.before("table", "deep", _deep)
    parser.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph", "blockquote", "list"]})
    parser.inline.ruler.before("escape", "formula", _formula)
    return parser


def _deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - as markdown-it calls it
    """What is nested too deep to be shown so is text."""
    return state.level >= _DEEPEST_LEVEL and paragraph(state, start, end, silent)


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - as markdown-it calls it
    """A table. What a row has beyond the last column stands in the last column."""
    first = len(state.tokens)
    is_table = table(state, start, end, silent)
    tokens = state.tokens[first:]
    columns = sum(token.type == "th_open" for token in tokens)
    for last_cell in (tokens[i - 2] for i, token in enumerate(tokens) if token.type == "tr_close"):
        row = getLine(state, first_line(last_cell)).strip().removeprefix("|")
        cells = [cell.strip() for cell in escapedSplit(row)]
        if any(cells[columns:]):
            last_cell.content = " | ".join(cells[columns - 1 :]).removesuffix(" | ")
    return is_table


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - as markdown-it does
    r"""Lines from one that begins with `$$` or `\[` to where that is closed, or to an empty one."""
    opening = getLine(state, start)[:2]
    if opening not in _FORMULA_ENDS or state.is_code_block(start):
        return False
    if silent:
        return True
    last = start
    shown = getLine(state, start)[2:]
    while (
        _FORMULA_ENDS[opening] not in shown
        and last + 1 < end
        and not state.isEmpty(last + 1)
        and state.sCount[last + 1] >= state.blkIndent
    ):
        last += 1
        shown = getLine(state, last)
    state.line = last + 1
    token = state.push("formula", "", 0)
    token.content = state.getLines(start, state.line, state.blkIndent, False)  # noqa: FBT003 - no line end at the end
    token.map = [start, state.line]
    return True


def _formula(state: StateInline, silent: bool) -> bool:  # noqa: FBT001 - as markdown-it calls it
    found = _FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.pending += found[0]
    state.pos = found.end()
    return True
