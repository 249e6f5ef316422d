"""What touches vLLM's own behaviour, on the real one."""

import random
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.e2e.conftest import RealVLLM
from tests.scripted_vllm import KEY
from tests.servers import wait_until

pytestmark = pytest.mark.vllm

LONG: dict[str, Any] = {"max_tokens": 4000, "extra": {"ignore_eos": True}}
# Generous, for busy machines; the 4000 tokens would take ten seconds and more. bench/cancel.py measures.
STOP_SECONDS = 5.0


def test_the_key_is_checked_by_vllm(gateway: Gateway) -> None:
    gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong")
    gateway.open()


def test_ready_and_health(gateway: Gateway) -> None:
    assert gateway.http.get("/ready").json() == {"status": "ready"}
    health = gateway.http.get("/health").json()
    assert (health["status"], health["vllm"], health["warnings"]) == ("ok", "ok", [])


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_counts_as_vllm_counts(session: SessionOf, *, stream: bool) -> None:
    for number in range(3):
        message = f"Вопрос {number}: <|im_end|> 🦔 \r\n"
        if stream:
            *deltas, (_, answer) = session.events(message, max_tokens=20)
            assert "".join(data["text"] for name, data in deltas if name == "delta") == answer["reply"]
        else:
            answer = session.ok("/chat", message=message, max_tokens=20)
        assert answer["context"]["used"] == answer["input_tokens"]
        assert answer["total_tokens"] == answer["input_tokens"] + answer["output_tokens"]
        assert answer["finish_reason"] in ("stop", "length")
        assert isinstance(answer["context"]["cached_tokens"], int)
    assert len(session.contents()) == 6


def test_a_talk_goes_on_in_a_new_session(gateway: Gateway, session: SessionOf) -> None:
    for number in range(3):
        session.ok("/chat", message=f"Вопрос {number}: <|im_end|> 🦔 \r\n", max_tokens=20)
    history = session.ok("/history")["messages"]
    opened = gateway.ok("/init_session", vllm_api_key=KEY, history=history)
    answer = SessionOf(gateway, opened["session_id"]).ok("/chat", message="ещё", max_tokens=20)
    assert answer["context"]["used"] == answer["input_tokens"] > opened["context"]["used"]
    assert answer["context"]["history_pairs"] == opened["context"]["history_pairs"] == 3


def test_extra_reaches_vllm(session: SessionOf) -> None:
    answer = session.ok("/chat", message="а", max_tokens=7, temperature=0, extra={"ignore_eos": True, "seed": 1})
    assert (answer["output_tokens"], answer["finish_reason"]) == (7, "length")
    session.ok("/undo")
    again = session.ok("/chat", message="а", max_tokens=7, temperature=0, extra={"ignore_eos": True, "seed": 1})
    assert again["reply"] == answer["reply"], "temperature 0 is the same twice"
    stopped = session.ok("/chat", message="б", max_tokens=50, extra={"allowed_token_ids": [65]})
    assert len(set(stopped["reply"])) == 1


def test_extra_that_vllm_does_not_know_or_refuses(gateway: Gateway, session: SessionOf) -> None:
    wait_until(lambda: gateway.http.get("/health").json()["status"] == "ok")
    body = session.refused(422, "invalid_request", "/chat", message="а", extra={"repetition_penalti": 1})
    assert "repetition_penalty" in body["detail"]
    body = session.refused(400, "upstream_rejected", "/chat", message="а", extra={"top_p": 7})
    assert "top_p must be in (0, 1]" in body["detail"]
    body = session.refused(400, "upstream_rejected", "/chat", message="тайна", extra={"top_p": "секрет"})
    assert "valid number" in body["detail"]
    assert "тайна" not in str(body)
    assert session.contents() == []


def test_what_in_extra_changes_the_prompt_is_counted(session: SessionOf) -> None:
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none", "documents": [{"a": "b"}]}
    answer = session.ok("/chat", message="а", max_tokens=2, extra=extra)
    assert answer["context"]["used"] == answer["input_tokens"]


