"""docs/faults.md has a row for each fault that is played, and says what the tests ask for."""

import re

from app.config import Settings
from tests.faults.table import FAULTS, Answer, Failure, Fault, Form
from tests.readme import ROOT, section

PAGE = (ROOT / "docs" / "faults.md").read_text("utf-8")
TABLE = section("vLLM и сеть до него", PAGE).split("\n### ")[0]
HARMLESS = "обычный ответ"


def seen(form: Form) -> str:
    """What a client sees, as the page has it."""
    match form.sees:
        case Answer():
            return HARMLESS
        case Failure() as failure:
            said = f"{failure.status} `{failure.code}`"
            after = f" через `VLLM_{failure.after.upper()}_TIMEOUT_SECONDS`" if failure.after else ""
            return f"{'событие `error`: ' if failure.is_event else ''}{said}{after}"


def described(fault: Fault) -> str:
    """What the page says of a fault, or begins to say."""
    if fault.json is not None and fault.stream is not None and fault.json.sees == fault.stream.sees:
        return seen(fault.json)
    if fault.json is not None and fault.stream is not None and isinstance(fault.json.sees, Failure):
        return f"JSON — {seen(fault.json)}; поток — {seen(fault.stream)}"
    if fault.json is not None:
        return seen(fault.json)
    assert fault.stream is not None
    return f"поток — {seen(fault.stream)}"


def test_every_fault_that_is_played_is_described_as_it_is() -> None:
    [_, _, *rows] = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$|^\|(-+)\|", TABLE, re.MULTILINE)
    assert [row[0] for row in rows] == [fault.title for fault in FAULTS]
    for (_, sees, kept, _), fault in zip(rows, FAULTS, strict=True):
        expected = described(fault)
        more = sees.removeprefix(expected)
        assert sees == expected + more, fault.name
        assert not re.search(r"\d{3} `|через", more), fault.name
        assert kept.startswith("вопрос и" if HARMLESS in expected else "история как была"), fault.name


def test_the_timeouts_are_those_of_the_settings() -> None:
    told = dict(re.findall(r"^- `(\w+_TIMEOUT_SECONDS)` \((\d+) с\)", PAGE, re.MULTILINE))
    fields = Settings.model_fields
    assert told == {
        f"VLLM_{name.upper()}_TIMEOUT_SECONDS": f"{fields[f'vllm_{name}_timeout_seconds'].default:g}"
        for name in ("connect", "idle", "total")
    }
