"""Which part of a conversation goes to the model: pure functions of lengths and counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from app.errors import ContextTooLong


class ChatMessage(TypedDict):
    """One message as a chat template and vLLM take it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A committed turn: what the user said and what the model answered."""

    user: str
    assistant: str
    finish_reason: str | None

    @property
    def size_bytes(self) -> int:
        """UTF-8 length of all that is kept of it."""
        return sum(len(text.encode()) for text in (self.user, self.assistant, self.finish_reason or ""))


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation cut to its budget.

    Attributes:
        messages: what is sent, oldest first.
        used: prompt tokens of `messages`, generation prompt included.
        limit: the budget in prompt tokens.
        history_pairs: earlier pairs among `messages`.
        dropped_pairs: earlier pairs left out.
    """

    messages: list[ChatMessage]
    used: int
    limit: int
    history_pairs: int
    dropped_pairs: int


@dataclass(frozen=True, slots=True)
class Budget:
    """Prompt tokens that a request may have, and what would raise that limit."""

    limit: int
    advice: str


def budget(max_context_tokens: int, max_model_len: int, max_tokens: int) -> Budget:
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
        return Budget(left_by_answer, "уменьшите max_tokens")
    return Budget(max_context_tokens, "увеличьте MAX_CONTEXT_TOKENS")


def fit(
    system_prompt: str,
    pairs: Sequence[Pair],
    message: str,
    allowed: Budget,
    count: Callable[[list[ChatMessage]], int],
) -> Fitted:
    """Leave out the fewest whole oldest pairs with which the prompt fits.

    The system prompt and the new message are never cut. Counts at most log2(pairs) + 2 conversations, because one more
    old pair is taken to mean more tokens. What is returned has been counted, whatever the template.

    Raises:
        ContextTooLong: the system prompt and the message alone are over the limit.
    """
    limit = allowed.limit

    def attempt(dropped: int) -> Fitted:
        messages = conversation(system_prompt, pairs[dropped:], message)
        return Fitted(messages, count(messages), limit, len(pairs) - dropped, dropped)

    best = attempt(0)
    if best.used <= limit:
        return best
    best = attempt(len(pairs))
    if best.used > limit:
        what = "Системный промпт и сообщение не помещаются" if message else "Системный промпт не помещается"
        raise ContextTooLong(
            f"{what}: нужно токенов — {best.used}, предел — {limit}. Сократите текст или {allowed.advice}.",
            limit=limit,
            needed=best.used,
        )
    too_few = 0
    while best.dropped_pairs - too_few > 1:
        middle = attempt((too_few + best.dropped_pairs) // 2)
        if middle.used <= limit:
            best = middle
        else:
            too_few = middle.dropped_pairs
    return best


def conversation(system_prompt: str, pairs: Sequence[Pair], message: str) -> list[ChatMessage]:
    """Lay out the messages of one request; an empty system prompt is no message."""
    messages: list[ChatMessage] = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for pair in pairs:
        messages.append({"role": "user", "content": pair.user})
        messages.append({"role": "assistant", "content": pair.assistant})
    messages.append({"role": "user", "content": message})
    return messages
