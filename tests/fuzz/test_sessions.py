"""Sessions keep exactly what was said, in whatever order things are done with them and whatever vLLM does.

A model in the test knows what each history must be; Hypothesis looks for an order of steps after which it is not so.
For a long run, which then also looks for the shortest order: FUZZ_TIMES=20 python -m pytest tests/fuzz -s --timeout=0
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from starlette.requests import Request

from app.config import DEFAULT_SYSTEM_PROMPT
from tests.conftest import Gateway, problem
from tests.faults.table import HANG
from tests.fuzz.faults import JSON, PATIENCE_SECONDS, SILENT_JSON, SILENT_STREAM, STREAM, Fault
from tests.fuzz.flight import Flight
from tests.fuzz.watched import TIMES, Watched, watched_gateway
from tests.scripted_vllm import KEY, Script, ScriptedVLLM, hanging, stream_of, whole
from tests.servers import serve, wait_until

KEYS = [KEY, "another-key"]
STEPS = 30

texts = st.text(max_size=20)
messages = st.text(min_size=1, max_size=20)
reasons = st.sampled_from(["stop", "length", "tool_calls"])
# So few that questions come again, and other ones with the same key.
questions = st.sampled_from(["раз", "два"])
idempotency_keys = st.sampled_from(["k-1", "k-2"])


class Doors(ScriptedVLLM):
    """A vLLM of several keys."""

    def admits(self, request: Request) -> bool:
        """See ScriptedVLLM."""
        return request.headers.get("authorization") in {f"Bearer {key}" for key in KEYS}


@dataclass
class World:
    """What all examples share.

    Attributes:
        patient: whether the gateway waits for vLLM as long as may be.
        steps: how many of each kind were made, in all examples.
    """

    gateway: Gateway
    watched: Watched
    vllm: ScriptedVLLM
    patient: bool
    steps: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Said:
    """One pair of a history."""

    user: str
    assistant: str
    finish_reason: str | None
    key: str | None = None


@dataclass(eq=False)
class Known:
    """What a session must be."""

    id: str
    key: str
    system_prompt: str
    pairs: list[Said]
    flight: Flight | None = None

    def asked_with(self, key: str) -> Said | None:
        """The pair that a question with this key is answered from."""
        return next((pair for pair in reversed(self.pairs) if pair.key == key), None)

    def must_replace(self, said: Said | None) -> bool:
        """Whether a repeat of this pair's question is asked anew: it was stopped, and is the last."""
        return said is not None and said.finish_reason == "cancelled" and said is self.pairs[-1]

    def prompt(self, message: str, *, without_last: bool = False) -> list[dict[str, str]]:
        """The messages with which vLLM must be asked."""
        pairs = self.pairs[:-1] if without_last else self.pairs
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        past = [
            {"role": role, "content": content}
            for pair in pairs
            for role, content in (("user", pair.user), ("assistant", pair.assistant))
        ]
        return [*system, *past, {"role": "user", "content": message}]

    def history(self) -> list[dict[str, Any]]:
        """The messages that /history must show."""
        shown: list[dict[str, Any]] = []
        for pair in self.pairs:
            shown.append({"role": "user", "content": pair.user, "dropped": False})
            answer = {"role": "assistant", "content": pair.assistant, "finish_reason": pair.finish_reason}
            shown.append({**answer, "dropped": False})
        return shown


