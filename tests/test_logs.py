"""One line for every turn, for people or for programs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Upstream, gateway_process
from tests.readme import ROOT
from tests.scripted_vllm import stream_of, whole

LOG = ROOT / ".demo" / "logs" / "gateway.log"
FIELDS = (
    "outcome session request prompt_tokens completion_tokens cached_tokens history_pairs dropped_pairs seconds "
    "first_token_seconds waited_seconds added_seconds"
).split()


def logged(upstream: Upstream, model_folder: Path, **environ: str) -> tuple[list[str], str]:
    """The lines of a gateway that has had two turns, and the session's id."""
    upstream.script.scripts += [stream_of("раз", "два", gap=0.05), whole("да", usage=None)]
    with gateway_process(upstream.url, model_folder, **environ) as (gateway, _):
        session = gateway.open()
        session.events("тайна")
        body = {"session_id": session.id, "message": "тайна"}
        gateway.http.post("/chat", json=body, headers={"X-Request-Id": "mine"})
        gateway.http.get("/nothing")
    return LOG.read_text(encoding="utf-8").splitlines(), session.id


def test_lines_for_people(upstream: Upstream, model_folder: Path) -> None:
    lines, session_id = logged(upstream, model_folder)
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ (app\.\w+|uvicorn): ", line) for line in lines)
    first, second = (line for line in lines if " turn outcome=" in line)
    assert re.findall(r" (\w+)=", first) == FIELDS
    assert " outcome=completed " in first
    assert " prompt_tokens=11 completion_tokens=3 cached_tokens=4 " in first
    assert " request=mine prompt_tokens=- completion_tokens=- " in second
    assert any('"GET /nothing HTTP/1.1" 404 request=' in line for line in lines)
    assert session_id not in str(lines)
    assert "тайна" not in str(lines)


def test_lines_for_programs(upstream: Upstream, model_folder: Path) -> None:
    lines, session_id = logged(upstream, model_folder, LOG_FORMAT="json")
    parsed: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert all({"level", "logger", "message", "time"} <= line.keys() for line in parsed)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT.*(Z|\+00:00)", line["time"]) for line in parsed)
    assert not any("color_message" in line for line in parsed), "that is for terminals"
    first, second = (line for line in parsed if line["message"] == "turn")
    assert set(FIELDS) == first.keys() - {"level", "logger", "message", "time"}
    assert (first["outcome"], first["prompt_tokens"], first["cached_tokens"]) == ("completed", 11, 4)
    assert 0.05 <= first["first_token_seconds"] <= first["seconds"]
    assert (second["request"], second["prompt_tokens"], second["first_token_seconds"]) == ("mine", None, None)
    assert second["history_pairs"] == 1
    [missing] = [line for line in parsed if "GET /nothing" in line["message"]]
    assert missing["request"]
    assert session_id not in str(lines)
    assert "тайна" not in str(lines)


@pytest.mark.parametrize("form", ["text", "json"])
def test_at_warning_there_is_no_line_for_a_turn(upstream: Upstream, model_folder: Path, form: str) -> None:
    lines, _ = logged(upstream, model_folder, LOG_LEVEL="WARNING", LOG_FORMAT=form)
    assert not any("turn" in line for line in lines)
