"""Every fault in both answer forms: what the client sees, when, what is kept, and that the next turn works."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import SessionOf, problem
from tests.faults.table import Answer, Failure, Form, Way, played
from tests.faults.world import World
from tests.scripted_vllm import delta, event, streamed
from tests.servers import wait_until
from tests.test_errors import all_errors

# The shortest timeout of the patient gateway is longer.
AT_ONCE_SECONDS = 20.0
# For busy machines, and because silence is only looked for now and then.
LATE_SECONDS = 8.0
# Less than an idle connection is kept.
CLOSED_SECONDS = 2.5
SECRET = "секретный вопрос"
KINDS = {error.kind for error in all_errors() if error.kind}


def a_session_with_a_pair(world: World) -> SessionOf:
    """What one test has left of its fault is not the next one's."""
    world.script.scripts.clear()
    world.network.answers.clear()
    session = world.gateway.open(system_prompt="Кратко.")
    session.ok("/chat", message="раз")
    return session


def said_of_failure(session: SessionOf, sees: Failure, way: Way, *, stream: bool) -> dict[str, Any]:
    """Ask; returns the problem, wherever it stands."""
    if not sees.is_event:
        response = session.gateway.post("/chat", session_id=session.id, message=SECRET, stream=stream)
        said: dict[str, Any] = problem(response, sees.status, sees.code)
        assert response.headers.get("retry-after") == (str(said["retry_after"]) if "retry_after" in said else None)
        return said
    *before, (last, said) = session.events(SECRET)
    assert {name for name, _ in before} == ({"delta"} if way.has_begun else set())
    assert (last, said["status"], said["code"]) == ("error", sees.status, sees.code)
    return said


@contextmanager
def in_time(world: World, sees: Failure) -> Iterator[None]:
    started = time.monotonic()
    yield
    elapsed = time.monotonic() - started
    if sees.after is None:
        assert elapsed < AT_ONCE_SECONDS
    else:
        timeout = getattr(world.settings, f"vllm_{sees.after}_timeout_seconds")
        assert 0.95 * timeout < elapsed < timeout + LATE_SECONDS


def failures_by_kind(world: World) -> Counter[str]:
    now = world.gateway.metrics()
    return Counter({kind: int(now("upstream_errors_total", kind)) for kind in KINDS})


@pytest.mark.parametrize(("form", "way", "stream"), played(Failure))
def test_a_failed_turn(patient: World, impatient: World, form: Form, way: Way, *, stream: bool) -> None:
    sees = form.sees
    assert isinstance(sees, Failure)
    world = impatient if sees.after else patient
    session = a_session_with_a_pair(world)
    before, asked, failures = session.ok("/history"), world.chats(), failures_by_kind(world)
    with way.play(world), in_time(world, sees):
        said = said_of_failure(session, sees, way, stream=stream)
        assert session.ok("/history") == before
        if sees.kind != "unavailable":
            assert world.chats() == asked + 1, "what was sent is not sent again"
            if way.is_cut:
                wait_until(lambda: not world.network.chat_is_open, CLOSED_SECONDS)
            wait_until(lambda: world.script.running == 0, CLOSED_SECONDS)
    assert failures_by_kind(world) - failures == {sees.kind: 1}
    assert "kind" not in said, "it is for those who watch"
    assert way.says in said["detail"]
    assert SECRET not in str(said)
    assert way.helpful.items() <= said.items()
    assert session.ok("/chat", message="два")["context"]["history_pairs"] == 1
    assert session.contents()[:3] == ["раз", before["messages"][1]["content"], "два"]


@pytest.mark.parametrize(("form", "way", "stream"), played(Answer))
def test_a_turn_that_is_not_harmed(patient: World, form: Form, way: Way, *, stream: bool) -> None:
    sees = form.sees
    assert isinstance(sees, Answer)
    session = a_session_with_a_pair(patient)
    started = time.monotonic()
    with way.play(patient):
        events = session.events("два") if stream else [("done", session.ok("/chat", message="два"))]
    assert time.monotonic() - started < AT_ONCE_SECONDS
    *pieces, (last, answer) = events
    assert last == "done"
    if stream:
        assert [(name, piece["text"]) for name, piece in pieces] == list(sees.pieces or ())
    assert {"reply": sees.reply, **sees.members}.items() <= answer.items()
    assert answer["context"]["used"] > 0
    if sees.members.get("total_tokens", answer["total_tokens"]) is None:
        assert "cached_tokens" not in answer["context"]
    wait_until(lambda: patient.script.running == 0, CLOSED_SECONDS)
    assert session.contents()[2:] == ["два", sees.reply]
    session.ok("/chat", message="три")
    assert len(session.contents()) == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_that_stops_working_can_be_replaced(patient: World, *, stream: bool) -> None:
    session = a_session_with_a_pair(patient)
    vllm, old_key = patient.script, patient.script.key
    before = session.ok("/history")
    vllm.key = "new-key"
    try:
        session.refused(401, "invalid_key", "/chat", message="два", stream=stream)
        assert session.ok("/history") == before, "the session stays"
        session.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong")
        assert session.ok("/init_session", vllm_api_key="new-key") == {"session_id": session.id, "expires_in": 600}
        session.ok("/chat", message="два")
        assert vllm.seen[-1].headers["authorization"] == "Bearer new-key"
        assert len(session.contents()) == 4
    finally:
        vllm.key = old_key


def test_what_came_before_a_failure_in_the_same_read_is_passed_on(patient: World) -> None:
    session = a_session_with_a_pair(patient)
    patient.script.scripts.append(
        streamed([delta(content="раз") + delta(content="два") + event({"error": {"message": "x"}})])
    )
    assert [name for name, _ in session.events("а")] == ["delta", "delta", "error"]
    assert len(session.contents()) == 2
