"""/chat in both forms, and the endpoints around it, in front of a scripted vLLM."""

import time
from typing import Any

from app.config import DEFAULT_SYSTEM_PROMPT
from tests.conftest import SessionOf, StartGateway
from tests.scripted_vllm import KEY, USAGE, ScriptedVLLM, delta, stream_of, streamed, whole

TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


def test_a_json_answer_says_what_vllm_said_and_what_was_sent(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(whole("Привет!"))
    answer = session.ok("/chat", message="Здравствуй")
    used = answer["context"].pop("used")
    assert used > 0
    assert answer == {
        "reply": "Привет!",
        "finish_reason": "stop",
        "total_tokens": 14,
        "input_tokens": 11,
        "output_tokens": 3,
        "context": {"limit": 7680, "history_pairs": 0, "dropped_pairs": 0, "forgotten_pairs": 0, "cached_tokens": 4},
        "expires_in": 600,
    }


def test_what_vllm_is_asked(session: SessionOf, vllm: ScriptedVLLM) -> None:
    session.ok("/chat", message=" раз\n", max_tokens=7, temperature=0, extra={"top_p": 0.5, "seed": 1})
    session.ok("/chat", message="два")
    first, second = vllm.seen
    assert first.body == {
        "model": "/app/model",
        "messages": [{"role": "system", "content": DEFAULT_SYSTEM_PROMPT}, {"role": "user", "content": " раз\n"}],
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 1,
    }
    assert second.body == {
        "model": "/app/model",
        "messages": [
            {"role": "system", "content": DEFAULT_SYSTEM_PROMPT},
            {"role": "user", "content": " раз\n"},
            {"role": "assistant", "content": "Ответ 1."},
            {"role": "user", "content": "два"},
        ],
        "max_tokens": 512,
    }
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["x-session-id"] == second.headers["x-session-id"]
    assert session.id not in str(first)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_a_stream_is_asked_as_a_stream_and_passed_on_piece_by_piece(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("При", "вет", "", "!"))
    *deltas, (last, done) = session.events("Здравствуй")
    assert deltas == [("delta", {"text": text}) for text in ("При", "вет", "!")]
    assert last == "done"
    assert done["reply"] == "Привет!"
    assert done["finish_reason"] == "stop"
    assert (done["input_tokens"], done["output_tokens"], done["total_tokens"]) == (11, 3, 14)
    assert done["context"]["cached_tokens"] == 4
    assert done["expires_in"] == 600
    assert vllm.seen[0].body["stream"] is True
    assert vllm.seen[0].body["stream_options"] == {"include_usage": True}
    assert session.contents() == ["Здравствуй", "Привет!"]


def test_the_first_piece_does_not_wait_for_the_last(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("раз", "два", gap=0.6))
    with session.stream("считай") as source:
        first, second = [time.monotonic() for event in source if event.event == "delta"]
    assert second - first > 0.3


def test_both_forms_give_the_same_answer(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts += [whole("Да", reasoning="Хм"), streamed([delta(reasoning="Хм"), *stream_of("Да").acts])]
    json_answer = session.ok("/chat", message="а")
    session.ok("/undo")
    *events, (_, stream_answer) = session.events("а")
    assert stream_answer == json_answer
    assert json_answer["reasoning"] == "Хм"
    assert events[0] == ("reasoning", {"text": "Хм"})
    assert session.contents() == ["а", "Да"], "what was thought is not kept"


def test_thoughts_within_the_text_stay(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(whole("<think>Хм</think>Да"))
    session.ok("/chat", message="а")
    assert session.contents() == ["а", "<think>Хм</think>Да"]


def test_tool_calls_are_returned_and_not_kept(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(whole(None, tool_calls=[TOOL_CALL], finish_reason="tool_calls"))
    answer = session.ok("/chat", message="а")
    assert answer["reply"] == ""
    assert answer["tool_calls"] == [TOOL_CALL]
    assert session.contents() == ["а", ""]


def test_texts_survive_as_they_are(session: SessionOf, vllm: ScriptedVLLM) -> None:
    nasty = "\x00\x1b[31m \r\n\t «ёж» 🦔 \u2028 data: x\n\nevent: done <|im_end|>"
    vllm.scripts.append(stream_of(nasty[:9], nasty[9:]))
    *deltas, (_, done) = session.events(nasty)
    assert "".join(data["text"] for _, data in deltas) == done["reply"] == nasty
    assert session.contents() == [nasty, nasty]
    assert vllm.seen[0].body["messages"][-1]["content"] == nasty


def test_the_system_prompt_default_own_none_and_replaced(gateway: Any, vllm: ScriptedVLLM) -> None:
    def sent(session: SessionOf) -> list[str]:
        session.ok("/chat", message="а")
        return [m["content"] for m in vllm.seen[-1].body["messages"] if m["role"] == "system"]

    assert sent(gateway.open()) == [DEFAULT_SYSTEM_PROMPT]
    assert sent(gateway.open(system_prompt="")) == []
    session = gateway.open(system_prompt="Ты — ёж.")
    assert sent(session) == ["Ты — ёж."]
    assert session.ok("/set_system_prompt", system_prompt="Ты — уж.") == {"status": "ok", "expires_in": 600}
    assert sent(session) == ["Ты — уж."]
    assert len(session.contents()) == 4, "the history stays"
    assert session.ok("/history")["system_prompt"] == "Ты — уж."


def test_history_undo_and_reset(session: SessionOf) -> None:
    session.ok("/chat", message="раз")
    session.ok("/chat", message="два")
    assert session.ok("/history") == {
        "system_prompt": DEFAULT_SYSTEM_PROMPT,
        "messages": [
            {"role": "user", "content": "раз", "dropped": False},
            {"role": "assistant", "content": "Ответ 1.", "finish_reason": "stop", "dropped": False},
            {"role": "user", "content": "два", "dropped": False},
            {"role": "assistant", "content": "Ответ 2.", "finish_reason": "stop", "dropped": False},
        ],
        "expires_in": 600,
    }
    assert session.ok("/undo") == {"user": "два", "assistant": "Ответ 2.", "expires_in": 600}
    assert session.contents() == ["раз", "Ответ 1."]
    assert session.ok("/reset") == {"status": "ok", "expires_in": 600}
    assert session.contents() == []
    session.refused(409, "nothing_to_undo", "/undo")


def test_stopping_a_session_ends_it(session: SessionOf) -> None:
    assert session.ok("/stop_session") == {"status": "stopped"}
    for path in ("/history", "/undo", "/reset", "/cancel", "/stop_session"):
        session.refused(404, "session_not_found", path)


def test_cancelling_nothing(session: SessionOf) -> None:
    assert session.ok("/cancel") == {"status": "idle", "expires_in": 600}


def test_sessions_do_not_mix(gateway: Any) -> None:
    first, second = gateway.open(), gateway.open()
    first.ok("/chat", message="раз")
    second.ok("/chat", message="два")
    assert first.contents() == ["раз", "Ответ 1."]
    assert second.contents() == ["два", "Ответ 2."]


def test_what_does_not_fit_is_left_out_in_whole_pairs_and_stays_in_the_history(start_gateway: StartGateway) -> None:
    with start_gateway(max_context_tokens=300) as gateway:
        session = gateway.open(system_prompt="Кратко.")
        for number in range(12):
            answer = session.ok("/chat", message=f"Вопрос номер {number}: " + "слово " * 5)
            context = answer["context"]
            assert context["used"] <= context["limit"] == 300
            assert context["history_pairs"] + context["dropped_pairs"] == number
            messages = session.ok("/history")["messages"]
            assert [m["dropped"] for m in messages] == [i < 2 * context["dropped_pairs"] for i in range(len(messages))]
        assert context["dropped_pairs"] > 0
        assert len(session.contents()) == 24


def test_max_model_len_follows_vllm(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.max_model_len = 1000
    session.ok("/init_session", vllm_api_key=KEY)
    assert session.ok("/chat", message="а", max_tokens=100)["context"]["limit"] == 900
    problem = session.refused(400, "context_too_long", "/chat", message="а", max_tokens=1000)
    assert (problem["limit"], problem["needed"]) == (1000, 1001)


def test_the_oldest_pairs_are_forgotten_when_a_session_holds_too_much(start_gateway: StartGateway) -> None:
    with start_gateway(max_request_bytes=1500, max_session_bytes=1500) as gateway:
        session = gateway.open(system_prompt="")
        for number in range(5):
            context = session.ok("/chat", message=f"{number}" * 500)["context"]
            assert len(session.contents()) == 2 * (number + 1 - context["forgotten_pairs"])
        assert context["forgotten_pairs"] == 3
        session.ok("/set_system_prompt", system_prompt="x" * 900)
        assert len(session.contents()) == 2, "a longer prompt costs pairs"
        session.ok("/reset")
        assert session.ok("/chat", message="а")["context"]["forgotten_pairs"] == 0


def test_a_pair_too_large_for_a_session_is_answered_and_forgotten(
    start_gateway: StartGateway, vllm: ScriptedVLLM
) -> None:
    with start_gateway(max_request_bytes=1500, max_session_bytes=1500) as gateway:
        session = gateway.open(system_prompt="")
        vllm.scripts.append(whole("x" * 2000))
        answer = session.ok("/chat", message="а")
        assert (len(answer["reply"]), answer["context"]["forgotten_pairs"]) == (2000, 1)
        assert session.contents() == []


def test_sessions_expire_and_every_accepted_request_renews_them(start_gateway: StartGateway) -> None:
    with start_gateway(session_ttl_seconds=2) as gateway:
        kept, left = gateway.open(), gateway.open()
        for path in ("/history", "/cancel", "/reset"):
            time.sleep(0.8)
            assert kept.ok(path)["expires_in"] == 2
        left.refused(404, "session_not_found", "/chat", message="а")


def test_a_turn_longer_than_the_ttl_keeps_its_session(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(session_ttl_seconds=2) as gateway:
        session = gateway.open()
        vllm.scripts.append(stream_of("раз", "два", gap=1.3))
        assert session.events("а")[-1][0] == "done"
        time.sleep(1)
        assert len(session.contents()) == 2, "renewed at the turn's end too"


def test_usage_without_details(session: SessionOf, vllm: ScriptedVLLM) -> None:
    bare = {name: value for name, value in USAGE.items() if name != "prompt_tokens_details"}
    vllm.scripts.append(whole("да", usage={**bare, "prompt_tokens_details": None}))
    answer = session.ok("/chat", message="а")
    assert answer["total_tokens"] == 14
    assert "cached_tokens" not in answer["context"]
