"""The typed client, against the gateway itself."""

import threading
from collections.abc import Iterator

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from app.middleware import RequestId
from client.api import Delta, Done, GatewayClient, GatewayProblem, GatewayUnreachable, Reasoning
from tests.conftest import Gateway, wait_until_idle
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, event, stream_of, streamed, whole
from tests.servers import serve, unused_url, wait_until


@pytest.fixture
def client(gateway: Gateway) -> Iterator[GatewayClient]:
    with GatewayClient(gateway.url + "/") as connected:
        yield connected


def test_the_life_of_a_session(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY, "Ты — ёж.")["session_id"]
    answer = client.chat(session_id, "раз", max_tokens=5, temperature=0.5, extra={"top_p": 0.9})
    assert answer["reply"] == "Ответ 1."
    assert vllm.seen[0].body["top_p"] == 0.9
    client.set_system_prompt(session_id, "Ты — уж.")
    client.replace_key(session_id, KEY)
    history = client.history(session_id)
    assert history["system_prompt"] == "Ты — уж."
    assert [message["content"] for message in history["messages"]] == ["раз", "Ответ 1."]
    assert client.cancel(session_id) is False
    assert client.undo(session_id) == ("раз", "Ответ 1.")
    client.reset(session_id)
    client.stop_session(session_id)
    with pytest.raises(GatewayProblem) as caught:
        client.history(session_id)
    assert (caught.value.status, caught.value.code) == (404, "session_not_found")
    assert "POST /init_session" in str(caught.value)
    assert client.health()["status"] == "ok"


def test_a_stream_is_typed(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    vllm.scripts.append(streamed([delta(reasoning="Хм"), *stream_of("Д", "а").acts]))
    *pieces, done = client.stream(session_id, "вопрос")
    assert pieces == [Reasoning("Хм"), Delta("Д"), Delta("а")]
    assert isinstance(done, Done)
    assert done.answer["reply"] == "Да"


def test_a_refused_stream(client: GatewayClient) -> None:
    with pytest.raises(GatewayProblem) as caught:
        list(client.stream("нет такой", "вопрос"))
    assert caught.value.code == "session_not_found"


def test_an_error_within_a_stream_comes_after_what_was_said(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    vllm.scripts.append(streamed([delta(content="нача"), event({"error": {"message": "engine died"}})]))
    stream = client.stream(session_id, "вопрос")
    assert next(stream) == Delta("нача")
    with pytest.raises(GatewayProblem, match="docker compose logs vllm") as caught:
        next(stream)
    assert (caught.value.status, caught.value.code) == (502, "upstream_error")


def test_closing_the_stream_stops_vllm(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    vllm.scripts.append(streamed([delta(content="нача"), 60.0]))
    stream = client.stream(session_id, "вопрос")
    next(stream)
    stream.close()
    wait_until_idle(vllm, 5)


def test_cancelling_from_another_thread(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    vllm.scripts.append(streamed([delta(content="нача"), 60.0]))
    stream = client.stream(session_id, "вопрос")
    next(stream)
    cancelled: list[bool] = []
    threading.Thread(target=lambda: cancelled.append(client.cancel(session_id))).start()
    [done] = stream
    assert isinstance(done, Done)
    assert done.answer["finish_reason"] == "cancelled"
    wait_until(lambda: cancelled == [True])


def test_no_gateway_there() -> None:
    url = unused_url()
    with GatewayClient(url) as client:
        for call in (client.health, lambda: list(client.stream("x", "y")), lambda: client.init_session(KEY)):
            with pytest.raises(GatewayUnreachable, match="Нет связи со шлюзом") as caught:
                call()
            assert url in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("<html>", 502),
        PlainTextResponse("<html>", 502, {"X-Request-Id": "a proxy's"}),
        JSONResponse({}, 200, {"X-Request-Id": "a proxy's"}),
        PlainTextResponse("<html>", 200),
        JSONResponse([], 500),
        JSONResponse({"detail": "Not Found"}, 404),
        JSONResponse({"a": 1}),
    ],
)
def test_something_else_at_the_address(answer: Response) -> None:
    with serve(answer) as url, GatewayClient(url) as client:
        with pytest.raises(GatewayUnreachable):
            client.init_session(KEY)
        with pytest.raises(GatewayUnreachable):
            list(client.stream("x", "y"))


def test_a_connection_that_breaks_within_a_stream() -> None:
    async def breaks(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b'event: delta\ndata: {"text": "a"}\n\n', "more_body": True})

    with serve(RequestId(breaks)) as url, GatewayClient(url) as client:
        stream = client.stream("x", "y")
        assert next(stream) == Delta("a")
        with pytest.raises(GatewayUnreachable):
            next(stream)


@pytest.mark.parametrize(
    "sent",
    [b"data: {}\n\n", b"event: delta\ndata: []\n\n", b"event: delta\ndata: {\n\n", b"event: error\ndata: {}\n\n"],
)
def test_events_that_are_not_a_gateways(sent: bytes) -> None:
    app = Response(sent, media_type="text/event-stream")
    with serve(app) as url, GatewayClient(url) as client, pytest.raises(GatewayUnreachable, match="непонятно"):
        list(client.stream("x", "y"))


def test_an_address_that_is_none() -> None:
    for url in ("http://h:abc", "ftp://127.0.0.1"):
        with pytest.raises(GatewayUnreachable), GatewayClient(url) as client:
            client.health()


def test_an_address_without_a_scheme(gateway: Gateway) -> None:
    with GatewayClient(gateway.url.removeprefix("http://")) as client:
        assert client.health()["status"] == "ok"


def test_proxy_variables_are_not_heeded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "foo://127.0.0.1:1")
    with GatewayClient(gateway.url) as client:
        assert client.health()["status"] == "ok"


def test_a_reply_longer_than_a_megabyte(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    vllm.scripts.append(stream_of(*["я" * 100_000] * 10))
    *_, done = client.stream(session_id, "вопрос")
    assert isinstance(done, Done)
    assert len(done.answer["reply"]) == 1_000_000


def test_a_json_turn_that_is_cancelled(client: GatewayClient, vllm: ScriptedVLLM) -> None:
    session_id = client.init_session(KEY)["session_id"]
    slow = whole("поздно")
    slow.delay = 60
    vllm.scripts.append(slow)
    thread = threading.Thread(target=lambda: wait_until(lambda: client.cancel(session_id)))
    thread.start()
    with pytest.raises(GatewayProblem) as caught:
        client.chat(session_id, "вопрос")
    assert caught.value.code == "cancelled"
    thread.join()
