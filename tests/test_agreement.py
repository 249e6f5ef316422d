"""Counts that are not vLLM's: noticed, said once, and never the reason for a refusal."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from app.agreement import PROBES
from app.tokenizer import ChatTokenizer
from tests.conftest import Gateway, SessionOf, StartGateway
from tests.scripted_vllm import ScriptedVLLM, refusal, stream_of, whole
from tests.servers import wait_until
from tests.tokenizers_at_hand import count, ours

Counter = Callable[[dict[str, Any]], int]


def counter_of(tokenizer: ChatTokenizer) -> Counter:
    """Counts as a vLLM with the same tokenizer and template would."""

    def count_body(body: dict[str, Any]) -> int:
        if "prompt" in body:
            return tokenizer.count_text(body["prompt"])
        return count(tokenizer, **body)

    return count_body


@pytest.fixture
def exact(model_folder: Path, vllm: ScriptedVLLM) -> Counter:
    """Has the scripted vLLM count as the gateway does."""
    vllm.counter = count = counter_of(ours(model_folder))
    return count


def messages_only(count: Counter, change: Callable[[int], int]) -> Counter:
    """Counts prompts otherwise, and texts as they are: what another chat template does."""
    return lambda body: count(body) if "prompt" in body else change(count(body))


def surprised_by(word: str, surplus: int, count: Counter) -> Counter:
    """Counts so many more for every such word."""
    return lambda body: count(body) + surplus * str(body).count(word)


def health(gateway: Gateway) -> Any:
    return gateway.http.get("/health").json()


def wait_for_probes(vllm: ScriptedVLLM, number: int = len(PROBES)) -> None:
    wait_until(lambda: len([body for body in vllm.tokenized if "messages" in body]) >= number)


@contextmanager
def away(gateway: Gateway, vllm: ScriptedVLLM) -> Iterator[None]:
    """It does not answer, and the gateway has noticed; back at the end of the block."""
    vllm.healthy = False
    wait_until(lambda: health(gateway)["status"] == "degraded")
    time.sleep(5.5)  # it looks every five seconds while all is well
    yield
    vllm.healthy = True


def ask(session: SessionOf, message: str, *, stream: bool, **body: Any) -> Any:
    """The answer in either form."""
    return session.events(message, **body)[-1][1] if stream else session.ok("/chat", message=message, **body)


def talk(session: SessionOf, turns: int, words: int = 60, **body: Any) -> list[Any]:
    """Answers to so many messages of so many words."""
    return [session.ok("/chat", message=f"{number} " + "слово " * words, **body) for number in range(turns)]


@pytest.mark.usefixtures("exact")
def test_a_vllm_that_agrees_is_asked_about_the_probes_and_nothing_more(
    start_gateway: StartGateway, vllm: ScriptedVLLM
) -> None:
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        session = gateway.open()
        for answer in talk(session, 10):
            assert answer["context"]["used"] == answer["input_tokens"]
        assert len(vllm.tokenized) == len(PROBES) >= 12
        assert (health(gateway)["count_mismatches"], health(gateway)["warnings"]) == (0, [])


@pytest.mark.usefixtures("exact")
def test_probes_are_of_many_kinds(vllm: ScriptedVLLM, start_gateway: StartGateway) -> None:
    with start_gateway():
        wait_for_probes(vllm)
    assert any(body.get("tools") for body in vllm.tokenized)
    assert any(body["chat_template_kwargs"].get("enable_thinking") is False for body in vllm.tokenized)
    assert {message["role"] for body in vllm.tokenized for message in body["messages"]} == {
        "system",
        "user",
        "assistant",
    }


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda count: messages_only(count, lambda tokens: tokens + 7), "--chat-template"),
        (lambda count: lambda body: count(body) + 7, "transformers"),
    ],
    ids=["template", "tokenizer"],
)
def test_a_difference_is_said_once_with_both_numbers_and_the_likely_cause(
    start_gateway: StartGateway,
    vllm: ScriptedVLLM,
    exact: Counter,
    change: Callable[[Counter], Counter],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vllm.counter = change(exact)
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        wait_until(lambda: health(gateway)["count_mismatches"] == len(PROBES))
        assert gateway.http.get("/ready").status_code == 200
        [warning] = health(gateway)["warnings"]
        first = exact({"messages": [{"role": "user", "content": "Привет"}]})
        assert f"токенов: {first}, а vLLM — {first + 7}." in warning
        assert says in warning
        answers = talk(gateway.open(), 3)
        assert [answer["input_tokens"] - answer["context"]["used"] for answer in answers] == [7, 7, 7]
        assert health(gateway)["count_mismatches"] == len(PROBES) + 3
        assert health(gateway)["warnings"] == [warning]
    assert caplog.text.count("Шлюз насчитал") == 1


def test_a_missing_config_is_the_likely_cause(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter, linked_model: Path
) -> None:
    (linked_model / "config.json").unlink()
    vllm.counter = lambda body: exact(body) + 1
    with start_gateway(tokenizer_path=str(linked_model)) as gateway:
        wait_until(lambda: health(gateway)["count_mismatches"] > 0)
        assert "config.json" in health(gateway)["warnings"][0]


def test_a_vllm_that_counts_more_never_gets_a_prompt_that_is_too_long(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter
) -> None:
    vllm.counter, vllm.max_model_len = lambda body: exact(body) * 3 // 2, 2000
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        session = gateway.open()
        for answer in talk(session, 40, max_tokens=100):
            assert answer["input_tokens"] <= answer["context"]["limit"] == 1900
            assert answer["context"]["used"] * 3 // 2 == answer["input_tokens"], "the receipt holds our own count"
        assert answer["context"]["dropped_pairs"] > 5
        assert answer["input_tokens"] > 1000, "not much room is lost"
        refused = session.refused(400, "context_too_long", "/chat", message="слово " * 900, max_tokens=100)
        assert refused["needed"] > refused["limit"] == 1900
        asked = vllm.tokenized[-1]
        assert refused["needed"] == vllm.counter(asked), "and says how many vLLM would count"


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_refused_because_vllm_counts_more_is_fitted_anew(
    start_gateway: StartGateway,
    vllm: ScriptedVLLM,
    exact: Counter,
    stream: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """The probes agreed; only this text is counted otherwise."""
    vllm.counter, vllm.max_model_len = surprised_by("невиданное", 1000, exact), 3000
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        session = gateway.open()
        talk(session, 10, max_tokens=100)
        answer = ask(session, "невиданное", stream=stream, max_tokens=100)
        assert answer["input_tokens"] <= answer["context"]["limit"]
        assert answer["context"]["dropped_pairs"] > 0
        assert len(session.contents()) == 22
        [warning] = health(gateway)["warnings"]
        assert "Пробы при запуске сошлись" in warning
        assert len(vllm.seen) == 12


def test_a_refusal_is_explained_by_what_another_turn_has_learnt_meanwhile(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter
) -> None:
    vllm.counter, vllm.max_model_len = surprised_by("невиданное", 1000, exact), 3000
    with start_gateway() as gateway, ThreadPoolExecutor() as pool:
        wait_for_probes(vllm)
        slow, quick = gateway.open(), gateway.open()
        for session in (slow, quick):
            talk(session, 10, max_tokens=100)
        late = refusal(400, "This model's maximum context length is 3000 tokens.")
        late.delay = 1.0
        vllm.scripts.append(late)
        asked = len(vllm.seen)
        slow_answer = pool.submit(ask, slow, "невиданное", stream=False, max_tokens=100)
        wait_until(lambda: len(vllm.seen) > asked)
        for answer in (ask(quick, "невиданное", stream=False, max_tokens=100), slow_answer.result()):
            assert answer["input_tokens"] <= answer["context"]["limit"]


@pytest.mark.parametrize("tokenizes", [True, False])
def test_the_window_stands_still_between_cuts_where_vllm_counts_more_by_proportion(
    start_gateway: StartGateway,
    vllm: ScriptedVLLM,
    exact: Counter,
    tokenizes: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    vllm.counter, vllm.max_model_len, vllm.tokenizes = lambda body: exact(body) * 3 // 2, 2000, tokenizes
    with start_gateway() as gateway:
        if tokenizes:
            wait_for_probes(vllm)
        before = len(vllm.tokenized)
        answers = talk(gateway.open(), 60, words=15, max_tokens=100)
        starts = [answer["context"]["dropped_pairs"] for answer in answers]
        assert starts == sorted(starts)
        assert starts[-1] > 30
        assert len(set(starts)) < 15
        assert max(answer["input_tokens"] for answer in answers[-20:]) > 1700, "room is not lost for ever"
        assert len(vllm.tokenized) - before <= (75 if tokenizes else 0), "a question per turn and a few for the cuts"


def test_what_a_long_talk_has_shown_is_no_reason_to_refuse_a_short_one(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter
) -> None:
    vllm.counter, vllm.tokenizes = lambda body: exact(body) * 3 // 2, False
    with start_gateway() as gateway:
        talk(gateway.open(), 25)
        assert "оставляет запас" in health(gateway)["warnings"][0]
        answer = gateway.open().ok("/chat", message="Привет", max_tokens=8000)
        assert answer["input_tokens"] < 192


def test_a_tokenize_that_hangs_is_waited_for_once(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter
) -> None:
    vllm.counter = lambda body: exact(body) + 7
    with start_gateway() as gateway:
        wait_until(lambda: health(gateway)["count_mismatches"] == len(PROBES))
        vllm.tokenize_delay = 60
        session = gateway.open()
        asked = len(vllm.tokenized)
        started = time.monotonic()
        talk(session, 3)
        vllm.scripts.append(refusal(400, "top_p must be in (0, 1]"))
        session.refused(400, "upstream_rejected", "/chat", message="а")
        assert len(vllm.tokenized) == asked + 1
        assert time.monotonic() - started < 10


@pytest.mark.parametrize("status", [400, 500])
def test_a_difference_is_told_of_even_where_its_cause_cannot_be_looked_for(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter, status: int
) -> None:
    vllm.counter = lambda body: exact(body) + 7
    vllm.tokenize_texts_status = status
    with start_gateway() as gateway:
        wait_until(lambda: health(gateway)["count_mismatches"] == len(PROBES))
        [warning] = health(gateway)["warnings"]
        assert "Бывает от разных версий" in warning


def test_a_vllm_that_came_back_with_a_shorter_context_is_believed_without_a_new_session(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter
) -> None:
    vllm.counter = exact
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        session = gateway.open()
        assert talk(session, 10)[-1]["context"]["used"] > 2000
        with away(gateway, vllm):
            vllm.max_model_len = 2000
        wait_for_probes(vllm, 2 * len(PROBES))
        context = session.ok("/chat", message="а", max_tokens=100)["context"]
        assert context["limit"] == 1900
        assert context["dropped_pairs"] > 0


@pytest.mark.usefixtures("exact")
def test_another_refusal_is_passed_on_after_one_question(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        session = gateway.open()
        vllm.scripts.append(refusal(400, "top_p must be in (0, 1]"))
        body = session.refused(400, "upstream_rejected", "/chat", message="а", extra={"top_p": 7})
        assert "top_p" in body["detail"]
        assert len(vllm.seen) == 1
        assert len(vllm.tokenized) == len(PROBES) + 1
        assert health(gateway)["count_mismatches"] == 0


def test_a_vllm_that_counts_less_costs_nothing(start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter) -> None:
    vllm.counter = lambda body: exact(body) - 1
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        asked = len(vllm.tokenized)
        talk(gateway.open(), 3)
        assert len(vllm.tokenized) == asked
        [warning] = health(gateway)["warnings"]
        assert "используется не до конца" in warning


@pytest.mark.parametrize("stream", [False, True])
def test_without_tokenize_the_difference_is_learnt_from_usage(
    gateway: Gateway,
    vllm: ScriptedVLLM,
    stream: bool,  # noqa: FBT001 - a parameter of the table
) -> None:
    """A server in between may let through /v1 only."""
    vllm.max_model_len = 2000
    session = gateway.open()
    used = session.ok("/chat", message="а")["context"]["used"]
    session.ok("/undo")
    usage = {"prompt_tokens": used + 300, "completion_tokens": 1, "total_tokens": used + 301}
    vllm.scripts.append(stream_of("да", usage=usage) if stream else whole("да", usage=usage))
    answer = ask(session, "а", stream=stream)
    assert (answer["context"]["used"], answer["input_tokens"]) == (used, used + 300)
    [warning] = health(gateway)["warnings"]
    assert f"токенов: {used}, а vLLM — {used + 300}." in warning
    for answer in talk(session, 20, max_tokens=100):
        assert answer["context"]["used"] + 300 <= answer["context"]["limit"] == 1900


@pytest.mark.usefixtures("exact")
def test_a_tokenize_that_tells_less_than_usage_is_not_believed(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    """As for models that vLLM renders by other means than a template."""
    with start_gateway(max_context_tokens=1000) as gateway:
        wait_for_probes(vllm)
        session = gateway.open()

        def chat_with_usage_of(surplus: int) -> Any:
            message = "слово " * 50
            used = session.ok("/chat", message=message)["context"]["used"]
            session.ok("/undo")
            usage = {"prompt_tokens": used + surplus, "completion_tokens": 1, "total_tokens": used + surplus + 1}
            vllm.scripts.append(whole("да", usage=usage))
            return session.ok("/chat", message=message)

        chat_with_usage_of(200)
        before = len(vllm.tokenized)
        chat_with_usage_of(200)
        assert len(vllm.tokenized) > before, "asked, because usage was more than counted"
        before = len(vllm.tokenized)
        for answer in talk(session, 15):
            assert answer["context"]["used"] + 200 <= 1000
        assert len(vllm.tokenized) == before, "not asked any more, because usage was more than it said"


def test_a_new_vllm_is_compared_anew(start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter) -> None:
    vllm.counter = lambda body: exact(body) + 7
    with start_gateway() as gateway:
        wait_until(lambda: health(gateway)["count_mismatches"] == len(PROBES))
        with away(gateway, vllm):
            vllm.counter = exact
        wait_until(lambda: health(gateway)["warnings"] == [], 15)
        assert health(gateway)["count_mismatches"] == len(PROBES), "a counter counts on"


def test_no_text_is_in_a_warning(
    start_gateway: StartGateway, vllm: ScriptedVLLM, exact: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    vllm.counter = surprised_by("тайна", 7, exact)
    with start_gateway() as gateway:
        wait_for_probes(vllm)
        gateway.open().ok("/chat", message="тайна")
        [warning] = health(gateway)["warnings"]
        assert "тайна" not in warning
    assert "тайна" not in caplog.text


def test_a_usage_that_no_prompt_can_have_is_not_believed(session: SessionOf, vllm: ScriptedVLLM) -> None:
    """Once believed, it would leave no room in any prompt for the history."""
    tokens = vllm.max_model_len + 1
    vllm.scripts.append(whole("да", usage={"prompt_tokens": tokens, "total_tokens": tokens + 1}))
    assert session.ok("/chat", message="а")["input_tokens"] == tokens, "told as it came"
    assert session.ok("/chat", message="а")["context"]["history_pairs"] == 1
