"""What a conversation costs, in words: the line under the prompt, the notes after a reply, the sums."""

import math
from statistics import median

from client.api import Context
from client.conversation import Conversation, Turn
from client.words import decimal, pairs

SEPARATOR = " · "


def status(conversation: Conversation) -> list[str]:
    """The parts of the status line."""
    parts = []
    if conversation.context is not None:
        parts += _context(conversation.context)
        last = conversation.turns[-1] if conversation.turns else None
        if last is not None and last.answer["context"] is conversation.context:
            parts += _speed(last)
    return [*parts, f"сессия {_time_left(conversation.seconds_left)}"]


def _context(context: Context) -> list[str]:
    parts = [f"контекст {context['used']}/{context['limit']}"]
    if context["dropped_pairs"]:
        parts.append(f"вне контекста {pairs(context['dropped_pairs'])}")
    if context["forgotten_pairs"]:
        parts.append(f"забыто {pairs(context['forgotten_pairs'])}")
    return parts


def _speed(turn: Turn) -> list[str]:
    parts = []
    if turn.cached_share is not None:
        parts.append(f"кэш {turn.cached_share:.0%}")
    if turn.tokens_per_second is not None:
        parts.append(f"{decimal(turn.tokens_per_second)} ток/с")
    if turn.first_token_seconds is not None:
        parts.append(f"первый токен {decimal(turn.first_token_seconds, 2)} с")
    return parts


def notes(turn: Turn, how_to_get_more: str) -> list[str]:
    """What a person should know of a reply that is not as it should be."""
    told = []
    match turn.answer["finish_reason"]:
        case "cancelled":
            told.append("Остановлено.")
        case "length":
            told.append(f"Ответ обрезан по max_tokens. Больше: {how_to_get_more}.")
    if not turn.answer["reply"] and turn.answer["finish_reason"] != "cancelled":
        told.append("Ответ пуст.")
    if calls := turn.answer.get("tool_calls"):
        names = ", ".join(str(call["function"]["name"]) for call in calls)
        told.append(f"Модель вызывает инструменты: {names}. Клиент их не выполняет; полностью их покажет --json.")
    return told


def sums(conversation: Conversation) -> list[tuple[str, str]]:
    """What all turns since the start have cost: what, how much."""
    turns = conversation.turns
    told = [("ходов с запуска", str(len(turns)))]
    answers = [turn.answer for turn in turns]
    prompt_tokens = sum(answer["input_tokens"] or 0 for answer in answers)
    cached_tokens = sum(answer["context"].get("cached_tokens", 0) for answer in answers)
    completion_tokens = sum(answer["output_tokens"] or 0 for answer in answers)
    if prompt_tokens:
        told.append(("токенов в запросах", f"{prompt_tokens}, из кэша {cached_tokens}"))
        told.append(("токенов в ответах", str(completion_tokens)))
    speeds = [turn.tokens_per_second for turn in turns if turn.tokens_per_second is not None]
    if speeds:
        told.append(("скорость, медиана", f"{decimal(median(speeds))} ток/с"))
    firsts = [turn.first_token_seconds for turn in turns if turn.first_token_seconds is not None]
    if firsts:
        told.append(("до первого токена, медиана", f"{decimal(median(firsts), 2)} с"))
    if turns:
        told.append(("время ответов", f"{decimal(sum(turn.seconds for turn in turns))} с"))
    if conversation.context is not None:
        told.append(("контекст", SEPARATOR.join(_context(conversation.context)).removeprefix("контекст ") + " ток."))
    told.append(("в разговоре", pairs(conversation.pairs)))
    told.append(("сессия", _time_left(conversation.seconds_left)))
    return told


def _time_left(seconds: int) -> str:
    """Minutes where there are many, so that the line stands still."""
    if seconds == 0:
        return "истекла"
    if seconds < 60:
        return f"{seconds} с"
    if seconds <= 5400:
        return f"{math.ceil(seconds / 60)} мин"
    return f"{math.ceil(seconds / 3600)} ч"


def folded(parts: list[str], width: int) -> list[str]:
    """Parts in as few lines of a width as they need."""
    lines = [""]
    for part in parts:
        longer = f"{lines[-1]}{SEPARATOR}{part}" if lines[-1] else part
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines
