"""Heads that are too much, and bytes that are no HTTP."""

import json
import socket
import time

import pytest

from app.protocol import MAX_HEAD_BYTES, MAX_HEADERS
from tests.conftest import Gateway, SessionOf
from tests.raw import check_refusal, connected, exchange, post, read_to_the_end
from tests.scripted_vllm import Script, ScriptedVLLM, hanging
from tests.servers import wait_until

GET = b"GET /nowhere HTTP/1.1\r\nHost: gateway\r\n"
FLOODS = {
    "one header": GET + b"X: " + b"x" * 2 * MAX_HEAD_BYTES,
    "one header, complete": GET + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "one name": GET + b"x" * 2 * MAX_HEAD_BYTES,
    "a long address": b"GET /" + b"x" * 2 * MAX_HEAD_BYTES,
    "a long address, complete": b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    "many headers": GET + b"x: y\r\n" * MAX_HEADERS + b"\r\n",
    "very many headers": GET + b"x: y\r\n" * MAX_HEAD_BYTES,
    "a body too": GET + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000,
}


def test_a_flood_of_headers(gateway: Gateway) -> None:
    for name, flood in FLOODS.items():
        problem = check_refusal(exchange(gateway.url, flood), 431, "headers_too_large")
        assert problem["limit"] == MAX_HEAD_BYTES, name


def test_as_much_as_is_allowed(gateway: Gateway) -> None:
    headers = b"x: y\r\n" * (MAX_HEADERS - 2) + b"Connection: close\r\n"
    assert exchange(gateway.url, GET + headers + b"\r\n").startswith(b"HTTP/1.1 404 ")
    large = GET + b"Connection: close\r\nX: " + b"x" * (MAX_HEAD_BYTES - 200) + b"\r\n\r\n"
    assert exchange(gateway.url, large).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("size", [70_000, 300_000, 1_000_000])
def test_a_large_body_is_no_head(gateway: Gateway, size: int) -> None:
    for more in ((), ("Origin: https://a.example",)):
        answer = exchange(gateway.url, post("/history", "Connection: close", *more, body=b"{}" + b" " * size))
        assert answer.startswith(b"HTTP/1.1 422 "), answer
    chunked = post("/history", "Transfer-Encoding: chunked", "Connection: close").replace(b"Content-Length: 0\r\n", b"")
    body = b"%x\r\n{}%b\r\n" % (size + 2, b" " * size) + b"1\r\n \r\n" * 100 + b"0\r\nX-Trailer: x\r\n\r\n"
    assert exchange(gateway.url, chunked + body).startswith(b"HTTP/1.1 422 ")


