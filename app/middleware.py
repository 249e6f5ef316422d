"""What surrounds every request: its id, the bound on its body, and the one place where errors become answers."""

import asyncio
import logging
import re
import secrets
import traceback
from collections.abc import Awaitable
from typing import cast
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import sse
from app.admission import Admission
from app.errors import MEDIA_TYPE, GatewayError, InternalError, InvalidRequest, RequestTimeout, RequestTooLarge
from app.headers import SECURITY, SECURITY_OF_PAGES
from app.logs import fields

log = logging.getLogger(__name__)

_EXPECTED = frozenset({"/chat", "/health", "/ready", "/metrics"})
_SECURITY_OF = dict.fromkeys(("/docs", "/docs/oauth2-redirect"), SECURITY_OF_PAGES)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:+/=-]{1,128}")


def problem_response(error: GatewayError) -> Response:
    """Render an error as an ordinary response."""
    headers = {}
    if "retry_after" in error.helpful:
        headers["Retry-After"] = str(error.helpful["retry_after"])
    if "allow" in error.helpful:
        headers["Allow"] = str(error.helpful["allow"])
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"
    return JSONResponse(error.problem(), error.status, headers, media_type=MEDIA_TYPE)


def header(scope: Scope, name: bytes) -> bytes:
    """The first value of a request's header by its name in lower case; empty where there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def beginning_with(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that was read already."""
    first: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def receive_first() -> Message:
        nonlocal first
        if first is None:
            return await receive()
        message, first = first, None
        return message

    return receive_first


class RequestId:
    """Gives every request an id: the client's X-Request-Id if it is a sane one, else a new one; returns and logs it.

    The answer gets the headers of security here too, for every answer passes here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Puts the id into `request.state.request_id`, unless one is there."""
        if scope["type"] != "http" or "request_id" in scope["state"]:
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope["state"]["request_id"] = request_id

        def send_with_id(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    *_SECURITY_OF.get(scope["path"], SECURITY),
                ]
                _log_access(scope, message["status"])
            return send(message)

        await self._app(scope, receive, send_with_id)


def _log_access(scope: Scope, status: int) -> None:
    """A line for every request but the expected: the answered checks of every few seconds, and turns with their own."""
    if (status == 200 and scope["path"] in _EXPECTED) or not log.isEnabledFor(logging.INFO):
        return
    client = "{}:{}".format(*scope["client"]) if scope["client"] else "-"
    request = (scope["method"], quote(scope["path"]), scope["http_version"])
    log.info('%s "%s %s HTTP/%s" %d', client, *request, status, extra=fields(request=scope["state"]["request_id"]))


class ErrorBoundary:
    """Makes every error an answer: a problem object before the first byte, the last event of a stream after it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The one place where `Exception` is caught. A defect is logged as type and place, without its values."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        streaming = False

        async def start(message: Message) -> None:
            nonlocal streaming
            await send(message)
            streaming = True

        def send_and_note(message: Message) -> Awaitable[None]:
            return (start if message["type"] == "http.response.start" else send)(message)

        try:
            await self._app(scope, receive, send_and_note)
        except GatewayError as exc:
            error = exc.with_traceback(None)  # its frames hold this one and the body: a circle that is found late
        except asyncio.CancelledError:
            # The server is told to stop and will wait no longer; nothing else cancels a request from outside.
            error = cast(Admission, scope["state"]["admission"]).stopping()
        except Exception as exc:  # noqa: BLE001 - the outermost handler
            where = "".join(traceback.format_tb(exc.__traceback__))
            request_id = scope["state"].get("request_id")
            # Not `exception`: an error's own text may hold what a user wrote.
            log.error("%s\n%s", type(exc).__qualname__, where, extra=fields(request=request_id))  # noqa: TRY400
            error = InternalError()
        else:
            return
        if streaming:
            event = sse.encode("error", error.problem())
            await send({"type": "http.response.body", "body": event, "more_body": False})
        else:
            response = problem_response(error)
            if isinstance(error, RequestTooLarge) and header(scope, b"expect"):
                response.headers["Connection"] = "close"  # the body that was announced will not come
            await response(scope, receive, send)


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes | None:
    """A request's body; None where the client went away. What is over the bound stays unread.

    Raises:
        RequestTooLarge: it is over the bound, by its declared length or as it arrives.
        RequestTimeout: it does not arrive in time, says `BoundedProtocol`.
    """
    declared = header(scope, b"content-length") or b"0"
    if not declared.isdigit() or int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if more and scope["state"].get("too_late"):
            raise RequestTimeout
    return bytes(body)


def _too_large(max_bytes: int) -> RequestTooLarge:
    advice = "Сократите сообщение или увеличьте MAX_REQUEST_BYTES."
    return RequestTooLarge(f"Тело запроса больше {max_bytes} байт. {advice}", limit=max_bytes)


class BodyLimit:
    """Reads the whole body of a request before anything is done with it, but never more than the bound."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises RequestTooLarge, RequestTimeout."""
        if scope["type"] == "http":
            body = await read_body(scope, receive, self._max_bytes)
            if body is None:
                return
            receive = beginning_with(body, receive)
        await self._app(scope, receive, send)


class CrossOrigin(CORSMiddleware):
    """CORS for requests that come from a page of another origin; the others pass as they are."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Say no as everything else here does: Starlette says it in English and in plain text."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        refusal = problem_response(
            InvalidRequest(
                "Этой странице нельзя обращаться к шлюзу: её адрес должен быть в CORS_ALLOW_ORIGINS, а метод — GET или "
                "POST."
            )
        )
        refusal.headers.update({name: value for name, value in response.headers.items() if name not in refusal.headers})
        return refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See CORSMiddleware."""
        if scope["type"] == "http" and header(scope, b"origin"):
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)
