"""How Markdown looks in a terminal: as rich renders it, but nothing that the model wrote is hidden."""

import re
from collections.abc import Iterator, MutableMapping, Sequence
from itertools import chain, pairwise, repeat
from operator import gt
from typing import Self

from markdown_it.token import Token
from rich import box
from rich import markdown as rich_markdown
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.containers import Renderables
from rich.rule import Rule
from rich.segment import Segment, Segments
from rich.style import Style
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from client.markdown import first_line, is_empty_above, markdown_parser

Columns = MutableMapping[int, list[int]]
"""The widths of the columns of a block's tables, by the line that a table begins at."""

_LANGUAGE = re.compile(r"\w[\w+#.-]*")
_NARROWEST = 8
_NARROWEST_COLUMN = 4
_COLUMN_GAP = 2


def render_block(console: Console, width: int, text: str, columns: Columns | None = None) -> list[str]:
    """A block of Markdown as lines with their escape codes, none wider than `width` cells.

    Tables keep the columns that `columns` has for them; those of the others are added to it.
    """
    lines = lines_of(console, width, _Markdown(text, {} if columns is None else columns))
    while lines and not lines[0]:
        del lines[0]
    while lines and not lines[-1]:
        del lines[-1]
    return lines


def lines_of(console: Console, width: int, renderable: RenderableType) -> list[str]:
    """Anything that rich renders as lines with their escape codes and without spaces at their ends."""
    rows = console.render_lines(renderable, console.options.update(width=width, height=None), pad=False)
    fitting = (part for row in rows for part in _folded(row, width))
    segments = [segment for row in fitting for segment in (*_stripped(row), Segment.line())]
    with console.capture() as captured:
        console.print(Segments(segments), end="", soft_wrap=True)
    return captured.get().split("\n")[:-1]


def _stripped(row: Sequence[Segment]) -> list[Segment]:
    kept = list(row)
    while kept:
        last = kept.pop()
        if text := last.text.rstrip(" "):
            return [*kept, Segment(text, last.style)]
    return kept


def _folded(row: list[Segment], width: int) -> Iterator[list[Segment]]:
    """A row in parts that fit, by the widest reading of emoji: terminals disagree on which of them merge."""
    if _cells("".join(segment.text for segment in row)) <= width:
        yield row
        return
    part: list[Segment] = []
    used = 0
    for text, style, _ in row:
        for character in text:
            cells = _cells(character)
            if part and used + cells > width:
                yield part
                part, used = [], 0
            part.append(Segment(character, style))
            used += cells
    yield part


def _cells(text: str) -> int:
    """The cells that a text takes at most."""
    if max(text, default="") < "\u200d":
        return cell_len(text)
    return sum(2 if character >= "\U00017000" else cell_len(character) for character in text) + text.count("\ufe0f")


class _Fence(rich_markdown.TextElement):
    """Code between its fences, flush left: what is copied from the screen is the code."""

    def __init__(self, fence: str, info: str) -> None:
        self._fence = fence
        self._info = info

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> Self:  # noqa: ARG003 - rich's own
        return cls(token.markup, token.info)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = self.text.plain.removesuffix("\n")
        yield Text(self._fence + self._info, style="dim")
        if code:
            language = _LANGUAGE.search(self._info)
            lexer = language[0].lower() if language else "text"
            highlighted = Syntax(code, lexer, theme="ansi_dark", background_color="default").highlight(f"{code}\n")
            highlighted.no_wrap = False
            highlighted.remove_suffix("\n")
            yield highlighted
        yield Text(self._fence, style="dim")


class _IndentedCode(rich_markdown.TextElement):
    """Code that stands where it was written."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        self.text.remove_suffix("\n")
        yield from _indented(console, options, self.text, "    ", "    ", Style.null())


class _Heading(rich_markdown.Heading):
    """A heading at the left."""

    LEVEL_ALIGN = {}  # noqa: RUF012 - rich's own


class _HorizontalRule(rich_markdown.HorizontalRule):
    """A rule; what is around it keeps the distance."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="dim", characters="─")