class Sessions(RuleBasedStateMachine):
    """Everything that can be done with sessions, one step after another, while turns may be in flight."""

    live: Bundle[Known] = Bundle("live")
    gone: Bundle[Known] = Bundle("gone")

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.gateway = world.gateway
        self.vllm = world.vllm
        self.known: list[Known] = []
        world.steps["(examples)"] += 1

    def ask(self, known: Known, path: str, **body: Any) -> Any:
        """POST with a session's id what a turn in flight forbids; None where it does."""
        self.world.steps[path] += 1
        if known.flight is not None:
            self.gateway.refused(409, "session_busy", path, session_id=known.id, **body)
            return None
        return self.gateway.ok(path, session_id=known.id, **body)

    # Sessions.

    def opened(self, known: Known, **body: Any) -> Known:
        """Open a session of which so much is known."""
        self.world.steps["/init_session"] += 1
        known.id = self.gateway.ok("/init_session", vllm_api_key=known.key, **body)["session_id"]
        self.known.append(known)
        return known

    @initialize(target=live)
    def begin(self) -> Known:
        return self.opened(Known("", KEY, DEFAULT_SYSTEM_PROMPT, []))

    @rule(target=live, key=st.sampled_from(KEYS), system_prompt=texts)
    def init(self, key: str, system_prompt: str) -> Known:
        return self.opened(Known("", key, system_prompt, []), system_prompt=system_prompt)

    @rule(target=live, pairs=st.lists(st.builds(Said, messages, texts, reasons | st.none()), max_size=3))
    def init_with_history(self, pairs: list[Said]) -> Known:
        known = Known("", KEY, DEFAULT_SYSTEM_PROMPT, pairs)
        return self.opened(known, history=known.history())

    @rule(known=live, key=st.sampled_from([*KEYS, "wrong"]))
    def rotate_key(self, known: Known, key: str) -> None:
        self.world.steps["rotation"] += 1
        if key not in KEYS:
            self.gateway.refused(401, "invalid_key", "/init_session", session_id=known.id, vllm_api_key=key)
            return
        assert self.gateway.ok("/init_session", session_id=known.id, vllm_api_key=key)["session_id"] == known.id
        known.key = key

    @rule(known=live, system_prompt=texts)
    def set_system_prompt(self, known: Known, system_prompt: str) -> None:
        if self.ask(known, "/set_system_prompt", system_prompt=system_prompt):
            known.system_prompt = system_prompt

    @rule(known=live)
    def undo(self, known: Known) -> None:
        if known.flight is None and not known.pairs:
            self.gateway.refused(409, "nothing_to_undo", "/undo", session_id=known.id)
        elif answer := self.ask(known, "/undo"):
            pair = known.pairs.pop()
            assert (answer["user"], answer["assistant"]) == (pair.user, pair.assistant)

    @rule(known=live)
    def reset(self, known: Known) -> None:
        if self.ask(known, "/reset"):
            known.pairs.clear()

    @rule(target=gone, known=consumes(live))
    def stop(self, known: Known) -> Known:
        self.end(known)
        return known

    def end(self, known: Known) -> None:
        """Stop a session, in flight or not."""
        self.world.steps["/stop_session"] += 1
        assert self.gateway.ok("/stop_session", session_id=known.id) == {"status": "stopped"}
        self.known.remove(known)
        self.land(known, expires_in=0)

    @rule(known=gone, path=st.sampled_from("chat set_system_prompt history cancel undo reset stop_session".split()))
    def use_what_is_gone(self, known: Known, path: str) -> None:
        needed = {"chat": {"message": "а"}, "set_system_prompt": {"system_prompt": ""}}
        self.gateway.refused(404, "session_not_found", f"/{path}", session_id=known.id, **needed.get(path, {}))
        self.gateway.refused(404, "session_not_found", "/init_session", session_id=known.id, vllm_api_key=KEY)

    # Whole turns.

    def reached(self, known: Known, message: str, asked: int, *, without_last: bool = False) -> None:
        """Check with what vLLM was asked."""
        assert len(self.vllm.seen) == asked + 1
        seen = self.vllm.seen[-1]
        assert seen.body["messages"] == known.prompt(message, without_last=without_last)
        assert seen.headers["authorization"] == f"Bearer {known.key}"

    def answered(self, known: Known, answer: Any, said: Said) -> None:
        """Check an answer, and note it."""
        assert (answer["reply"], answer["finish_reason"]) == (said.assistant, said.finish_reason)
        receipt = answer["context"]
        counts = (receipt["history_pairs"], receipt["dropped_pairs"], receipt["forgotten_pairs"])
        assert counts == (len(known.pairs), 0, 0)
        assert answer["expires_in"] == 600
        known.pairs.append(said)

    @rule(known=live, message=messages, reply=texts, reason=reasons)
    def chat(self, known: Known, message: str, reply: str, reason: str) -> None:
        if known.flight is None:
            self.vllm.scripts.append(whole(reply, finish_reason=reason))
        asked = len(self.vllm.seen)
        if answer := self.ask(known, "/chat", message=message):
            self.reached(known, message, asked)
            self.answered(known, answer, Said(message, reply, reason))

    @rule(known=live, message=messages, pieces=st.lists(messages, max_size=3), reason=reasons)
    def stream(self, known: Known, message: str, pieces: list[str], reason: str) -> None:
        if known.flight is not None:
            self.ask(known, "/chat", message=message, stream=True)
            return
        self.vllm.scripts.append(stream_of(*pieces, finish_reason=reason))
        asked = len(self.vllm.seen)
        *deltas, (last, answer) = self.events(known, message)
        self.reached(known, message, asked)
        assert deltas == [("delta", {"text": piece}) for piece in pieces]
        assert last == "done", answer
        self.answered(known, answer, Said(message, "".join(pieces), reason))

    def events(self, known: Known, message: str) -> list[tuple[str, Any]]:
        """Stream a turn to its end."""
        self.world.steps["/chat, stream"] += 1
        body = {"session_id": known.id, "message": message, "stream": True}
        with self.gateway.http.sse("/chat", method="POST", json=body) as source:
            assert source.response.status_code == 200, source.response.read()
            return [(event.event, event.json()) for event in source]

    # Turns that fail: nothing of them is kept.

    @rule(known=live, message=messages, fault=st.sampled_from(JSON))
    def chat_under_fault(self, known: Known, message: str, fault: Fault) -> None:
        self.fail(known, message, fault)

    @rule(known=live, message=messages, fault=st.sampled_from(STREAM))
    def stream_under_fault(self, known: Known, message: str, fault: Fault) -> None:
        self.fail(known, message, fault, stream=True)

    @precondition(lambda self: not self.world.patient)
    @rule(known=live, message=messages, fault=st.sampled_from(SILENT_JSON))
    def chat_with_a_silent_one(self, known: Known, message: str, fault: Fault) -> None:
        self.fail(known, message, fault)

    @precondition(lambda self: not self.world.patient)
    @rule(known=live, message=messages, fault=st.sampled_from(SILENT_STREAM))
    def stream_with_a_silent_one(self, known: Known, message: str, fault: Fault) -> None:
        self.fail(known, message, fault, stream=True)

    def fail(self, known: Known, message: str, fault: Fault, **body: Any) -> None:
        """Have a turn fail."""
        if known.flight is not None:
            self.ask(known, "/chat", message=message, **body)
            return
        self.world.steps["fault"] += 1
        self.vllm.scripts.append(fault.script)
        if fault.status == 200:
            *_, (last, said) = self.events(known, message)
            assert (last, said["code"]) == ("error", fault.code)
        else:
            self.gateway.refused(fault.status, fault.code, "/chat", session_id=known.id, message=message, **body)

    # Turns in flight, and what ends them.

    def take_off(
        self, known: Known, message: str, script: Script, *, stream: bool, key: str | None = None
    ) -> Flight | None:
        """Begin a turn that does not end on its own; None where there is one."""
        if known.flight is not None:
            self.ask(known, "/chat", message=message, stream=stream)
            return None
        self.world.steps["flight"] += 1
        self.vllm.scripts.append(script)
        asked = len(self.vllm.seen)
        known.flight = Flight(self.gateway.url, known.id, message, stream=stream, key=key)
        known.flight.replaces_last = key is not None and known.must_replace(known.asked_with(key))
        wait_until(lambda: len(self.vllm.seen) > asked)
        self.reached(known, message, asked, without_last=known.flight.replaces_last)
        return known.flight

    @precondition(lambda self: self.world.patient)
    @rule(known=live, message=messages, stream=st.booleans())
    def begin_unheard(self, known: Known, message: str, *, stream: bool) -> None:
        """In either form, vLLM does not begin to answer."""
        self.take_off(known, message, Script([], delay=HANG), stream=stream)

    @precondition(lambda self: self.world.patient)
    @rule(known=live, message=messages, pieces=st.lists(messages, max_size=3))
    def begin_stream(self, known: Known, message: str, pieces: list[str]) -> None:
        if flight := self.take_off(known, message, hanging(*pieces), stream=True):
            assert flight.response.status == 200
            flight.read_deltas(len(pieces))

    @rule(known=live)
    def cancel(self, known: Known) -> None:
        self.world.steps["/cancel"] += 1
        status = "cancelled" if known.flight else "idle"
        assert self.gateway.ok("/cancel", session_id=known.id) == {"status": status, "expires_in": 600}
        self.land(known, expires_in=600)

    @precondition(lambda self: any(known.flight for known in self.known))
    @rule(known=live)
    def leave(self, known: Known) -> None:
        """The client goes away; the gateway notices a little later."""
        if known.flight is None:
            return
        self.world.steps["leave"] += 1
        known.flight.leave()
        body = {"session_id": known.id, "system_prompt": known.system_prompt}
        wait_until(lambda: self.gateway.post("/set_system_prompt", **body).status_code == 200)
        self.commit_cancelled(known)

    def land(self, known: Known, expires_in: int) -> None:
        """See how a turn in flight ends that was stopped."""
        flight = known.flight
        if flight is None:
            return
        if flight.response.status == 200:
            name, answer = flight.last_event()
            assert (name, answer["finish_reason"], answer["reply"]) == ("done", "cancelled", flight.text)
            assert answer["expires_in"] == expires_in
        else:
            said = flight.answer()
            assert (flight.response.status, said["code"]) == (409, "cancelled")
        self.commit_cancelled(known)

    def commit_cancelled(self, known: Known) -> None:
        """What came of a reply is kept, if any of it came."""
        flight, known.flight = known.flight, None
        assert flight is not None
        if flight.text:
            if flight.replaces_last:
                known.pairs.pop()
            known.pairs.append(Said(flight.message, flight.text, "cancelled", flight.key))

    # Questions that are asked again, by their Idempotency-Key.

    @rule(known=live, key=idempotency_keys, message=questions, reply=messages, stream=st.booleans())
    def chat_with_key(self, known: Known, key: str, message: str, reply: str, *, stream: bool) -> None:
        if known.flight is not None:
            self.ask(known, "/chat", message=message)
            return
        self.world.steps["/chat, key"] += 1
        earlier, asked = known.asked_with(key), len(self.vllm.seen)
        replaces = known.must_replace(earlier)
        is_new = earlier is None or (replaces and earlier.user == message)
        if is_new:
            self.vllm.scripts.append(stream_of(reply) if stream else whole(reply))
        body = {"session_id": known.id, "message": message, "stream": stream}
        response = self.gateway.http.post("/chat", json=body, headers={"Idempotency-Key": key})
        if is_new:
            self.reached(known, message, asked, without_last=replaces)
            if replaces:
                known.pairs.pop()
            known.pairs.append(Said(message, reply, "stop", key))
        assert earlier is None or is_new or len(self.vllm.seen) == asked
        if earlier is not None and earlier.user != message:
            assert problem(response, 422, "invalid_request")["field"] == "Idempotency-Key"
            return
        said = known.asked_with(key)
        assert said is not None
        assert response.status_code == 200
        assert response.headers.get("idempotent-replayed") == (None if is_new else "true")
        answer = json.loads(response.text.rpartition("data: ")[2])
        assert (answer["reply"], answer["finish_reason"]) == (said.assistant, said.finish_reason)

    @precondition(lambda self: self.world.patient)
    @rule(known=live, key=idempotency_keys, message=questions, pieces=st.lists(messages, max_size=2))
    def begin_stream_with_key(self, known: Known, key: str, message: str, pieces: list[str]) -> None:
        earlier = known.asked_with(key)
        if earlier is not None and not (known.must_replace(earlier) and earlier.user == message):
            return  # no turn begins
        if flight := self.take_off(known, message, hanging(*pieces), stream=True, key=key):
            assert flight.response.status == 200
            flight.read_deltas(len(pieces))

    # What always holds.

    @invariant()
    def histories_are_as_known(self) -> None:
        self.world.steps["(steps)"] += 1
        for known in self.known:
            shown = self.gateway.ok("/history", session_id=known.id)
            assert shown == {"system_prompt": known.system_prompt, "messages": known.history(), "expires_in": 600}

    @invariant()
    def vllm_is_asked_for_nothing_else(self) -> None:
        in_flight = sum(known.flight is not None for known in self.known)
        wait_until(lambda: self.vllm.running == in_flight)
        assert not self.vllm.scripts

    def teardown(self) -> None:
        """End what is still there, and see that nothing is left of it."""
        for known in list(self.known):
            self.end(known)
        wait_until(lambda: self.vllm.running == 0)
        self.world.watched.wait_until_quiet()
        assert self.gateway.session_count() == 0
        assert not [path for path, status in self.world.watched.answers if status == 500]
        self.vllm.seen.clear()


