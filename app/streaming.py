"""Turns as HTTP responses: JSON or server-sent events, and the stop when the client goes away."""

import asyncio
from contextlib import AbstractAsyncContextManager

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app import sse
from app.schemas import chat_answer
from app.tasks import running
from app.turn import Turn
from app.vllm import Message

KEEP_ALIVE_SECONDS = 15.0


class TurnResponse(Response):
    """Runs a turn and answers with it.

    The turn runs inside the response, not in the handler, because only here are `receive`, which tells that the client
    has gone, and `send` at hand together.
    """

    def __init__(self, turn: AbstractAsyncContextManager[Turn], *, stream: bool) -> None:
        """Takes a turn not yet entered, and which of the two answer forms to give."""
        super().__init__()
        self._turn = turn
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An error before the first byte is an ordinary status; `ErrorBoundary` makes a later one an event."""
        if self._stream:
            await self._answer_stream(receive, send)
        else:
            answer = await self._answer_json(receive)
            await answer(scope, receive, send)

    async def _answer_json(self, receive: Receive) -> JSONResponse:
        async with self._turn as turn, running(_cancel_on_disconnect(receive, turn)):
            result = await turn.reply()
        return JSONResponse(chat_answer(result, turn.expires_in))

    async def _answer_stream(self, receive: Receive, send: Send) -> None:
        stream = EventStream(send)
        async with self._turn as turn, running(_cancel_on_disconnect(receive, turn)), running(stream.keep_alive()):
            result = await turn.stream(stream)
        await stream.close(sse.encode("done", chat_answer(result, turn.expires_in)))


class EventStream:
    """Writes events to one client; the `Sink` of a streamed turn."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._opened = asyncio.Event()
        self._last_write = 0.0

    async def open(self) -> None:
        """Send the status and the headers."""
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # a proxy in front must not gather events
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._opened.set()

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

    async def keep_alive(self) -> None:
        """Break every long silence with a comment, for ever, so that nothing on the way gives the connection up."""
        await self._opened.wait()
        self._last_write = _now()
        while True:
            await asyncio.sleep(self._last_write + KEEP_ALIVE_SECONDS - _now())
            if _now() >= self._last_write + KEEP_ALIVE_SECONDS:
                await self._write(sse.KEEP_ALIVE)

    async def _write(self, data: bytes) -> None:
        self._last_write = _now()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})


async def _cancel_on_disconnect(receive: Receive, turn: Turn) -> None:
    """Cancel the turn as soon as the client goes away, streaming or not."""
    while (await receive())["type"] != "http.disconnect":
        pass
    turn.cancel()


def _now() -> float:
    return asyncio.get_running_loop().time()
