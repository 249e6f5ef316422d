"""HTTP/1.1 with bounds: what uvicorn's own protocol would wait for, or keep, without end."""

import asyncio
import json
import logging
import math
import secrets
import socket
from typing import Any, NoReturn

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import MEDIA_TYPE, GatewayError, HeadersTooLarge, MalformedRequest, RequestTimeout
from app.headers import SECURITY
from app.logs import fields

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
# One read brings thousands of small requests, each of which becomes objects of a kilobyte and more.
_MAX_PIPELINED = 64
_LONGEST_USER_TIMEOUT = 2**31 - 1
_LONGEST_KEEP_ALIVE = 2**15 - 1
# With what HTTP/1.1 asks to go on in another protocol; Java's client asks for h2c in every first request.
_WISH = frozenset({b"connection", b"upgrade", b"http2-settings"})
# Where the application does not say.
_TIMEOUT_SECONDS = 30.0


class _Refused(Exception):
    """The request in `BoundedProtocol.refusal` goes no further."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, as `python -m app` has it: `uvicorn --http app.protocol:BoundedProtocol`.

    A request's head (or the trailers of a chunked body) has at most MAX_HEAD_BYTES, give or take what one read brings,
    and MAX_HEADERS: 431. It arrives, with its body, within the time that the lifespan's state names
    (`request_timeout_seconds`): 408. A connection that stays silent so long is closed; one that was used is closed by
    uvicorn sooner (`--timeout-keep-alive`). So is one whose client takes nothing of its answer for that time, or has
    gone without a word. What is refused here is answered with a problem object too, but without headers of CORS.

    A body that is late is refused by the application, as it refuses all else that is wrong with a body: it is woken
    with an empty piece, and finds `scope["state"]["too_late"]`.

    A request that arrives with one read needs no timer.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """As uvicorn calls it, for every connection."""
        super().__init__(config, server_state, app_state, _loop)
        self._timeout_seconds: float = app_state.get("request_timeout_seconds", _TIMEOUT_SECONDS)
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: GatewayError | None = None
        self._running: RequestResponseCycle | None = None
        self._in_head = False  # a head has begun and is not complete
        self._plain_head: bytes | None = None  # of a request for another protocol, without that wish
        self._arrived = False  # the last read ended with a complete message
        # Bytes of headers and trailers; not of a body, for which `read_body` cares.
        self._counting = True
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Wait for the first request. Have the kernel give up a client that takes nothing of what is sent to it.

        It also asks now and then whether the client is still there, which else would go unnoticed until something is
        sent: JSON answers take minutes.
        """
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family != socket.AF_UNIX:
            milliseconds = min(int(self._timeout_seconds * 1000) or 1, _LONGEST_USER_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            seconds = min(math.ceil(self._timeout_seconds), _LONGEST_KEEP_ALIVE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, seconds)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 3))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._timer = self.loop.call_later(self._timeout_seconds, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more, and tell the request that is being answered: uvicorn tells only the last that came."""
        self._stop_timer()
        super().connection_lost(exc)
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse, as uvicorn does, and see whether that was too much or too little."""
        self._unset_keepalive_if_required()
        if self._counting:
            self._head_bytes += len(data)
        self._arrived = False
        try:
            while data:
                data = self._feed(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedRequest())
            return
        if self._counting and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_too_large())
        elif not self._arrived and self._timer is None:
            self._timer = self.loop.call_later(self._timeout_seconds, self._too_late)

    def _feed(self, data: bytes) -> bytes:
        """Parse; returns what is to be parsed then.

        The parser takes all that follows a wish for another protocol for that protocol's, the body included. None is
        spoken here, so such a request is parsed once more without its wish, by a parser that has not heard of it.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            assert self._plain_head is not None
            plain, self._plain_head = self._plain_head, None
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            return plain + data[exc.args[0] :]
        return b""

    def on_message_begin(self) -> None:
        """The time of a request begins with its first byte, not with the connection."""
        self._stop_timer()
        self._in_head = True
        self._arrived = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Look at the size once it is known; a large read may have been a small head and its body."""
        if len(self.headers) > MAX_HEADERS or (self._head_bytes > MAX_HEAD_BYTES < self._size_of_head()):
            self._end_parsing(_too_large())
        if self.parser.should_upgrade():
            self._plain_head = self._without_wish()
            return
        self._counting = False
        super().on_headers_complete()
        self._in_head = False
        if len(self.pipeline) > _MAX_PIPELINED:
            self._end_parsing(MalformedRequest())

    def on_chunk_header(self) -> None:
        """What follows is a piece of the body or, after the last one, trailers."""
        self._counting = True
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        """It was a piece of the body."""
        self._counting = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All is here; the next head may begin in the same read."""
        if self._plain_head is not None:
            return
        self._stop_timer()
        self._counting = self._arrived = True
        self._head_bytes = 0
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _without_wish(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._end_parsing(MalformedRequest())
        connection = b",".join(value.lower() for name, value in self.headers if name == b"connection")
        kept = [header for header in self.headers if header[0] not in _WISH]
        if b"close" in connection:
            kept.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in kept]
        version = self.parser.get_http_version().encode()
        return b"".join([b"%b %b HTTP/%b\r\n" % (method, self.url, version), *lines, b"\r\n"])

    def _size_of_head(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _end_parsing(self, error: GatewayError) -> NoReturn:
        self._refusal = error
        raise _Refused

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.pipeline:  # the rest is not read before its turn comes
            self._timer = self.loop.call_later(self._timeout_seconds, self._too_late)
        elif self.cycle is not None and not self.cycle.response_complete:
            if self._in_head:  # of the next request: it is not waited for once this one is answered
                self.cycle.keep_alive = False
            elif self.cycle.more_body:
                self.scope["state"]["too_late"] = True
                self.cycle.message_event.set()
            # else it was a stray line break
        elif self._in_head:
            self._refuse(RequestTimeout())
        else:
            self.transport.close()

    def _refuse(self, error: GatewayError) -> None:
        """Answer, unless the client would take it for the answer to an earlier request, and close."""
        cycle = self.cycle
        free = cycle is None or cycle.response_complete
        if free or not (self._in_head or self.pipeline or cycle.response_started):
            request_id = secrets.token_hex(16)
            client = self.client or ("-", 0)
            log.info("%s:%s %d %s", *client, error.status, error.code, extra=fields(request=request_id))
            self.transport.write(b"".join(self._answer(error, request_id)))
        self.transport.close()

    def _answer(self, error: GatewayError, request_id: str) -> list[bytes]:
        body = json.dumps(error.problem(), ensure_ascii=False).encode()
        headers = [
            *self.server_state.default_headers,
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
            *SECURITY,
        ]
        return [STATUS_LINE[error.status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body]


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"Заголовки запроса больше {MAX_HEAD_BYTES // 1024} КиБ, или их больше {MAX_HEADERS}. Уберите лишние.",
        limit=MAX_HEAD_BYTES,
    )