def fuzz(world: World, examples: int) -> None:
    class SessionsHere(Sessions):
        def __init__(self) -> None:
            super().__init__(world)

    run_state_machine_as_test(
        SessionsHere,
        settings=settings(
            max_examples=examples * TIMES,
            stateful_step_count=STEPS,
            derandomize=TIMES == 1,
            deadline=None,
            database=None,
            # To shorten a failure takes minutes, in which the test itself would be ended.
            phases=[Phase.generate] if TIMES == 1 else [Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(sorted(world.steps.items())), world.watched.answers.total())  # noqa: T201 - shown by -s


@pytest.fixture
def vllm_at() -> Iterator[tuple[ScriptedVLLM, str]]:
    vllm = Doors()
    with serve(vllm.app) as url:
        yield vllm, url


def test_sessions(vllm_at: tuple[ScriptedVLLM, str], model_folder: Path) -> None:
    vllm, url = vllm_at
    with watched_gateway(url, model_folder) as (gateway, watched):
        fuzz(World(gateway, watched, vllm, patient=True), 70)


def test_sessions_with_little_patience(vllm_at: tuple[ScriptedVLLM, str], model_folder: Path) -> None:
    vllm, url = vllm_at
    impatient = dict.fromkeys(("vllm_idle_timeout_seconds", "vllm_total_timeout_seconds"), PATIENCE_SECONDS)
    with watched_gateway(url, model_folder, **impatient) as (gateway, watched):
        fuzz(World(gateway, watched, vllm, patient=False), 5)
