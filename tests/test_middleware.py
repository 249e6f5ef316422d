"""What surrounds every request: ids, CORS, the body's bound, and the boundary where errors become answers."""

import logging
from typing import Any

import httpx2
import pytest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.logs import TextFormatter
from app.middleware import ErrorBoundary, RequestId
from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.scripted_vllm import ScriptedVLLM
from tests.servers import serve, wait_until


def test_every_answer_bears_an_id_and_vllm_gets_the_same(
    gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM
) -> None:
    body = {"session_id": session.id, "message": "а"}
    response = gateway.http.post("/chat", json=body, headers={"X-Request-Id": "my-id.1"})
    assert response.headers["x-request-id"] == vllm.seen[0].headers["x-request-id"] == "my-id.1"
    response = gateway.post("/chat", **body)
    assert response.headers["x-request-id"] == vllm.seen[1].headers["x-request-id"]
    assert len(response.headers["x-request-id"]) == 32
    assert "x-request-id" in gateway.http.get("/nowhere").headers


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, "я".encode(), '"<script>'])
def test_an_id_that_is_none_is_replaced(gateway: Gateway, given: str | bytes) -> None:
    raw = given if isinstance(given, bytes) else given.encode()
    response = gateway.http.get("/health", headers=[(b"X-Request-Id", raw)])
    assert len(response.headers["x-request-id"]) == 32


def test_cors_for_all_by_default(gateway: Gateway) -> None:
    response = gateway.http.get("/health", headers={"Origin": "https://a.example"})
    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers
    exposed = response.headers["access-control-expose-headers"]
    assert {name.strip() for name in exposed.split(",")} == {"X-Request-Id", "Retry-After", "Idempotent-Replayed"}


def test_cors_for_those_on_the_list(start_gateway: StartGateway) -> None:
    with start_gateway(cors_allow_origins="https://a.example, https://b.example") as gateway:
        for origin, allowed in (("https://b.example", "https://b.example"), ("https://c.example", None)):
            response = gateway.http.post("/nowhere", headers={"Origin": origin})
            assert response.headers.get("access-control-allow-origin") == allowed, "errors included"
            preflight = gateway.http.options(
                "/chat",
                headers={
                    "Origin": origin,
                    "Access-Control-Request-Method": "POST",
                    "Access-Control-Request-Headers": "content-type",
                },
            )
            assert preflight.headers.get("access-control-allow-origin") == allowed
            if allowed:
                assert preflight.status_code == 200
            else:
                assert "CORS_ALLOW_ORIGINS" in problem(preflight, 422, "invalid_request")["detail"]
                assert "Origin" in preflight.headers["vary"]


SECRET = "тайна-из-сообщения"


async def breaks_at_once(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise KeyError(SECRET)


async def breaks_in_a_stream(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    await send({"type": "http.response.body", "body": b"event: delta\ndata: {}\n\n", "more_body": True})
    raise ValueError(SECRET)


def ask(app: ASGIApp) -> httpx2.Response:
    with serve(RequestId(ErrorBoundary(app))) as url:
        return httpx2.get(url)


def test_a_defect_is_a_500_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    response = ask(breaks_at_once)
    body = problem(response, 500, "internal_error")
    assert SECRET not in response.text
    assert "X-Request-Id" in body["detail"]
    [record] = caplog.records
    assert f"request={response.headers['x-request-id']}" in TextFormatter("%(message)s").format(record)
    assert "KeyError" in caplog.text
    assert "breaks_at_once" in caplog.text
    assert SECRET not in caplog.text


def test_a_defect_in_a_stream_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    response = ask(breaks_in_a_stream)
    assert response.status_code == 200
    events = response.text.split("\n\n")
    assert events[1].startswith('event: error\ndata: {"type":')
    assert "internal_error" in events[1]
    assert SECRET not in response.text + caplog.text


def test_what_works_passes_through_the_boundary() -> None:
    assert ask(Response("да")).text == "да"


def test_no_key_no_session_and_no_message_in_the_logs(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="app")
    session = gateway.open(system_prompt="тайный промпт")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("/chat", {"message": "тайный вопрос"}),
        ("/chat", {"message": "тайный вопрос", "stream": True}),
        ("/chat", {"message": "тайный вопрос", "max_tokens": 10_000}),
        ("/chat", {"message": 5}),
        ("/undo", {}),
        ("/stop_session", {}),
    ]
    for path, body in calls:
        gateway.post(path, session_id=session.id, **body)
    gateway.post("/init_session", vllm_api_key="тайный ключ")
    wait_until(lambda: sum(record.message == "turn" for record in caplog.records) == 3)
    logged = "\n".join(TextFormatter("%(message)s").format(record) for record in caplog.records)
    for secret in ("test-key", "тайн", session.id, "Ответ"):
        assert secret not in logged
