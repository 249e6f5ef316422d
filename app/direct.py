"""The short way of `POST /chat`, past the framework."""

from typing import cast

from pydantic import ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from app.chat import Chat
from app.middleware import beginning_with, header
from app.schemas import ChatBody
from app.streaming import turn_response


class DirectChat:
    """Runs turns without the framework's routing and dependencies, which cost a turn more than they give it.

    It takes only what is as it should be. Everything else goes the usual way, which finds what is wrong and says so;
    from there comes the description of the endpoint too.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` is the usual way."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Expects the whole body in one message, as `BodyLimit` gives it."""
        if scope["type"] != "http" or scope["path"] != "/chat" or scope["method"] != "POST" or not says_json(scope):
            await self._app(scope, receive, send)
            return
        first = await receive()
        try:
            body = ChatBody.model_validate_json(first["body"])
        except ValidationError:
            await self._app(scope, beginning_with(first, receive), send)
            return
        state = scope["state"]
        await turn_response(body, cast(Chat, state["chat"]), state["request_id"])(scope, receive, send)


def says_json(scope: Scope) -> bool:
    """Whether a request's headers announce a body in JSON."""
    return header(scope, b"content-type").partition(b";")[0].strip().lower() == b"application/json"
