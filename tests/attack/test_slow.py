"""Requests that never arrive: nothing is held for longer than the time that they have."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.raw import check_refusal, connected, drip, exchange, post, read_to_the_end
from tests.scripted_vllm import Script, ScriptedVLLM, delta, streamed, whole
from tests.servers import wait_until

ORIGIN = "Origin: https://a.example"  # past the short way of /chat


@pytest.fixture(scope="module")
def seconds() -> float:
    return 0.4


@pytest.fixture
def gateway(start_gateway: StartGateway, seconds: float) -> Iterator[Gateway]:
    with start_gateway(request_timeout_seconds=seconds) as started:
        yield started


def test_a_silent_connection_is_closed(gateway: Gateway) -> None:
    for arrived in (b"", b"\r\n"):
        assert exchange(gateway.url, arrived) == b""


def test_a_head_that_does_not_arrive(gateway: Gateway) -> None:
    for arrived in (b"P", b"POST /chat HTTP/1.1\r\nHost: gateway\r\nX-Long: ", b"GET /health HT"):
        check_refusal(exchange(gateway.url, arrived), 408, "request_timeout")


def test_a_head_that_comes_drop_by_drop(gateway: Gateway, seconds: float) -> None:
    with connected(gateway.url) as connection:
        drip(connection, (b"%c" % letter for letter in b"GET /health HTTP/1.1" + b"x" * 99), seconds / 15)
        check_refusal(read_to_the_end(connection), 408, "request_timeout")


def test_a_body_that_does_not_arrive(gateway: Gateway) -> None:
    for path, *headers in (["/chat"], ["/chat", ORIGIN], ["/init_session"], ["/history", ORIGIN]):
        for arrived in (b"", b'{"session_id"'):
            request = post(path, *headers, body=arrived, length=100)
            check_refusal(exchange(gateway.url, request), 408, "request_timeout")


def test_a_chunked_body_that_comes_drop_by_drop(gateway: Gateway, seconds: float) -> None:
    head = "POST /chat HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(gateway.url) as connection:
        connection.sendall(head.encode())
        drip(connection, [b"1\r\n \r\n"] * 99, seconds / 15)
        check_refusal(read_to_the_end(connection), 408, "request_timeout")


def test_the_time_is_for_head_and_body_together(start_gateway: StartGateway) -> None:
    request = post("/chat", body=b"{", length=100)
    with start_gateway(request_timeout_seconds=2) as gateway, connected(gateway.url) as connection:
        started = time.monotonic()
        connection.sendall(request[:20])
        time.sleep(1.8)
        connection.sendall(request[20:])
        check_refusal(read_to_the_end(connection), 408, "request_timeout")
    assert time.monotonic() - started < 1.8 + 2


def test_the_rest_of_a_body_that_was_refused(gateway: Gateway) -> None:
    """The answer is given at once; who goes on sending is not listened to for ever."""
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=b"{", length=10**9))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
        connection.sendall(b" ")  # the time of an unused connection ends here
        assert read_to_the_end(connection) == b""


def test_a_used_connection_that_begins_a_request_and_stops(gateway: Gateway) -> None:
    with connected(gateway.url) as connection:
        connection.sendall(post("/history", body=b"{}"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")
        connection.sendall(b"POST /hist")
        check_refusal(read_to_the_end(connection), 408, "request_timeout")


def test_a_used_connection_on_which_only_a_line_break_comes(gateway: Gateway) -> None:
    with connected(gateway.url) as connection:
        connection.sendall(post("/history", body=b"{}"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")
        connection.sendall(b"\r\n")
        assert read_to_the_end(connection) == b""


@pytest.mark.parametrize(("stray", "more_answers"), [(b"\r\n", True), (b"POST /his", False)])
def test_a_long_answer_is_not_cut_by_what_follows_its_request(
    gateway: Gateway, vllm: ScriptedVLLM, seconds: float, stray: bytes, *, more_answers: bool
) -> None:
    """After a stray line break the connection goes on; a request that was begun has had its time by then."""
    session = gateway.open()
    vllm.scripts.append(streamed([delta(content="а"), 3 * seconds, delta("stop", content="б")]))
    body = json.dumps({"session_id": session.id, "message": "?", "stream": True}).encode()
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        received = connection.recv(65536)
        connection.sendall(stray)
        while b"event: done" not in received or not received.endswith(b"0\r\n\r\n"):
            piece = connection.recv(65536)
            assert piece, "it was cut"
            received += piece
        assert received.startswith(b"HTTP/1.1 200 ")
        if more_answers:
            connection.sendall(post("/history", "Connection: close", body=b"{}"))
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 422 ") is more_answers


def test_a_slow_request_that_is_in_time_is_answered(start_gateway: StartGateway) -> None:
    request = post("/history", body=b"{}" + b" " * 200)
    pieces = [request[start : start + 50] for start in range(0, len(request), 50)]
    with start_gateway(request_timeout_seconds=2) as gateway, connected(gateway.url) as connection:
        time.sleep(1.2)  # a connection may be opened long before it is needed
        drip(connection, pieces, 1.2 / len(pieces))
        assert connection.recv(65536).startswith(b"HTTP/1.1 422 ")


def test_a_turn_takes_as_long_as_it_takes(session: SessionOf, vllm: ScriptedVLLM, seconds: float) -> None:
    vllm.scripts.append(streamed([delta(content="а"), 2 * seconds, delta("stop", content="б")]))
    assert session.events("?")[-1][1]["reply"] == "аб"


def test_a_refused_request_leaves_nothing(gateway: Gateway) -> None:
    session = gateway.open()
    body = json.dumps({"session_id": session.id, "message": "?"}).encode()
    check_refusal(exchange(gateway.url, post("/chat", body=body[:-1], length=len(body))), 408, "request_timeout")
    assert session.contents() == []
    assert session.ok("/chat", message="?")["reply"] == "Ответ 1."


def test_an_answer_that_is_not_taken(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    """More than the buffers on the way hold."""
    session = gateway.open()
    vllm.scripts.append(streamed([*[delta(content="x" * 100_000)] * 200, 60.0]))
    body = json.dumps({"session_id": session.id, "message": "?", "stream": True}).encode()
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        wait_until(lambda: vllm.running == 1)
        wait_until(lambda: vllm.running == 0)
    assert session.ok("/cancel")["status"] == "idle"


def test_a_client_that_is_gone_without_a_word_is_asked_whether_it_is_there(
    gateway: Gateway, vllm: ScriptedVLLM, seconds: float
) -> None:
    """Nothing is sent to it for minutes, while its JSON answer is waited for."""
    session = gateway.open()
    vllm.scripts.append(Script([b""], delay=60.0))
    body = json.dumps({"session_id": session.id, "message": "?"}).encode()
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        wait_until(lambda: vllm.running == 1)
        ours = f":{connection.getsockname()[1]:04X}"
        rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()]
        [timer] = [row[5] for row in rows if row[2].endswith(ours)]
        kind, jiffies = timer.split(":")
    assert kind == "02", "keep-alive"
    assert int(jiffies, 16) / 100 <= math.ceil(seconds)


def test_a_body_that_waits_behind_a_long_answer_is_not_late(
    gateway: Gateway, vllm: ScriptedVLLM, seconds: float
) -> None:
    session = gateway.open()
    answer = whole("да")
    answer.delay = 4 * seconds
    vllm.scripts.append(answer)
    chat = json.dumps({"session_id": session.id, "message": "?"}).encode()
    history = json.dumps({"session_id": session.id}).encode()
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=chat) + post("/history", "Connection: close", length=len(history)))
        time.sleep(seconds / 4)
        connection.sendall(history)
        answers = read_to_the_end(connection)
    assert answers.count(b"HTTP/1.1 200 ") == 2, answers


def test_many_slow_requests_at_once_keep_nobody_else_waiting(gateway: Gateway, seconds: float) -> None:
    beginnings = [b"", b"GET", post("/chat", body=b"{", length=9)]
    connections = [connected(gateway.url) for _ in range(300)]
    opened = [connection.__enter__() for connection in connections]
    try:
        for number, connection in enumerate(opened):
            connection.sendall(beginnings[number % 3])
        assert gateway.open().ok("/chat", message="?")["reply"] == "Ответ 1."
        time.sleep(seconds)
        assert all(read_to_the_end(connection)[9:12] in {b"", b"408"} for connection in opened)
    finally:
        for connection in opened:
            connection.close()
    problem(gateway.post("/history", session_id="x"), 404, "session_not_found")
