"""What a vLLM may do instead of answering well, and what a client must hear then."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from starlette.types import Receive, Scope, Send

from tests.scripted_vllm import DONE, MODEL, Script, ScriptedVLLM, delta, event, refusal, streamed, whole

LONG = 60.0
# A message that says so is answered with a stream that does not end.
ENDLESS = "без конца"
PATIENCE_SECONDS = 1.0


@dataclass(frozen=True)
class Fault:
    """A misbehaviour.

    Attributes:
        name: shown where an example fails.
        script: it.
        code: of the problem that a client gets.
        status: that it comes with; 200 where it is the last event of a stream.
    """

    name: str
    script: Callable[[], Script]
    code: str = "upstream_error"
    status: int = 502

    def __repr__(self) -> str:
        return self.name


def body(data: bytes, **script: Any) -> Callable[[], Script]:
    return lambda: Script([data], **script)


def events(*acts: bytes | float | None) -> Callable[[], Script]:
    return lambda: streamed(acts)


def never() -> Script:
    return Script([], delay=LONG)


REFUSALS = [
    Fault("400", lambda: refusal(400, "so nicht"), "upstream_rejected", 400),
    Fault("422", lambda: refusal(422, "so nicht"), "upstream_rejected", 400),
    Fault("400 without words", body(b"\xff", status=400), "upstream_rejected", 400),
    Fault("401", lambda: refusal(401, "wer da"), "invalid_key", 401),
    Fault("403", lambda: refusal(403, "wer da"), "invalid_key", 401),
    Fault("429", lambda: refusal(429, "halt", **{"retry-after": "7"}), "too_many_requests", 429),
    Fault("429 until a date", lambda: refusal(429, "halt", **{"retry-after": "Wed"}), "too_many_requests", 429),
    Fault("204", body(b"", status=204)),
    Fault("302", lambda: refusal(302, "dort", location="http://127.0.0.1:1/")),
    Fault("404", lambda: refusal(404, "weg")),
    Fault("500", lambda: refusal(500, "au")),
    Fault("503", lambda: refusal(503, "später")),
]
JSON = [
    *REFUSALS,
    Fault("nothing", body(b"")),
    Fault("a page", body(b"<html></html>", media_type="text/html")),
    Fault("no object", body(b"[]")),
    Fault("no members", body(b"{}")),
    Fault("no choices", body(b'{"choices": []}')),
    Fault("no message", body(b'{"choices": [{"finish_reason": "stop"}]}')),
    Fault("a number for a text", body(b'{"choices": [{"message": {"content": 1}, "finish_reason": "stop"}]}')),
    Fault("no UTF-8", body(b'{"choices": [{"message": {"content": "\xff"}, "finish_reason": "stop"}]}')),
    Fault("half a pair", body(b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}')),
    Fault("no end of brackets", body(b"[" * 100_000)),
    Fault("not finished", lambda: whole("и тут", finish_reason="")),
    Fault("an error under 200", body(b'{"error": {"message": "au"}}')),
    Fault("usage is no number", lambda: whole("да", usage={"prompt_tokens": "11", "total_tokens": 1})),
    Fault("usage beyond numbers", lambda: whole("да", usage={"prompt_tokens": 10**400, "total_tokens": 1})),
    Fault("cut", lambda: Script([b'{"choices": ', None])),
]
STREAM = [
    *REFUSALS,
    *(
        Fault(name, events(*acts), status=200)
        for name, acts in {
            "nothing": (),
            "the end only": (DONE,),
            "not finished": (delta(content="и"), DONE),
            "ended amid": (delta(content="и"),),
            "cut at once": (None,),
            "cut amid": (delta(content="и"), None),
            "cut amid an event": (delta(content="и"), delta(content="тут")[:20], None),
            "an error amid": (delta(content="и"), event({"error": {"message": "au"}}), DONE),
            "garbage amid": (delta(content="и"), b"data: {]\n\n", DONE),
            "no object amid": (delta(content="и"), event(["и"]), DONE),
            "a number for a text": (event({"choices": [{"delta": {"content": 1}}]}), DONE),
            "no UTF-8": (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', DONE),
            "half a pair": (b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n', DONE),
            "a huge event": (b"data: " + b" " * (1024 * 1024 + 1),),
            "JSON": (b'{"choices": [{"message": {"content": "ja"}, "finish_reason": "stop"}]}',),
        }.items()
    ),
]
# Only for a gateway that waits no longer than PATIENCE_SECONDS.
SILENT_JSON = [
    Fault("no headers", never, "upstream_timeout", 504),
    Fault("silence", lambda: Script([b'{"choices": ', LONG]), "upstream_timeout", 504),
]
SILENT_STREAM = [
    Fault("no headers", never, "upstream_timeout", 504),
    Fault("silence", events(LONG), "upstream_timeout", 200),
    Fault("silence amid", events(delta(content="и"), LONG), "upstream_timeout", 200),
]

KEY_CHECKS = [
    refusal(400, "so nicht"),
    refusal(401, "wer da"),
    refusal(403, "wer da"),
    refusal(429, "halt"),
    refusal(500, "au"),
    Script([b"<html></html>"]),
    Script([b'{"data": []}']),
    Script([b'{"data": [{"id": "another", "max_model_len": 8192}]}']),
    Script([b'{"data": [{"id": "%s", "max_model_len": null}]}' % MODEL.encode()]),
    Script([b'{"data": [{"id": "%s", "max_model_len": -1}]}' % MODEL.encode()]),
]


class FuzzedVLLM(ScriptedVLLM):
    """Answers ENDLESS without end; a faulty one answers well, then with one fault after another, and so on."""

    def __init__(self, *, is_faulty: bool = False) -> None:
        super().__init__()
        self._is_faulty = is_faulty
        self._faults = {False: cycle([None, *SILENT_JSON, *JSON]), True: cycle([None, *SILENT_STREAM, *STREAM])}
        self._key_checks = cycle([None, None, *KEY_CHECKS])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_faulty and scope["path"] == "/v1/models":
            self.models_script = next(self._key_checks)
        await self.app(scope, receive, send)

    def next_script(self, body: dict[str, Any]) -> Script:
        """See ScriptedVLLM."""
        if body["messages"][-1]["content"] == ENDLESS:
            return streamed([delta(content="и"), delta(content="так далее"), 3600.0])
        fault = next(self._faults[bool(body.get("stream"))]) if self._is_faulty else None
        return fault.script() if fault else super().next_script(body)
