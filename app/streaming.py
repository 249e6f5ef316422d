"""Turns as HTTP responses: JSON or server-sent events, and the stop when the client goes away."""

import asyncio
from collections.abc import Awaitable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import sse
from app.chat import Chat
from app.idempotency import idempotency_key
from app.schemas import ChatBody, chat_answer
from app.turn import Question, Turn, TurnResult
from app.vllm import Message

KEEP_ALIVE_SECONDS = 15.0


_REPEATED = (b"idempotent-replayed", b"true")


def turn_response(body: ChatBody, chat: Chat, scope: Scope) -> "TurnResponse":
    """The turn that a request asks for, in the answer form that it asks for. Raises InvalidRequest for a bad key."""
    key, request_id = idempotency_key(scope), scope["state"]["request_id"]
    question = Question(body.message, body.max_tokens, body.temperature, body.extra or {}, request_id, key)
    return TurnResponse(chat.turn(body.session_id, question), stream=body.stream)


class TurnResponse(Response):
    """Runs a turn and answers with it.

    The turn runs inside the response, not in the handler, because only here are `receive`, which tells that the client
    has gone, and `send` at hand together.
    """

    def __init__(self, turn: Turn, *, stream: bool) -> None:
        """Takes a turn not yet entered, and which of the two answer forms to give."""
        super().__init__()
        self._turn = turn
        self._stream = stream

    def __call__(self, _: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """An error before the first byte is an ordinary status; `ErrorBoundary` makes a later one an event."""
        return self._answer_stream(receive, send) if self._stream else self._answer_json(receive, send)

    async def _answer_json(self, receive: Receive, send: Send) -> None:
        async with self._turn as turn:
            with _cancelled_on_disconnect(receive, turn):
                result = await turn.reply()
        body = msgspec.json.encode(chat_answer(result, turn.expires_in))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if turn.is_repeated:
            headers.append(_REPEATED)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer_stream(self, receive: Receive, send: Send) -> None:
        stream = EventStream(send)
        try:
            async with self._turn as turn:
                with _cancelled_on_disconnect(receive, turn):
                    result = await turn.stream(stream)
            if turn.is_repeated:  # the session need not wait for who reads it
                await stream.repeat(result)
        finally:
            stream.keep_alive_no_more()
        await stream.close(sse.encode("done", chat_answer(result, turn.expires_in)))


class EventStream:
    """Writes events to one client; the `Sink` of a streamed turn."""

    def __init__(self, send: Send, keep_alive_seconds: float = KEEP_ALIVE_SECONDS) -> None:
        """A silence of `keep_alive_seconds` is broken with a comment."""
        self._send = send
        self._keep_alive_seconds = keep_alive_seconds
        self._loop = asyncio.get_running_loop()
        self._last_write = 0.0
        self._silence: asyncio.TimerHandle | None = None
        self._comment: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Send the status and the headers; from now on a long silence is broken with comments."""
        await self._open()

    async def repeat(self, result: TurnResult) -> None:
        """Send all but the last event of an answer that is whole."""
        await self._open(_REPEATED)
        await self.write([Message(reasoning=result.reasoning), Message(content=result.reply)])

    async def _open(self, *more: tuple[bytes, bytes]) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"x-accel-buffering", b"no"),  # a proxy in front must not gather events
            *more,
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._last_write = self._loop.time()
        self._silence = self._loop.call_later(self._keep_alive_seconds, self._break_silence)

    async def write(self, messages: list[Message]) -> None:
        """Send each piece as an event of its own, all in one write."""
        events = []
        for message in messages:
            if message.reasoning:
                events.append(sse.encode("reasoning", {"text": message.reasoning}))
            if message.content:
                events.append(sse.encode("delta", {"text": message.content}))
        if events:
            await self._write(b"".join(events))

    async def close(self, last: bytes) -> None:
        """Send the last event."""
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def keep_alive_no_more(self) -> None:
        """Send no more comments; without effect where none were to be sent."""
        if self._silence is not None:
            self._silence.cancel()
        if self._comment is not None:
            self._comment.cancel()

    def _break_silence(self) -> None:
        """Send a comment where the silence is long, so that nothing on the way gives the connection up."""
        due = self._last_write + self._keep_alive_seconds
        if due <= self._loop.time():
            if self._comment is None or self._comment.done():  # else the client has not taken the last one yet
                self._comment = asyncio.ensure_future(self._write(sse.KEEP_ALIVE))
            due = self._loop.time() + self._keep_alive_seconds
        self._silence = self._loop.call_at(due, self._break_silence)

    def _write(self, data: bytes) -> Awaitable[None]:
        self._last_write = self._loop.time()
        return self._send({"type": "http.response.body", "body": data, "more_body": True})


@contextmanager
def _cancelled_on_disconnect(receive: Receive, turn: Turn) -> Iterator[None]:
    """Cancel the turn as soon as the client goes away, streaming or not."""
    watch = asyncio.create_task(_cancel_on_disconnect(receive, turn))
    try:
        yield
    finally:
        watch.cancel()  # its end is not waited for: that would cost every turn a round of the event loop


async def _cancel_on_disconnect(receive: Receive, turn: Turn) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    turn.cancel()
