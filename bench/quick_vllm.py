"""An upstream that is faster than anything in front of it: `python -m bench.quick_vllm PORT`.

Speaks as much of vLLM's protocol as the gateway and its peers need, over bare sockets on uvloop, and computes nothing:
every reply is a number of its own and then the same piece again and again, one a token. A stream's tokens are paced as
an engine paces them: in steps, each of which gives every stream in flight its next token. `usage.prompt_tokens` is 1,
less than any gateway can count.
"""

import argparse
import asyncio
import json
from functools import cache
from itertools import count
from typing import Any, Literal, cast

import httptools
import uvloop

MODEL = "/app/model"
MAX_MODEL_LEN = 8192
TOKENS_PER_SECOND = 50
REPLY_TOKENS = 100
PIECE = " word"
"""A token of every reply; nothing else that goes over the wire contains it."""

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"
_NUMBER = "##########"
_ID = f"0123456789abcdef012345{_NUMBER}"

_numbers = count()

Form = Literal["chat", "responses"]


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    uvloop.run(serve(parser.parse_args().port))


async def serve(port: int) -> None:
    """Listen on loopback, and give all streams a token at every step."""
    steps = Steps()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(steps), "127.0.0.1", port, backlog=4096)
    async with server:
        await steps.run()


class Stream:
    """One reply that is being streamed."""

    def __init__(self, transport: asyncio.WriteTransport, form: Form, tokens: int) -> None:
        number = next(_numbers)
        self._transport = transport
        self._left = tokens
        self._beginning = _numbered(_first_chunks(form), number)
        self._token = _numbered(_token_chunk(form), number)
        self._end = _numbered(_last_chunks(form), number)
        transport.write(_HEAD % (b"text/event-stream; charset=utf-8", b"transfer-encoding: chunked"))

    def step(self) -> bool:
        """Send the next token; False once that was the last one, or there is nobody to send to."""
        if self._transport.is_closing():
            return False
        self._left -= 1
        chunk = self._beginning + self._token
        self._beginning = b""
        if self._left > 0:
            self._transport.write(chunk)
            return True
        self._transport.write(chunk + self._end + _LAST_CHUNK)
        return False


class Steps:
    """The engine's clock."""

    def __init__(self) -> None:
        self._streams: list[Stream] = []

    def add(self, stream: Stream) -> None:
        """Give a stream its first token at the next step."""
        self._streams.append(stream)

    async def run(self) -> None:
        """Step for ever; a step that took longer than its time is followed by the next at once."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + 1 / TOKENS_PER_SECOND, loop.time())
            await asyncio.sleep(due - loop.time())
            streams, self._streams = self._streams, []
            self._streams += [stream for stream in streams if stream.step()]


class Connection(asyncio.Protocol):
    """A client's connection; answers one request after the other."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's own class does not inherit from it

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """See httptools."""
        self._url = url

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See httptools: a request is here."""
        body = b"".join(self._body)
        self._body.clear()
        match self._url:
            case b"/v1/chat/completions":
                self._reply("chat", body)
            case b"/v1/responses":
                self._reply("responses", body)
            case _:
                self._transport.write(_PLAIN.get(self._url, _NOT_FOUND))

    def _reply(self, form: Form, body: bytes) -> None:
        # Looked for, not parsed: this must cost less than what is measured.
        if b'"stream":true' in body or b'"stream": true' in body:
            self._steps.add(Stream(self._transport, form, asked_tokens(body)))
        else:
            self._transport.write(_numbered(_whole_answer(form), next(_numbers)))


def asked_tokens(body: bytes) -> int:
    """How long a streamed reply shall be: its `max_tokens`, or what `/v1/responses` calls so."""
    for name in (b'"max_tokens":', b'"max_output_tokens":'):
        _, found, rest = body.partition(name)
        if found:
            return int(rest.lstrip()[:6].partition(b",")[0].partition(b"}")[0])
    return REPLY_TOKENS


def _numbered(answer: bytes, number: int) -> bytes:
    """With a number in its text and its ids, so that no reply was ever seen before."""
    return answer.replace(_NUMBER.encode(), b"%010d" % number)


def _json(status: str, body: Any) -> bytes:
    content = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


def _usage(form: Form) -> dict[str, Any]:
    if form == "chat":
        return {"prompt_tokens": 1, "total_tokens": 1 + REPLY_TOKENS, "completion_tokens": REPLY_TOKENS}
    return {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": REPLY_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 1 + REPLY_TOKENS,
    }


def _output_item(text: str | None) -> dict[str, Any]:
    content = [] if text is None else [{"type": "output_text", "text": text, "annotations": []}]
    status = "in_progress" if text is None else "completed"
    return {"id": f"msg_{_ID}", "type": "message", "status": status, "role": "assistant", "content": content}


def _response(text: str | None) -> dict[str, Any]:
    """The object of /v1/responses; None: it has only begun."""
    return {
        "id": f"resp_{_ID}",
        "object": "response",
        "created_at": 1700000000,
        "status": "in_progress" if text is None else "completed",
        "model": MODEL,
        "output": [] if text is None else [_output_item(text)],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": None if text is None else _usage("responses"),
    }


def _chunk_object(**members: Any) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{_ID}",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": MODEL,
        **members,
    }


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason, "token_ids": None}
    return _chunk_object(choices=[choice])


@cache
def _whole_answer(form: Form) -> bytes:
    text = _NUMBER + PIECE * REPLY_TOKENS
    if form == "responses":
        return _json("200 OK", _response(text))
    message: dict[str, Any] = {"role": "assistant", "content": text, "tool_calls": [], "reasoning": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    answer = {"id": f"chatcmpl-{_ID}", "object": "chat.completion", "created": 1700000000, "model": MODEL}
    return _json("200 OK", answer | {"choices": [choice], "usage": _usage("chat")})


def _events(form: Form, *events: dict[str, Any]) -> bytes:
    """Each event in a chunk of its own, as vLLM's server sends them."""
    chunks = []
    for event in events:
        name = f"event: {event['type']}\n" if form == "responses" else ""
        data = f"{name}data: {json.dumps(event, separators=(',', ':'))}\n\n".encode()
        chunks.append(b"%x\r\n%b\r\n" % (len(data), data))
    return b"".join(chunks)


