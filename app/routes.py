"""The endpoints: thin, each one call to `Chat`."""

import asyncio
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse, Response

from app import __version__
from app.admission import Admission
from app.background import VLLMWatch
from app.chat import Chat
from app.direct import says_json
from app.errors import (
    MEDIA_TYPE,
    ContextTooLong,
    GatewayError,
    InternalError,
    InvalidKey,
    InvalidRequest,
    NothingToUndo,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    SessionBusy,
    SessionNotFound,
    StoreUnavailable,
    TooManyRequests,
    TurnCancelled,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from app.idempotency import HEADER, PATTERN
from app.metrics import MEDIA_TYPE as METRICS_MEDIA_TYPE
from app.metrics import Metrics, State
from app.schemas import (
    CancelAnswer,
    ChatAnswer,
    ChatBody,
    HealthAnswer,
    HistoryAnswer,
    InitSessionBody,
    OkAnswer,
    Problem,
    ReadyAnswer,
    SessionAnswer,
    SessionBody,
    SetSystemPromptBody,
    StopAnswer,
    UndoAnswer,
    history_answer,
    session_answer,
)
from app.sessions import SessionStore
from app.streaming import turn_response
from app.vllm import VLLMClient

# All of them are coroutines: FastAPI sends plain functions through a thread.


async def _require_json(request: Request) -> None:
    """Refuse a body of another type, whatever is in it."""
    if not says_json(request.scope):
        raise InvalidRequest("Нужен заголовок Content-Type: application/json и тело в JSON.")


router = APIRouter()
state = APIRouter(tags=["Состояние"])
measurements = APIRouter(tags=["Состояние"])
sessions = APIRouter(tags=["Сессии"], dependencies=[Depends(_require_json)])


async def _chat(request: Request) -> Chat:
    return cast(Chat, request.state.chat)


async def _vllm(request: Request) -> VLLMClient:
    return cast(VLLMClient, request.state.vllm)


async def _watch(request: Request) -> VLLMWatch:
    return cast(VLLMWatch, request.state.watch)


async def _store(request: Request) -> SessionStore:
    return cast(SessionStore, request.state.sessions)


async def _admission(request: Request) -> Admission:
    return cast(Admission, request.state.admission)


ChatDep = Annotated[Chat, Depends(_chat)]
VLLMDep = Annotated[VLLMClient, Depends(_vllm)]
WatchDep = Annotated[VLLMWatch, Depends(_watch)]
StoreDep = Annotated[SessionStore, Depends(_store)]
AdmissionDep = Annotated[Admission, Depends(_admission)]


_PROBLEM = {**Problem.model_json_schema(), "description": "RFC 9457: ошибка."}
_PROBLEM_CONTENT = {MEDIA_TYPE: {"schema": _PROBLEM}}


def _problems(*errors: type[GatewayError]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for the errors that an endpoint can answer with, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    error: type[GatewayError]
    for error in (*errors, StoreUnavailable, RequestTimeout, RequestTooLarge, InvalidRequest, InternalError):
        described = f"`{error.code}`: {error.title}"
        if error.status in responses:
            described = f"{responses[error.status]['description']}; {described}"
        responses[error.status] = {"description": described, "content": _PROBLEM_CONTENT}
    return responses


_IDEMPOTENCY_KEY = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Ключ, с которым ответ можно спросить ещё раз, если он потерялся: тот же вопрос с тем же ключом "
    "вернёт записанный ответ, а не задаст вопрос снова. Остановленный ответ заменит новый.",
    "schema": {"type": "string", "pattern": PATTERN},
}


def _event(name: str, data: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI schema of an event with JSON data, in FastAPI's own form."""
    json_data = {"type": "string", "contentMediaType": "application/json", "contentSchema": data}
    properties = {"event": {"const": name}, "data": json_data}
    return {"type": "object", "properties": properties, "required": ["event", "data"]}


_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_ANSWER = {"$ref": "#/components/schemas/ChatAnswer"}
_EVENTS = [_event("delta", _TEXT), _event("reasoning", _TEXT), _event("done", _ANSWER), _event("error", _PROBLEM)]

_UPSTREAM = (TooManyRequests, UpstreamError, UpstreamUnavailable, UpstreamTimeout)


@sessions.post(
    "/init_session",
    summary="Открыть сессию",
    description="Проверяет ключ у vLLM и открывает сессию. С `history` — сессию, которая продолжает прежний разговор. "
    "С `session_id` — меняет ключ живой сессии на новый.",
    responses=_problems(InvalidKey, SessionNotFound, Overloaded, ContextTooLong, UpstreamRejected, *_UPSTREAM),
)
async def init_session(body: InitSessionBody, request: Request, chat: ChatDep) -> SessionAnswer:
    """Open a session, or give a live one another key."""
    address = request.client.host if request.client else ""
    if body.session_id is None:
        return session_answer(*await chat.open(body.vllm_api_key, body.system_prompt, body.pairs(), address))
    return session_answer(body.session_id, await chat.replace_key(body.session_id, body.vllm_api_key, address))


@sessions.post(
    "/set_system_prompt",
    summary="Сменить системный промпт",
    description="История остаётся.",
    responses=_problems(SessionNotFound, SessionBusy),
)
async def set_system_prompt(body: SetSystemPromptBody, chat: ChatDep) -> OkAnswer:
    """Replace the system prompt; the history stays."""
    return {"status": "ok", "expires_in": await chat.set_system_prompt(body.session_id, body.system_prompt)}


@sessions.post(
    "/chat",
    summary="Отправить сообщение",
    description="Ответ приходит целиком (JSON) или, при `stream: true`, потоком server-sent events.",
    response_model=ChatAnswer,
    openapi_extra={"parameters": [_IDEMPOTENCY_KEY]},
    responses={
        200: {
            "description": "Ответ модели. При `stream: true` — поток: `delta`, `reasoning`, затем `done` или `error`.",
            "content": {"text/event-stream": {"itemSchema": {"oneOf": _EVENTS}}},
        },
        **_problems(
            InvalidKey,
            SessionNotFound,
            SessionBusy,
            TurnCancelled,
            ContextTooLong,
            UpstreamRejected,
            Overloaded,
            *_UPSTREAM,
        ),
    },
)
async def chat_turn(body: ChatBody, request: Request, chat: ChatDep) -> Response:
    """Run a turn, in either answer form; seldom called, see `DirectChat`."""
    return turn_response(body, chat, request.scope)


@sessions.post(
    "/history",
    summary="Показать историю",
    description="Системный промпт и все сохранённые сообщения сессии.",
    responses=_problems(SessionNotFound),
)
async def history(body: SessionBody, chat: ChatDep) -> HistoryAnswer:
    """The committed state."""
    return history_answer(*await chat.history(body.session_id))


@sessions.post(
    "/cancel",
    summary="Остановить ответ",
    description="Останавливает ответ, который идёт сейчас, и ждёт, пока сессия освободится. Сессия остаётся.",
    responses=_problems(SessionNotFound),
)
async def cancel(body: SessionBody, chat: ChatDep) -> CancelAnswer:
    """Stop the turn in flight; the session stays."""
    cancelled, expires_in = await chat.cancel(body.session_id)
    return {"status": "cancelled" if cancelled else "idle", "expires_in": expires_in}


@sessions.post(
    "/undo",
    summary="Убрать последнюю пару",
    description="Убирает из истории последние вопрос и ответ и возвращает их.",
    responses=_problems(SessionNotFound, SessionBusy, NothingToUndo),
)
async def undo(body: SessionBody, chat: ChatDep) -> UndoAnswer:
    """Remove the last pair."""
    pair, expires_in = await chat.undo(body.session_id)
    return {"user": pair.user, "assistant": pair.assistant, "expires_in": expires_in}


@sessions.post(
    "/reset",
    summary="Очистить историю",
    description="Системный промпт и ключ остаются.",
    responses=_problems(SessionNotFound, SessionBusy),
)
async def reset(body: SessionBody, chat: ChatDep) -> OkAnswer:
    """Empty the history."""
    return {"status": "ok", "expires_in": await chat.reset(body.session_id)}


@sessions.post(
    "/stop_session",
    summary="Закончить сессию",
    description="Ответ, который идёт, останавливается.",
    responses=_problems(SessionNotFound),
)
async def stop_session(body: SessionBody, chat: ChatDep) -> StopAnswer:
    """End the session."""
    await chat.stop(body.session_id)
    return {"status": "stopped"}


@state.get("/health", summary="Что со шлюзом и vLLM", description="Всегда 200, пока жив шлюз.")
async def health(vllm: VLLMDep, watch: WatchDep, store: StoreDep) -> HealthAnswer:
    """Liveness: 200 as long as the gateway lives."""
    reason, trouble = await asyncio.gather(watch.ailment(), store.ailment())
    return {
        "status": "degraded" if reason or trouble else "ok",
        "vllm": reason or "ok",
        "store": trouble or "ok",
        "model": vllm.model,
        "version": __version__,
        "sessions": None if trouble else await _session_count(store),
        "warnings": [*watch.warnings, *store.warnings],
        "count_mismatches": watch.count_mismatches,
    }


async def _session_count(store: SessionStore) -> int | None:
    """Open sessions; None where the store does not answer."""
    try:
        return await store.count()
    except StoreUnavailable:
        return None


@state.get(
    "/ready",
    summary="Можно ли вести диалог",
    description="200, когда токенизатор загружен, а vLLM и хранилище сессий отвечают; иначе, и когда шлюз "
    "останавливают, 503 и причина.",
    responses={503: _problems(UpstreamUnavailable, Overloaded)[503]},
)
async def ready(watch: WatchDep, store: StoreDep, admission: AdmissionDep) -> ReadyAnswer:
    """Readiness."""
    admission.require_open()
    reason, trouble = await asyncio.gather(watch.ailment(), store.ailment())
    if reason:
        raise UpstreamUnavailable(reason)
    if trouble:
        raise StoreUnavailable(trouble)
    return {"status": "ready"}


@measurements.get(
    "/metrics",
    summary="Измерения для Prometheus",
    description="Текст в формате Prometheus. Ни сессий, ни текстов в нём нет. Выключается METRICS_ENABLED=false.",
    response_class=PlainTextResponse,
)
async def metrics(request: Request, store: StoreDep, watch: WatchDep, admission: AdmissionDep) -> Response:
    """What was measured since the start, and how things stand."""
    measured = cast(Metrics, request.state.metrics)
    measured.note(admission.in_flight, admission.waiting, watch.count_mismatches)
    now = State(sessions=await _session_count(store), vllm_up=watch.is_up, vllm_stalled=watch.is_stalled)
    return Response(measured.exposition(now), media_type=METRICS_MEDIA_TYPE)


router.include_router(sessions)
router.include_router(state)
