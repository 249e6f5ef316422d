"""/ready notices a vLLM that answers while its engine hangs, and asks it for nothing while it is well."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.scripted_vllm import KEY, Script, ScriptedVLLM, Seen, delta, hanging, stream_of, streamed, whole
from tests.servers import wait_until

STALL_SECONDS = 0.5
CALM_SECONDS = 1.5


@pytest.fixture
def gateway(start_gateway: StartGateway) -> Iterator[Gateway]:
    with start_gateway(vllm_stall_seconds=STALL_SECONDS) as started:
        yield started


def is_canary(seen: Seen) -> bool:
    return bool(seen.body["max_tokens"] == 1)


def ready_status(gateway: Gateway) -> int:
    return gateway.http.get("/ready").status_code


def hangs() -> Script:
    script = whole("никогда")
    script.delay = 60.0
    return script


def test_a_hanging_engine_is_noticed_and_so_is_its_recovery(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM
) -> None:
    assert ready_status(gateway) == 200
    vllm.scripts += [hanging("нача"), *[hangs() for _ in range(100)]]
    with session.stream("а", max_tokens=100) as source:
        events = iter(source)
        next(events)
        wait_until(lambda: ready_status(gateway) == 503)
        body = problem(gateway.http.get("/ready"), 503, "upstream_unavailable")
        assert "завис" in body["detail"]
        health = gateway.http.get("/health").json()
        assert (health["status"], health["vllm"]) == ("degraded", body["detail"])
        assert gateway.metrics()("vllm_stalled") == 1
        canary = vllm.seen[1]
        assert is_canary(canary)
        assert canary.headers["authorization"] == f"Bearer {KEY}"
        vllm.scripts.clear()
        wait_until(lambda: ready_status(gateway) == 200)
    wait_until(lambda: gateway.metrics()("vllm_stalled") == 0)


def test_a_recovery_is_noticed_when_no_turn_is_left(gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts += [hanging("нача"), *[hangs() for _ in range(100)]]
    with session.stream("а", max_tokens=100) as source:
        events = iter(source)
        next(events)
        wait_until(lambda: ready_status(gateway) == 503)
    session.ok("/cancel")
    assert ready_status(gateway) == 503, "nobody has heard of it since"
    vllm.scripts.clear()
    wait_until(lambda: ready_status(gateway) == 200)


@pytest.fixture
def calm(start_gateway: StartGateway) -> Iterator[Gateway]:
    """One that is not alarmed by what a busy machine does to the test itself."""
    with start_gateway(vllm_stall_seconds=CALM_SECONDS) as started:
        yield started


def test_tokens_of_any_turn_are_progress(calm: Gateway, vllm: ScriptedVLLM) -> None:
    """One stream stands still, because it is preempted or its reader is slow, while others go on."""
    gateway = calm
    still, moves = gateway.open(), gateway.open()
    vllm.scripts += [hanging("нача"), stream_of(*["раз"] * 40, gap=CALM_SECONDS / 20)]
    with still.stream("а", max_tokens=100) as source:
        events = iter(source)
        next(events)
        moves.events("а", max_tokens=100)
        assert not any(map(is_canary, vllm.seen))
        assert ready_status(gateway) == 200
        still.ok("/cancel")


def test_a_healthy_vllm_under_load_is_asked_nothing(calm: Gateway, vllm: ScriptedVLLM) -> None:
    sessions = [calm.open() for _ in range(8)]
    vllm.scripts += [stream_of(*["раз"] * 40, gap=CALM_SECONDS / 20) for _ in sessions]
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(lambda session: session.events("а", max_tokens=100), sessions))
    assert len(vllm.seen) == len(sessions)


def test_an_idle_gateway_asks_nothing(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    gateway.open().ok("/chat", message="а")
    time.sleep(3 * STALL_SECONDS)
    assert len(vllm.seen) == 1


def test_a_long_json_answer_is_asked_about_and_is_no_stall(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM
) -> None:
    """Nothing of it is seen before its end."""
    slow = whole("долго")
    slow.delay = 5 * STALL_SECONDS
    vllm.scripts.append(slow)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(session.ok, "/chat", message="а", max_tokens=100)
        while not answer.done():
            assert ready_status(gateway) == 200
            time.sleep(STALL_SECONDS / 10)
    assert answer.result()["reply"] == "долго"
    assert any(map(is_canary, vllm.seen))
    assert session.contents() == ["а", "долго"], "the canary is no turn"


@pytest.mark.parametrize("status", [400, 401, 500])
def test_an_engine_whose_server_refuses_does_not_hang(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM, status: int
) -> None:
    vllm.scripts += [hanging("нача"), *[Script([b"{}"], status=status) for _ in range(20)]]
    with session.stream("а", max_tokens=100) as source:
        events = iter(source)
        next(events)
        wait_until(lambda: len(vllm.seen) >= 3)
        assert ready_status(gateway) == 200
        session.ok("/cancel")


@pytest.mark.parametrize(("per_look", "status"), [(50, 200), (0, 503)])
def test_a_question_that_waits_in_a_queue_is_no_stall(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM, per_look: int, status: int
) -> None:
    """vLLM is full of JSON answers, or of somebody else's: its own count of tokens tells that it works."""
    vllm.tokens_done, vllm.tokens_per_look = 1000, per_look
    vllm.scripts += [hangs() for _ in range(100)]
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(session.gateway.post, "/chat", session_id=session.id, message="а", max_tokens=100)
        wait_until(lambda: len(vllm.seen) >= 4)
        assert ready_status(gateway) == status
        session.ok("/cancel")
        answer.result()


def test_it_can_be_turned_off(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="нача"), 3.0, delta("stop")]))
    with start_gateway(vllm_stall_seconds=0) as gateway:
        gateway.open().events("а", max_tokens=100)
    assert len(vllm.seen) == 1
