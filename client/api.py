"""The gateway's HTTP API, typed.

    GatewayError
    ├── GatewayProblem       the gateway answered with an error (RFC 9457)
    └── GatewayUnreachable   there was no answer, or it broke off

Knows nothing of terminals; the module to copy into a program of one's own.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NotRequired, Self, TypedDict, cast

import httpx2

CONNECT_TIMEOUT_SECONDS = 5.0
# The gateway answers at once, except for checking a key, which it asks vLLM for.
READ_TIMEOUT_SECONDS = 30.0
# Before the first byte of a reply vLLM may queue for minutes; then the gateway breaks every silence after 15 s.
REPLY_TIMEOUT_SECONDS = 1800.0
# The last event of a stream holds the whole reply.
MAX_EVENT_BYTES = 64 * 1024 * 1024


class Context(TypedDict):
    """The context receipt: tokens sent of the tokens allowed, pairs sent, left out and no longer stored."""

    limit: int
    used: int
    history_pairs: int
    dropped_pairs: int
    forgotten_pairs: int
    cached_tokens: NotRequired[int]


class Opened(TypedDict):
    """A new session; `context`, if it was opened with a history: what of it the next prompt will hold."""

    session_id: str
    expires_in: int
    context: NotRequired[Context]


class Message(TypedDict):
    """A message of a talk that a session is opened with: `role` is user or assistant."""

    role: str
    content: str
    finish_reason: NotRequired[str | None]


def message_of(role: str, content: str, finish_reason: object = None) -> Message:
    """A message as `/history` tells it; a reason that is not known is left out."""
    message: Message = {"role": role, "content": content}
    if isinstance(finish_reason, str):
        message["finish_reason"] = finish_reason
    return message


class Answer(TypedDict):
    """A whole answer of `/chat`; the token counts are None where vLLM sent none."""

    reply: str
    finish_reason: str | None
    total_tokens: int | None
    input_tokens: int | None
    output_tokens: int | None
    context: Context
    expires_in: int
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


class HistoryMessage(TypedDict):
    """A committed message; `dropped`: it was not in the last prompt."""

    role: str
    content: str
    dropped: bool
    finish_reason: NotRequired[str | None]


class History(TypedDict):
    """The committed state of a session."""

    system_prompt: str
    messages: list[HistoryMessage]
    expires_in: int


class Health(TypedDict):
    """The state of the gateway and of its vLLM."""

    status: str
    vllm: str
    model: str
    version: str
    sessions: int
    warnings: list[str]
    count_mismatches: int


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks before it replies."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a stream."""

    answer: Answer


Event = Delta | Reasoning | Done


class GatewayError(Exception):
    """A call did not succeed; the message is Russian and meant for a person."""


class GatewayProblem(GatewayError):
    """The gateway refused, or vLLM failed behind it.

    Attributes:
        status: the HTTP status, also of an error that came as an event.
        code: stable, for programs.
        detail: Russian, says what to do.
        problem: the whole object, with `limit`, `needed`, `field`, `retry_after` where they help.
    """

    def __init__(self, problem: Mapping[str, Any]) -> None:
        self.status = int(problem["status"])
        self.code = str(problem["code"])
        self.detail = str(problem["detail"])
        self.problem = problem
        super().__init__(self.detail)


class GatewayUnreachable(GatewayError):
    """No connection, or a connection that broke off."""


