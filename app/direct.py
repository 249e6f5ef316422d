"""The short way of `POST /chat`, past the framework."""

from typing import cast

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.chat import Chat
from app.middleware import ErrorBoundary, RequestId, beginning_with, header, read_body
from app.schemas import ChatBody
from app.streaming import turn_response


class DirectChat:
    """Runs turns without the framework's middleware, routing and dependencies, which cost more than they give here.

    Every event of a stream goes through all that surrounds its turn. This way takes only what is as it should be, and
    from no page of another origin. Everything else goes the usual way, which finds what is wrong and says so; from
    there comes the description of the endpoint too.
    """

    def __init__(self, usual: ASGIApp, max_bytes: int) -> None:
        """`usual` is the whole application, `max_bytes` the bound on a body."""
        self._usual = usual
        self._direct = RequestId(ErrorBoundary(self._chat))
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide by what is known before the body."""
        direct = (
            scope["type"] == "http"
            and scope["path"] == "/chat"
            and scope["method"] == "POST"
            and says_json(scope)
            and not header(scope, b"origin")
        )
        await (self._direct if direct else self._usual)(scope, receive, send)

    async def _chat(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw = await read_body(scope, receive, self._max_bytes)
        if raw is None:
            return
        try:
            body = ChatBody.model_validate_json(raw)
        except ValidationError:
            await self._usual(scope, beginning_with(raw, receive), send)
            return
        await turn_response(body, cast(Chat, scope["state"]["chat"]), scope)(scope, receive, send)


def says_json(scope: Scope) -> bool:
    """Whether a request's headers announce a body in JSON."""
    return header(scope, b"content-type").partition(b";")[0].strip().lower() == b"application/json"
