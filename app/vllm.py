"""Everything that is said to vLLM, and what its answers mean."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

import msgspec
from pydantic import SecretStr

from app import sse
from app.config import Settings
from app.connection import ConnectionBroken, ConnectionPool, NotConnected, Response, ServerSilent
from app.context import ChatMessage
from app.errors import (
    SEE_VLLM_LOG,
    GatewayError,
    InvalidKey,
    InvalidRequest,
    KeyRejected,
    RateLimited,
    RequestRejected,
    UpstreamBroken,
    UpstreamError,
    UpstreamErrorEvent,
    UpstreamGarbage,
    UpstreamHTTPError,
    UpstreamTimeout,
    UpstreamUnavailable,
)

MAX_EVENT_BYTES = 1024 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024

_CHAT = "/v1/chat/completions"
_PROBE_SECONDS = 1.0
_QUESTION_SECONDS = 30.0
_TOKENIZE_SECONDS = 5.0
_KEY = re.compile(r"[!-~]{1,4096}")  # more, and the server may refuse the header
_DONE = b"[DONE]"
_TOKENS_DONE = re.compile(rb"^vllm:(?:prompt|generation)_tokens_total(?:\{[^\n]*\})? ([0-9.e+]+)$", re.MULTILINE)
_END_SECONDS = 0.05
_WORDS_SECONDS = 1.0
_MAX_WORDS_BYTES = 256 * 1024
# What a body that is not what it should be makes of a decoder.
_GARBAGE = (msgspec.DecodeError, ValueError, RecursionError)

_NO_KEY = "Ключ пуст: в vllm_api_key нужен VLLM_API_KEY, с которым запущен vLLM. Может быть, пуста переменная с ним."
_UNSENDABLE_KEY = (
    "Такой ключ не передать: допустимы латинские буквы, цифры и знаки ASCII без пробелов, не больше 4096. "
    "Если с ним запущен vLLM, задайте другой VLLM_API_KEY и перезапустите стенд."
)
_NOT_THERE = (
    "vLLM не отвечает по адресу {url}: он ещё загружает модель, не запущен, или VLLM_BASE_URL неверен. " + SEE_VLLM_LOG
)

_TRANSPORT_ERRORS: dict[type[Exception], tuple[type[GatewayError], str | None]] = {
    NotConnected: (UpstreamUnavailable, _NOT_THERE),
    ConnectionBroken: (UpstreamBroken, f"vLLM оборвал соединение посреди ответа. {SEE_VLLM_LOG}"),
    ServerSilent: (UpstreamTimeout, None),
    TimeoutError: (UpstreamTimeout, None),
}
_FOREIGN = tuple(_TRANSPORT_ERRORS)


# More is garbage, which arithmetic on it would carry on.
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


class FunctionCall(msgspec.Struct):
    """A tool call's function; in a stream `arguments` comes in pieces."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or in a stream a piece of the one with this `index`."""

    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: FunctionCall = msgspec.field(default_factory=FunctionCall)


