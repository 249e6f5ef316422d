"""Which part of a conversation goes to the model: pure functions of lengths and counts."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, TypedDict, TypeVar

import msgspec

from app.errors import ContextTooLong
from app.idempotency import KeptAnswer

T = TypeVar("T")


class ChatMessage(TypedDict):
    """One message as a chat template and vLLM take it."""

    role: Literal["system", "user", "assistant"]
    content: str


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A committed turn: what the user said and what the model answered.

    Kept as UTF-8, because in a `str` one dash or smiley makes every letter take two or four bytes; and not looked at by
    the garbage collector, which would take long over millions of them.
    """

    user_utf8: bytes
    assistant_utf8: bytes
    finish_reason: str | None
    tokens: int = 0
    """A note of `PairwiseCounter`; 0: not counted yet."""
    kept: KeptAnswer | None = None
    """Where the question came with a key."""

    @staticmethod
    def of(user: str, assistant: str, finish_reason: str | None) -> "Pair":
        """A turn by its texts."""
        return Pair(user.encode(), assistant.encode(), finish_reason and sys.intern(finish_reason))

    @property
    def user(self) -> str:
        """What the user said."""
        return self.user_utf8.decode()

    @property
    def assistant(self) -> str:
        """What the model answered."""
        return self.assistant_utf8.decode()

    @property
    def size_bytes(self) -> int:
        """UTF-8 length of all that is kept of it."""
        kept_bytes = self.kept.size_bytes if self.kept else 0
        return len(self.user_utf8) + len(self.assistant_utf8) + len((self.finish_reason or "").encode()) + kept_bytes


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation of which a prompt is to be made.

    Attributes:
        system_prompt: empty means no system message.
        pairs: its history, oldest first.
        message: the user's new one.
        folded: for models that know no system message: the first message of the user begins with its text.
    """

    system_prompt: str
    pairs: Sequence[Pair]
    message: str
    folded: bool = False

    def messages(self, start: int) -> list[ChatMessage]:
        """What is sent without the first so many pairs."""
        return conversation(self.system_prompt, self.pairs[start:], self.message, folded=self.folded)


@dataclass(frozen=True, slots=True)
class Surplus:
    """What vLLM counts more than the gateway: not more than so many tokens, and not more than in such a proportion.

    One of them alone would be wrong for the other kind of difference: a constant one (another template) seen in a short
    prompt is a huge proportion, a proportional one (another tokenizer) seen in a long prompt is a huge constant.
    """

    tokens: int
    ratio: Fraction

    @staticmethod
    def seen(counted: int, theirs: int) -> "Surplus":
        """Of a prompt in which the gateway has `counted` tokens and vLLM `theirs`; none where that is not more."""
        return Surplus(theirs - counted, Fraction(theirs, max(1, counted))) if theirs > counted else NO_SURPLUS

    def joined(self, other: "Surplus") -> "Surplus":
        """The larger of both, in either respect."""
        return Surplus(max(self.tokens, other.tokens), max(self.ratio, other.ratio))

    def of(self, counted: int) -> int:
        """How many more to expect in a prompt of `counted` tokens."""
        if not self.tokens:
            return 0
        return min(self.tokens, math.ceil(counted * (self.ratio - 1)))

    def taken_off(self, bound: int) -> int:
        """How many tokens the gateway may count, so that with the surplus they are within a bound."""
        return max(bound - self.tokens, int(bound / self.ratio))


NO_SURPLUS = Surplus(0, Fraction(1))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a prompt may take.

    Attributes:
        limit: prompt tokens at most.
        target: prompt tokens to go down to once something must be left out.
        max_prompt_tokens: what the answer leaves of the model's length, however little of it is allowed.
        advice: what would raise the limit, in Russian.
    """

    limit: int
    target: int
    max_prompt_tokens: int
    advice: str

    def lowered_by(self, surplus: Surplus) -> "Budget":
        """The same in the gateway's own tokens, where vLLM counts more."""
        if not surplus.tokens:
            return self
        return replace(self, limit=surplus.taken_off(self.limit), target=surplus.taken_off(self.target))

    def too_long(self, needed: int, message: str) -> ContextTooLong:
        """The error for a system prompt and a message that need more than the limit on their own."""
        what = "Системный промпт и сообщение не помещаются" if message else "Системный промпт не помещается"
        return ContextTooLong(
            f"{what}: нужно токенов — {needed}, предел — {self.limit}. Сократите текст или {self.advice}.",
            limit=self.limit,
            needed=needed,
        )


