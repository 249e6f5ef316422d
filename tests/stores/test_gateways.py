"""Several gateways on one Redis, as their clients see them."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, Upstream, gateway_process, problem, wait_until_idle
from tests.processes import descendants, is_alive
from tests.redis_process import RedisProcess
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, hanging, stream_of, streamed, whole
from tests.servers import wait_until
from tests.test_cancel import hanging_json, in_flight


@pytest.fixture
def gateways(start_gateway: StartGateway, redis: RedisProcess) -> Iterator[list[Gateway]]:
    with ExitStack() as started:
        yield [started.enter_context(start_gateway(**redis.settings)) for _ in range(3)]


@pytest.fixture
def own_gateway(start_gateway: StartGateway, own_redis: RedisProcess) -> Iterator[Gateway]:
    """One on a Redis to be treated badly."""
    with start_gateway(**own_redis.settings, session_store_timeout_seconds=1) as gateway:
        yield gateway


def everywhere(session: SessionOf, gateways: list[Gateway]) -> list[SessionOf]:
    """The same session on each gateway."""
    return [SessionOf(gateway, session.id) for gateway in gateways]


def test_a_talk_goes_on_through_any_gateway(gateways: list[Gateway], vllm: ScriptedVLLM) -> None:
    one, other, third = everywhere(gateways[0].open(system_prompt="п"), gateways)
    one.ok("/chat", message="а")
    assert other.events("б")[-1][0] == "done"
    assert third.ok("/chat", message="в")["context"]["history_pairs"] == 2
    assert vllm.said() == ["а", "Ответ 1.", "б", "Ответ 2.", "в"]
    assert len({seen.headers["x-session-id"] for seen in vllm.seen}) == 1
    histories = [session.ok("/history")["messages"] for session in (one, other, third)]
    assert histories[0] == histories[1] == histories[2]
    assert other.ok("/undo")["user"] == "в"
    third.ok("/set_system_prompt", system_prompt="другой")
    assert one.ok("/history")["system_prompt"] == "другой"
    assert one.contents() == ["а", "Ответ 1.", "б", "Ответ 2."]
    assert [gateway.session_count() for gateway in gateways] == [1, 1, 1]
    other.ok("/stop_session")
    one.refused(404, "session_not_found", "/chat", message="г")


def test_a_busy_session_is_busy_everywhere(gateways: list[Gateway], vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("нача"))
    sessions = everywhere(gateways[0].open(), gateways)
    with sessions[0].stream("вопрос") as source:
        events = iter(source)
        next(events)
        for session in sessions:
            session.refused(409, "session_busy", "/chat", message="ещё")
            session.refused(409, "session_busy", "/undo")
            session.refused(409, "session_busy", "/reset")
            session.refused(409, "session_busy", "/set_system_prompt", system_prompt="п")
            assert session.contents() == []


@pytest.mark.parametrize("how", ["/cancel", "/stop_session"])
def test_a_stream_is_stopped_through_another_gateway(gateways: list[Gateway], vllm: ScriptedVLLM, how: str) -> None:
    vllm.scripts.append(hanging("нача", "ло"))
    session, other, _ = everywhere(gateways[0].open(), gateways)
    with session.stream("вопрос") as source:
        events = iter(source)
        assert [next(events).json() for _ in range(2)] == [{"text": "нача"}, {"text": "ло"}]
        started = time.monotonic()
        answer = other.ok(how)
        assert answer["status"] == {"/cancel": "cancelled", "/stop_session": "stopped"}[how]
        last = next(events)
        wait_until_idle(vllm)
        assert time.monotonic() - started < 2.5, "it was told, and did not find out when it renewed its lease"
    done: Any = last.json()
    assert (last.event, done["reply"], done["finish_reason"]) == ("done", "начало", "cancelled")
    if how == "/cancel":
        assert other.contents() == ["вопрос", "начало"]
        other.ok("/chat", message="ещё")
    else:
        assert done["expires_in"] == 0
        other.refused(404, "session_not_found", "/history")


def test_an_answer_whose_session_was_lost_says_why(
    gateways: list[Gateway], vllm: ScriptedVLLM, redis: RedisProcess
) -> None:
    vllm.scripts.append(hanging_json())
    session, other, _ = everywhere(gateways[0].open(), gateways)
    with in_flight(session, vllm) as answer:
        redis.client.delete(*redis.client.keys("*:turn"))  # as when the gateway has not reached Redis for long
        other.ok("/chat", message="ещё")
        detail = problem(answer(), 503, "store_unavailable")["detail"]
    assert "кто-то другой" in detail
    assert other.contents() == ["ещё", "Ответ 2."]


def test_a_json_answer_is_stopped_through_another_gateway(gateways: list[Gateway], vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging_json())
    session, other, _ = everywhere(gateways[0].open(), gateways)
    with in_flight(session, vllm) as answer:
        assert other.ok("/cancel")["status"] == "cancelled"
        problem(answer(), 409, "cancelled")
    assert other.contents() == []
    assert other.ok("/cancel")["status"] == "idle"


def test_an_answer_can_be_asked_for_again_of_another_gateway(gateways: list[Gateway], vllm: ScriptedVLLM) -> None:
    session = gateways[0].open()
    body = {"session_id": session.id, "message": "вопрос"}
    answers = [gateway.http.post("/chat", json=body, headers={"Idempotency-Key": "k"}) for gateway in gateways]
    assert [answer.json()["reply"] for answer in answers] == ["Ответ 1."] * 3
    assert len(vllm.seen) == 1


def test_a_restart_of_the_gateway_loses_nothing(start_gateway: StartGateway, redis: RedisProcess) -> None:
    with start_gateway(**redis.settings) as gateway:
        session = gateway.open(history=[{"role": "user", "content": "а"}, {"role": "assistant", "content": "б"}])
        session.ok("/chat", message="в")
    with start_gateway(**redis.settings) as gateway:
        again = SessionOf(gateway, session.id)
        assert again.ok("/chat", message="г")["context"]["history_pairs"] == 2
        assert again.contents() == ["а", "б", "в", "Ответ 1.", "г", "Ответ 2."]


def test_sessions_of_all_gateways_count(start_gateway: StartGateway, redis: RedisProcess) -> None:
    settings = {**redis.settings, "max_sessions": 2}
    with start_gateway(**settings) as one, start_gateway(**settings) as other:
        session = one.open()
        other.open()
        for gateway in (one, other):
            detail = gateway.refused(503, "overloaded", "/init_session", vllm_api_key=KEY)["detail"]
            assert "MAX_SESSIONS" in detail
        session.ok("/stop_session")
        other.open()


# --- Redis goes ---


def test_what_clients_see_while_redis_is_gone(own_gateway: Gateway, own_redis: RedisProcess) -> None:
    session = own_gateway.open()
    session.ok("/chat", message="а")
    own_redis.kill()
    for path, body in {
        "/chat": {"message": "б"},
        "/history": {},
        "/cancel": {},
        "/undo": {},
        "/reset": {},
        "/set_system_prompt": {"system_prompt": "п"},
        "/stop_session": {},
    }.items():
        error = session.refused(503, "store_unavailable", path, **body)
        assert "Redis не отвечает" in error["detail"]
        assert error["retry_after"] > 0
    own_gateway.refused(503, "store_unavailable", "/init_session", vllm_api_key=KEY)
    assert own_gateway.post("/chat", session_id=session.id, message="б").headers["retry-after"]
    health = own_gateway.http.get("/health").json()
    assert (health["status"], health["vllm"], health["sessions"]) == ("degraded", "ok", None)
    assert "Redis не отвечает" in health["store"]
    problem(own_gateway.http.get("/ready"), 503, "store_unavailable")
    assert own_gateway.metrics()("store_up") == 0
    own_redis.start()
    session.ok("/chat", message="б")
    assert session.contents() == ["а", "Ответ 1.", "б", "Ответ 2."]
    assert own_gateway.http.get("/ready").status_code == 200
    assert own_gateway.metrics()("store_up") == 1


@pytest.mark.parametrize("is_streamed", [True, False])
def test_an_answer_that_cannot_be_kept_is_not_given_for_one(
    own_gateway: Gateway, own_redis: RedisProcess, vllm: ScriptedVLLM, *, is_streamed: bool
) -> None:
    session = own_gateway.open()
    script = streamed([delta(content="ответ"), 0.4, *stream_of("").acts[1:]]) if is_streamed else whole("ответ")
    script.delay = 0 if is_streamed else 0.4
    vllm.scripts.append(script)
    threading.Timer(0.2, own_redis.kill).start()
    if is_streamed:
        (_, delta_event), (name, error) = session.events("вопрос")
        assert (delta_event, name) == ({"text": "ответ"}, "error")
        assert error["code"] == "store_unavailable"
    else:
        error = session.refused(503, "store_unavailable", "/chat", message="вопрос")
    assert "/history" in error["detail"]
    own_redis.start()
    assert session.contents() == []
    assert own_gateway.metrics()("turns_total", "store_unavailable") == 1
    session.refused(409, "session_busy", "/chat", message="ещё")
    own_redis.client.delete(*own_redis.client.keys("*:turn"))  # as ten seconds later
    session.ok("/chat", message="ещё")
    assert session.contents() == ["ещё", "Ответ 2."]


def test_the_start_does_not_wait_for_redis(start_gateway: StartGateway, own_redis: RedisProcess) -> None:
    own_redis.kill()
    with start_gateway(**own_redis.settings) as gateway:
        assert gateway.http.get("/health").json()["status"] == "degraded"
        own_redis.start()
        gateway.open().ok("/chat", message="а")


# --- the gateway goes ---


def test_who_is_told_that_the_gateway_ends_is_told_that_the_session_stays(
    upstream: Upstream, model_folder: Path, redis: RedisProcess
) -> None:
    with gateway_process(upstream.url, model_folder, **redis.environ, DRAIN_SECONDS="0") as (gateway, pid):
        session = gateway.open()
        upstream.script.scripts.append(hanging("нача"))
        with session.stream("вопрос") as source:
            events = iter(source)
            next(events)
            os.kill(pid, signal.SIGTERM)
            last = next(events)
    error: Any = last.json()
    assert (last.event, error["code"]) == ("error", "overloaded")
    assert "Сессия останется" in error["detail"]
    with gateway_process(upstream.url, model_folder, **redis.environ) as (gateway, _):
        again = SessionOf(gateway, session.id)
        again.ok("/chat", message="ещё")
        assert again.contents() == ["ещё", "Ответ 2."]


def test_several_processes_in_one_container(upstream: Upstream, model_folder: Path, redis: RedisProcess) -> None:
    with gateway_process(upstream.url, model_folder, **redis.environ, WEB_CONCURRENCY="3", DRAIN_SECONDS="5") as (
        gateway,
        pid,
    ):
        wait_until(lambda: len(redis.client.client_list(_type="pubsub")) == 3)
        session = gateway.open()
        for number in range(9):
            with httpx2.Client(base_url=gateway.url) as http:  # a connection of its own, which any of them may take
                SessionOf(Gateway(gateway.url, http), session.id).ok("/chat", message=f"вопрос {number}")
        assert session.contents()[::2] == [f"вопрос {number}" for number in range(9)]
        upstream.script.scripts.append(stream_of("не", "то", "роп", "ли", "во", gap=0.6))
        with session.stream("ещё") as source:
            events = iter(source)
            next(events)
            for _ in range(5):  # whichever of them is asked
                with httpx2.Client(base_url=gateway.url) as http:
                    now = Gateway(gateway.url, http).metrics()
                assert (now("turns_total", "completed"), now("turn_seconds_count"), now("sessions")) == (9, 9, 1)
            wait_until(lambda: gateway.metrics()("turns_in_flight") == 1)
            processes = descendants(pid)
            os.kill(pid, signal.SIGTERM)
            assert [event.event for event in events][-1] == "done", "it is let end"
        wait_until(lambda: not any(map(is_alive, processes)))
