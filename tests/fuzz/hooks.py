"""What Schemathesis does beside its own: it uses live sessions, and checks what the description says in words.

Its command line loads this module, see schemathesis.toml.
"""

import http.client
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import httpx2
import schemathesis
from pydantic import TypeAdapter
from schemathesis import Case, CheckContext, HookContext, Response

from app.schemas import ChatAnswer, Problem
from tests.fuzz.faults import ENDLESS
from tests.scripted_vllm import KEY

HISTORY = [{"role": role, "content": f"{role} {number}"} for number in range(3) for role in ("user", "assistant")]
# More than the gateway of these tests takes.
TOO_LONG = "x" * 100_000
UNKNOWN = "нет такой"
# More than the model takes.
TOO_MANY_TOKENS = 9000
# By FastAPI for every path; a description of each would say nothing.
EVERYWHERE = {"method_not_allowed"}

_chat_answer = TypeAdapter(ChatAnswer)


class LiveSessions:
    """Sessions for the cases that are to have one."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, Iterator[int]] = defaultdict(count)
        self._idle: str | None = None
        self._busy: str | None = None
        self._turn: http.client.HTTPConnection | None = None

    def adopt(self, url: str, path: str, body: dict[str, Any]) -> None:
        """Make something of a generated body, so that it is not refused at the first look; each time another thing."""
        if isinstance(body.get("vllm_api_key"), str):
            nth = self._nth("key")
            if nth % 8 != 3:
                body["vllm_api_key"] = "wrong" if nth % 8 == 7 else KEY
        if isinstance(body.get("session_id"), str):
            self._adopt_session(url, path, body)
        number = self._nth(path)
        if path == "/chat":
            self._adopt_question(number, body)
        if number % 16 == 8:
            body["message" if path == "/chat" else "system_prompt"] = TOO_LONG

    def _nth(self, what: str) -> int:
        """How many there were before. Each kind is counted apart, so that all that depends on it comes."""
        return next(self._numbers[what])

    def _adopt_session(self, url: str, path: str, body: dict[str, Any]) -> None:
        nth = self._nth(f"session of {path}")
        if nth % (2 if path == "/init_session" else 4) == 1:
            body["session_id"] = UNKNOWN
        elif nth % 8 != 4:
            body["session_id"] = self._session(url, path, is_busy=nth % 4 == 2)
        if path == "/init_session" and nth % 8:  # or it is refused
            body.update(system_prompt=None, history=None)

    def _adopt_question(self, number: int, body: dict[str, Any]) -> None:
        body["extra"] = body.get("extra") if number % 4 == 3 else {"top_p": 0.5}
        if number % 16 == 5:
            body["max_tokens"] = TOO_MANY_TOKENS
        elif isinstance(body.get("max_tokens"), int):
            body["max_tokens"] = min(body["max_tokens"], TOO_MANY_TOKENS)

    def _session(self, url: str, path: str, *, is_busy: bool) -> str:
        session_id = self._with_a_turn(url) if is_busy else self._idle or _open(url)
        stops = path in {"/stop_session", "/cancel"}
        if is_busy:
            self._busy = None if stops else session_id
        else:
            self._idle = None if path in {"/stop_session", "/undo"} else session_id
        return session_id

    def _with_a_turn(self, url: str) -> str:
        if self._busy is not None:
            return self._busy
        if self._turn is not None:
            self._turn.close()
        session_id = _open(url)
        self._turn = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        body = {"session_id": session_id, "message": ENDLESS, "stream": True}
        self._turn.request("POST", "/chat", json.dumps(body).encode(), {"Content-Type": "application/json"})
        self._turn.getresponse()
        return session_id


live = LiveSessions()
client = httpx2.Client(timeout=30)


def _open(url: str) -> str:
    """Open a session; vLLM may be one that refuses the key for a while, or that is not there."""
    for _ in range(30):
        answer = client.post(f"{url}/init_session", json={"vllm_api_key": KEY, "history": HISTORY})
        if answer.status_code == 200:
            return str(answer.json()["session_id"])
        if answer.status_code == 503:
            return "none"
    raise AssertionError(answer.text)


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Give a case with a body of the right form a session."""
    del context
    is_described = case.method.lower() == case.operation.method.lower()
    if is_described and isinstance(case.body, dict) and case.media_type == "application/json":
        url = kwargs.get("base_url") or case.operation.base_url
        live.adopt(str(url).rstrip("/"), case.path, case.body)


@schemathesis.check
def problem_is_declared(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """The code of an error is named where the description speaks of its status."""
    del ctx
    if response.status_code < 400:
        return
    problem = Problem.model_validate_json(response.content, strict=True)
    assert problem.status == response.status_code
    assert re.search("[а-яё]", problem.detail), problem.detail
    described = case.operation.definition.raw["responses"].get(str(response.status_code), {}).get("description", "")
    assert problem.code in EVERYWHERE or f"`{problem.code}`" in described, (problem.code, described)


@schemathesis.check
def stream_is_as_described(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """A stream is deltas and reasoning, then the whole answer or a problem, and nothing more."""
    del ctx
    if not response.headers.get("content-type", [""])[0].startswith("text/event-stream"):
        return
    *pieces, (last, data) = _events(response.content.decode())
    for name, piece in pieces:
        assert name in {"delta", "reasoning"}, name
        assert list(piece) == ["text"], piece
    if last == "done":
        answer = _chat_answer.validate_python(data, strict=True)
        assert answer["reply"] == "".join(piece["text"] for name, piece in pieces if name == "delta")
    else:
        assert last == "error", last
        problem = Problem.model_validate(data, strict=True)
        described = str(case.operation.definition.raw["responses"])
        assert f"`{problem.code}`" in described, problem.code


def _events(text: str) -> list[tuple[str, Any]]:
    assert text.endswith("\n\n"), "the last event is whole"
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        if not block.startswith(":"):
            name, data = block.removeprefix("event: ").split("\ndata: ")
            found.append((name, json.loads(data)))
    return found
