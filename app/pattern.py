"""What a chat template makes of a talk, learnt once, so that it need not be run over a whole talk at every turn."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self, SupportsIndex, cast

from jinja2 import nodes

from app.context import ChatMessage
from app.errors import UpstreamRejected

Render = Callable[[Sequence[ChatMessage]], str]

# What a template may use and still be learnt. The rest could decide by a text unseen, or change from day to day.
_CALLS = frozenset({"raise_exception", "namespace", "range"})
_FILTERS = frozenset("trim length count list first last default d selectattr rejectattr string items".split())
_TESTS = frozenset(
    "string defined undefined none mapping iterable sequence boolean true false number integer eq equalto ne in odd "
    "even".split()
)
_BEYOND = (
    *(nodes.Macro, nodes.CallBlock, nodes.AssignBlock, nodes.FilterBlock),
    *(nodes.Mul, nodes.Pow, nodes.Div, nodes.FloorDiv, nodes.Concat),
    *(nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends),
)
_OF_TOOLS = frozenset({"function", "arguments", "parameters"})
_LARGEST_NUMBER = 20

# Pairs at either end of a talk for which a template may have other words than for those between, at least.
_EDGE_PAIRS = 2


class Unpredictable(BaseException):
    """The template does something that cannot be foreseen from its structure.

    Not an Exception, because jinja's own tests catch those.
    """


@dataclass
class _Conditions:
    """What was taken for granted of all texts while the template ran.

    Attributes:
        absent: what none of them contains.
        stripped: characters of which none stands at either end of one; None: white space.
    """

    absent: set[str] = field(default_factory=set)
    stripped: set[str | None] = field(default_factory=set)

    def hold_for(self, texts: Sequence[str]) -> bool:
        """Whether the template would treat these texts like those that it was tried with."""
        if not all(texts):
            return False
        if self.absent:
            everything = "\0".join(texts)
            if any(literal in everything for literal in self.absent):
                return False
        return all(text == text.strip(characters) for characters in self.stripped for text in texts)


class _Derived(str):  # noqa: SLOT000 - what inherits from it has an attribute
    """Words with a message's text among them: the template may say them, but decide nothing by them."""

    def __add__(self, other: str) -> "_Derived":
        return _Derived(str.__add__(self, other))

    def __radd__(self, other: str) -> "_Derived":
        return _Derived(str.__add__(other, self))

    def __iter__(self) -> Iterator[str]:
        return map(_refuse, [self])  # to be iterable is no decision, what comes then would be

    def __bool__(self) -> bool:
        raise Unpredictable


def _refuse(*_: object, **__: object) -> NoReturn:
    raise Unpredictable


_DECISIONS = "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __hash__ __format__ __repr__".split()
for _name in {*dir(str), *_DECISIONS} - ({*dir(object), "__add__", "__iter__"} - {*_DECISIONS}):
    setattr(_Derived, _name, _refuse)


class _Said(_Derived):
    """A message's text: notes what is asked about it, and answers as nearly every text would."""

    conditions: _Conditions

    def __new__(cls, text: str, conditions: _Conditions) -> Self:
        said = super().__new__(cls, text)
        said.conditions = conditions
        return said

    def _lacks(self, literal: Any) -> bool:
        if type(literal) is not str or not literal or "\0" in literal:
            raise Unpredictable
        self.conditions.absent.add(literal)
        return False

    def __bool__(self) -> bool:
        return True  # an empty text never meets the conditions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other != "" and self._lacks(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = _refuse
    __contains__ = _lacks
    startswith = endswith = _lacks  # type: ignore[assignment] # with more arguments they are refused

    def strip(self, characters: Any = None) -> "_Said":
        """As where there is nothing to strip."""
        if characters is not None and type(characters) is not str:
            raise Unpredictable
        self.conditions.stripped.add(characters)
        return self

    lstrip = rstrip = strip

    def split(self, separator: Any = None, _: SupportsIndex = -1) -> list[str]:
        """As where there is nothing to split at."""
        self._lacks(separator)
        return [self]

    rsplit = split  # type: ignore[assignment] # templates name no arguments

    def replace(self, old: Any, _new: str, _count: SupportsIndex = -1) -> "_Said":
        """As where there is nothing to replace."""
        self._lacks(old)
        return self


