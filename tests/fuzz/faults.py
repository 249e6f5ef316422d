"""What a vLLM may do instead of answering well, and what a client must hear then."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

from starlette.types import Receive, Scope, Send

from tests.faults.table import FAULTS, HANG, Failure
from tests.scripted_vllm import MODEL, Script, ScriptedVLLM, delta, refusal, streamed

# A message that says so is answered with a stream that does not end.
ENDLESS = "без конца"
PATIENCE_SECONDS = 1.0
_LARGE_BYTES = 4 << 20


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
    script: Script
    code: str
    status: int

    def __repr__(self) -> str:
        return self.name


def _is_soon_over(script: Script) -> bool:
    """Whether it is worth playing often: what it says is no flood, and the rest of an error is not waited for."""
    size = sum(len(act) for act in script.acts if isinstance(act, bytes))
    return size < _LARGE_BYTES and (script.status == 200 or HANG not in script.acts)


def _faults(*, stream: bool, silent: bool) -> list[Fault]:
    """Those of the table that vLLM's answer alone makes.

    Args:
        stream: the answer's form.
        silent: those that end by a timeout of the gateway, or the others.
    """
    return [
        Fault(f"{fault.name}, {name}", way.script, form.sees.code, 200 if form.sees.is_event else form.sees.status)
        for fault in FAULTS
        if (form := fault.stream if stream else fault.json) and isinstance(form.sees, Failure)
        if silent == (form.sees.after is not None)
        for name, way in form.ways.items()
        if way.script is not None and _is_soon_over(way.script)
    ]


JSON = _faults(stream=False, silent=False)
STREAM = _faults(stream=True, silent=False)
# Only for a gateway that waits no longer than PATIENCE_SECONDS.
SILENT_JSON = _faults(stream=False, silent=True)
SILENT_STREAM = _faults(stream=True, silent=True)

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
        return fault.script if fault else super().next_script(body)
