"""Everything that is said to vLLM, and what its answers mean."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Self

import anyio
import httpx2
import msgspec

from app import sse
from app.config import Settings
from app.errors import (
    GatewayError,
    InvalidKey,
    TooManyRequests,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)

MAX_EVENT_BYTES = 1024 * 1024

# Shorter than the 5 s after which vLLM's uvicorn closes an idle connection, so that none is used as it closes.
_KEEP_ALIVE_SECONDS = 3.0
_PROBE_SECONDS = 1.0
_KEY = re.compile(r"[!-~]+")

# The first row that matches is the one; everything httpx2 raises about a request in flight is a RequestError.
_TRANSPORT_ERRORS: tuple[tuple[type[httpx2.RequestError], type[GatewayError], str | None], ...] = (
    (httpx2.ConnectError, UpstreamUnavailable, None),
    (httpx2.ConnectTimeout, UpstreamUnavailable, None),
    (httpx2.TimeoutException, UpstreamTimeout, None),
    (
        httpx2.RequestError,
        UpstreamError,
        "vLLM оборвал соединение посреди ответа. Посмотрите: docker compose logs vllm.",
    ),
)


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

    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    """vLLM's own token counts."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None


class Answer(msgspec.Struct):
    """vLLM's JSON answer, or one event of its stream. The last event of a stream has usage and no choices."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class ServedModel(msgspec.Struct):
    """One entry of /v1/models."""

    id: str
    max_model_len: int | None = None


class ModelList(msgspec.Struct):
    """The answer of /v1/models."""

    data: list[ServedModel]


_decode_answer = msgspec.json.Decoder(Answer).decode
_decode_models = msgspec.json.Decoder(ModelList).decode


class VLLMClient:
    """One vLLM server. Every error it raises is a GatewayError."""

    def __init__(self, settings: Settings) -> None:
        self._base_url = settings.vllm_base_url
        self._root_url = settings.vllm_root_url
        self.model = settings.vllm_model_name
        self.total_timeout_seconds = settings.vllm_total_timeout_seconds
        connect, idle = settings.vllm_connect_timeout_seconds, settings.vllm_idle_timeout_seconds
        self._json_timeout = httpx2.Timeout(idle, connect=connect, read=self.total_timeout_seconds, pool=None)
        self._http = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity"},
            timeout=httpx2.Timeout(idle, connect=connect, pool=None),
            limits=httpx2.Limits(max_keepalive_connections=256, keepalive_expiry=_KEEP_ALIVE_SECONDS),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def probe(self) -> None:
        """Ask whether the server lives; takes at most a second.

        Raises:
            UpstreamUnavailable, UpstreamTimeout, UpstreamError: it does not.
        """
        try:
            with anyio.fail_after(_PROBE_SECONDS), _translated():
                response = await self._http.get(f"{self._root_url}/health")
        except TimeoutError:
            raise UpstreamTimeout(f"vLLM не ответил за {_PROBE_SECONDS:g} с: он загружает модель или завис.") from None
        if response.status_code != 200:
            raise _refusal(response)

    async def ailment(self) -> str | None:
        """Why the server does not answer, in Russian; None where it does."""
        try:
            await self.probe()
        except GatewayError as exc:
            return exc.detail
        return None

    async def max_model_len(self, key: str) -> int:
        """Prove the key; returns the served model's length in tokens.

        Raises:
            InvalidKey: vLLM refuses the key, or it cannot be put into a header.
            Upstream: vLLM is unreachable, fails, or does not serve VLLM_MODEL_NAME.
        """
        if not _KEY.fullmatch(key):
            raise InvalidKey
        with _translated():
            response = await self._http.get(f"{self._base_url}/models", headers=_authorization(key))
        if response.status_code != 200:
            raise _refusal(response)
        try:
            served = {model.id: model.max_model_len for model in _decode_models(response.content).data}
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise UpstreamError(f"{self._base_url}/models отвечает не так, как vLLM: проверьте VLLM_BASE_URL.") from exc
        length = served.get(self.model)
        if length is None:
            raise UpstreamError(
                f"vLLM не обслуживает модель {self.model}; у него есть: {', '.join(served) or 'ничего'}. "
                "Имя задают VLLM_MODEL_NAME у шлюза и --served-model-name у vLLM."
            )
        return length

    async def accepts_any_key(self) -> bool:
        """Whether the server was started without a key."""
        with _translated():
            return (await self._http.get(f"{self._base_url}/models")).status_code == 200

    async def request_fields(self) -> frozenset[str]:
        """Names that its chat request knows, from its own /openapi.json; empty where that cannot be read."""
        try:
            with _translated():
                response = await self._http.get(f"{self._root_url}/openapi.json")
            return frozenset(response.json()["components"]["schemas"]["ChatCompletionRequest"]["properties"])
        except (GatewayError, ValueError, LookupError, TypeError):
            return frozenset()

    async def complete(self, request: Mapping[str, Any], key: str, headers: Mapping[str, str]) -> Answer:
        """Ask for a whole answer as JSON.

        Args:
            request: the body, without what this method sets.
            key: the session's.
            headers: further ones.
        """
        with _translated():
            response = await self._http.post(
                f"{self._base_url}/chat/completions",
                content=_body(request),
                headers={**_authorization(key), **headers, "Content-Type": "application/json"},
                timeout=self._json_timeout,
            )
        if response.status_code != 200:
            raise _refusal(response)
        answer = _decode(response.content)
        if not answer.choices or answer.choices[0].message is None:
            raise UpstreamError("В ответе vLLM нет сообщения модели.")
        return answer

    @asynccontextmanager
    async def stream(
        self, request: Mapping[str, Any], key: str, headers: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[list[Answer]]]:
        """Ask for a stream; entered once vLLM's headers are here, closed at once on leaving.

        Yields the events that came with each read, together. The iteration ends with the stream.
        """
        body = _body({**request, "stream": True, "stream_options": {"include_usage": True}})
        with _translated():
            async with self._http.stream(
                "POST",
                f"{self._base_url}/chat/completions",
                content=body,
                headers={**_authorization(key), **headers, "Content-Type": "application/json"},
            ) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise _refusal(response)
                async with aclosing(_events(response)) as events:
                    yield events


async def _events(response: httpx2.Response) -> AsyncGenerator[list[Answer]]:
    decoder = sse.Decoder(MAX_EVENT_BYTES)
    async with aclosing(response.aiter_raw()) as reads:
        async for received in reads:
            try:
                events = decoder.feed(received)
            except sse.EventTooLarge:
                raise UpstreamError(f"Событие в потоке vLLM больше {MAX_EVENT_BYTES} байт.") from None
            answers = [_decode(event) for event in events if event != b"[DONE]"]
            if answers:
                yield answers


def _decode(data: bytes) -> Answer:
    try:
        answer = _decode_answer(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UpstreamError("Ответ vLLM не разбирается: это не тот JSON, который обещает его API.") from None
    if answer.error is not None:
        raise UpstreamError(f"vLLM прервал ответ: {_own_words(answer.error)}")
    return answer


def _body(request: Mapping[str, Any]) -> bytes:
    return json.dumps(request, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _authorization(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _refusal(response: httpx2.Response) -> GatewayError:
    """The error for a status other than 200."""
    status = response.status_code
    if status in (401, 403):
        return InvalidKey()
    try:
        words = _own_words(response.json().get("error"))
    except (ValueError, AttributeError):
        words = f"HTTP {status}"
    if status in (400, 422):
        return UpstreamRejected(f"vLLM отклонил запрос: {words}")
    if status == 429:
        return TooManyRequests(retry_after=_retry_after(response))
    return UpstreamError(f"vLLM ответил ошибкой {status}: {words}. Посмотрите: docker compose logs vllm.")


def _own_words(error: object) -> str:
    """vLLM's message without the values it echoes, which may be the user's text."""
    message = error.get("message") if isinstance(error, dict) else error
    return re.sub(r", 'input': .*", "}", str(message))[:1000]


def _retry_after(response: httpx2.Response) -> int:
    value = response.headers.get("Retry-After", "")
    return int(value) if value.isdecimal() and len(value) < 6 else 1


@contextmanager
def _translated() -> Iterator[None]:
    """Turn httpx2's errors into ours."""
    try:
        yield
    except httpx2.RequestError as exc:
        error, detail = next((ours, detail) for theirs, ours, detail in _TRANSPORT_ERRORS if isinstance(exc, theirs))
        raise error(detail) from exc