@dataclass(frozen=True, slots=True)
class Window:
    """Which of the stored pairs are sent.

    Attributes:
        start: pairs left out, the oldest ones.
        used: tokens of the prompt with all the others.
    """

    start: int
    used: int


def budget(max_context_tokens: int, max_model_len: int, max_tokens: int, target_ratio: float) -> Budget:
    """What a prompt may take, so that its answer has room for `max_tokens`.

    Raises:
        ContextTooLong: `max_tokens` alone fills the model's length.
    """
    if max_tokens >= max_model_len:
        raise ContextTooLong(
            f"max_tokens={max_tokens} не оставляет места для запроса: "
            f"длина контекста модели в токенах — {max_model_len}. Уменьшите max_tokens.",
            limit=max_model_len,
            needed=max_tokens + 1,
        )
    left_by_answer = max_model_len - max_tokens
    if left_by_answer < max_context_tokens:
        limit, advice = left_by_answer, "уменьшите max_tokens"
    else:
        limit, advice = max_context_tokens, "увеличьте MAX_CONTEXT_TOKENS"
    return Budget(limit, int(limit * target_ratio), left_by_answer, advice)


def fit(pairs: int, start: int | None, allowed: Budget, count: Callable[[int], int]) -> Window:
    """Move the window over the history no further than it must, and then far enough to stand still for a while.

    A prompt that begins as the last one did costs vLLM only its end, the rest is in its prefix cache. So the window
    stays where it is as long as the prompt fits. When it does not, pairs go until it is down to the target; the last
    pair stays if it fits the limit at all, because an answer without it would be beside the point. The window grows
    back only over pairs with which the prompt is still within the target.

    One more old pair is taken to mean more tokens; what is returned has been counted, whatever the template. Where no
    pair fits, the result holds none, and may be over the limit. Counts one window where nothing moves (below the target
    also one with a pair more), else some 2 log2(pairs), most of them smaller.

    Args:
        pairs: how many are stored.
        allowed: the budget.
        start: of the last window. None: there was none; all pairs are wanted, and if not all fit, as after a cut.
        count: tokens of the prompt without the first so many pairs.
    """
    count = remembered(count)
    if start is None:
        bare = Window(pairs, count(pairs))
        window = _widest(0, bare, allowed.limit, count)
        if window.start == 0:
            return window
        first = window.start
    else:
        window = Window(start, count(start))
        if window.used <= allowed.target:
            return _widest(0, window, allowed.target, count)
        if window.used <= allowed.limit or start == pairs:
            return window
        bare, first = Window(pairs, count(pairs)), start + 1
    window = _widest(first, bare, allowed.target, count)
    if window is bare and pairs > first:
        last = Window(pairs - 1, count(pairs - 1))
        if last.used <= allowed.limit:
            return last
    return window


def remembered(function: Callable[[int], T]) -> Callable[[int], T]:
    """Ask no number twice. A `functools.cache` for a moment costs more than it saves to make."""
    known: dict[int, T] = {}

    def look_up(number: int) -> T:
        if number not in known:
            known[number] = function(number)
        return known[number]

    return look_up


def _widest(first: int, window: Window, bound: int, count: Callable[[int], int]) -> Window:
    """The earliest start from `first` on with which the prompt is within a bound; `window` itself where none is.

    Looks from the newest pair back, so that a long history costs no more than what of it fits.
    """
    if window.used > bound:
        return window
    step, overstepped = 1, False
    while window.start > first:
        start = (first + window.start) // 2 if overstepped else max(first, window.start - step)
        used = count(start)
        if used <= bound:
            window, step = Window(start, used), step * 2
        else:
            first, overstepped = start + 1, True
    return window


def conversation(system_prompt: str, pairs: Sequence[Pair], message: str, *, folded: bool = False) -> list[ChatMessage]:
    """Lay out the messages of one request; an empty system prompt is no message.

    Args:
        system_prompt: what the model is told to be.
        pairs: the history that is sent, oldest first.
        message: the user's new one.
        folded: for models that know no system message: the first message of the user begins with its text.
    """
    messages: list[ChatMessage] = []
    if system_prompt and not folded:
        messages.append({"role": "system", "content": system_prompt})
    for pair in pairs:
        messages.append({"role": "user", "content": pair.user})
        messages.append({"role": "assistant", "content": pair.assistant})
    messages.append({"role": "user", "content": message})
    if system_prompt and folded:
        messages[0]["content"] = f"{system_prompt}\n\n{messages[0]['content']}"
    return messages
