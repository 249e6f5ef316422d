"""HTTP/1.1 to one server, with as few steps between a turn and the socket as there can be: each turn pays for all.

What comes is httptools' to parse, as in uvicorn; this module keeps connections, and tells when one has failed. No
redirects, cookies, compression or proxies: between the gateway and vLLM there are none.
"""

import asyncio
import math
import socket
import ssl
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

import httptools
from aiohappyeyeballs import AddrInfoType, start_connection

# Shorter than the 5 s after which vLLM's uvicorn closes an idle connection, so that none is used as it closes.
_KEEP_ALIVE_SECONDS = 3.0
_ADDRESSES_SECONDS = 10.0
# RFC 8305, section 8.
_NEXT_ADDRESS_SECONDS = 0.25
_LOOK_SECONDS = 1.0
_LOOKS = 4
_MAX_HEAD_BYTES = 64 * 1024
_MAX_UNREAD_BYTES = 256 * 1024


class TransportError(Exception):
    """What goes wrong between here and the server.

    TransportError
    ├── NotConnected
    ├── ConnectionBroken
    └── ServerSilent
    """


class NotConnected(TransportError):
    """The server is not reached; nothing was sent."""


class ConnectionBroken(TransportError):
    """The connection ended before the response did, or what came is no HTTP."""


class ServerSilent(TransportError):
    """Nothing has come for as long as may be."""


class ConnectionPool:
    """Connections to one server. Those that a response leaves as they should be are used again."""

    def __init__(self, url: str, connect_seconds: float, keep_alive_seconds: float = _KEEP_ALIVE_SECONDS) -> None:
        """Prepare to connect.

        Args:
            url: the server's; what path it has is not used.
            connect_seconds: for the look at its name and for all its addresses together.
            keep_alive_seconds: how long an idle connection is kept.
        """
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._host = parts.hostname.encode("idna").decode()
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._host_header = f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"
        self._connect_seconds = connect_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._addresses: asyncio.Future[list[AddrInfoType]] | None = None
        self._addresses_end = 0.0
        self._idle: dict[_Connection, None] = {}

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, idle_seconds: float
    ) -> "Response":
        """Send a request; of the response the status and the headers are here. To be closed.

        Args:
            method: as HTTP has it.
            path: of a URL, beginning with a slash.
            headers: all but Host and Content-Length.
            body: what is sent.
            idle_seconds: how long the server may be silent, now and while the body comes.

        Raises:
            TransportError: there is no response.
        """
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host_header}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        connection = self._take_idle() or await self._connect()
        response = Response(connection, idle_seconds)
        try:
            connection.begin(response, head + body)
            await response.wait_for_head()
        except BaseException:
            response.close()
            raise
        return response

    def close(self) -> None:
        """Close the connections that are idle."""
        for connection in list(self._idle):
            connection.abort()

    def _take_idle(self) -> "_Connection | None":
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self) -> "_Connection":
        """Connect; once more where that failed at addresses from before, which may no longer be the server's."""
        addresses = self._look_up()
        # A failure is not kept, not even as a cause: it would hold this frame and the frame it, see `ErrorBoundary`.
        with suppress(OSError):  # TimeoutError is one
            async with asyncio.timeout(self._connect_seconds):
                if addresses.done():
                    # Where the server no longer is, nothing may answer, not even with a refusal.
                    with suppress(OSError):
                        async with asyncio.timeout(self._connect_seconds / 2):
                            return await self._connect_to(addresses)
                    self._forget(addresses)
                    addresses = self._look_up()
                return await self._connect_to(addresses)
        if addresses.done():
            self._forget(addresses)
        raise NotConnected

    async def _connect_to(self, addresses: "asyncio.Future[list[AddrInfoType]]") -> "_Connection":
        found = await asyncio.shield(addresses)
        connected = await start_connection(found, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._idle, self._keep_alive_seconds),
            sock=connected,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        return connection

    def _look_up(self) -> "asyncio.Future[list[AddrInfoType]]":
        """The server's addresses: many who want to know them ask once, and not again for a while."""
        loop = asyncio.get_running_loop()
        if self._addresses is None or loop.time() > self._addresses_end:
            asked = loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses = asyncio.ensure_future(cast(Awaitable[list[AddrInfoType]], asked))
            self._addresses.add_done_callback(self._forget_failure)
            self._addresses_end = loop.time() + _ADDRESSES_SECONDS
        return self._addresses

    def _forget_failure(self, addresses: "asyncio.Future[list[AddrInfoType]]") -> None:
        if addresses.cancelled() or addresses.exception() is not None:
            self._forget(addresses)

    def _forget(self, addresses: "asyncio.Future[list[AddrInfoType]]") -> None:
        if self._addresses is addresses:
            self._addresses = None


