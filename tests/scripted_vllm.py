"""A server that speaks vLLM's protocol and says what a test has written down for it.

Forms of answers are those that the real vLLM 0.32 gives; `tests/e2e` holds both to the same expectations.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

KEY = "test-key"
MODEL = "/app/model"
USAGE = {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14, "prompt_tokens_details": {"cached_tokens": 4}}
KNOWN_FIELDS = "messages model max_tokens temperature top_p top_k ignore_eos tools documents chat_template_kwargs seed"

Act = bytes | float | None
"""Bytes to send, seconds to wait, or None: cut the connection."""


@dataclass
class Script:
    """What one chat request is answered with: acts one after another, under a status."""

    acts: list[Act]
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Seen:
    """A chat request as it arrived."""

    headers: dict[str, str]
    body: dict[str, Any]


def event(data: Any) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


DONE = b"data: [DONE]\n\n"


def delta(finish_reason: str | None = None, **members: Any) -> bytes:
    """One event with a piece of the message."""
    return event({"choices": [{"index": 0, "delta": members, "finish_reason": finish_reason}]})


def stream_of(*pieces: str, gap: float = 0.0, usage: Any = USAGE, finish_reason: str = "stop") -> Script:
    """A stream that says the pieces and ends well."""
    acts: list[Act] = [delta(role="assistant", content="")]
    for piece in pieces:
        acts += [gap, delta(content=piece)] if gap else [delta(content=piece)]
    acts.append(delta(finish_reason, content=""))
    if usage:
        acts.append(event({"choices": [], "usage": usage}))
    return streamed([*acts, DONE])


def streamed(acts: Iterable[Act]) -> Script:
    """A stream of any acts."""
    return Script(list(acts), media_type="text/event-stream")


def whole(text: str | None, *, usage: Any = USAGE, finish_reason: str = "stop", **members: Any) -> Script:
    """A JSON answer."""
    message = {"role": "assistant", "content": text, **members}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Script([json.dumps({"choices": [choice], "usage": usage}, ensure_ascii=False).encode()])


def hanging(*pieces: str) -> Script:
    """A stream that says the pieces and then nothing for a long time."""
    return streamed([*(delta(content=piece) for piece in pieces), 60.0])


def refusal(status: int, message: str, **headers: str) -> Script:
    """An error as vLLM words it."""
    error = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return Script([json.dumps(error).encode()], status=status, headers=headers)


def openapi(known_fields: Iterable[str]) -> bytes:
    """As much of /openapi.json as matters."""
    properties: dict[str, Any] = {name: {} for name in known_fields}
    return json.dumps({"components": {"schemas": {"ChatCompletionRequest": {"properties": properties}}}}).encode()


class ScriptedVLLM:
    """The server. Without a script a chat is answered with «Ответ N.» in the form that was asked for.

    Attributes:
        scripts: answers for the next chats, first come first served.
        seen: chats so far.
        sent_bytes: of the bodies of chats, as far as clients have taken them.
        running: chats whose connection is open, as `vllm:num_requests_running`.
        key: what it asks for; None accepts all.
        max_model_len: what /v1/models says.
        healthy: whether /health answers 200.
        health_delay: seconds that it takes to.
        clock_ahead: seconds by which its clock is ahead of everybody else's; None: as it is, right.
        openapi: the body of /openapi.json.
        models_script: replaces the answer of /v1/models.
        models_delay: seconds that it takes.
        counter: finds the prompt tokens of a body with `messages` or a `prompt`; with it, they are in `usage`, prompts
            that are too long are refused, and /tokenize answers.
        tokens_done: what /metrics counts; None: there is no /metrics.
        tokens_per_look: how many more at every look.
        tokenizes: whether it does; a server in between may let through /v1 only.
        tokenized: bodies that /tokenize was asked about.
        tokenize_delay: seconds that it takes to answer.
        tokenize_texts_status: what it answers about a text that is no conversation.
    """

    def __init__(self) -> None:
        self.scripts: deque[Script] = deque()
        self.seen: list[Seen] = []
        self.running = 0
        self.sent_bytes = 0
        self.key: str | None = KEY
        self.max_model_len = 8192
        self.healthy = True
        self.health_delay = 0.0
        self.clock_ahead: float | None = None
        self.openapi = openapi(KNOWN_FIELDS.split())
        self.models_script: Script | None = None
        self.models_delay = 0.0
        self.counter: Callable[[dict[str, Any]], int] | None = None
        self.tokens_done: int | None = None
        self.tokens_per_look = 0
        self.tokenizes = True
        self.tokenize_texts_status = 200
        self.tokenized: list[dict[str, Any]] = []
        self.tokenize_delay = 0.0
        self.app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/openapi.json", self._openapi),
                Route("/version", self._version),
                Route("/metrics", self._metrics),
                Route("/v1/models", self._models),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/v1/chat/completions", _Chat(self)),
            ]
        )

    def said(self, number: int = -1) -> list[str]:
        """The texts of a chat, without the system prompt."""
        messages = self.seen[number].body["messages"]
        return [message["content"] for message in messages if message["role"] != "system"]

    def admits(self, request: Request) -> bool:
        """Whether the request bears the key."""
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    def next_script(self, body: dict[str, Any]) -> Script:
        """What the next chat is answered with."""
        if self.scripts:
            return self.scripts.popleft()
        usage: dict[str, Any] = USAGE
        if self.counter is not None:
            prompt_tokens = self.counter(body)
            if prompt_tokens >= self.max_model_len:
                length = f"This model's maximum context length is {self.max_model_len} tokens."
                return refusal(400, f"{length} However, your prompt contains {prompt_tokens} input tokens")
            usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 3, "total_tokens": prompt_tokens + 3}
        words = ["Ответ", " ", f"{len(self.seen)}."]
        return stream_of(*words, usage=usage) if body.get("stream") else whole("".join(words), usage=usage)

    async def _health(self, _: Request) -> Response:
        await asyncio.sleep(self.health_delay)
        headers = {} if self.clock_ahead is None else {"Date": formatdate(time.time() + self.clock_ahead, usegmt=True)}
        return Response(status_code=200 if self.healthy else 503, headers=headers)

    async def _openapi(self, _: Request) -> Response:
        return Response(self.openapi, media_type="application/json")

    async def _version(self, _: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def _metrics(self, _: Request) -> Response:
        if self.tokens_done is None:
            return JSONResponse({"detail": "Not Found"}, 404)
        self.tokens_done += self.tokens_per_look
        labels = '{engine="0",model_name="/app/model"}'
        return PlainTextResponse(f"vllm:generation_tokens_total{labels} {self.tokens_done:.1f}\n")

    async def _tokenize(self, request: Request) -> Response:
        if self.counter is None or not self.tokenizes:
            return JSONResponse({"detail": "Not Found"}, 404)
        body = await request.json()
        self.tokenized.append(body)
        await asyncio.sleep(self.tokenize_delay)
        status = self.tokenize_texts_status if "prompt" in body else 200
        return JSONResponse({"count": self.counter(body), "max_model_len": self.max_model_len, "tokens": []}, status)

    async def _models(self, request: Request) -> Response:
        await asyncio.sleep(self.models_delay)
        if not self.admits(request):
            return JSONResponse({"error": "Unauthorized"}, 401)
        if self.models_script is not None:
            act = self.models_script.acts[0]
            assert isinstance(act, bytes)
            return Response(act, self.models_script.status)
        return JSONResponse({"object": "list", "data": [{"id": MODEL, "max_model_len": self.max_model_len}]})


class _Chat:
    def __init__(self, vllm: ScriptedVLLM) -> None:
        self._vllm = vllm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if not self._vllm.admits(request):
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
            return
        body = await request.json()
        self._vllm.seen.append(Seen(dict(request.headers), body))
        script = self._vllm.next_script(body)
        self._vllm.running += 1
        play = asyncio.create_task(self._play(script, send))
        leave = asyncio.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait([play, leave], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._vllm.running -= 1
            play.cancel()
            leave.cancel()

    async def _play(self, script: Script, send: Send) -> None:
        await asyncio.sleep(script.delay)
        headers = {"content-type": script.media_type, **script.headers}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": script.status, "headers": raw})
        for act in script.acts:
            match act:
                case None:
                    return  # without the end of the body: uvicorn cuts the connection
                case bytes():
                    await send({"type": "http.response.body", "body": act, "more_body": True})
                    self._vllm.sent_bytes += len(act)
                case _:
                    await asyncio.sleep(act)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
