"""Stopping a turn: by /cancel, by /stop_session, by going away; in both answer forms; at every stage."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, Upstream, problem, wait_until_idle
from tests.raw import connected, post
from tests.scripted_vllm import Script, ScriptedVLLM, delta, stream_of, streamed, whole
from tests.servers import wait_until

HANG = 60.0
PROMPT = 5.0  # for a busy machine; bench/cancel.py measures


@contextmanager
def in_flight(session: SessionOf, vllm: ScriptedVLLM, **body: Any) -> Iterator[Callable[[], httpx2.Response]]:
    """A /chat in a thread, once vLLM has it; the value waits for its answer."""
    answers: list[httpx2.Response] = []
    thread = threading.Thread(
        target=lambda: answers.append(session.gateway.post("/chat", session_id=session.id, message="вопрос", **body))
    )
    thread.start()
    wait_until(lambda: vllm.running == 1)

    def answer() -> httpx2.Response:
        thread.join(10)
        return answers[0]

    yield answer
    thread.join(10)
    assert not thread.is_alive()


def hanging_json() -> Script:
    script = whole("никогда")
    script.delay = HANG
    return script


def hanging_stream(*pieces: str) -> Script:
    return streamed([*(delta(content=piece) for piece in pieces), HANG])


def test_cancel_stops_a_json_answer_and_commits_nothing(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_json())
    with in_flight(session, vllm) as answer:
        assert session.ok("/cancel") == {"status": "cancelled", "expires_in": 600}
        problem(answer(), 409, "cancelled")
    wait_until_idle(vllm, PROMPT)
    assert session.contents() == []
    session.ok("/chat", message="ещё")


def test_cancel_ends_a_stream_with_done_and_commits_what_came(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_stream("нача", "ло"))
    with session.stream("вопрос") as source:
        events = iter(source)
        assert [next(events).json() for _ in range(2)] == [{"text": "нача"}, {"text": "ло"}]
        assert session.ok("/cancel")["status"] == "cancelled"
        wait_until_idle(vllm, PROMPT)
        last = next(events)
        assert last.event == "done"
        assert next(events, None) is None, "nothing follows"
    done: Any = last.json()
    assert (done["reply"], done["finish_reason"]) == ("начало", "cancelled")
    assert [done[name] for name in ("total_tokens", "input_tokens", "output_tokens")] == [None] * 3
    assert session.contents() == ["вопрос", "начало"]
    assert session.ok("/history")["messages"][1]["finish_reason"] == "cancelled"
    session.ok("/chat", message="ещё")


def test_a_stream_cancelled_before_its_first_token_commits_nothing(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(role="assistant", content=""), delta(reasoning="Хм"), HANG]))
    with session.stream("вопрос") as source:
        events = iter(source)
        assert next(events).event == "reasoning"
        session.ok("/cancel")
        done: Any = next(events).json()
    assert (done["reply"], done["finish_reason"], done["reasoning"]) == ("", "cancelled", "Хм")
    assert session.contents() == []


def test_a_stream_cancelled_before_vllm_accepts_it_is_an_ordinary_409(session: SessionOf, vllm: ScriptedVLLM) -> None:
    script = hanging_stream()
    script.delay = HANG
    vllm.scripts.append(script)
    with in_flight(session, vllm, stream=True) as answer:
        session.ok("/cancel")
        problem(answer(), 409, "cancelled")
    wait_until_idle(vllm, PROMPT)


def test_stop_session_stops_a_json_answer(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_json())
    with in_flight(session, vllm) as answer:
        assert session.ok("/stop_session") == {"status": "stopped"}
        problem(answer(), 409, "cancelled")
    wait_until_idle(vllm, PROMPT)
    session.refused(404, "session_not_found", "/history")


def test_stop_session_ends_a_stream_with_done(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_stream("нача"))
    with session.stream("вопрос") as source:
        events = iter(source)
        next(events)
        assert session.ok("/stop_session") == {"status": "stopped"}
        wait_until_idle(vllm, PROMPT)
        last = next(events)
    done: Any = last.json()
    assert (last.event, done["reply"], done["finish_reason"], done["expires_in"]) == ("done", "нача", "cancelled", 0)
    session.refused(404, "session_not_found", "/history")


def go_away(gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM, *, stream: bool, read: bytes = b"") -> None:
    """Send a /chat, read until `read` has come, and cut the connection."""
    with httpx2.Client(base_url=gateway.url, timeout=1) as leaver:
        try:
            body = {"session_id": session.id, "message": "вопрос", "stream": stream}
            with leaver.stream("POST", "/chat", json=body) as response:
                received = b""
                for chunk in response.iter_raw():
                    received += chunk
                    if read and read in received:
                        break
        except httpx2.ReadTimeout:
            assert not read
        assert vllm.seen


def test_a_client_that_leaves_a_json_answer_stops_it(gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_json())
    go_away(gateway, session, vllm, stream=False)
    wait_until_idle(vllm, PROMPT)
    assert session.contents() == []
    session.ok("/chat", message="ещё")


def test_a_client_that_leaves_a_stream_stops_it_and_keeps_what_came(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM
) -> None:
    vllm.scripts.append(hanging_stream("нача", "ло"))
    go_away(gateway, session, vllm, stream=True, read="ло".encode())
    wait_until_idle(vllm, PROMPT)
    wait_until(lambda: session.contents() == ["вопрос", "начало"])
    assert session.ok("/history")["messages"][1]["finish_reason"] == "cancelled"
    session.ok("/chat", message="ещё")


def test_a_client_that_leaves_before_the_stream_starts_stops_it(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM
) -> None:
    script = hanging_stream()
    script.delay = HANG
    vllm.scripts.append(script)
    go_away(gateway, session, vllm, stream=True)
    wait_until_idle(vllm, PROMPT)
    assert session.contents() == []


def test_a_client_that_stops_reading_can_be_cancelled(session: SessionOf, vllm: ScriptedVLLM) -> None:
    """The gateway waits in `send`, not for vLLM; /cancel must reach it there as well."""
    vllm.scripts.append(streamed([*([delta(content="x" * 60_000)] * 200), HANG]))
    with session.stream("вопрос"):
        wait_until(lambda: vllm.running == 1)
        time.sleep(1.0)
        started = time.monotonic()
        assert session.ok("/cancel")["status"] == "cancelled"
        assert time.monotonic() - started < PROMPT
        wait_until_idle(vllm, PROMPT)


@pytest.mark.parametrize("stream", [False, True])
def test_while_a_turn_is_in_flight(session: SessionOf, vllm: ScriptedVLLM, *, stream: bool) -> None:
    session.ok("/chat", message="раз")
    vllm.scripts.append(hanging_stream("нача") if stream else hanging_json())
    with in_flight(session, vllm, stream=stream):
        for form in (False, True):
            session.refused(409, "session_busy", "/chat", message="два", stream=form)
        session.refused(409, "session_busy", "/set_system_prompt", system_prompt="другой")
        session.refused(409, "session_busy", "/undo")
        session.refused(409, "session_busy", "/reset")
        history = session.ok("/history")
        assert [m["content"] for m in history["messages"]] == ["раз", "Ответ 1."]
        assert history["system_prompt"] != "другой"
        assert session.ok("/init_session", vllm_api_key="test-key")["session_id"] == session.id
        assert session.ok("/cancel")["status"] == "cancelled"


def test_two_turns_at_once_one_wins(session: SessionOf, vllm: ScriptedVLLM) -> None:
    script = whole("да")
    script.delay = 0.5
    vllm.scripts.append(script)
    with in_flight(session, vllm) as answer:
        session.refused(409, "session_busy", "/chat", message="два")
        assert answer().json()["reply"] == "да"
    assert session.contents() == ["вопрос", "да"]


def test_a_cancel_after_the_end_changes_nothing(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("да"))
    assert session.events("вопрос")[-1][1]["finish_reason"] == "stop"
    assert session.ok("/cancel")["status"] == "idle"
    assert session.contents() == ["вопрос", "да"]


def test_a_cancel_between_the_end_of_the_reply_and_the_end_of_the_stream(
    session: SessionOf, vllm: ScriptedVLLM
) -> None:
    """The reply is whole: only the usage is missing."""
    vllm.scripts.append(streamed([delta(content="да") + delta("stop"), HANG]))
    with session.stream("вопрос") as source:
        events = iter(source)
        next(events)
        assert session.ok("/cancel")["status"] == "idle"
        done: Any = next(events).json()
    assert (done["reply"], done["finish_reason"], done["input_tokens"]) == ("да", "stop", None)
    assert session.contents() == ["вопрос", "да"]


def test_a_cancel_while_the_headers_wait_for_a_reader(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    """The client sends a streamed /chat behind a large answer that it does not read, and then /cancel comes."""
    with start_gateway(max_request_bytes=1 << 25, max_session_bytes=1 << 26, max_context_tokens=10**9) as gateway:
        session = gateway.open(system_prompt="x" * (1 << 24))
        vllm.max_model_len = 10**9
        session.ok("/init_session", vllm_api_key="test-key")
        vllm.scripts.append(hanging_stream("нача"))
        with connected(gateway.url) as connection:
            for path, body in (
                ("/history", {"session_id": session.id}),
                ("/chat", {"session_id": session.id, "message": "а", "stream": True}),
            ):
                connection.sendall(post(path, body=json.dumps(body).encode()))
            wait_until(lambda: vllm.running == 1, 30)
            time.sleep(0.2)
            session.ok("/cancel")
            wait_until_idle(vllm, PROMPT)
            connection.settimeout(10)
            received = b""
            while not received.endswith((b"}\n\n\r\n0\r\n\r\n", b'"cancelled"}')):
                received += connection.recv(1 << 20)
        assert b"text/plain" not in received
        assert received.count(b"HTTP/1.1 ") == 2


def test_silence_is_broken_by_a_comment(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="да"), 16.0, delta("stop", content=" нет")]))
    with session.gateway.http.stream(
        "POST", "/chat", json={"session_id": session.id, "message": "вопрос", "stream": True}
    ) as response:
        text = "".join(response.iter_text())
    assert text.index("да") < text.index("\n\n: keep-alive\n\n") < text.index(" нет")
    assert text.count(": keep-alive") == 1


def test_a_server_that_is_told_to_stop_does_not_leave_vllm_working(
    start_gateway: StartGateway, upstream: Upstream
) -> None:
    upstream.script.scripts.append(hanging_stream("нача"))
    with start_gateway() as gateway:
        session = gateway.open()
        with session.stream("вопрос") as source:
            next(iter(source))
    wait_until_idle(upstream.script, PROMPT)
