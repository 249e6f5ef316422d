"""Wiring: `create_app(settings)`, and the `app` that uvicorn runs."""

import ctypes
import gc
import multiprocessing
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, suppress
from functools import partial
from typing import Any, TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from app import __version__
from app.admission import Admission
from app.background import VLLMWatch, note_state, sweep_sessions
from app.chat import Chat
from app.config import ONE_PROCESS, ConfigError, Settings, load_settings
from app.direct import DirectChat
from app.errors import InvalidRequest, MethodNotAllowed, NotFound
from app.logs import configure_logging
from app.memory_store import MemoryStore
from app.metrics import Metrics
from app.middleware import BodyLimit, CrossOrigin, ErrorBoundary, RequestId, problem_response
from app.progress import Progress
from app.prompt import Prompts
from app.redis_server import RedisServer
from app.redis_store import RedisStore
from app.routes import measurements, router
from app.sealing import Seal
from app.sessions import SessionStore
from app.shutdown import draining_on_signal
from app.stall import StallWatch
from app.tasks import running
from app.tokenizer import ChatTokenizer
from app.turn import Resources
from app.validation import reason
from app.vllm import VLLMClient

# What uvicorn's supervisor takes for "would fail the same way again": it stops instead of trying once more. Its own
# exit code is 0 then, which a worker cannot change.
_UVICORN_STARTUP_FAILURE = 3

_OPEN_FILES = 65_536

DESCRIPTION = """\
Локальный API для диалога с моделью в vLLM: сессии, системный промпт, история в пределах контекста, потоковые ответы.

Порядок работы: `POST /init_session` с ключом vLLM → `POST /chat` сколько угодно раз → `POST /stop_session`.
Ошибки — объекты `application/problem+json` (RFC 9457): `code` для программ, `detail` по-русски для людей.
"""


class State(TypedDict):
    """What the lifespan gives every request (`request.state`)."""

    chat: Chat
    sessions: SessionStore
    vllm: VLLMClient
    watch: VLLMWatch
    admission: Admission
    metrics: Metrics
    request_timeout_seconds: float


