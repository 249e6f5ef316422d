"""Numbers and reasons as a Russian reader expects them, and what can be sent."""

import errno
import json
from collections.abc import Mapping

_REASONS = {
    errno.EACCES: "нет прав",
    errno.EISDIR: "это папка",
    errno.ELOOP: "ссылки ведут по кругу",
    errno.ENAMETOOLONG: "слишком длинное имя",
    errno.ENOENT: "нет такого файла или папки",
    errno.ENOSPC: "на диске нет места",
    errno.ENOTDIR: "на пути к нему не папка",
    errno.EPERM: "нет прав",
    errno.EROFS: "сюда записывать нельзя",
}


def plural(count: int, one: str, few: str, many: str) -> str:
    """A number with its noun: 1 пара, 2 пары, 5 пар."""
    if count % 10 == 1 and count % 100 != 11:
        return f"{count} {one}"
    if count % 10 in (2, 3, 4) and count % 100 not in (12, 13, 14):
        return f"{count} {few}"
    return f"{count} {many}"


def pairs(count: int) -> str:
    """How many pairs of messages."""
    return plural(count, "пара", "пары", "пар")


def ending_of(message: Mapping[str, object]) -> str:
    """How an answer ended, if not as it should; empty if it did, and for a question."""
    match message.get("finish_reason"):
        case None | "stop":
            return ""
        case "length":
            return "обрезан по max_tokens"
        case "cancelled":
            return "остановлен"
        case reason:
            return str(reason)


def decimal(value: float, digits: int = 1) -> str:
    """A number with a decimal comma."""
    return f"{value:.{digits}f}".replace(".", ",")


def why(exc: OSError | ValueError) -> str:
    """What the system has against a file, or, a ValueError, against its name."""
    if isinstance(exc, ValueError):
        return "такого имени у файла быть не может"
    return _REASONS.get(exc.errno or 0, str(exc.strerror))


def as_text(raw: str) -> str:
    """What a terminal or an environment gave, with a sign for every byte that is no text."""
    return raw.encode(errors="replace").decode()


def is_json(value: object) -> bool:
    """Whether a value can be sent: no NaN, no lone surrogates."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (RecursionError, ValueError):
        return False
    return True
