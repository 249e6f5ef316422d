"""Limits: so many turns at vLLM, so many who wait, for so long; the others are told when to come again."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from app.admission import Admission
from app.config import Settings
from app.errors import Overloaded
from tests.conftest import Gateway, SessionOf, StartGateway, problem, wait_until_idle
from tests.scripted_vllm import ScriptedVLLM, delta, hanging, streamed, whole
from tests.servers import wait_until

ONE_PLACE = {"max_concurrent_requests": 1, "max_waiting_requests": 1, "max_wait_seconds": 30}


def asked(pool: ThreadPoolExecutor, session: SessionOf, **body: Any) -> "Future[httpx2.Response]":
    """A /chat in a thread."""
    return pool.submit(session.gateway.post, "/chat", session_id=session.id, message="а", **body)


def occupied(
    gateway: Gateway, vllm: ScriptedVLLM, pool: ThreadPoolExecutor
) -> "tuple[SessionOf, Future[httpx2.Response]]":
    """A session whose turn has taken a place and goes on until it is cancelled."""
    session = gateway.open()
    vllm.scripts.append(hanging("нача"))
    answer = asked(pool, session, stream=True)
    wait_until(lambda: vllm.running == 1)
    return session, answer


def test_who_finds_no_place_waits_for_one(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(**ONE_PLACE) as gateway, ThreadPoolExecutor() as pool:
        second = gateway.open()
        first, answer = occupied(gateway, vllm, pool)
        late = asked(pool, second)
        wait_until(lambda: gateway.metrics()("turns_waiting") == 1)
        assert vllm.running == 1
        assert len(vllm.seen) == 1, "who waits has not asked vLLM yet"
        first.ok("/cancel")
        assert late.result().json()["reply"] == "Ответ 2."
        answer.result()
        now = gateway.metrics()
        assert now("wait_seconds_count") == 1
        assert now("wait_seconds_sum") > now("added_seconds_sum"), "waiting is no work of the gateway's"


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_waiting_room_is_a_503_at_once(start_gateway: StartGateway, vllm: ScriptedVLLM, *, stream: bool) -> None:
    with start_gateway(**ONE_PLACE) as gateway, ThreadPoolExecutor() as pool:
        second, third = gateway.open(), gateway.open()
        third.ok("/chat", message="раз")
        first, _ = occupied(gateway, vllm, pool)
        late = asked(pool, second)
        wait_until(lambda: gateway.metrics()("turns_waiting") == 1)
        response = gateway.post("/chat", session_id=third.id, message="два", stream=stream)
        body = problem(response, 503, "overloaded")
        assert "MAX_CONCURRENT_REQUESTS=1" in body["detail"]
        assert response.headers["retry-after"] == str(body["retry_after"]) == "30"
        assert third.contents() == ["раз", "Ответ 1."]
        assert gateway.open().contents() == [], "to open a session takes no turn's place"
        first.ok("/cancel")
        late.result()
        third.ok("/chat", message="два")


def test_the_wait_is_bounded(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(**{**ONE_PLACE, "max_wait_seconds": 0.3}) as gateway, ThreadPoolExecutor() as pool:
        second = gateway.open()
        first, _ = occupied(gateway, vllm, pool)
        response = second.gateway.post("/chat", session_id=second.id, message="а")
        assert "за 0.3 с" in problem(response, 503, "overloaded")["detail"]
        assert response.headers["retry-after"] == "1"
        assert second.contents() == []
        first.ok("/cancel")
        second.ok("/chat", message="а")


def test_who_waits_can_be_cancelled_and_can_leave(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(**ONE_PLACE) as gateway, ThreadPoolExecutor() as pool:
        second = gateway.open()
        first, _ = occupied(gateway, vllm, pool)
        late = asked(pool, second)
        wait_until(lambda: gateway.metrics()("turns_waiting") == 1)
        assert second.ok("/cancel")["status"] == "cancelled"
        problem(late.result(), 409, "cancelled")
        with httpx2.Client(base_url=gateway.url, timeout=0.5) as leaver, pytest.raises(httpx2.ReadTimeout):
            leaver.post("/chat", json={"session_id": second.id, "message": "а"})
        wait_until(lambda: gateway.metrics()("turns_waiting") == 0)
        first.ok("/cancel")
        second.ok("/chat", message="а")
        assert len(vllm.seen) == 2, "who left has asked nothing"


def test_places_come_back_however_a_turn_ends(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(**{**ONE_PLACE, "max_waiting_requests": 0}) as gateway:
        session = gateway.open()
        for script, status in (
            (whole("да"), 200),
            (streamed([delta(content="нача"), None]), 502),
            (whole("да"), 200),
        ):
            vllm.scripts.append(script)
            assert gateway.post("/chat", session_id=session.id, message="а").status_code == status
        session.refused(400, "context_too_long", "/chat", message="а", max_tokens=10_000)
        gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong")
        session.ok("/chat", message="а")
        wait_until_idle(vllm)


@pytest.mark.anyio
async def test_first_come_first_served() -> None:
    admission = Admission(Settings(max_concurrent_requests=2, max_waiting_requests=10))
    served: list[int] = []

    async def turn(number: int) -> None:
        async with admission:
            served.append(number)
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(turn(number))
        await asyncio.sleep(0)
        assert (admission.in_flight, admission.waiting) == (2, 6)
    assert served == list(range(8))
    assert (admission.in_flight, admission.waiting) == (0, 0)


@pytest.mark.anyio
async def test_once_closed_nobody_new_is_let_in_and_those_inside_end() -> None:
    admission = Admission(Settings(max_concurrent_requests=1))
    left: list[str] = []

    async def turn(name: str) -> None:
        async with admission:
            await asyncio.sleep(0.01)
            left.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(turn("inside"))
        group.create_task(turn("waits"))
        await asyncio.sleep(0)
        admission.close()
        with pytest.raises(Overloaded):
            await turn("new")
        await admission.empty()
        assert left == ["inside", "waits"]
