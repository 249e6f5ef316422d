"""A load of many clients over bare sockets, light enough not to be what is measured."""

import asyncio
import time
from array import array
from collections.abc import Iterable
from typing import cast
from urllib.parse import urlsplit

import httptools

_END_OF_CHUNKS = b"0\r\n\r\n"


class BadAnswer(Exception):
    """A server did not answer with 200 and what was expected."""


class Connection(asyncio.Protocol):
    """One client's connection, kept for all its requests.

    Attributes:
        arrivals: of a streamed reply, when something new was read: seconds of `time.perf_counter`.
        events: how many tokens of a streamed reply have come.
    """

    def __init__(self, url: str) -> None:
        """`url` is the server's root."""
        self.arrivals = array("d")
        self.events = 0
        self._url = urlsplit(url)
        self._marker = b""
        self._body: list[bytes] = []
        self._done: asyncio.Future[bytes] | None = None
        self._streamed = False
        self._tail = b""

    async def open(self) -> None:
        """Connect."""
        assert self._url.hostname
        assert self._url.port
        await asyncio.get_running_loop().create_connection(lambda: self, self._url.hostname, self._url.port)

    def close(self) -> None:
        """Disconnect."""
        self._transport.close()

    async def get(self, path: str) -> bytes:
        """The body of a GET. Raises BadAnswer."""
        return await self._ask(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    async def post(self, path: str, body: bytes, headers: str = "") -> bytes:
        """The body of the answer to a POST of JSON. Raises BadAnswer."""
        return await self._ask(_request(path, body, headers))

    async def stream(self, path: str, body: bytes, marker: bytes, headers: str = "") -> None:
        """Receive a streamed reply, each token of which can be told by a marker. Raises BadAnswer."""
        self.arrivals, self.events, self._tail = array("d"), 0, b""
        self._streamed, self._marker = True, marker
        try:
            await self._ask(_request(path, body, headers))
        finally:
            self._streamed = False

    async def _ask(self, request: bytes) -> bytes:
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own class does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(BadAnswer(f"the connection was closed: {exc}"))

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._streamed:
            self._parser.feed_data(data)
            return
        # Counted, not parsed, so that the load costs as little as it can. A token may be cut between two reads.
        data = self._tail + data
        events = data.count(self._marker)
        if events:
            self.events += events
            self.arrivals.append(time.perf_counter())
        self._tail = data[1 - len(self._marker) :]
        if data.endswith(_END_OF_CHUNKS):
            self._finish(b"")
        elif data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 200"):
            self._fail(data)

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See httptools: the answer is here."""
        body = b"".join(self._body)
        self._body.clear()
        if self._parser.get_status_code() == 200:
            self._finish(body)
        else:
            self._fail(body)

    def _finish(self, body: bytes) -> None:
        assert self._done is not None
        if not self._done.done():
            self._done.set_result(body)

    def _fail(self, answer: bytes) -> None:
        assert self._done is not None
        if not self._done.done():
            self._done.set_exception(BadAnswer(answer[:500].decode(errors="replace")))


async def opened(url: str, number: int) -> list[Connection]:
    """So many connections to a server."""
    connections = [Connection(url) for _ in range(number)]
    for connection in connections:
        await connection.open()
    return connections


def percentile(values: Iterable[float], percent: int) -> float:
    """The value that so many percent of all are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _request(path: str, body: bytes, headers: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
