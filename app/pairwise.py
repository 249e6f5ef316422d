"""Counting a talk pair by pair: what a turn costs does not grow with the talk."""

import sys
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from app.chunks import ChunkCounter, TooMuchNew
from app.context import Pair, Talk
from app.pattern import TalkPattern, Uniform

_HEADS = 10_000
_OF_NO_PATTERN = -1
"""A pair's tokens where the template would not treat it as others."""


class NotPairwise(Exception):
    """The talk has to be counted as a whole."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """A pattern cut before a boundary within the words that stand between two pairs."""

    before: str
    after: str
    form: Uniform

    @classmethod
    def of(cls, form: Uniform, boundary: str) -> "_Cut | None":
        """None where there is no such place, or another one before the first pair."""
        at = form.between.rfind(boundary)
        cut = cls(form.between[:at], form.between[at:], form)
        return cut if at >= 0 and form.head("").endswith(cut.after) else None


class PairwiseCounter:
    """Counts prompts as the sum over a head, the pairs and a tail, and each pair only once."""

    def __init__(self, pattern: TalkPattern, chunks: ChunkCounter, longest_token: int) -> None:
        """`longest_token`, in characters: a text with fewer tokens than could hold it is counted as a whole."""
        self._pattern = pattern
        self._chunks = chunks
        self._longest_token = longest_token
        self._heads: dict[int, int] = {}
        boundary = chunks.boundary
        uniform = {} if boundary is None or chunks.count("") else pattern.uniform()
        cuts = {has_system: _Cut.of(form, boundary) for has_system, form in uniform.items() if boundary}
        # A system prompt may come and go in a talk: what is noted of its pairs then has to hold in either form.
        blocks = {(cut.after, cut.form.reply, cut.before) for cut in cuts.values() if cut is not None}
        self._cuts = cuts if len(blocks) == 1 else {}

    def count(self, talk: Talk, start: int, at_most_new: int) -> int:
        """Prompt tokens of a talk without its first pairs, generation prompt included.

        Raises:
            NotPairwise: it has to be counted as a whole.
            TooMuchNew: more than so many characters are to be encoded.
        """
        system, pairs, message = talk.system_prompt, talk.pairs[start:], talk.message
        cut = self._cuts.get(bool(system))
        if cut is None or (talk.folded and system):
            raise NotPairwise
        if not self._pattern.holds_for([message]):
            raise NotPairwise
        if sum([pair.size_bytes for pair in pairs if not pair.tokens]) > at_most_new:
            raise TooMuchNew
        tokens = [pair.tokens or self._count_pair(pair, cut) for pair in pairs]
        if _OF_NO_PATTERN in tokens:
            raise NotPairwise
        head = self._heads.get(hash(system)) or self._count_head(system, cut, at_most_new)
        tail = cut.after + cut.form.tail(system, message)
        return sum(tokens) + head + self._part(tail, at_most_new)

    def _count_head(self, system: str, cut: _Cut, at_most_new: int) -> int:
        """Count what comes before the first pair, and keep that under the system prompt's hash."""
        if system and not self._pattern.holds_for([system]):
            raise NotPairwise
        tokens = self._part(cut.form.head(system).removesuffix(cut.after), at_most_new, followed=True)
        if len(self._heads) == _HEADS:
            self._heads.clear()
        self._heads[hash(system)] = tokens
        return tokens

    def _count_pair(self, pair: Pair, cut: _Cut) -> int:
        """Count a pair that never was; 0 is no count of any."""
        user, assistant = pair.user, pair.assistant
        tokens = _OF_NO_PATTERN
        if self._pattern.holds_for([user, assistant]):
            block = cut.after + user + cut.form.reply + assistant + cut.before
            with suppress(NotPairwise):
                tokens = self._part(block, followed=True)
        msgspec.structs.force_setattr(pair, "tokens", tokens)
        return tokens

    def _part(self, text: str, at_most_new: int = sys.maxsize, *, followed: bool = False) -> int:
        tokens = self._chunks.count(text, at_most_new, followed=followed)
        if len(text) > tokens * self._longest_token:
            raise NotPairwise
        return tokens
