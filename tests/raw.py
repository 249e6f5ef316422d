"""Bytes on a socket, for requests that no HTTP client would send."""

import json
import re
import select
import socket
from collections.abc import Iterable
from typing import Any

import httpx2


def connected(url: str, seconds: float = 20.0) -> socket.socket:
    """A connection to a server; reads give up after `seconds`."""
    address = httpx2.URL(url)
    return socket.create_connection((address.host, address.port or 80), seconds)


def read_to_the_end(connection: socket.socket) -> bytes:
    """All that comes until the server closes; it must, before the socket's time is up."""
    received = bytearray()
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:  # closed with something of ours unread
        pass
    return bytes(received)


def drip(connection: socket.socket, pieces: Iterable[bytes], gap_seconds: float) -> None:
    """Send piece by piece until an answer comes."""
    for piece in pieces:
        connection.sendall(piece)
        if select.select([connection], [], [], gap_seconds)[0]:
            return


def exchange(url: str, request: bytes) -> bytes:
    """Send, and read until the server closes."""
    with connected(url) as connection:
        connection.sendall(request)
        return read_to_the_end(connection)


def check_refusal(answer: bytes, status: int, code: str) -> Any:
    """The last of what came is this problem in Russian, after which the connection is closed."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    lines = head[head.rindex(b"HTTP/1.1 ") :].decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status} "), answer
    for header in ("content-type: application/problem+json", "connection: close", "x-content-type-options: nosniff"):
        assert lines.count(header) == 1, lines
    assert any(re.fullmatch("x-request-id: [0-9a-f]{32}", line) for line in lines)
    assert f"content-length: {len(body)}" in lines
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)
    assert re.search("[а-я]", problem["title"] + problem["detail"])
    return problem


def post(path: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request with a JSON body of which more may be promised than is there."""
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
