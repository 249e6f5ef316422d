"""/init_session with `history`: a talk that goes on in a new session."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import DEFAULT_SYSTEM_PROMPT
from app.context import Pair, conversation
from app.tokenizer import ChatTokenizer
from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.scripted_vllm import KEY, ScriptedVLLM
from tests.test_docs import codes
from tests.tokenizers_at_hand import count, ours

PAIRS = [Pair.of("раз", "Ответ 1.", "stop"), Pair.of(" два\x00\n", "", "length")]


def messages_of(pairs: list[Pair]) -> list[dict[str, Any]]:
    """Pairs as `/history` shows them, none of them dropped."""
    return [
        message
        for pair in pairs
        for message in (
            {"role": "user", "content": pair.user, "dropped": False},
            {"role": "assistant", "content": pair.assistant, "finish_reason": pair.finish_reason, "dropped": False},
        )
    ]


def numbered(count: int, length: int = 30) -> list[Pair]:
    return [Pair.of(f"Вопрос {number}", "слово " * length, "stop") for number in range(count)]


def restored(gateway: Gateway, history: list[Any], **body: Any) -> tuple[SessionOf, Any]:
    """Open a session with a history; returns it and its context receipt."""
    answer = gateway.ok("/init_session", vllm_api_key=KEY, history=history, **body)
    assert list(answer) == ["session_id", "expires_in", "context"]
    return SessionOf(gateway, answer["session_id"]), answer["context"]


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ChatTokenizer:
    return ours(model_folder)


def test_the_talk_goes_on(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    session, _ = restored(gateway, messages_of(PAIRS))
    assert session.ok("/history")["messages"] == messages_of(PAIRS)
    assert session.ok("/chat", message="три")["context"]["history_pairs"] == 2
    assert vllm.seen[-1].body["messages"] == conversation(DEFAULT_SYSTEM_PROMPT, PAIRS, "три")
    session.ok("/undo")
    assert session.ok("/undo") == {"user": " два\x00\n", "assistant": "", "expires_in": 600}
    assert session.contents() == ["раз", "Ответ 1."]
    session.ok("/reset")
    assert session.ok("/chat", message="а")["context"]["history_pairs"] == 0


def test_the_receipt_counts_a_next_prompt_with_an_empty_message(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    session, context = restored(gateway, messages_of(PAIRS), system_prompt="Кратко.")
    assert context == {
        "limit": 7680,
        "used": count(tokenizer, conversation("Кратко.", PAIRS, "")),
        "history_pairs": 2,
        "dropped_pairs": 0,
        "forgotten_pairs": 0,
    }
    following = session.ok("/chat", message="три")["context"]
    assert following["used"] == count(tokenizer, conversation("Кратко.", PAIRS, "три")) > context["used"]


def test_an_empty_history_is_none_with_a_receipt(gateway: Gateway, tokenizer: ChatTokenizer) -> None:
    session, context = restored(gateway, [])
    assert context["used"] == count(tokenizer, conversation(DEFAULT_SYSTEM_PROMPT, [], ""))
    assert (context["history_pairs"], context["dropped_pairs"], context["forgotten_pairs"]) == (0, 0, 0)
    assert session.contents() == []


@pytest.mark.parametrize("body", [{}, {"history": None}], ids=str)
def test_without_a_history_nothing_is_counted(gateway: Gateway, body: dict[str, Any]) -> None:
    answer = gateway.ok("/init_session", vllm_api_key=KEY, system_prompt="слово " * 20_000, **body)
    assert list(answer) == ["session_id", "expires_in"]


def test_only_role_and_content_are_required(gateway: Gateway) -> None:
    session, _ = restored(gateway, [{"role": "user", "content": "а"}, {"role": "assistant", "content": "б"}])
    assert session.ok("/history")["messages"] == messages_of([Pair.of("а", "б", None)])


def test_what_history_shows_comes_back_as_it_was(gateway: Gateway) -> None:
    texts = st.text(max_size=20)
    reasons = st.none() | st.sampled_from(["stop", "length", "cancelled"]) | texts

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.builds(Pair.of, texts.filter(bool), texts, reasons), max_size=5), texts)
    def round_trip(pairs: list[Pair], system_prompt: str) -> None:
        first, context = restored(gateway, messages_of(pairs), system_prompt=system_prompt)
        shown = first.ok("/history")
        assert shown["messages"] == messages_of(pairs)
        second, again = restored(gateway, shown["messages"], system_prompt=shown["system_prompt"])
        assert second.ok("/history") == shown
        assert again == context

    round_trip()


def test_a_grown_session_comes_back_with_what_it_left_out(start_gateway: StartGateway) -> None:
    with start_gateway(max_context_tokens=300) as gateway:
        session = gateway.open(system_prompt="Кратко.")
        for number in range(12):
            session.ok("/chat", message=f"Вопрос {number}: " + "слово " * 5)
        messages = session.ok("/history")["messages"]
        assert messages[0]["dropped"]
        back, context = restored(gateway, messages, system_prompt="Кратко.")
        assert context["dropped_pairs"] > 0
        assert back.contents() == session.contents()


@pytest.mark.parametrize("limit", [80, 250, 500, 1000])
def test_what_does_not_fit_is_dropped_as_a_turn_would(
    start_gateway: StartGateway, vllm: ScriptedVLLM, tokenizer: ChatTokenizer, limit: int
) -> None:
    """All of it where it fits; else down to the target at once, so that the next turns need not cut again."""
    pairs = numbered(10, 15)

    def used(dropped: int, message: str = "") -> int:
        return count(tokenizer, conversation("Кратко.", pairs[dropped:], message))

    wanted = 0 if used(0) <= limit else next(dropped for dropped in range(11) if used(dropped) <= int(limit * 0.7))
    assert (wanted == 0) == (limit == 1000)
    with start_gateway(max_context_tokens=limit) as gateway:
        session, context = restored(gateway, messages_of(pairs), system_prompt="Кратко.")
        assert context == {
            "limit": limit,
            "used": used(wanted),
            "history_pairs": 10 - wanted,
            "dropped_pairs": wanted,
            "forgotten_pairs": 0,
        }
        dropped = [message["dropped"] for message in session.ok("/history")["messages"]]
        assert dropped == [number < 2 * wanted for number in range(20)]
        assert session.ok("/chat", message="а")["context"]["dropped_pairs"] == wanted
        assert vllm.seen[-1].body["messages"] == conversation("Кратко.", pairs[wanted:], "а")


@pytest.mark.parametrize(("max_model_len", "limit"), [(600, 88), (512, 511), (100, 99)])
def test_a_tiny_model_can_be_opened(gateway: Gateway, vllm: ScriptedVLLM, max_model_len: int, limit: int) -> None:
    vllm.max_model_len = max_model_len
    session, context = restored(gateway, messages_of(PAIRS), system_prompt="")
    assert (context["limit"], context["dropped_pairs"]) == (limit, 0)
    session.ok("/chat", message="а", max_tokens=1)


def test_the_oldest_pairs_over_the_bound_are_forgotten(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    prompt = "x" * 1000
    with start_gateway(max_request_bytes=1500, max_session_bytes=1500, default_system_prompt=prompt) as gateway:
        pairs = [Pair.of(f"{number}" * 200, "да", None) for number in range(3)]
        session, context = restored(gateway, messages_of(pairs))
        assert (context["history_pairs"], context["dropped_pairs"], context["forgotten_pairs"]) == (2, 0, 1)
        assert session.ok("/history")["messages"] == messages_of(pairs[1:])
        assert session.ok("/chat", message="а")["context"]["forgotten_pairs"] == 1
        assert vllm.seen[-1].body["messages"] == conversation(prompt, pairs[1:], "а")


# --- refusals ------------------------------------------------------------------------------------------------------

SECRET = "тайна"
USER = {"role": "user", "content": SECRET}
ASSISTANT = {"role": "assistant", "content": SECRET}

BAD_HISTORIES: list[tuple[Any, str, str]] = [
    ([USER], "history", "нет сообщения 2, ответа assistant"),
    ([USER, ASSISTANT, USER], "history", "нет сообщения 4, ответа assistant"),
    ([ASSISTANT], "history", "у сообщения 1 должна быть роль user"),
    ([USER, USER], "history", "у сообщения 2 должна быть роль assistant"),
    ([USER, ASSISTANT, ASSISTANT, USER], "history", "у сообщения 3 должна быть роль user"),
    ([USER, {**ASSISTANT, "role": "tool"}], "history", "у сообщения 2 должна быть роль assistant"),
    ([{**USER, "role": SECRET}, ASSISTANT], "history", "у сообщения 1 должна быть роль user"),
    ([{**USER, "role": "system"}, USER, ASSISTANT], "history", "сообщение 1 системное"),
    ([USER, ASSISTANT, {**USER, "role": "system"}], "history", "в поле system_prompt"),
    ([USER, ASSISTANT, {**USER, "content": ""}, ASSISTANT], "history", "сообщение 3 пустое"),
    ([{"role": "user"}, ASSISTANT], "history.0.content", "не задано"),
    ([{"content": SECRET}, ASSISTANT], "history.0.role", "не задано"),
    ([USER, {**ASSISTANT, "content": None}], "history.1.content", "нужна строка"),
    ([USER, {**ASSISTANT, "content": [{"type": "text", "text": SECRET}]}], "history.1.content", "нужна строка"),
    ([USER, {**ASSISTANT, "content": "\ud800"}], "history.1.content", "суррогаты"),
    ([{**USER, "content": "\udfff"}, ASSISTANT], "history.0.content", "суррогаты"),
    ([USER, {**ASSISTANT, "finish_reason": "\ud800"}], "history.1.finish_reason", "суррогаты"),
    ([USER, {**ASSISTANT, "finish_reason": 5}], "history.1.finish_reason", "нужна строка"),
    ([{**USER, "dropped": 0}, ASSISTANT], "history.0.dropped", "true или false"),
    ([USER, {**ASSISTANT, "name": SECRET}], "history.1.name", "такого поля нет"),
    ([SECRET], "history.0", "объект JSON"),
    (SECRET, "history", "массив JSON"),
    ({"messages": [USER, ASSISTANT]}, "history", "массив JSON"),
]


@pytest.mark.parametrize(("history", "field", "says"), BAD_HISTORIES, ids=lambda value: str(ascii(value))[:60])
def test_a_history_that_is_none(gateway: Gateway, history: Any, field: str, says: str) -> None:
    wire = json.dumps({"vllm_api_key": KEY, "history": history})
    response = gateway.http.post("/init_session", content=wire, headers={"Content-Type": "application/json"})
    refused = problem(response, 422, "invalid_request")
    assert refused["field"] == field
    assert says in refused["detail"]
    assert SECRET not in response.text
    assert gateway.session_count() == 0


@pytest.mark.parametrize("history", [[], messages_of(PAIRS)], ids=["empty", "pairs"])
def test_a_live_session_takes_no_history(session: SessionOf, history: list[Any]) -> None:
    body = session.refused(422, "invalid_request", "/init_session", vllm_api_key=KEY, history=history)
    assert "history принимает только новая сессия" in body["detail"]
    assert session.contents() == []


def test_a_system_prompt_that_does_not_fit_opens_no_session(gateway: Gateway) -> None:
    for history in ([], messages_of(PAIRS)):
        body = gateway.refused(
            400,
            "context_too_long",
            "/init_session",
            vllm_api_key=KEY,
            system_prompt="слово " * 20_000,
            history=history,
        )
        assert body["needed"] > body["limit"] == 7680
        assert body["detail"].startswith("Системный промпт не помещается")
        assert "max_tokens" not in body["detail"], "it is no field of this request"
    assert gateway.session_count() == 0


def test_a_talk_that_the_chat_template_refuses_opens_no_session(
    start_gateway: StartGateway, linked_model: Path
) -> None:
    template = linked_model / "chat_template.jinja"
    template.unlink()
    template.write_text("{% if messages|length > 2 %}{{ raise_exception('one question only') }}{% endif %}?")
    with start_gateway(tokenizer_path=str(linked_model)) as gateway:
        body = gateway.refused(400, "upstream_rejected", "/init_session", vllm_api_key=KEY, history=messages_of(PAIRS))
        assert "one question only" in body["detail"]
        assert gateway.session_count() == 0
        restored(gateway, [])


def test_the_room_then_the_key_are_checked_before_anything_is_counted(start_gateway: StartGateway) -> None:
    uncountable = {"system_prompt": "слово " * 20_000, "history": messages_of(PAIRS)}
    with start_gateway(max_sessions=1) as gateway:
        gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong", **uncountable)
        assert gateway.session_count() == 0
        gateway.open()
        gateway.refused(503, "overloaded", "/init_session", vllm_api_key="wrong", **uncountable)


def test_the_errors_are_declared(gateway: Gateway) -> None:
    schema = gateway.http.get("/openapi.json").json()
    assert codes(schema, "/init_session", 400) == {"context_too_long", "upstream_rejected"}
    assert schema["components"]["schemas"]["PastMessage"]["properties"]["role"]["enum"] == ["user", "assistant"]