class Message(msgspec.Struct):
    """What the model says: a whole message, or in a stream the next piece of it."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None

    def __post_init__(self) -> None:
        """`reasoning_content` is the older name of `reasoning`."""
        self.reasoning = self.reasoning or self.reasoning_content


class Choice(msgspec.Struct):
    """The one choice: `message` in a JSON answer, `delta` in a stream."""

    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None


class PromptTokensDetails(msgspec.Struct):
    """vLLM started with --enable-prompt-tokens-details tells how many prompt tokens came from its prefix cache."""

    cached_tokens: _Count | None = None


class Usage(msgspec.Struct):
    """vLLM's own token counts."""

    prompt_tokens: _Count
    total_tokens: _Count
    completion_tokens: _Count | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class Answer(msgspec.Struct):
    """vLLM's JSON answer, or one event of its stream. The last event of a stream has usage and no choices."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class ServedModel(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    max_model_len: _Count | None = None


class ModelList(msgspec.Struct):
    """The answer of /v1/models."""

    data: list[ServedModel]


class Tokenized(msgspec.Struct):
    """The answer of /tokenize."""

    count: _Count
    max_model_len: _Count | None = None


class Version(msgspec.Struct):
    """The answer of /version."""

    version: str


@dataclass(frozen=True, slots=True)
class RequestSchema:
    """The form of vLLM's chat requests, as far as versions differ.

    Attributes:
        fields: names that it knows; empty where they could not be read.
        knows_strict_tools: a tool's `strict` and `defer_loading` are shown to the model, names unknown to vLLM are not;
            before, it was all that was given.
        effort_sets_thinking: `reasoning_effort` also sets the template's `enable_thinking`.
    """

    fields: frozenset[str] = frozenset()
    knows_strict_tools: bool = True
    effort_sets_thinking: bool = True


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_models = msgspec.json.Decoder(ModelList).decode
_decode_tokenized = msgspec.json.Decoder(Tokenized).decode
_decode_version = msgspec.json.Decoder(Version).decode


class VLLMClient:
    """One vLLM server. Every error it raises is a GatewayError.

    Attributes:
        model: the name under which it serves.
        schema: the form of its chat requests, as last learnt.
        max_model_len: tokens of prompt and answer together that it takes, as last told; 0 until then.
        total_timeout_seconds: for a whole answer.
    """

    def __init__(self, settings: Settings) -> None:
        self.schema = RequestSchema()
        self.max_model_len = 0
        self._base_url = settings.vllm_base_url
        self.model = settings.vllm_model_name
        self.total_timeout_seconds = settings.vllm_total_timeout_seconds
        self._idle_seconds = settings.vllm_idle_timeout_seconds
        self._root_path = quote(urlsplit(settings.vllm_root_url).path, safe="/%")
        self._pool = ConnectionPool(settings.vllm_root_url, settings.vllm_connect_timeout_seconds)

    def close(self) -> None:
        """Close the connections that nobody uses."""
        self._pool.close()

    async def probe(self) -> None:
        """Ask whether the server lives; takes at most a second.

        Raises:
            UpstreamUnavailable, UpstreamTimeout, UpstreamError: it does not.
        """
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._get("/health")
        except TimeoutError:
            raise UpstreamTimeout(f"vLLM не ответил за {_PROBE_SECONDS:g} с: он загружает модель или завис.") from None

    async def ailment(self) -> str | None:
        """Why the server does not answer, in Russian; None where it does."""
        try:
            await self.probe()
        except GatewayError as exc:
            return exc.detail
        return None

    async def prove_key(self, key: SecretStr) -> None:
        """Show the key to the server, which also tells the served model's length.

        Raises:
            InvalidKey: vLLM refuses the key, or it cannot be put into a header.
            Upstream: vLLM is unreachable, fails, or does not serve VLLM_MODEL_NAME.
        """
        if not key.get_secret_value():
            raise InvalidKey(_NO_KEY)
        if not _KEY.fullmatch(key.get_secret_value()):
            raise InvalidKey(_UNSENDABLE_KEY)
        body = await self._get("/v1/models", _authorization(key))
        try:
            served = {model.id: model.max_model_len for model in _decode_models(body).data}
        except _GARBAGE as exc:
            detail = f"{self._base_url}/models отвечает не так, как vLLM: проверьте VLLM_BASE_URL."
            raise UpstreamGarbage(detail) from exc
        # An adapter (LoRA) has no length of its own: it is as long as the model that it sits on.
        length = served.get(self.model) or max((known or 0 for known in served.values()), default=0)
        if self.model not in served or not length:
            raise UpstreamGarbage(
                f"vLLM не обслуживает модель {self.model}; у него есть: {', '.join(served) or 'ничего'}. "
                "Имя задают VLLM_MODEL_NAME у шлюза и --served-model-name у vLLM."
            )
        self.max_model_len = length

    async def accepts_any_key(self) -> bool:
        """Whether the server was started without a key."""
        try:
            await self._get("/v1/models")
        except InvalidKey:
            return False
        return True

    async def learn_schema(self) -> None:
        """Read the form of its chat requests in its own /openapi.json; where that fails, take the newest known one."""
        try:
            schemas = json.loads(await self._get("/openapi.json"))["components"]["schemas"]
            properties = schemas["ChatCompletionRequest"]["properties"]
            # Where several modules have a class of that name, FastAPI puts the modules' names before it.
            functions = [schemas[name] for name in schemas if name.endswith("FunctionDefinition")]
            learnt = RequestSchema(
                fields=frozenset(properties),
                knows_strict_tools=not functions or any("strict" in function["properties"] for function in functions),
                # "none" came to the efforts shortly before.
                effort_sets_thinking="reasoning_effort" not in properties
                or '"none"' in json.dumps(properties["reasoning_effort"]),
            )
        except (GatewayError, LookupError, TypeError, *_GARBAGE):
            learnt = RequestSchema()
        self.schema = learnt

    async def tokens_done(self) -> float | None:
        """Tokens that it has read and written since its start, by its own metrics; None where it does not tell."""
        try:
            found = _TOKENS_DONE.findall(await self._get("/metrics"))
        except GatewayError:
            return None
        return sum(map(float, found)) if found else None

    async def version(self) -> str:
        """Its own version; empty where it does not tell."""
        try:
            return _decode_version(await self._get("/version")).version
        except (GatewayError, *_GARBAGE):
            return ""

    async def clock(self) -> float | None:
        """When it is by its own clock, in seconds since 1970; None where it does not tell."""
        try:
            with _translated(self._base_url):
                path = self._root_path + "/health"
                with closing(await self._pool.request("GET", path, {}, b"", _PROBE_SECONDS)) as response:
                    return parsedate_to_datetime(response.headers.get("date", "")).timestamp()
        except (GatewayError, ValueError):
            return None

    async def count_messages(
        self, messages: Sequence[ChatMessage], tools: object, template_arguments: Mapping[str, Any]
    ) -> int:
        """Tokens of a prompt as vLLM itself counts them, generation prompt included.

        Args:
            messages: of the chat request.
            tools: its `tools`, None for none.
            template_arguments: what else its template is given.

        Raises:
            Upstream, BadRequest: it does not say.
        """
        question: dict[str, Any] = {"messages": messages, "chat_template_kwargs": template_arguments}
        return await self._tokenize(question if tools is None else question | {"tools": tools})

    async def count_text(self, text: str) -> int:
        """Tokens of a text as it is, by vLLM's own tokenizer. Raises as `count_messages`."""
        return await self._tokenize({"prompt": text, "add_special_tokens": False})

    async def _tokenize(self, question: Mapping[str, Any]) -> int:
        try:
            async with asyncio.timeout(_TOKENIZE_SECONDS):
                with _translated(self._base_url):
                    response = await self._post("/tokenize", {"model": self.model, **question}, {}, _TOKENIZE_SECONDS)
                    tokenized = _decode_tokenized(await _read_ok(response))
        except TimeoutError:
            raise UpstreamTimeout(f"vLLM не ответил на /tokenize за {_TOKENIZE_SECONDS:g} с.") from None
        except _GARBAGE as exc:
            raise UpstreamGarbage("Ответ vLLM на /tokenize не разбирается.") from exc
        self.max_model_len = tokenized.max_model_len or self.max_model_len
        return tokenized.count

    async def complete(self, request: Mapping[str, Any], key: SecretStr, headers: Mapping[str, str]) -> Answer:
        """Ask for a whole answer as JSON. How long that may take in all is up to the caller.

        Args:
            request: the body, without what this method sets.
            key: the session's.
            headers: further ones.
        """
        with _translated(self._base_url):
            headers = {**_authorization(key), **headers}
            response = await self._post(_CHAT, request, headers, self.total_timeout_seconds)
            answer = _decode(await _read_ok(response))
        if not answer.choices or answer.choices[0].message is None:
            raise UpstreamGarbage("В ответе vLLM нет сообщения модели.")
        return answer

    @asynccontextmanager
    async def stream(
        self, request: Mapping[str, Any], key: SecretStr, headers: Mapping[str, str]
    ) -> AsyncIterator["AnswerStream"]:
        """Ask for a stream; entered once vLLM's headers are here, closed at once on leaving."""
        streamed = {**request, "stream": True, "stream_options": {"include_usage": True}}
        headers = {**_authorization(key), **headers}
        with _translated(self._base_url):
            response = await self._post(_CHAT, streamed, headers, self._idle_seconds)
            if response.status != 200:
                await _read_ok(response)
        with closing(response):
            yield AnswerStream(response, self._base_url)

    async def _get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The body of a 200."""
        with _translated(self._base_url):
            async with asyncio.timeout(_QUESTION_SECONDS):
                path = self._root_path + path
                return await _read_ok(await self._pool.request("GET", path, headers or {}, b"", _QUESTION_SECONDS))

    async def _post(
        self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], idle_seconds: float
    ) -> Response:
        """Send JSON; of the response the status and the headers are here. To be closed."""
        headers = {**headers, "Content-Type": "application/json"}
        return await self._pool.request("POST", self._root_path + path, headers, _json(body), idle_seconds)


class AnswerStream:
    """vLLM's answer as it comes."""

    def __init__(self, response: Response, url: str) -> None:
        """`url` is the server's, for errors."""
        self._response = response
        self._url = url
        self._decoder = sse.Decoder(MAX_EVENT_BYTES)
        self._done = False
        self._failure: tuple[type[UpstreamError], str] | None = None

    async def read(self) -> list[Answer]:
        """The next events, all that came with one read; empty at the end.

        Raises:
            Upstream: vLLM broke the answer off; what had come before was returned.
        """
        while not self._done:
            if self._failure is not None:
                error, detail = self._failure
                raise error(detail)
            try:
                received = await self._response.read()
            except _FOREIGN as exc:
                raise _ours(exc, self._url) from exc
            if not received:
                return []
            answers = self._decode(received)
            if answers:
                return answers
        await self._read_to_the_end()
        return []

    def _decode(self, received: bytes) -> list[Answer]:
        """The events of one read, up to the end or to one that is no answer."""
        answers: list[Answer] = []
        try:
            for event in self._decoder.feed(received):
                if event == _DONE:
                    self._done = True
                    break
                answers.append(_decode(event))
        except sse.EventTooLarge:
            self._failure = UpstreamGarbage, f"Событие в потоке vLLM больше {MAX_EVENT_BYTES} байт."
        except UpstreamError as exc:
            self._failure = type(exc), exc.detail  # itself it would hold the frames that hold this
        return answers

    async def _read_to_the_end(self) -> None:
        """What may follow the last event, so that the connection can be used again."""
        if not self._response.at_end():
            with suppress(*_FOREIGN):
                async with asyncio.timeout(_END_SECONDS):
                    while await self._response.read():
                        pass


