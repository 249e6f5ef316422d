"""Idempotency-Key on /chat: an answer that was lost can be asked for again."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.scripted_vllm import ScriptedVLLM, delta, hanging, refusal, stream_of, streamed, whole
from tests.servers import wait_until

REPEATED = "idempotent-replayed"


def ask(session: SessionOf, key: str | None = "k-1", **body: Any) -> httpx2.Response:
    """A /chat with a key."""
    headers = {} if key is None else {"Idempotency-Key": key}
    body = {"session_id": session.id, "message": "вопрос", **body}
    return session.gateway.http.post("/chat", json=body, headers=headers)


def has_said(session: SessionOf, tokens: int = 1) -> None:
    """Wait until so many streams have had their first token."""
    wait_until(lambda: session.gateway.metrics()("time_to_first_token_seconds_count") == tokens)


def events_of(response: httpx2.Response) -> list[str]:
    """The names of a stream's events."""
    return [line.removeprefix("event: ") for line in response.text.splitlines() if line.startswith("event: ")]


def test_a_repeat_gives_the_same_answer_and_asks_nothing(session: SessionOf, vllm: ScriptedVLLM) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    vllm.scripts.append(whole("ответ", reasoning="Хм", tool_calls=[call]))
    first, second = ask(session), ask(session)
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    assert first.json()["reasoning"] == "Хм"
    assert first.json()["tool_calls"] == [call]
    assert (first.headers.get(REPEATED), second.headers.get(REPEATED)) == (None, "true")
    assert len(vllm.seen) == 1
    assert session.contents() == ["вопрос", "ответ"]


def test_an_answer_can_be_asked_for_in_the_other_form(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("от", "вет"))
    first = ask(session, stream=True)
    assert events_of(first) == ["delta", "delta", "done"]
    again = ask(session, stream=True)
    assert events_of(again) == ["delta", "done"]
    assert again.headers[REPEATED] == "true"
    assert first.text.splitlines()[-2] == again.text.splitlines()[-2], "the same `done`"
    assert ask(session).json()["reply"] == "ответ"
    assert len(vllm.seen) == 1


def test_earlier_answers_are_found_too(session: SessionOf, vllm: ScriptedVLLM) -> None:
    first = ask(session, "k-1").json()
    ask(session, "k-2", message="другой")
    assert ask(session, "k-1").json() == first
    assert ask(session, None).status_code == 200, "without a key it is a question of its own"
    assert len(vllm.seen) == 3
    assert session.contents()[0::2] == ["вопрос", "другой", "вопрос"]


@pytest.mark.parametrize(
    "body", [{"message": "другой"}, {"max_tokens": 5}, {"temperature": 0.5}, {"extra": {"top_p": 0.5}}]
)
def test_another_question_under_the_same_key_is_refused(session: SessionOf, body: dict[str, Any]) -> None:
    ask(session)
    assert problem(ask(session, **body), 422, "invalid_request")["field"] == "Idempotency-Key"
    assert len(session.contents()) == 2


def test_the_order_of_members_makes_no_other_question(session: SessionOf, vllm: ScriptedVLLM) -> None:
    ask(session, extra={"top_p": 0.5, "seed": 1})
    assert ask(session, extra={"seed": 1, "top_p": 0.5}).headers[REPEATED] == "true"
    assert len(vllm.seen) == 1


def test_while_the_first_is_in_flight(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача"))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, session, stream=True)
        wait_until(lambda: vllm.running == 1)
        problem(ask(session), 409, "session_busy")
        session.ok("/cancel")
        first.result()


@pytest.mark.parametrize("stream", [False, True])
def test_a_stopped_answer_is_replaced(session: SessionOf, vllm: ScriptedVLLM, *, stream: bool) -> None:
    ask(session, "k-0", message="прежний")
    vllm.scripts.append(hanging("нача"))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, session, stream=True)
        has_said(session)
        session.ok("/cancel")
        assert '"finish_reason":"cancelled"' in first.result().text
    assert session.contents()[2:] == ["вопрос", "нача"]
    again = ask(session, stream=stream)
    assert REPEATED not in again.headers
    assert vllm.said() == ["прежний", "Ответ 1.", "вопрос"], "what was stopped is no part of the talk"
    assert session.contents()[2:] == ["вопрос", "Ответ 3."]
    assert ask(session, stream=stream).headers[REPEATED] == "true"