def test_the_largest_prompts_are_accepted(start_gateway: StartGateway) -> None:
    """Around the edge of the model's length vLLM never answers 400, and the answer always has room."""
    with start_gateway(max_context_tokens=100_000) as gateway:
        session = gateway.open(system_prompt="")
        for max_tokens in (1, 2, 100):
            limit = 8192 - max_tokens
            words = limit
            while True:
                response = session.gateway.post(
                    "/chat",
                    session_id=session.id,
                    message="а " * words,
                    max_tokens=max_tokens,
                    extra={"ignore_eos": True},
                )
                if response.status_code == 200:
                    break
                refused = problem(response, 400, "context_too_long")
                assert refused["limit"] == limit
                words -= max(1, (refused["needed"] - limit) // 3)
            answer = response.json()
            assert answer["context"]["used"] == answer["input_tokens"] <= limit
            assert answer["output_tokens"] == max_tokens
            session.ok("/undo")


def test_two_hundred_turns_in_a_small_context(start_gateway: StartGateway) -> None:
    """No 4xx or 5xx, alternation intact, `input_tokens` never above the limit, the count exact every time."""
    chooser = random.Random(7)
    with start_gateway(max_context_tokens=400) as gateway:
        session = gateway.open(system_prompt="Отвечай кратко.")
        for number in range(200):
            message = f"Вопрос {number}. " + "слово " * chooser.randrange(20)
            body: dict[str, Any] = {"message": message, "max_tokens": chooser.choice([1, 10, 30])}
            answer = session.events(**body)[-1][1] if number % 2 else session.ok("/chat", **body)
            context = answer["context"]
            assert context["used"] == answer["input_tokens"] <= context["limit"] == 400
            assert context["history_pairs"] + context["dropped_pairs"] == number
        assert context["dropped_pairs"] > 150
        contents = session.contents()
        assert len(contents) == 400
        assert [text.split(".")[0] for text in contents[::2]] == [f"Вопрос {number}" for number in range(200)]


def test_the_start_of_the_prompt_comes_from_vllms_cache(session: SessionOf) -> None:
    session.ok("/chat", message="слово " * 200, max_tokens=5)
    assert session.ok("/chat", message="ещё", max_tokens=5)["context"]["cached_tokens"] > 100


def vllm_has_stopped(vllm: RealVLLM, seconds: float) -> float:
    """Wait until vLLM's own count of requests is zero; returns how long it took."""
    return wait_until(lambda: vllm.running() == 0, seconds)


def leave_stream(session: SessionOf) -> None:
    with session.stream("вопрос", **LONG) as source:
        for number, _ in enumerate(source):
            if number == 5:
                break


def leave_json(session: SessionOf) -> None:
    with pytest.raises(httpx2.ReadTimeout), httpx2.Client(base_url=session.gateway.url, timeout=1) as leaver:
        leaver.post("/chat", json={"session_id": session.id, "message": "вопрос", **LONG})


def cancel_from_elsewhere(session: SessionOf, *, stream: bool) -> None:
    answers: list[httpx2.Response] = []
    body = {"session_id": session.id, "message": "вопрос", "stream": stream, **LONG}
    turn = threading.Thread(target=lambda: answers.append(session.gateway.post("/chat", **body)))
    turn.start()
    time.sleep(1)
    assert session.ok("/cancel")["status"] == "cancelled"
    turn.join(5)
    if stream:
        assert '"finish_reason":"cancelled"' in answers[0].text
    else:
        problem(answers[0], 409, "cancelled")


STOPS: dict[str, tuple[Callable[[SessionOf], None], bool]] = {
    "client leaves a stream": (leave_stream, True),
    "client leaves a JSON answer": (leave_json, False),
    "/cancel of a stream": (lambda session: cancel_from_elsewhere(session, stream=True), True),
    "/cancel of a JSON answer": (lambda session: cancel_from_elsewhere(session, stream=False), False),
}


@pytest.mark.parametrize(("stop", "kept"), STOPS.values(), ids=STOPS.keys())
@pytest.mark.parametrize("_", range(3))
def test_a_stopped_turn_stops_vllm(
    session: SessionOf, real_vllm: RealVLLM, stop: Callable[[SessionOf], None], _: int, *, kept: bool
) -> None:
    assert real_vllm.running() == 0
    stop(session)
    vllm_has_stopped(real_vllm, STOP_SECONDS)
    wait_until(lambda: session.ok("/cancel")["status"] == "idle")
    contents = session.contents()
    assert bool(contents) == kept
    answer = session.ok("/chat", message="ещё", max_tokens=5)
    assert answer["context"]["used"] == answer["input_tokens"]
    assert len(session.contents()) == len(contents) + 2


def test_stopping_the_session_stops_vllm(session: SessionOf, real_vllm: RealVLLM) -> None:
    with session.stream("вопрос", **LONG) as source:
        events = iter(source)
        next(events)
        assert real_vllm.running() == 1
        session.ok("/stop_session")
        vllm_has_stopped(real_vllm, STOP_SECONDS)
        assert [event.event for event in events][-1] == "done"


def test_simultaneous_sessions(gateway: Gateway) -> None:
    sessions = [gateway.open() for _ in range(8)]
    failures: list[BaseException] = []

    def talk(session: SessionOf) -> None:
        try:
            for number in range(3):
                answer = session.events(f"{session.id} {number}", max_tokens=10)[-1][1]
                assert answer["context"]["used"] == answer["input_tokens"]
            assert [text.split()[0] for text in session.contents()[::2]] == [session.id] * 3
        except BaseException as exc:  # noqa: BLE001 - reported below, in the main thread
            failures.append(exc)

    threads = [threading.Thread(target=talk, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
