"""Reading what others have written: JSON of any form, versions, sizes, durations."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Version = tuple[int, ...]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_THOUSANDS = "kmgt"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> Sequence[Any]:
    """The value if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def text(value: Any) -> str:
    """The value as text; empty for none."""
    return "" if value is None else str(value)


def whole(value: Any) -> int | None:
    """The value if it is a whole number or says one."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", str(value)) else None


def parsed(given: str) -> Any:
    """JSON; None where it is none."""
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return None


def objects(given: str) -> list[Mapping[str, Any]]:
    """An array of objects, or an object in each line: Compose has printed both."""
    value = parsed(given)
    values = value if isinstance(value, list) else [parsed(line) for line in given.splitlines()]
    return [value for value in values if isinstance(value, dict)]


def version(given: str) -> Version:
    """The numbers that a version begins with; empty where it has none."""
    found = re.search(r"\d+(?:\.\d+)*", given)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def seconds(duration: str) -> float:
    """A duration of Compose, `1m30s`; 0 where it says nothing."""
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|h|m|s)", duration))


def tokens(given: str) -> int | None:
    """A length as vLLM reads it: `8192`, `8k` (thousands), `8K` (1024s); None where it is none."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)", given.strip())
    if not found:
        return None
    number, unit = float(found[1]), found[2]
    if not unit:
        return int(found[1]) if found[1].isdecimal() else None
    power = _THOUSANDS.index(unit.lower()) + 1
    return int(number * (1000 if unit.islower() else 1024) ** power)
