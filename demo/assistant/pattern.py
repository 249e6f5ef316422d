"""Patterns of questions: `(a|b)` is one of several, `[a]` may be left out; both may hold others."""

import re
from itertools import chain, product

_SPACES = re.compile(r"\s+")
_TOKEN = re.compile(r"[^()\[\]|]+|.")
_CLOSING = {"(": ")", "[": "]"}


def texts(pattern: str) -> list[str]:
    """All texts that a pattern stands for, each once, in the order of its options.

    Raises:
        ValueError: its brackets do not match.
    """
    tokens = _TOKEN.findall(pattern)[::-1]
    found = _sequence(tokens, pattern)
    if tokens:
        raise ValueError(f"nothing opens {tokens[-1]!r} in {pattern!r}")
    return list(dict.fromkeys(_SPACES.sub(" ", text).strip() for text in found))


def _sequence(tokens: list[str], pattern: str) -> list[str]:
    """Take tokens, the last one first, up to one that ends a sequence; returns its texts."""
    parts = []
    while tokens and tokens[-1] not in ("|", ")", "]"):
        token = tokens.pop()
        parts.append(_choice(tokens, token, pattern) if token in _CLOSING else [token])
    return ["".join(words) for words in product(*parts)]


def _choice(tokens: list[str], opening: str, pattern: str) -> list[str]:
    options = [[""]] if opening == "[" else []
    end = "|"
    while end == "|":
        options.append(_sequence(tokens, pattern))
        end = tokens.pop() if tokens else ""
    if end != _CLOSING[opening]:
        raise ValueError(f"nothing closes {opening!r} in {pattern!r}")
    return list(chain.from_iterable(options))