class _Connection(asyncio.Protocol):
    """One connection, and the response that comes on it."""

    def __init__(self, idle: "dict[_Connection, None]", keep_alive_seconds: float) -> None:
        """`idle` is where it is while it may be used again, for so long."""
        self._idle = idle
        self._keep_alive_seconds = keep_alive_seconds
        self._end_of_idleness: asyncio.TimerHandle | None = None
        self._response: Response | None = None
        self.transport: asyncio.Transport

    def begin(self, response: "Response", request: bytes) -> None:
        """Send a request; what comes is the response's."""
        self._leave_idle()
        self._response = response
        if self.transport.is_closing():
            response.feed_eof()
        else:
            self.transport.write(request)

    def end(self, *, reusable: bool) -> None:
        """The response is done with."""
        self._response = None
        if not reusable or self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.abort()
            return
        self._idle[self] = None
        self._end_of_idleness = asyncio.get_running_loop().call_later(self._keep_alive_seconds, self.abort)

    def abort(self) -> None:
        """Cut it."""
        self._leave_idle()
        self.transport.abort()

    def _leave_idle(self) -> None:
        self._idle.pop(self, None)
        if self._end_of_idleness is not None:
            self._end_of_idleness.cancel()
            self._end_of_idleness = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol. What nobody has asked for would be the answer to the next request."""
        if self._response is None:
            self.abort()
        else:
            self._response.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        del exc  # it says no more than that the connection is lost
        self._leave_idle()
        if self._response is not None:
            self._response.feed_eof()


class Response:
    """A response: status and headers at once, the body as it comes.

    Attributes:
        status: HTTP's; 0 until it is here.
        headers: by names in lower case.
    """

    def __init__(self, connection: _Connection, idle_seconds: float) -> None:
        """`idle_seconds` is how long the server may be silent."""
        self.status = 0
        self.headers: dict[str, str] = {}
        self._connection: _Connection | None = connection
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._unread: list[bytes] = []
        self._unread_bytes = 0
        self._is_paused = False
        self._is_complete = False
        self._is_reusable = False
        self._failure: type[TransportError] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # Looks, not seconds, are counted: a gateway that stood still has not heard what has come meanwhile.
        self._look_seconds = min(_LOOK_SECONDS, idle_seconds / _LOOKS)
        self._most_silent_looks = math.ceil(idle_seconds / self._look_seconds)
        self._silent_looks = 0
        self._loop = asyncio.get_running_loop()
        self._next_look = self._loop.call_later(self._look_seconds, self._look)

    async def wait_for_head(self) -> None:
        """Wait for the status and the headers. Raises as `read`."""
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has come since the last time, as soon as something has; empty at the end.

        Raises:
            ConnectionBroken, ServerSilent.
        """
        while not self._unread:
            if self._is_complete:
                return b""
            await self._wait()
        read = b"".join(self._unread)
        self._unread.clear()
        self._unread_bytes = 0
        if self._is_paused and self._connection is not None and not self._connection.transport.is_closing():
            self._is_paused = False
            self._connection.transport.resume_reading()
        return read

    def at_end(self) -> bool:
        """Whether all was read."""
        return self._is_complete and not self._unread

    def close(self) -> None:
        """Be done with it; what has not come yet is cut off."""
        self._next_look.cancel()
        self._parser = None  # each holds the other
        if self._connection is not None:
            self._connection.end(reusable=self._is_reusable and not self._is_paused)
            self._connection = None

    async def _wait(self) -> None:
        """Wait until something has changed."""
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, failure: type[TransportError]) -> None:
        self._is_reusable = False
        self._parser = None
        if not self._is_complete:
            self._failure = self._failure or failure
        self._wake()

    def _look(self) -> None:
        """Tell one who waits that nothing will come."""
        self._next_look = self._loop.call_later(self._look_seconds, self._look)
        self._silent_looks = 0 if self._waiter is None else self._silent_looks + 1
        if self._silent_looks > self._most_silent_looks:  # one more, before which there was time to read
            self._fail(ServerSilent)

    def feed(self, data: bytes) -> None:
        """Take what has come on the connection."""
        self._silent_looks = 0
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(ConnectionBroken)
        if not self.status:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self._fail(ConnectionBroken)
        self._wake()

    def feed_eof(self) -> None:
        """Nothing more will come; without a length, that is how a body ends."""
        has_length = not self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
        if self.status and not has_length and self._failure is None:
            self._is_complete = True
        self._fail(ConnectionBroken)

    # The parser's protocol, see httptools.

    def on_message_begin(self) -> None:
        """More than was asked for is no answer to anything: the parser is told so by the error."""
        if self._is_complete:
            raise ConnectionBroken

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, has come."""
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head has come; one of a status below 200 only announces another."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
        else:
            self.headers.clear()

    def on_body(self, body: bytes) -> None:
        """A piece of the body has come."""
        self._unread.append(body)
        self._unread_bytes += len(body)
        if self._unread_bytes > _MAX_UNREAD_BYTES and not self._is_paused and self._connection is not None:
            self._is_paused = True
            self._connection.transport.pause_reading()

    def on_message_complete(self) -> None:
        """All has come."""
        assert self._parser is not None
        if self.status:
            self._is_complete = True
            self._is_reusable = self._parser.should_keep_alive()
