"""One client's conversation, as each kind of server wants it led."""

import json
import random
from itertools import count
from typing import Protocol

from bench.load import Connection
from bench.quick_vllm import MODEL, PIECE
from bench.texts import words

KEY = "sk-bench"
MAX_TOKENS = 512
# The mean of what people ask, in LMSYS-Chat-1M (arxiv.org/abs/2309.11998): some 70 tokens.
QUESTION_WORDS = 35
_TEXTS = 200


class Talk(Protocol):
    """One client's conversation with one server."""

    async def begin(self) -> None:
        """Forget what was said before."""

    async def turn(self) -> None:
        """Say something and wait for the whole answer."""

    async def stream(self, tokens: int) -> None:
        """Say something and receive a reply of so many tokens."""


class Questions:
    """Messages, no two of them the same, already as JSON."""

    def __init__(self) -> None:
        chooser = random.Random(0)  # noqa: S311 - the same ones every time
        self._texts = [json.dumps(words(chooser, QUESTION_WORDS), ensure_ascii=False)[1:] for _ in range(_TEXTS)]
        self._numbers = count()

    def next(self) -> bytes:
        """The next one, in quotes."""
        number = next(self._numbers)
        return f'"{number} {self._texts[number % _TEXTS]}'.encode()


QUESTIONS = Questions()


class GatewayTalk:
    """A session of ours."""

    def __init__(self, connection: Connection, key: str = KEY, piece: str = PIECE, more: str = "") -> None:
        """`piece` begins every event's text, `more` is added to every request."""
        self._connection = connection
        self._key = key
        self._marker = f'"text":"{piece}'.encode()
        self._more = more.encode()
        self._session_id = b""

    async def begin(self) -> None:
        """See Talk."""
        if self._session_id:
            await self._connection.post("/reset", b'{"session_id":"%b"}' % self._session_id)
            return
        opened = await self._connection.post("/init_session", b'{"vllm_api_key":"%b"}' % self._key.encode())
        self._session_id = json.loads(opened)["session_id"].encode()

    async def turn(self) -> None:
        """See Talk."""
        await self._connection.post("/chat", self._body(MAX_TOKENS))

    async def stream(self, tokens: int) -> None:
        """See Talk."""
        await self._connection.stream("/chat", self._body(tokens, b',"stream":true'), self._marker)

    def _body(self, max_tokens: int, more: bytes = b"") -> bytes:
        return b'{"session_id":"%b","message":%b,"max_tokens":%d%b%b}' % (
            self._session_id,
            QUESTIONS.next(),
            max_tokens,
            self._more,
            more,
        )


class CompletionsTalk:
    """A talk through /v1/chat/completions: the client keeps the history and sends it every time."""

    _SYSTEM = b'{"role":"system","content":"You are a helpful assistant."}'

    def __init__(self, connection: Connection, key: str = KEY, piece: str = PIECE, more: str = "") -> None:
        """`piece` begins every event's text, `more` is added to every request."""
        self._connection = connection
        self._headers = f"Authorization: Bearer {key}\r\n"
        self._marker = f'"content":"{piece}'.encode()
        self._more = more.encode()
        self._messages = self._SYSTEM

    async def begin(self) -> None:
        """See Talk."""
        self._messages = self._SYSTEM

    async def turn(self) -> None:
        """See Talk."""
        answer = await self._connection.post("/v1/chat/completions", self._body(MAX_TOKENS), self._headers)
        reply = answer.partition(b'"content":"')[2].partition(b'"')[0]
        self._messages += b',{"role":"assistant","content":"%b"}' % reply

    async def stream(self, tokens: int) -> None:
        """See Talk."""
        body = self._body(tokens, b',"stream":true,"stream_options":{"include_usage":true}')
        await self._connection.stream("/v1/chat/completions", body, self._marker, self._headers)

    def _body(self, max_tokens: int, more: bytes = b"") -> bytes:
        self._messages += b',{"role":"user","content":%b}' % QUESTIONS.next()
        return b'{"model":"%b","messages":[%b],"max_tokens":%d%b%b}' % (
            MODEL.encode(),
            self._messages,
            max_tokens,
            self._more,
            more,
        )


class ResponsesTalk:
    """A talk through /v1/responses, whose history the server keeps."""

    _MARKER = b'"delta":"%b"' % PIECE.encode()
    _HEADERS = f"Authorization: Bearer {KEY}\r\n"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._previous = b""

    async def begin(self) -> None:
        """See Talk."""
        self._previous = b""

    async def turn(self) -> None:
        """See Talk."""
        answer = await self._connection.post("/v1/responses", self._body(MAX_TOKENS), self._HEADERS)
        self._previous = b',"previous_response_id":"%b"' % json.loads(answer)["id"].encode()

    async def stream(self, tokens: int) -> None:
        """See Talk."""
        await self._connection.stream(
            "/v1/responses", self._body(tokens, b',"stream":true'), self._MARKER, self._HEADERS
        )

    def _body(self, max_tokens: int, more: bytes = b"") -> bytes:
        return b'{"model":"%b","input":%b,"store":true,"max_output_tokens":%d%b%b}' % (
            MODEL.encode(),
            QUESTIONS.next(),
            max_tokens,
            self._previous,
            more,
        )
