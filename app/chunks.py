"""Counting the tokens of a text that is mostly the same as the last time."""

import re
import sys
from collections.abc import Iterator, Sequence

from tokenizers import AddedToken, Tokenizer

from app.encoder import Encoder

SAMPLE_PAIRS = 4
_SHORT_CHARACTERS = 1_000
"""A text that is sooner encoded anew than looked up by its chunks, where encoding is fast."""
# White space as tokenizers strips it beside a token: Unicode's White_Space. Python's own notion has four more.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class TooMuchNew(Exception):
    """More is to be encoded than was allowed."""


class ChunkCounter:
    """Counts tokens of rendered conversations; what it has counted before costs a look-up.

    A tokenizer takes the added tokens (`<|im_start|>` and the like) out of a text before it does anything else, and
    treats each piece between them on its own. So a text can be cut before every occurrence of one added token, the
    boundary, and its count is the sum over the chunks: a message or so each, and messages come back every turn.
    Counts are kept under the chunks' hashes (64 bits, which Python salts anew in every process), not their texts.

    Safe to use from several threads.

    Attributes:
        boundary: the added token before which texts are cut. None: none would be exact, every text is encoded whole.
        is_fast: whether fastokens encodes.
    """

    def __init__(self, backend: Tokenizer, samples: Sequence[str], remembered: int = 65_536) -> None:
        """Choose a boundary and check it against whole encodings.

        Args:
            backend: with truncation and padding off.
            samples: conversations as the model's template renders them, each of `SAMPLE_PAIRS` pairs at least.
            remembered: how many chunks' counts are kept, and as many again of those that were not used of late.
        """
        self.boundary: str | None = None
        self._encoder = Encoder(backend, samples)
        self.is_fast = self._encoder.is_fast
        self._swallows_space_before = False
        self._remembered = remembered
        self._recent: dict[int, int] = {}
        self._older: dict[int, int] = {}
        added = list(backend.get_added_tokens_decoder().values())
        for token in _candidates(backend, added, samples):
            self._swallows_space_before = token.lstrip
            trials = list(_trials(token.content, added, samples))
            exact = [self._count_chunks(text, token.content) for text in trials] == self._encode(trials)
            self._recent, self._older = {}, {}
            if exact:
                self.boundary = token.content
                break

    def count(self, text: str, at_most_new: int = sys.maxsize, *, followed: bool = False) -> int:
        """Tokens of a text. Blocks while it encodes what is new in it.

        Args:
            text: any.
            at_most_new: characters that may be encoded.
            followed: it is a part of a longer text that goes on with the boundary.

        Raises:
            TooMuchNew: that is more than so many characters; nothing was encoded.
        """
        if followed and self._swallows_space_before:
            text = text.rstrip(_WHITE_SPACE)
        is_short = self.is_fast and len(text) <= min(_SHORT_CHARACTERS, at_most_new)
        if is_short or self.boundary is None:
            return self._encode([text], at_most_new)[0]
        return self._count_chunks(text, self.boundary, at_most_new)

    def _count_chunks(self, text: str, boundary: str, at_most_new: int = sys.maxsize) -> int:
        pieces = text.split(boundary)
        if self._swallows_space_before:
            pieces[:-1] = [piece.rstrip(_WHITE_SPACE) for piece in pieces[:-1]]
        keys = list(map(hash, pieces))
        keys[0] = hash((pieces[0],))  # the same text is another chunk where no boundary stands before it
        try:
            return sum(map(self._recent.__getitem__, keys))
        except KeyError:
            return sum(self._count_missing(pieces, keys, boundary, at_most_new))

    def _count_missing(self, pieces: list[str], keys: list[int], boundary: str, at_most_new: int) -> list[int]:
        """Counts by key, of which some are not among the recent ones."""
        known = {key: count for key in keys if (count := self._recent.get(key, self._older.get(key))) is not None}
        missing = {key: number for number, key in enumerate(keys) if key not in known}
        chunks = [boundary + pieces[number] if number else pieces[0] for number in missing.values()]
        known.update(zip(missing, self._encode(chunks, at_most_new), strict=True))
        if len(self._recent) + len(known) > self._remembered:
            self._older, self._recent = self._recent, {}
        self._recent.update(known)
        return [known[key] for key in keys]

    def _encode(self, texts: list[str], at_most: int = sys.maxsize) -> list[int]:
        """Tokens of each text; lets other threads run meanwhile."""
        if sum(map(len, texts)) > at_most:
            raise TooMuchNew
        return self._encoder.count(texts)


def _candidates(backend: Tokenizer, added: Sequence[AddedToken], samples: Sequence[str]) -> Iterator[AddedToken]:
    """Added tokens that every occurrence of their text stands for, those first that cut into the most chunks."""
    if backend.encode_special_tokens or not samples:
        return
    often = {token.content: min(sample.count(token.content) for sample in samples) for token in added}
    for token in sorted(added, key=lambda token: often[token.content], reverse=True):
        if often[token.content] < SAMPLE_PAIRS:
            return
        if _is_always_itself(token, added, normalizes=backend.normalizer is not None):
            yield token


def _is_always_itself(token: AddedToken, added: Sequence[AddedToken], *, normalizes: bool) -> bool:
    """Whether a tokenizer finds the token wherever its text is, and whatever stands around it.

    As tokenizers does (tokenizers/src/tokenizer/added_vocabulary.rs): first it looks for tokens that are not to be
    normalized, from left to right and the longest at each place; then, in what it has normalized, for the others.
    """
    if token.single_word or (token.normalized and normalizes) or token.content.strip(_WHITE_SPACE) != token.content:
        return False
    return not any(_may_hide(other, token) for other in added if other.content != token.content)


def _may_hide(other: AddedToken, token: AddedToken) -> bool:
    """Whether another token may be found in place of this one, or only where the text is cut before this one."""
    begins_with_it = other.content.startswith(token.content)
    if other.single_word and (begins_with_it or re.match(r"\w", token.content)):
        return True
    if begins_with_it and other.lstrip != token.lstrip:
        return True
    if token.lstrip and other.content[-1:] in _WHITE_SPACE:
        return True
    if (token.normalized or not other.normalized) and _may_begin_before(other.content, token.content):
        return True
    is_found_first = token.normalized and not other.normalized
    return is_found_first and (
        token.content.startswith(other.content) or _may_begin_before(token.content, other.content)
    )


def _may_begin_before(text: str, other: str) -> bool:
    """Whether an occurrence of `text` may take the beginning of one of `other` that starts inside it."""
    return any(text[start:].startswith(other) or other.startswith(text[start:]) for start in range(1, len(text)))


def _trials(boundary: str, added: Sequence[AddedToken], samples: Sequence[str]) -> Iterator[str]:
    """Texts on which a wrong cut would show."""
    yield from samples
    spaces = [" ", "\n", " \n\n ", "\t", "\r\n", "\xa0", "\u3000", "\x1f", "\u200b", "  ё  ", "e\u0301", "🦔"]
    for space in spaces:
        yield f"{space}{boundary}{space}а{space}{boundary}{boundary}{space}"
    yield boundary[:-1] + boundary + boundary[1:]
    for token in added:
        yield f"{token.content}{boundary}а {token.content} {boundary} {token.content}а{boundary}{token.content[:-1]}"