def create_app(settings: Settings) -> ASGIApp:
    """Build the gateway. Loads the tokenizer, which takes seconds: a gateway that cannot count must not start.

    Raises:
        ConfigError: the model folder has no usable tokenizer.
    """
    tokenizer = ChatTokenizer.load(settings.tokenizer_folder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[State]:
        async with AsyncExitStack() as stack:
            yield await _set_up(stack, settings, tokenizer)

    build = FastAPIOffline if settings.docs_enabled else partial(FastAPI, docs_url=None, openapi_url=None)
    api = build(
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # asked about at every request otherwise
        title="Simple Chat Gateway",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        exception_handlers={HTTPException: _on_http_exception, RequestValidationError: _on_validation_error},
        middleware=[
            Middleware(RequestId),
            Middleware(
                CrossOrigin,
                allow_origins=settings.cors_allow_origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["X-Request-Id", "Retry-After", "Idempotent-Replayed"],
            ),
            Middleware(ErrorBoundary),
            Middleware(BodyLimit, max_bytes=settings.max_request_bytes),
        ],
    )
    api.include_router(router)
    if settings.metrics_enabled:
        api.include_router(measurements)
    api.openapi = partial(_openapi, api)  # type: ignore[method-assign] # as FastAPI's documentation does
    return DirectChat(api, settings.max_request_bytes)


async def _set_up(stack: AsyncExitStack, settings: Settings, tokenizer: ChatTokenizer) -> State:
    """Make what requests work with, and start what runs beside them; `stack` ends it all, the last first."""
    stack.callback(tokenizer.close)
    vllm = stack.enter_context(closing(VLLMClient(settings)))
    sessions = await stack.enter_async_context(_store(settings))
    prompts = Prompts(settings, tokenizer, vllm)
    admission, progress, metrics = Admission(settings), Progress(), Metrics()
    stack.callback(metrics.close)
    resources = Resources(sessions, vllm, prompts, admission, progress, metrics, settings.max_session_bytes)
    stall = StallWatch(vllm, progress, settings.vllm_stall_seconds)
    watch = VLLMWatch(vllm, tokenizer, prompts.agreement, stall)
    noting = note_state(metrics, admission, watch)
    for work in (sweep_sessions(sessions), sessions.run(), watch.run(), stall.run(), noting):
        await stack.enter_async_context(running(work))
    await stack.enter_async_context(draining_on_signal(admission, settings.drain_seconds))
    return {
        "chat": Chat(settings, resources),
        "sessions": sessions,
        "vllm": vllm,
        "watch": watch,
        "admission": admission,
        "metrics": metrics,
        "request_timeout_seconds": settings.request_timeout_seconds,
    }


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[SessionStore]:
    """Where sessions are to be kept."""
    ttl_seconds, max_sessions = settings.session_ttl_seconds, settings.max_sessions
    if settings.keeps_sessions_in_memory:
        yield MemoryStore(ttl_seconds, max_sessions)
        return
    server = RedisServer(settings.session_store_url, settings.session_store_timeout_seconds)
    async with aclosing(server):
        yield RedisStore(server, Seal(settings.session_secret), ttl_seconds, max_sessions)


def __getattr__(name: str) -> ASGIApp:
    """`app`, built when uvicorn asks for it, so that importing this module does nothing.

    An impossible setting or model folder ends the process with one Russian line and exit code 2.
    """
    if name != "app":
        raise AttributeError(name)
    is_worker = multiprocessing.parent_process() is not None and "--reload" not in sys.argv
    try:
        settings = _load_settings(is_worker=is_worker)
        _allow_many_connections()
        configure_logging(settings)
        app = globals()[name] = create_app(settings)
        _settle()
    except ConfigError as exc:
        # One plain line is all that the person needs.
        print(f"Ошибка: {exc}", file=sys.stderr)  # noqa: T201
        sys.exit(_UVICORN_STARTUP_FAILURE if is_worker else 2)
    return app


def _load_settings(*, is_worker: bool) -> Settings:
    """Read the environment. Raises ConfigError, also for a worker beside others that would know other sessions."""
    settings = load_settings()
    if is_worker and settings.keeps_sessions_in_memory:
        raise ConfigError(ONE_PROCESS)
    return settings


def _allow_many_connections() -> None:
    """Raise the number of open files as far as may be: a turn takes two, and many systems begin with 1024."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _settle() -> None:
    """Give back the memory that only the start took, and have the garbage collector look seldom at the rest.

    It never looks at what is here now, half a million objects of libraries, which stay: that is for a process which is
    one gateway and nothing else. A turn leaves no garbage in circles, but a thousand that begin at once would be held
    up several times for a look at them all.
    """
    gc.collect()
    with suppress(AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


def _openapi(api: FastAPI) -> dict[str, Any]:
    """The description of the API, all in Russian: without our docstrings and FastAPI's own phrases."""
    if not api.openapi_schema:
        schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
        for component in schema["components"]["schemas"].values():
            component.pop("description", None)
        for methods in schema["paths"].values():
            for operation in methods.values():
                if operation["responses"]["200"]["description"] == "Successful Response":
                    operation["responses"]["200"]["description"] = "Успех"
        api.openapi_schema = schema
    return api.openapi_schema


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    """FastAPI's and Starlette's own errors: no such path, no such method, a body that cannot be read."""
    assert isinstance(exc, HTTPException)
    described = request.app.openapi_url is not None
    if exc.status_code == 405:
        detail = None if described else "Этот адрес не принимает такой метод HTTP."
        return problem_response(MethodNotAllowed(detail, allow=(exc.headers or {}).get("Allow", "")))
    if exc.status_code == 404:
        return problem_response(NotFound(None if described else "Такого адреса у шлюза нет."))
    return problem_response(InvalidRequest("Тело запроса не разбирается: нужен JSON в UTF-8."))


async def _on_validation_error(request: Request, exc: Exception) -> Response:
    """A body of the wrong form: the first thing that is wrong with it, and where."""
    assert isinstance(exc, RequestValidationError)
    error = exc.errors()[0]
    where = error["loc"][1:]
    match error["type"], where:
        case "json_invalid", (position,):
            hint = f"Ошибка у символа {position}: проверьте кавычки, запятые и скобки."
            return problem_response(InvalidRequest(f"Тело запроса не разбирается как JSON. {hint}"))
        case "missing", ():
            return problem_response(InvalidRequest("Тело запроса пустое, а нужен объект JSON."))
        case _, ():
            return problem_response(InvalidRequest(f"Тело запроса: {reason(error)}."))
    field = ".".join(map(str, where))
    hint = ""
    if error["type"] == "extra_forbidden" and request.url.path == "/chat":
        hint = f' Параметры vLLM передавайте в extra: {{"{field[:64]}": …}}.'
    return problem_response(InvalidRequest(f"Поле {field[:64]}: {reason(error)}.{hint}", field=field[:64]))