def test_a_flood_of_trailers(gateway: Gateway) -> None:
    request = post("/chat", "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    with connected(gateway.url) as connection:
        connection.sendall(request + b"2\r\n{}\r\n0\r\nX: ")
        with pytest.raises(ConnectionError):
            connection.sendall(b"x" * 50_000_000)


NO_HTTP = {
    "TLS": bytes.fromhex("1603010200010001fc0303"),
    "words": b"hello\r\n\r\n",
    "NUL": b"\x00" * 10,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "a space in a name": b"GET / HTTP/1.1\r\nA b: c\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nA: b\0c\r\n\r\n",
    "two lengths": b"POST /chat HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": b"POST /chat HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a length below zero": b"POST /chat HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"POST /chat HTTP/1.1\r\nContent-Length: many\r\n\r\n",
    "a huge length": b"POST /chat HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "a proxy's CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
    "letters beyond ASCII": "GET /привет HTTP/1.1\r\n\r\n".encode(),
    "a bad chunk": b"POST /chat HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "no method": b" / HTTP/1.1\r\n\r\n",
    "an unknown method": b"STEAL / HTTP/1.1\r\n\r\n",
    "only a host": b"GET http://gateway HTTP/1.1\r\n\r\n",
}


def test_what_is_no_http(gateway: Gateway) -> None:
    for name, request in NO_HTTP.items():
        assert check_refusal(exchange(gateway.url, request), 400, "malformed_request"), name


def test_a_wish_for_another_protocol_is_not_heard(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    wish = b"Connection: Upgrade\r\nUpgrade: %b\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
    with connected(gateway.url) as connection:
        for protocol in (b"websocket", b"h2c", b"websocket"):
            connection.sendall(b"GET /chat HTTP/1.1\r\nHost: gateway\r\n" + wish % protocol + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 405 ")
    assert "Unsupported upgrade request" not in caplog.text


H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAB")


def test_a_body_that_comes_with_a_wish_for_another_protocol_is_read(session: SessionOf) -> None:
    """Java's client wishes for HTTP/2 in its first request, whatever it asks."""
    body = json.dumps({"session_id": session.id}).encode()
    with connected(session.gateway.url) as connection:
        for pieces in ([post("/history", *H2C, body=body)], [post("/history", *H2C, length=len(body)), body]):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.1)
            assert b'"messages":[]' in connection.recv(65536)
        both = post("/history", *H2C, body=body) + post("/history", *H2C, "Connection: close", body=body)
        connection.sendall(both)
        assert read_to_the_end(connection).count(b'"messages":[]') == 2


def test_a_body_that_comes_with_a_wish_is_no_request(gateway: Gateway) -> None:
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(gateway.url) as connection:
        connection.sendall(post("/history", *H2C, "Connection: close", length=len(smuggled)))
        time.sleep(0.1)
        connection.sendall(smuggled)
        assert read_to_the_end(connection).count(b"HTTP/1.1 ") == 1


def test_a_bad_head_behind_an_answer_that_has_not_begun(session: SessionOf, vllm: ScriptedVLLM) -> None:
    """Its refusal would be taken for that answer."""
    vllm.scripts.append(Script([b""], delay=60.0))
    body = json.dumps({"session_id": session.id, "message": "?"}).encode()
    with connected(session.gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        wait_until(lambda: vllm.running == 1)
        connection.sendall(b"CONNECT gateway:443 HTTP/1.1\r\nHost: gateway\r\n\r\n")
        assert read_to_the_end(connection) == b""
    wait_until(lambda: vllm.running == 0)


def test_a_body_that_is_announced_and_too_large_is_not_waited_for(gateway: Gateway) -> None:
    request = post("/chat", "Expect: 100-continue", length=10**9)
    check_refusal(exchange(gateway.url, request), 413, "request_too_large")


def test_requests_in_one_go_are_answered_in_turn(gateway: Gateway) -> None:
    request = b"GET /nowhere HTTP/1.1\r\nHost: gateway\r\n\r\n"
    answers = exchange(gateway.url, request * 30 + GET + b"Connection: close\r\n\r\n")
    assert answers.count(b"HTTP/1.1 404 ") == 31


def test_a_flood_of_requests_in_one_go(gateway: Gateway, session: SessionOf, vllm: ScriptedVLLM) -> None:
    """Behind an answer that takes long they would be kept without end."""
    vllm.scripts.append(hanging("а"))
    body = b'{"session_id": "%b", "message": "?", "stream": true}' % session.id.encode()
    with connected(gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n" * 1000)
        assert b"HTTP/1.1" not in read_to_the_end(connection), "no answer in the middle of another"
    wait_until(lambda: vllm.running == 0)
    assert session.contents() == ["?", "а"]


def test_rubbish_behind_a_request_does_not_get_into_its_answer(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(hanging("а"))
    body = b'{"session_id": "%b", "message": "?", "stream": true}' % session.id.encode()
    with connected(session.gateway.url) as connection:
        connection.sendall(post("/chat", body=body))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\x16\x03\x01")
        assert b"HTTP/1.1" not in read_to_the_end(connection)
    wait_until(lambda: vllm.running == 0)


def test_a_client_that_leaves_in_the_middle_of_its_head(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    for beginning in (b"", b"GET", post("/chat", body=b"{", length=9)):
        with connected(gateway.url) as connection:
            connection.sendall(beginning)
        with connected(gateway.url) as connection:
            connection.sendall(beginning)
            connection.shutdown(socket.SHUT_WR)
            assert read_to_the_end(connection) == b""
    assert gateway.http.get("/health").status_code == 200
    assert "Traceback" not in caplog.text