class GatewayClient:
    """One gateway. Safe to use from several threads.

    Attributes:
        address: where it is, without a password.
    """

    def __init__(self, base_url: str) -> None:
        """`base_url`: where the gateway is, for example http://127.0.0.1:8080. Proxy variables are not heeded."""
        try:
            url = httpx2.URL(base_url if "://" in base_url else f"http://{base_url}")
        except httpx2.InvalidURL as exc:
            raise _wrong_address(base_url) from exc
        if url.scheme not in ("http", "https") or not url.host.strip():
            raise _wrong_address(base_url)
        self.address = _without_password(url).rstrip("/")
        self._http = httpx2.Client(base_url=url, timeout=_timeout(READ_TIMEOUT_SECONDS), trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def init_session(
        self, vllm_api_key: str, system_prompt: str | None = None, history: Sequence[Message] | None = None
    ) -> Opened:
        """Open a session.

        Args:
            vllm_api_key: the gateway has vLLM check it.
            system_prompt: None is the gateway's default, empty is none at all.
            history: what was said before, whole pairs of user and assistant.
        """
        body: dict[str, Any] = {"vllm_api_key": vllm_api_key}
        if system_prompt is not None:
            body["system_prompt"] = system_prompt
        if history is not None:
            body["history"] = history
        return cast(Opened, self._post("/init_session", "session_id", body))

    def replace_key(self, session_id: str, vllm_api_key: str) -> None:
        """Give a live session another key."""
        self._post("/init_session", "session_id", {"vllm_api_key": vllm_api_key, "session_id": session_id})

    def set_system_prompt(self, session_id: str, system_prompt: str) -> None:
        """Replace the system prompt; the history stays."""
        self._post("/set_system_prompt", "status", {"session_id": session_id, "system_prompt": system_prompt})

    def chat(self, session_id: str, message: str, **options: Any) -> Answer:
        """Send a message and wait for the whole answer. `options`: max_tokens, temperature, extra."""
        body = {"session_id": session_id, "message": message, **options}
        return cast(Answer, self._post("/chat", "context", body, REPLY_TIMEOUT_SECONDS))

    def stream(self, session_id: str, message: str, **options: Any) -> Generator[Event]:
        """Send a message and yield the answer as it comes; the last event is `Done`.

        Closing the iterator closes the connection, and the gateway then stops the generation.
        """
        body = {"session_id": session_id, "message": message, "stream": True, **options}
        try:
            with self._http.sse(
                "/chat",
                method="POST",
                json=body,
                max_event_size=MAX_EVENT_BYTES,
                timeout=_timeout(REPLY_TIMEOUT_SECONDS),
            ) as source:
                if source.response.status_code != 200:
                    source.response.read()
                    _checked(source.response, "reply")
                for sent in source:
                    event = _event(sent)
                    yield event
                    if isinstance(event, Done):
                        return
        except (httpx2.RequestError, UnicodeError) as exc:
            raise self._unreachable(exc) from exc
        raise GatewayUnreachable("Шлюз оборвал ответ на середине.")

    def history(self, session_id: str) -> History:
        """The committed state."""
        return cast(History, self._post("/history", "messages", {"session_id": session_id}))

    def cancel(self, session_id: str) -> bool:
        """Stop the turn in flight; returns when the session is free. False: there was none."""
        return bool(self._post("/cancel", "status", {"session_id": session_id})["status"] == "cancelled")

    def undo(self, session_id: str) -> tuple[str, str]:
        """Remove the last pair; returns what the user and the model said."""
        pair = self._post("/undo", "assistant", {"session_id": session_id})
        return str(pair["user"]), str(pair["assistant"])

    def reset(self, session_id: str) -> None:
        """Empty the history."""
        self._post("/reset", "status", {"session_id": session_id})

    def stop_session(self, session_id: str) -> None:
        """End the session."""
        self._post("/stop_session", "status", {"session_id": session_id})

    def health(self) -> Health:
        """The state of the gateway and of its vLLM."""
        return cast(Health, self._call("GET", "/health", "warnings"))

    def _post(
        self, path: str, expected: str, body: Mapping[str, Any], timeout_seconds: float = READ_TIMEOUT_SECONDS
    ) -> dict[str, Any]:
        return self._call("POST", path, expected, json=body, timeout=_timeout(timeout_seconds))

    def _call(self, method: str, path: str, expected: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **arguments)
        except (httpx2.RequestError, UnicodeError) as exc:
            raise self._unreachable(exc) from exc
        return _checked(response, expected)

    def _unreachable(self, exc: httpx2.RequestError | UnicodeError) -> GatewayUnreachable:
        match exc:
            case httpx2.SSEError():
                return _foreign(self.address, "не поток событий")
            case UnicodeError():
                return _wrong_address(self.address)
        return GatewayUnreachable(
            f"Нет связи со шлюзом {self.address}. Проверьте адрес и запущен ли шлюз: curl {self.address}/health"
        )


def _wrong_address(address: str) -> GatewayUnreachable:
    shown = re.sub(r"^(.*?://)?.*@", r"\1", address)  # without a password, whatever else is wrong
    return GatewayUnreachable(f"Неверный адрес шлюза: {shown}. Пример: http://127.0.0.1:8080")


def _foreign(address: str, sent: str) -> GatewayUnreachable:
    return GatewayUnreachable(f"По адресу {address} отвечает не Simple Chat Gateway: {sent}.")


def _without_password(url: httpx2.URL) -> str:
    return str(url.copy_with(userinfo=b""))


def _timeout(read_seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(read_seconds, connect=CONNECT_TIMEOUT_SECONDS)


def _event(sent: httpx2.ServerSentEvent) -> Event:
    try:
        data: Any = sent.json()
        match sent.event:
            case "delta":
                return Delta(data["text"])
            case "reasoning":
                return Reasoning(data["text"])
            case "done":
                return Done(data)
            case "error":
                raise GatewayProblem(data)
    except (LookupError, TypeError, ValueError):
        pass
    raise GatewayUnreachable(f"Событие {sent.event!r} непонятно: по этому адресу не Simple Chat Gateway?")


def _checked(response: httpx2.Response, expected: str) -> dict[str, Any]:
    """The body of a 200, if it has the `expected` member.

    Raises:
        GatewayProblem: the gateway says what went wrong.
        GatewayUnreachable: this is no gateway's answer.
    """
    try:
        body = response.json()
        if response.status_code != 200:
            raise GatewayProblem(body)
        if isinstance(body, dict) and expected in body:
            return body
    except (LookupError, TypeError, ValueError):
        pass
    raise _foreign(_without_password(response.url), f"HTTP {response.status_code}")