@cache
def _first_chunks(form: Form) -> bytes:
    if form == "chat":
        return _events(form, _delta({"role": "assistant", "content": _NUMBER}))
    part = {"type": "output_text", "text": "", "annotations": []}
    return _events(
        form,
        {"type": "response.created", "sequence_number": 0, "response": _response(None)},
        {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": _output_item(None)},
        _output_event("response.content_part.added", part=part),
        _output_event("response.output_text.delta", delta=_NUMBER, logprobs=[]),
    )


@cache
def _token_chunk(form: Form) -> bytes:
    if form == "chat":
        return _events(form, _delta({"content": PIECE}))
    return _events(form, _output_event("response.output_text.delta", delta=PIECE, logprobs=[]))


@cache
def _last_chunks(form: Form) -> bytes:
    if form == "chat":
        done = b"data: [DONE]\n\n"
        end = _events(form, _delta({"content": ""}, "stop"), _chunk_object(choices=[], usage=_usage("chat")))
        return end + b"%x\r\n%b\r\n" % (len(done), done)
    text = PIECE.strip()
    item = {"type": "response.output_item.done", "sequence_number": 9, "output_index": 0, "item": _output_item(text)}
    return _events(
        form,
        _output_event("response.output_text.done", text=text, logprobs=[]),
        item,
        {"type": "response.completed", "sequence_number": 10, "response": _response(text)},
    )


def _output_event(kind: str, **members: Any) -> dict[str, Any]:
    where = {"sequence_number": 2, "item_id": f"msg_{_ID}", "output_index": 0, "content_index": 0}
    return {"type": kind, **where, **members}


_FIELDS = ("model", "messages", "max_tokens", "temperature", "ignore_eos")
_CHAT_REQUEST: dict[str, Any] = {"properties": {name: {} for name in _FIELDS}}
_PLAIN = {
    b"/health": _json("200 OK", {}),
    b"/version": _json("200 OK", {"version": "0.32.0"}),
    b"/v1/models": _json("200 OK", {"object": "list", "data": [{"id": MODEL, "max_model_len": MAX_MODEL_LEN}]}),
    b"/openapi.json": _json("200 OK", {"components": {"schemas": {"ChatCompletionRequest": _CHAT_REQUEST}}}),
}
_NOT_FOUND = _json("404 Not Found", {"error": {"message": "Not Found", "type": "NotFoundError", "code": 404}})

if __name__ == "__main__":
    main()