class _Message(dict[str, str]):
    """A message of which the template may take its members, but not all there is."""

    __iter__ = keys = values = items = copy = _refuse


@dataclass(frozen=True)
class _Pieces:
    """A rendered talk in pieces: the template's words, and between them texts by their places in the talk."""

    words: list[str]
    places: list[int]

    @classmethod
    def of(cls, rendered: str, texts: Sequence[str]) -> "_Pieces":
        """Find the texts again. Raises Unpredictable where one is not there as it is, once."""
        if any(rendered.count(text) != 1 for text in texts):
            raise Unpredictable
        places = sorted(range(len(texts)), key=lambda place: rendered.index(texts[place]))
        words = []
        for place in places:
            before, _, rendered = rendered.partition(texts[place])
            words.append(before)
        return cls([*words, rendered], places)

    def render(self, texts: Sequence[str]) -> str:
        """The same talk with other texts."""
        pieces = [""] * (2 * len(self.places) + 1)
        pieces[::2] = self.words
        pieces[1::2] = [texts[place] for place in self.places]
        return "".join(pieces)


class _Form:
    """Talks of any length, with a system message or without."""

    def __init__(self, render: Render, *, has_system: bool, edge_pairs: int, conditions: _Conditions) -> None:
        """Try talks of every length up to one in which the edges do not meet, which stands for all longer ones.

        Raises:
            Unpredictable: they have no pattern.
            UpstreamRejected: the template does not take such talks.
        """
        self._first = 1 if has_system else 0  # the place of the first text that is not the system's
        self._edge_texts = 2 * edge_pairs
        self._short = []
        longest = 2 * edge_pairs + 1
        for pairs in range(longest + 1):
            texts = self._try(pairs, conditions)
            self._short.append(_Pieces.of(render(self._talk(texts)), texts))
        self._take_apart(self._short.pop(), texts)
        # What comes again after as many messages, or pairs, as a number in the template says comes once in these.
        for pairs in range(longest, longest + edge_pairs + 2):
            texts = self._try(pairs, conditions)
            if self.render(texts) != render(self._talk(texts)):
                raise Unpredictable

    def _try(self, pairs: int, conditions: _Conditions) -> list[_Said]:
        # With what a template might write otherwise: quotes, what HTML escapes, letters of both cases, a line's end.
        return [_Said(f"<{n}&'\"Жж\né{n}>", conditions) for n in range(self._first + 2 * pairs + 1)]

    def _talk(self, texts: Sequence[str]) -> list[ChatMessage]:
        talk = [_Message(role="system", content=text) for text in texts[: self._first]]
        for number, text in enumerate(texts[self._first :]):
            talk.append(_Message(role="assistant" if number % 2 else "user", content=text))
        return cast(list[ChatMessage], talk)

    def _take_apart(self, pieces: _Pieces, texts: Sequence[str]) -> None:
        """Into what comes first, what is repeated for every pair, and what comes last."""
        count, places = len(texts), pieces.places
        if [place for place in places if place >= self._first] != list(range(self._first, count)):
            raise Unpredictable
        begin = places.index(self._first + self._edge_texts)
        end = places.index(count - self._edge_texts - 1)
        question, reply = pieces.words[begin : begin + 2]
        if pieces.words[begin:end] != [question, reply] * ((end - begin) // 2):
            raise Unpredictable
        self._head = _Pieces([*pieces.words[:begin], ""], places[:begin])
        self._question, self._reply = question, reply
        # Places in the tail are counted from the end, but the system's.
        tail = [place - count if place >= self._first else place for place in places[end:]]
        self._tail = _Pieces(pieces.words[end:], tail)

    def uniform(self) -> "Uniform | None":
        """The same in simpler words, where that is all there is to it."""
        words, places = self._short[1].words, self._short[1].places
        question = places.index(self._first)
        head = _Pieces(words[: question + 1], places[:question])
        after_answer = words[question + 2 :]
        tail = _Pieces(["", *after_answer[1:]], [int(place >= self._first) for place in places[question + 2 :]])
        form = Uniform(head, words[question + 1], after_answer[0], tail)
        longest = 2 * self._edge_texts
        for count in range(self._first + 1, self._first + longest, 2):
            texts = [f"<{n}>" for n in range(count)]
            if form.render(texts[0], texts[self._first :]) != self.render(texts):
                return None
        return form

    def render(self, texts: Sequence[str]) -> str:
        """A talk of these texts, the system's first where it has one."""
        pairs = (len(texts) - self._first) // 2
        if pairs < len(self._short):
            return self._short[pairs].render(texts)
        repeated = texts[self._first + self._edge_texts : -self._edge_texts - 1]
        pieces = [self._question, "", self._reply, ""] * (len(repeated) // 2)
        pieces[1::2] = repeated
        return "".join((self._head.render(texts), *pieces, self._tail.render(texts)))


@dataclass(frozen=True)
class Uniform:
    """The form of talks in which the same words stand around every pair, the first and the last too.

    A text is the head; for each pair the question, `reply`, the answer and `between`; and then the tail.
    """

    _head: _Pieces
    reply: str
    between: str
    _tail: _Pieces

    def head(self, system: str) -> str:
        """What comes before the first question."""
        return self._head.render([system])

    def tail(self, system: str, message: str) -> str:
        """The new message, and what comes with it."""
        return self._tail.render([system, message])

    def render(self, system: str, texts: Sequence[str]) -> str:
        """A talk of these texts, the last of them the new message."""
        pairs = [
            question + self.reply + answer + self.between
            for question, answer in zip(texts[:-1:2], texts[1::2], strict=True)
        ]
        return "".join((self.head(system), *pairs, self.tail(system, texts[-1])))


class TalkPattern:
    """A template's talks without further arguments: its words for every length of talk, and when they are these.

    A template is a program, and nothing says that it treats the hundredth pair as the tenth, or a text with `<think>`
    in it as one without. So it is run over texts that note what is asked about them; what it was told then must hold
    for the texts to come. And it is run over talks so long that no number in it can mark a place between their edges,
    so that longer ones have only more of the same there. A template that does anything else is not learnt; what does
    not meet the conditions is not rendered.
    """

    def __init__(self, tree: nodes.Template, render: Render) -> None:
        """`render` runs the template whose syntax tree is `tree`; what cannot be learnt is left out."""
        self._conditions = _Conditions()
        self._forms: dict[bool, _Form] = {}
        with suppress(Unpredictable):
            edge_pairs = max(_EDGE_PAIRS, _largest_number(tree) + 1)
            for has_system in (False, True):
                with suppress(UpstreamRejected):
                    form = _Form(render, has_system=has_system, edge_pairs=edge_pairs, conditions=self._conditions)
                    self._forms[has_system] = form

    def uniform(self) -> dict[bool, Uniform]:
        """The forms that are so, by whether there is a system message."""
        forms = {has_system: form.uniform() for has_system, form in self._forms.items()}
        return {has_system: form for has_system, form in forms.items() if form is not None}

    def holds_for(self, texts: Sequence[str]) -> bool:
        """Whether the template treats these texts by its pattern."""
        return self._conditions.hold_for(texts)

    def render(self, messages: Sequence[ChatMessage]) -> str | None:
        """The text of messages as the template renders them; None: it must be asked itself."""
        form = self._forms.get(messages[0]["role"] == "system")
        if form is None:
            return None
        texts = [message["content"] for message in messages]
        return form.render(texts) if self._conditions.hold_for(texts) else None


def _largest_number(tree: nodes.Template) -> int:
    """The largest number in a template that uses only what can be followed. Raises Unpredictable where it does not."""
    said = {id(node) for output in tree.find_all(nodes.Output) for node in _parts_said(output.nodes)}
    if not all(id(node) in said or _is_followed(node) for node in tree.find_all(nodes.Node)):
        raise Unpredictable
    numbers = [abs(int(const.value)) for const in tree.find_all(nodes.Const) if _is_number(const)]
    # How many there are of something is a number, too.
    numbers += [len(some.items) for some in tree.find_all(nodes.Node) if isinstance(some, nodes.List | nodes.Tuple)]
    numbers += [len(call.args) for call in tree.find_all(nodes.Call)]
    largest = max(numbers, default=0)
    if largest > _LARGEST_NUMBER:
        raise Unpredictable
    return largest


def _parts_said(expressions: Sequence[nodes.Expr]) -> Iterator[nodes.Node]:
    """Expressions whose values are said as they are, so that nothing can be decided by them."""
    for expression in expressions:
        match expression:
            case nodes.Concat(nodes=parts):
                yield expression
                yield from _parts_said(parts)
            case nodes.Filter(name="tojson"):
                yield expression
            case nodes.Add(left=left, right=right):
                yield from _parts_said([left, right])
            case nodes.CondExpr(expr1=one, expr2=other):
                yield from _parts_said([one] if other is None else [one, other])


def _is_followed(node: nodes.Node) -> bool:
    """Whether it is known what a template decides by this, and by what texts.

    Python itself looks into a text in the methods of another, in the search for it in another, and where it makes a
    string of something that holds it; the text does not notice.
    """
    match node:
        case nodes.Call():
            followed = _is_followed_call(node)
        case nodes.Filter():
            followed = _is_followed_filter(node)
        case nodes.Test(name=name, args=arguments):
            followed = name in _TESTS and (name != "in" or _are_listed(arguments))
        case nodes.Compare(expr=left, ops=operands):
            searched = [operand.expr for operand in operands if operand.op in ("in", "notin")]
            followed = _are_listed(searched) or (len(operands) == 1 and isinstance(left, nodes.Const))
        case nodes.Const(value=value):
            followed = type(value) is not float
        case nodes.Add(left=left, right=right):
            followed = not (_is_number(left) and _is_number(right))
        case nodes.Mod(right=right):
            followed = _is_number(right)
        case nodes.Getitem(node=nodes.Const()):
            followed = False
        case nodes.Keyword(key=name) | nodes.NSRef(attr=name) | nodes.Pair(key=nodes.Const(value=name)):
            followed = name not in _OF_TOOLS
        case _:
            followed = not isinstance(node, _BEYOND)
    return followed


def _is_followed_call(call: nodes.Call) -> bool:
    match call:
        case nodes.Call(node=nodes.Name(name=name)):
            return name in _CALLS
        case nodes.Call(kwargs=[], dyn_args=None, dyn_kwargs=None):
            return _are_constants(call.args)
    return False


def _is_followed_filter(used: nodes.Filter) -> bool:
    match used:
        case nodes.Filter(dyn_args=nodes.Expr()) | nodes.Filter(dyn_kwargs=nodes.Expr()):
            followed = False
        case nodes.Filter(name="selectattr" | "rejectattr", args=[_, nodes.Const(value=test), *arguments]):
            followed = test in _TESTS and (test != "in" or _are_listed(arguments))
        case nodes.Filter(name="selectattr" | "rejectattr", args=arguments):
            followed = len(arguments) == 1
        case nodes.Filter(name="length" | "count", node=nodes.Const()):
            followed = False
        case nodes.Filter(
            name="tojson", node=nodes.Getattr(attr=member) | nodes.Getitem(arg=nodes.Const(value=member))
        ):
            followed = member in _OF_TOOLS
        case nodes.Filter(name="trim", args=arguments):
            followed = _are_constants(arguments)
        case _:
            followed = used.name in _FILTERS
    return followed


def _are_constants(expressions: Sequence[nodes.Expr]) -> bool:
    return all(isinstance(expression, nodes.Const) for expression in expressions)


def _are_listed(expressions: Sequence[nodes.Expr]) -> bool:
    return all(isinstance(expression, nodes.List | nodes.Tuple) for expression in expressions)


def _is_number(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) and type(node.value) is int