class _Quote(rich_markdown.BlockQuote):
    """A quote beside a bar."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _indented(console, options, self.elements, "▌ ", "▌ ", self.style)


class _List(rich_markdown.MarkdownElement):
    """The items of a list, and the space between them."""

    def __init__(self) -> None:
        self._children = Renderables()

    def on_child_close(
        self,
        context: rich_markdown.MarkdownContext,  # noqa: ARG002 - rich's own
        child: rich_markdown.MarkdownElement,
    ) -> bool:
        """See MarkdownElement."""
        self._children.append(child)
        return False

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._children


class _ListItem(rich_markdown.ListItem):
    """An item beside its own number, so that no later one moves it."""

    def __init__(self, label: str, label_style: str) -> None:
        super().__init__()
        self._label = label
        self._label_style = label_style

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> Self:  # noqa: ARG003 - rich's own
        if not token.info:
            return cls(" • ", "markdown.item.bullet")
        return cls(f"{token.info}{token.markup} ".rjust(4), "markdown.item.number")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        style = console.get_style(self._label_style)
        yield from _indented(console, options, self.elements, self._label, " " * len(self._label), style)


class _Space(rich_markdown.MarkdownElement):
    """An empty line."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text()


class _Table(rich_markdown.TableElement):
    """A table that folds what does not fit; one with too many columns is written as it was."""

    def __init__(self, first_line: int, columns: Columns) -> None:
        super().__init__()
        self._first_line = first_line
        self._columns = columns

    @classmethod
    def create(cls, markdown: rich_markdown.Markdown, token: Token) -> Self:
        assert isinstance(markdown, _Markdown)
        return cls(first_line(token), markdown.columns)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        assert self.header is not None
        assert self.header.row is not None
        head = self.header.row.cells
        body = [[cell.content for cell in row.cells] for row in self.body.rows] if self.body else []
        rows = [[cell.content for cell in head], *body]
        room = options.max_width - _COLUMN_GAP * (len(head) - 1)
        if room < _NARROWEST_COLUMN * len(head):
            yield from (Text(" | ").join(row) for row in rows)
            return
        texts = [[row[i].plain for row in rows] for i in range(len(head))]
        widths = self._columns.setdefault(self._first_line, _squeezed(texts, room))
        shown = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            collapse_padding=True,
            style="markdown.table.border",
        )
        for cell, width in zip(head, widths, strict=True):
            heading = cell.content.copy()
            heading.stylize("markdown.table.header")
            shown.add_column(heading, width=width, justify=cell.justify, overflow="fold")
        for row in body:
            shown.add_row(*row)
        yield shown


def _squeezed(columns: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths that fit into the room: the widest column gives way first, and words are broken last."""
    widths = [min(max(map(_cells, texts)), room) for texts in columns]
    words = [max(map(_cells, " ".join(texts).split()), default=0) for texts in columns]
    for least in (words, [_NARROWEST_COLUMN] * len(columns)):
        while sum(widths) > room and any(map(gt, widths, least)):
            widest = max(range(len(widths)), key=lambda i: (widths[i] > least[i], widths[i]))
            widths[widest] -= 1
    return widths


def _indented(  # noqa: PLR0913, PLR0917
    console: Console, options: ConsoleOptions, content: RenderableType, first: str, later: str, style: Style
) -> RenderResult:
    """Something beside a label. Where there is no room beside it, only the first line has one."""
    room = options.max_width - len(first)
    if room < _NARROWEST:
        room, later = options.max_width, ""
    rows = console.render_lines(content, options.update(width=room), pad=False) or [[]]
    for label, row in zip(chain([first], repeat(later)), rows, strict=False):
        for part in _folded([Segment(label, style), *row], options.max_width):
            yield from part
            yield Segment.line()


class _Markdown(rich_markdown.Markdown):
    """As rich renders it, but nothing that the model wrote is hidden: tags, addresses and line breaks stay."""

    elements = {  # noqa: RUF012 - rich's own
        **rich_markdown.Markdown.elements,
        "fence": _Fence,
        "code_block": _IndentedCode,
        "formula": rich_markdown.Paragraph,
        "heading_open": _Heading,
        "hr": _HorizontalRule,
        "blockquote_open": _Quote,
        "bullet_list_open": _List,
        "ordered_list_open": _List,
        "list_item_open": _ListItem,
        "table_open": _Table,
        "space": _Space,
    }

    def __init__(self, text: str, columns: Columns) -> None:
        super().__init__("", hyperlinks=False)
        self.columns = columns
        lines = text.split("\n")
        self.parsed = []
        for before, token in pairwise([Token("", "", 1), *markdown_parser().parse(text)]):
            if token.map and token.nesting >= 0 and before.nesting <= 0 and is_empty_above(token, lines):
                self.parsed.append(Token("space", "", 0))
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"
                if title := child.attrs.get("title"):
                    child.attrs["href"] = f'{child.attrs["href"]} "{title}"'
            self.parsed.append(token)
