"""The real vLLM hangs or dies in the middle of its work, comes back, and nobody touches the gateway."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.e2e.conftest import RealVLLM
from tests.servers import wait_until

pytestmark = pytest.mark.vllm

SESSIONS = 8
LONG: dict[str, Any] = {"max_tokens": 4000, "extra": {"ignore_eos": True}}
# Generous, for busy machines: an end that is noticed at all is noticed at once, and the timeouts are minutes.
SECONDS = 10.0


def streamed_until_the_end(session: SessionOf, begun: threading.Semaphore) -> tuple[str, Any]:
    """Have a stream; tells when it has begun, and returns its last event."""
    with session.stream("во время", **LONG) as source:
        events = iter(source)
        assert next(events).event == "delta"
        begun.release()
        *_, last = events
        return last.event, last.json()


def test_an_engine_that_hangs_is_noticed_though_its_server_is_healthy(
    real_vllm: RealVLLM, start_gateway: StartGateway
) -> None:
    with start_gateway(vllm_stall_seconds=2) as gateway:
        session = gateway.open()
        with session.stream("?", **LONG) as source:
            events = iter(source)
            next(events)
            with real_vllm.engine_stopped():
                wait_until(lambda: gateway.http.get("/ready").status_code == 503, 20)
                assert httpx2.get(f"{real_vllm.url}/health").status_code == 200
                assert "завис" in problem(gateway.http.get("/ready"), 503, "upstream_unavailable")["detail"]
            wait_until(lambda: gateway.http.get("/ready").status_code == 200, 20)
            assert next(events).event == "delta", "the stream goes on"
            session.ok("/cancel")
        wait_until(lambda: real_vllm.running() == 0)


def test_a_killed_vllm_ends_its_streams_and_the_sessions_go_on_with_the_next(
    real_vllm: RealVLLM, gateway: Gateway
) -> None:
    sessions = [gateway.open() for _ in range(SESSIONS)]
    with ThreadPoolExecutor(SESSIONS) as pool:
        list(pool.map(lambda session: session.ok("/chat", message=f"до {session.id}", max_tokens=3), sessions))
        before = [session.ok("/history")["messages"] for session in sessions]
        begun = threading.Semaphore(0)
        streams = [pool.submit(streamed_until_the_end, session, begun) for session in sessions]
        for _ in sessions:
            assert begun.acquire(timeout=60)
        assert real_vllm.running() == SESSIONS
        killed = time.monotonic()
        real_vllm.kill()
        try:
            ends = [stream.result(60) for stream in streams]
            assert time.monotonic() - killed < SECONDS

            assert [(name, said["code"]) for name, said in ends] == [("error", "upstream_error")] * SESSIONS
            assert [session.ok("/cancel")["status"] for session in sessions] == ["idle"] * SESSIONS
            assert [session.ok("/history")["messages"] for session in sessions] == before
            wait_until(lambda: gateway.http.get("/ready").status_code == 503, SECONDS)
            gateway.refused(503, "upstream_unavailable", "/chat", session_id=sessions[0].id, message="пока его нет")
        finally:
            real_vllm.start()  # for other tests too
        wait_until(lambda: gateway.http.get("/ready").status_code == 200, SECONDS)
        answers = list(pool.map(lambda session: session.ok("/chat", message="после", max_tokens=3), sessions))
    for session, answer, messages in zip(sessions, answers, before, strict=True):
        assert answer["context"]["used"] == answer["input_tokens"]
        assert answer["context"]["history_pairs"] == 1
        assert session.contents() == [*(message["content"] for message in messages), "после", answer["reply"]]
