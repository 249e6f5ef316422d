"""What goes over the wire."""

import json
from itertools import cycle
from typing import Annotated, Any, Literal, NotRequired, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from app.context import Pair
from app.sessions import Session
from app.turn import DEFAULT_MAX_TOKENS, ContextReceipt, TurnResult
from app.validation import Text
from app.vllm import ToolCall


def _check_extra(extra: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(extra, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise PydanticCustomError(
            "not_json", "внутри есть NaN, Infinity, одиночные суррогаты или слишком глубокая вложенность"
        ) from None
    return extra


class Body(BaseModel):
    """A request body: JSON types as they are, nothing unknown."""

    model_config = ConfigDict(strict=True, extra="forbid")


class SessionBody(Body):
    """A body that only names a session."""

    session_id: Annotated[
        str, Field(description="Идентификатор сессии из /init_session. Это секрет: кто его знает, тот ведёт диалог.")
    ]


_ROLES = ("user", "assistant")


class PastMessage(Body):
    """One message of an earlier talk, as /history shows it."""

    role: Annotated[str, Field(json_schema_extra={"enum": _ROLES})]
    content: Annotated[Text, Field(description="Текст; у user — хотя бы один знак. Не обрезается и не правится.")]
    finish_reason: Annotated[
        Text | None, Field(description="Почему закончился ответ; сохраняется и видно в /history.")
    ] = None
    dropped: Annotated[
        bool, Field(description="Не учитывается: поле есть, чтобы messages из /history подходили как есть.")
    ] = False


def _check_pairs(messages: list[PastMessage]) -> list[PastMessage]:
    for number, (message, expected) in enumerate(zip(messages, cycle(_ROLES), strict=False), start=1):
        if message.role == "system":
            wrong = "сообщение {number} системное, а системный промпт передают в поле system_prompt"
        elif message.role != expected:
            wrong = "у сообщения {number} должна быть роль {expected}: user и assistant чередуются"
        elif expected == "user" and not message.content:
            wrong = "сообщение {number} пустое, а у {expected} должен быть текст"
        else:
            continue
        raise PydanticCustomError("history", wrong, {"number": number, "expected": expected})
    if len(messages) % 2:
        raise PydanticCustomError(
            "history", "нет сообщения {number}, ответа assistant: пары передают целиком", {"number": len(messages) + 1}
        )
    return messages


class InitSessionBody(Body):
    """POST /init_session."""

    vllm_api_key: Annotated[SecretStr, Field(description="Ключ vLLM (VLLM_API_KEY). Шлюз проверяет его у vLLM.")]
    system_prompt: Annotated[
        Text | None,
        Field(
            description="Системный промпт. Нет поля — промпт по умолчанию, пустая строка — без системного сообщения."
        ),
    ] = None
    session_id: Annotated[str | None, Field(description="Живая сессия, которой нужно сменить ключ.")] = None
    history: Annotated[
        Annotated[list[PastMessage], AfterValidator(_check_pairs)] | None,
        Field(
            description="Прежний разговор, который продолжит новая сессия: пары user, assistant по порядку, "
            "например messages из /history."
        ),
    ] = None

    @model_validator(mode="after")
    def _check_rotation(self) -> Self:
        if self.session_id is not None and (self.system_prompt is not None or self.history is not None):
            raise PydanticCustomError(
                "rotation",
                "с session_id меняется только ключ; системный промпт сессии меняет POST /set_system_prompt, "
                "а history принимает только новая сессия",
            )
        return self

    def pairs(self) -> list[Pair] | None:
        """`history` as turns."""
        if self.history is None:
            return None
        return [
            Pair.of(user.content, assistant.content, assistant.finish_reason)
            for user, assistant in zip(self.history[::2], self.history[1::2], strict=True)
        ]


class SetSystemPromptBody(SessionBody):
    """POST /set_system_prompt."""

    system_prompt: Annotated[
        Text, Field(description="Новый системный промпт; пустая строка — без системного сообщения.")
    ]


class ChatBody(SessionBody):
    """POST /chat."""

    message: Annotated[str, Field(min_length=1, description="Сообщение пользователя; не обрезается и не правится.")]
    max_tokens: Annotated[int, Field(ge=1, description="Наибольшее число токенов ответа.")] = DEFAULT_MAX_TOKENS
    temperature: Annotated[
        float | None,
        Field(ge=0, le=2, allow_inf_nan=False, description="Нет поля — действует generation_config.json самой модели."),
    ] = None
    extra: Annotated[
        Annotated[dict[str, Any], AfterValidator(_check_extra)] | None,
        Field(description="Другие параметры vLLM: top_p, repetition_penalty, chat_template_kwargs, response_format …"),
    ] = None
    stream: Annotated[bool, Field(description="true — ответ потоком server-sent events.")] = False


ExpiresIn = Annotated[int, Field(description="Через сколько секунд бездействия сессия закончится.")]


class Context(TypedDict):
    """The context receipt."""

    limit: Annotated[int, Field(description="Бюджет запроса в токенах.")]
    used: Annotated[int, Field(description="Сколько токенов шлюз насчитал в запросе до отправки.")]
    history_pairs: Annotated[int, Field(description="Сколько прежних пар вошло в запрос.")]
    dropped_pairs: Annotated[int, Field(description="Сколько пар не вошло, но осталось в /history.")]
    forgotten_pairs: Annotated[int, Field(description="Сколько пар больше не хранится.")]
    cached_tokens: NotRequired[
        Annotated[int, Field(description="Сколько токенов запроса vLLM взял из кэша префиксов.")]
    ]


class SessionAnswer(TypedDict):
    """200 of /init_session."""

    session_id: Annotated[str, Field(description="Секрет: кто его знает, тот ведёт диалог.")]
    expires_in: ExpiresIn
    context: NotRequired[
        Annotated[Context, Field(description="Если передан history: что из него войдёт в следующий запрос.")]
    ]


class OkAnswer(TypedDict):
    """200 of /set_system_prompt and /reset."""

    status: Literal["ok"]
    expires_in: ExpiresIn


class CancelAnswer(TypedDict):
    """200 of /cancel."""

    status: Annotated[Literal["cancelled", "idle"], Field(description="idle — останавливать было нечего.")]
    expires_in: ExpiresIn


class StopAnswer(TypedDict):
    """200 of /stop_session."""

    status: Literal["stopped"]


class UndoAnswer(TypedDict):
    """200 of /undo: the pair that was removed."""

    user: Annotated[str, Field(description="Вопрос, который был убран.")]
    assistant: Annotated[str, Field(description="Ответ, который был убран.")]
    expires_in: ExpiresIn


class HistoryMessage(TypedDict):
    """One committed message; the reason why an answer ended stands beside the answer."""

    role: Literal["user", "assistant"]
    content: str
    finish_reason: NotRequired[str | None]
    dropped: Annotated[bool, Field(description="true — в последний запрос к модели сообщение не вошло.")]


class HistoryAnswer(TypedDict):
    """200 of /history."""

    system_prompt: str
    messages: list[HistoryMessage]
    expires_in: ExpiresIn


class ToolFunction(TypedDict):
    """What the model wants to call."""

    name: str | None
    arguments: str | None


class ToolCallAnswer(TypedDict):
    """One tool call of the model."""

    id: str | None
    type: str
    function: ToolFunction


class ChatAnswer(TypedDict):
    """200 of /chat, and the data of the event `done`."""

    reply: Annotated[str, Field(description="Ответ модели.")]
    finish_reason: Annotated[str | None, Field(description="stop, length, tool_calls …; cancelled — ответ остановлен.")]
    total_tokens: Annotated[
        int | None,
        Field(description="Токены запроса и ответа вместе, по счёту самого vLLM; null, если он их не прислал."),
    ]
    input_tokens: Annotated[int | None, Field(description="Токены запроса, по счёту vLLM.")]
    output_tokens: Annotated[int | None, Field(description="Токены ответа, по счёту vLLM.")]
    context: Context
    reasoning: NotRequired[Annotated[str, Field(description="Размышления модели, если vLLM их отделяет.")]]
    tool_calls: NotRequired[Annotated[list[ToolCallAnswer], Field(description="Вызовы инструментов, если они есть.")]]
    expires_in: ExpiresIn


class HealthAnswer(TypedDict):
    """200 of /health."""

    status: Literal["ok", "degraded"]
    vllm: Annotated[str, Field(description="ok или причина, по которой vLLM не отвечает.")]
    store: Annotated[str, Field(description="ok или причина, по которой хранилище сессий не отвечает.")]
    model: Annotated[str, Field(description="Имя модели (VLLM_MODEL_NAME).")]
    version: Annotated[str, Field(description="Версия шлюза.")]
    sessions: Annotated[int | None, Field(description="Сколько сессий открыто; null, если хранилище не отвечает.")]
    warnings: Annotated[list[str], Field(description="Что стоит исправить.")]
    count_mismatches: Annotated[
        int, Field(description="Сколько раз с запуска шлюза счёт токенов не совпал со счётом vLLM.")
    ]


class ReadyAnswer(TypedDict):
    """200 of /ready."""

    status: Literal["ready"]


class Problem(BaseModel):
    """RFC 9457 `application/problem+json`."""

    model_config = ConfigDict(title="Problem", extra="allow")

    type: str
    title: str
    status: int
    detail: Annotated[str, Field(description="По-русски: что случилось и что делать.")]
    code: Annotated[str, Field(description="Постоянное имя ошибки для программ.")]
    field: Annotated[str | None, Field(description="В каком поле ошибка.")] = None
    limit: Annotated[int | None, Field(description="Предел: токены или байты.")] = None
    needed: Annotated[int | None, Field(description="Сколько понадобилось бы токенов.")] = None
    retry_after: Annotated[int | None, Field(description="Через сколько секунд повторить.")] = None


def session_answer(session_id: str, expires_in: int, context: ContextReceipt | None = None) -> SessionAnswer:
    """Lay a session that was opened, or has another key, out."""
    answer: SessionAnswer = {"session_id": session_id, "expires_in": expires_in}
    if context is not None:
        answer["context"] = _context(context)
    return answer


def history_answer(session: Session, expires_in: int) -> HistoryAnswer:
    """Lay a session's pairs out as messages."""
    messages: list[HistoryMessage] = []
    for number, pair in enumerate(session.pairs):
        dropped = number < session.dropped_pairs
        messages.append({"role": "user", "content": pair.user, "dropped": dropped})
        messages.append(
            {"role": "assistant", "content": pair.assistant, "finish_reason": pair.finish_reason, "dropped": dropped}
        )
    return {"system_prompt": session.system_prompt, "messages": messages, "expires_in": expires_in}


def chat_answer(result: TurnResult, expires_in: int) -> ChatAnswer:
    """Lay a turn's result out; members that vLLM gave nothing for are left out or null, never made up."""
    usage = result.usage
    answer: ChatAnswer = {
        "reply": result.reply,
        "finish_reason": result.finish_reason,
        "total_tokens": usage.total_tokens if usage else None,
        "input_tokens": usage.prompt_tokens if usage else None,
        "output_tokens": usage.completion_tokens if usage else None,
        "context": _context(result.context),
        "expires_in": expires_in,
    }
    if result.reasoning:
        answer["reasoning"] = result.reasoning
    if result.tool_calls:
        answer["tool_calls"] = [_tool_call(call) for call in result.tool_calls]
    return answer


def _context(receipt: ContextReceipt) -> Context:
    context: Context = {
        "limit": receipt.limit,
        "used": receipt.used,
        "history_pairs": receipt.history_pairs,
        "dropped_pairs": receipt.dropped_pairs,
        "forgotten_pairs": receipt.forgotten_pairs,
    }
    if receipt.cached_tokens is not None:
        context["cached_tokens"] = receipt.cached_tokens
    return context


def _tool_call(call: ToolCall) -> ToolCallAnswer:
    function: ToolFunction = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type or "function", "function": function}
