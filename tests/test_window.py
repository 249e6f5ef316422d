"""The window over the history, as a client sees it: in what vLLM is sent, in receipts and in /history."""

from typing import Any

import pytest

from tests.conftest import SHARED_TOKENIZERS, Gateway, SessionOf, StartGateway
from tests.scripted_vllm import KEY, ScriptedVLLM, hanging, refusal

LIMIT = 800
"""Tokens; a pair of `ask` has some 60."""


def ask(session: SessionOf, words: int = 10, **body: Any) -> dict[str, int]:
    """A turn; its receipt must be what /history then shows."""
    context: dict[str, int] = session.ok("/chat", message="слово " * words, **body)["context"]
    messages = session.ok("/history")["messages"]
    dropped = [message["dropped"] for message in messages]
    assert dropped == [number < 2 * context["dropped_pairs"] for number in range(len(messages))]
    assert context["history_pairs"] + context["dropped_pairs"] == len(messages) // 2 - 1
    assert context["used"] <= context["limit"]
    return context


def shown_dropped(session: SessionOf) -> int:
    return [message["dropped"] for message in session.ok("/history")["messages"]].count(True) // 2


@pytest.fixture
def narrow(start_gateway: StartGateway) -> Any:
    with start_gateway(max_context_tokens=LIMIT) as gateway:
        yield gateway


def test_the_beginning_of_the_prompt_stands_still_between_cuts(narrow: Gateway, vllm: ScriptedVLLM) -> None:
    session = narrow.open(system_prompt="Кратко.")
    contexts = [ask(session) for _ in range(60)]
    starts = [context["dropped_pairs"] for context in contexts]
    cuts = [turn for turn in range(1, 60) if starts[turn] != starts[turn - 1]]
    assert starts == sorted(starts)
    assert starts[-1] > 30
    assert 5 < len(cuts) < 20
    for turn in cuts:
        assert contexts[turn]["used"] <= 0.7 * LIMIT < contexts[turn - 1]["used"]
    for turn in set(range(1, 60)) - set(cuts):
        before, now = vllm.seen[turn - 1].body["messages"], vllm.seen[turn].body["messages"]
        assert now[: len(before)] == before, "only the end of the prompt is new"


def test_ratio_one_leaves_out_as_little_as_possible(start_gateway: StartGateway) -> None:
    with start_gateway(max_context_tokens=LIMIT, trim_target_ratio=1) as gateway:
        session = gateway.open(system_prompt="Кратко.")
        contexts = [ask(session) for _ in range(40)]
        pair = contexts[1]["used"] - contexts[0]["used"]
        trimmed = [context for context in contexts if context["dropped_pairs"]]
        assert len(trimmed) > 20
        for context in trimmed:
            assert LIMIT - pair - 3 < context["used"] <= LIMIT, "one pair more would not have fitted"


def test_a_turn_with_a_huge_answer_does_not_cost_the_history_for_good(narrow: Gateway) -> None:
    session = narrow.open(system_prompt="")
    for _ in range(5):
        whole = ask(session)
    assert whole["dropped_pairs"] == 0
    assert ask(session, max_tokens=8192 - 100)["dropped_pairs"] > 0
    assert ask(session)["dropped_pairs"] == 0, "it fits the target again"


def test_what_frees_room_lets_the_window_grow_back(narrow: Gateway) -> None:
    session = narrow.open(system_prompt="слово " * 60)
    while not (cut := ask(session))["dropped_pairs"]:
        pass
    session.ok("/set_system_prompt", system_prompt="")
    assert shown_dropped(session) == cut["dropped_pairs"], "as the last prompt was"
    assert ask(session)["dropped_pairs"] < cut["dropped_pairs"]
    for _ in range(8):
        session.ok("/undo")
    assert ask(session)["dropped_pairs"] == 0
    session.ok("/reset")
    assert ask(session)["dropped_pairs"] == 0


def test_a_turn_that_failed_does_not_move_the_window(narrow: Gateway, vllm: ScriptedVLLM) -> None:
    session = narrow.open(system_prompt="")
    while (context := ask(session))["used"] < LIMIT - 60:
        pass
    before = session.ok("/history")
    for failure in (refusal(500, "no"), refusal(400, "no")):
        vllm.scripts.append(failure)
        assert session.gateway.post("/chat", session_id=session.id, message="слово " * 20).status_code >= 400
        assert session.ok("/history") == before
    assert len(vllm.seen[-1].body["messages"]) < len(vllm.seen[-3].body["messages"]), "they were asked with less"
    assert ask(session, 20)["dropped_pairs"] > context["dropped_pairs"]


def test_a_reply_that_was_stopped_moves_it_as_any_other(narrow: Gateway, vllm: ScriptedVLLM) -> None:
    session = narrow.open(system_prompt="")
    while ask(session)["used"] < LIMIT - 60:
        pass
    vllm.scripts.append(hanging("начало"))
    with session.stream("слово " * 20) as source:
        events = iter(source)
        assert next(events).json() == {"text": "начало"}
        session.ok("/cancel")
        done: Any = [event.json() for event in events][-1]
    assert done["finish_reason"] == "cancelled"
    assert done["context"]["dropped_pairs"] == shown_dropped(session) > 0


def test_a_document_is_not_forgotten_with_the_small_talk_before_it(narrow: Gateway) -> None:
    session = narrow.open(system_prompt="")
    for _ in range(4):
        ask(session, 3)
    assert ask(session, 140)["history_pairs"] == 4
    context = ask(session, 30)
    assert context["history_pairs"] == 1
    assert context["used"] > 0.7 * LIMIT


@pytest.mark.shared_tokenizers
def test_a_model_without_a_system_role_is_told_in_the_first_message_that_is_sent(
    start_gateway: StartGateway, vllm: ScriptedVLLM
) -> None:
    folder = SHARED_TOKENIZERS / "gemma-2-hybrid"
    with start_gateway(max_context_tokens=400, tokenizer_path=str(folder)) as gateway:
        session = gateway.open(system_prompt="Ты — ёж.")
        for turn in range(20):
            context = ask(session)
            messages = vllm.seen[-1].body["messages"]
            assert {message["role"] for message in messages} <= {"user", "assistant"}
            assert messages[0]["content"].startswith("Ты — ёж.\n\nслово"), turn
            assert sum("Ты — ёж." in message["content"] for message in messages) == 1
        assert context["dropped_pairs"] > 0
        assert "Ты — ёж." not in str(session.ok("/history")["messages"]), "the history is what was said"


def test_a_long_history_is_restored_for_the_price_of_what_fits(start_gateway: StartGateway) -> None:
    """A mebibyte of talk, and a window of a few pairs."""
    with start_gateway(max_request_bytes=8 * 1024**2, max_session_bytes=8 * 1024**2) as gateway:
        history = [
            {"role": role, "content": f"{number} " + "слово " * 50}
            for number in range(2000)
            for role in ("user", "assistant")
        ]
        opened = gateway.ok("/init_session", vllm_api_key=KEY, history=history)
        context = opened["context"]
        assert context["used"] <= 0.7 * context["limit"]
        assert context["history_pairs"] > 5
        assert context["history_pairs"] + context["dropped_pairs"] == 2000