async def _read_ok(response: Response) -> bytes:
    """The body of a 200; the response is closed then."""
    read = bytearray()
    with closing(response):
        if response.status != 200:
            raise _refusal(response, await _read_words(response))
        while received := await response.read():
            read += received
            if len(read) > MAX_ANSWER_BYTES:
                raise UpstreamGarbage(f"Ответ vLLM больше {MAX_ANSWER_BYTES} байт.")
    return bytes(read)


async def _read_words(response: Response) -> bytes:
    """The body of a refusal as far as it comes soon: the status says what has happened, the body only adds words."""
    read = bytearray()
    with suppress(*_FOREIGN):
        async with asyncio.timeout(_WORDS_SECONDS):
            while len(read) < _MAX_WORDS_BYTES and (received := await response.read()):
                read += received
    return bytes(read)


def _decode(data: bytes) -> Answer:
    try:
        answer = _decode_answer(data)
    except _GARBAGE:
        raise UpstreamGarbage("Ответ vLLM не разбирается: это не тот JSON, который обещает его API.") from None
    if answer.error is not None:
        raise UpstreamErrorEvent(f"vLLM прервал ответ из-за своей ошибки. {SEE_VLLM_LOG}")
    return answer


def _json(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except RecursionError:  # checked when the request came, but the stack was not as deep then
        raise InvalidRequest("Поле extra: слишком глубокая вложенность.", field="extra") from None


def _authorization(key: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.get_secret_value()}"}


def _refusal(response: Response, body: bytes) -> GatewayError:
    """The error for a status other than 200."""
    status = response.status
    if status in {401, 403}:
        return KeyRejected()
    if status in {400, 422}:
        return RequestRejected(f"vLLM отклонил запрос: {_own_words(body) or f'HTTP {status}'}")
    if status == 429:
        return RateLimited(retry_after=_retry_after(response))
    if status == 404:
        words = _own_words(body) or "Проверьте VLLM_BASE_URL."
        return UpstreamHTTPError(f"vLLM не знает такой модели или адреса. {words}")
    return UpstreamHTTPError(f"vLLM ответил ошибкой {status}. {SEE_VLLM_LOG}")


def _own_words(body: bytes) -> str:
    """vLLM's message without the values it echoes, which may be the user's text; empty where there is none."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (LookupError, TypeError, *_GARBAGE):
        return ""
    return re.sub(r"(, 'input': |\binput_value=).*", "…", message)[:1000]


def _retry_after(response: Response) -> int:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isdecimal() and len(value) < 6 else 1


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Turn errors of the connection to a server at `url` into ours."""
    try:
        yield
    except _FOREIGN as exc:
        raise _ours(exc, url) from exc


def _ours(exc: Exception, url: str) -> GatewayError:
    error, detail = _TRANSPORT_ERRORS[type(exc)]
    return error(detail and detail.format(url=url))