def test_who_went_away_in_the_middle_asks_again(gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача"))
    body = {"session_id": session.id, "message": "вопрос", "stream": True}
    headers = {"Idempotency-Key": "k-1"}
    with httpx2.Client(base_url=gateway.url) as leaver, leaver.stream("POST", "/chat", json=body, headers=headers):
        has_said(session)
    wait_until(lambda: session.contents() == ["вопрос", "нача"])
    assert ask(session).json()["reply"] == "Ответ 2."
    assert session.contents() == ["вопрос", "Ответ 2."]


def test_a_stopped_answer_stays_if_its_replacement_fails(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts += [hanging("нача"), refusal(500, "no"), streamed([delta(content="а"), None]), whole("целиком")]
    with ThreadPoolExecutor() as pool:
        pool.submit(ask, session, stream=True)
        has_said(session)
        session.ok("/cancel")
    assert session.contents() == ["вопрос", "нача"]
    problem(ask(session), 502, "upstream_error")
    assert events_of(ask(session, stream=True))[-1] == "error"
    assert session.contents() == ["вопрос", "нача"], "atomic"
    ask(session)
    assert session.contents() == ["вопрос", "целиком"]


def test_a_stopped_answer_that_others_followed_is_an_answer(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача"))
    with ThreadPoolExecutor() as pool:
        pool.submit(ask, session, stream=True)
        has_said(session)
        session.ok("/cancel")
    ask(session, None, message="дальше")
    assert ask(session).json()["finish_reason"] == "cancelled"
    assert session.contents()[0::2] == ["вопрос", "дальше"]


def test_a_failed_question_can_be_asked_again(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(refusal(503, "no"))
    problem(ask(session), 502, "upstream_error")
    assert ask(session).json()["reply"] == "Ответ 2."


@pytest.mark.parametrize("path", ["/undo", "/reset"])
def test_what_was_taken_back_is_asked_anew(session: SessionOf, path: str) -> None:
    ask(session)
    session.ok(path)
    assert ask(session).json()["reply"] == "Ответ 2."
    assert len(session.contents()) == 2


def test_sessions_have_keys_of_their_own(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    for _ in range(2):
        assert REPEATED not in ask(gateway.open()).headers
    assert len(vllm.seen) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ключ".encode().decode("latin-1"), "a\tb"])
@pytest.mark.parametrize("headers", [{}, {"Origin": "https://a.example"}])
def test_a_key_that_is_none_is_refused(session: SessionOf, key: str, headers: dict[str, str]) -> None:
    raw = [(b"Idempotency-Key", key.encode("latin-1")), *((k.encode(), v.encode()) for k, v in headers.items())]
    response = session.gateway.http.post("/chat", json={"session_id": session.id, "message": "а"}, headers=raw)
    assert problem(response, 422, "invalid_request")["field"] == "Idempotency-Key"
    assert session.contents() == []


def test_from_a_page_of_another_origin(session: SessionOf, vllm: ScriptedVLLM) -> None:
    for repeated in (None, "true"):
        headers = {"Idempotency-Key": "k", "Origin": "https://a.example"}
        response = session.gateway.http.post("/chat", json={"session_id": session.id, "message": "а"}, headers=headers)
        assert response.headers.get(REPEATED) == repeated
    assert len(vllm.seen) == 1


def test_a_kept_answer_counts_as_the_sessions_text(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    """Reasoning is no part of the history, but has to be kept for a repeat."""
    vllm.scripts += [whole("да", reasoning="x" * 2000) for _ in range(10)]
    with start_gateway(max_session_bytes=10_000, max_request_bytes=1000) as gateway:
        session = gateway.open()
        for number in range(10):
            ask(session, f"k-{number}")
        assert len(session.contents()) == 2 * 5, "without the reasoning all ten would fit; the last one counts later"


def test_a_repeat_is_counted_as_one(session: SessionOf) -> None:
    ask(session)
    ask(session)
    now = session.gateway.metrics()
    assert now("turns_total", "repeated") == 1
    assert now("completion_tokens_total") == 3
