"""Everything that can go wrong, as a client sees it.

    GatewayError
    ├── BadRequest
    │   ├── ContextTooLong           400 context_too_long
    │   ├── UpstreamRejected         400 upstream_rejected
    │   │   └── RequestRejected      kind rejected
    │   ├── MalformedRequest         400 malformed_request
    │   ├── RequestTimeout           408 request_timeout
    │   ├── RequestTooLarge          413 request_too_large
    │   ├── HeadersTooLarge          431 headers_too_large
    │   ├── InvalidRequest           422 invalid_request
    │   ├── NotFound                 404 not_found
    │   └── MethodNotAllowed         405 method_not_allowed
    ├── InvalidKey                   401 invalid_key
    │   └── KeyRejected              kind unauthorized
    ├── SessionNotFound              404 session_not_found
    ├── Conflict
    │   ├── SessionBusy              409 session_busy
    │   ├── NothingToUndo            409 nothing_to_undo
    │   └── TurnCancelled            409 cancelled
    ├── Limited
    │   ├── TooManyRequests          429 too_many_requests
    │   │   └── RateLimited          kind rate_limited
    │   └── Overloaded               503 overloaded
    ├── Upstream
    │   ├── UpstreamError            502 upstream_error
    │   │   ├── UpstreamBroken       kind broken
    │   │   ├── UpstreamHTTPError    kind http_error
    │   │   ├── UpstreamGarbage      kind garbage
    │   │   └── UpstreamErrorEvent   kind error_event
    │   ├── UpstreamUnavailable      503 upstream_unavailable, kind unavailable
    │   └── UpstreamTimeout          504 upstream_timeout, kind timeout
    ├── StoreUnavailable             503 store_unavailable
    └── InternalError                500 internal_error

An error carries its status, its stable `code` and what helps (`limit`, `needed`, `retry_after`, `field`); `problem()`
renders any of them as an RFC 9457 object. `detail` is Russian and says what to do. It never holds a key, a message text
or a traceback. What vLLM did wrong has a `kind`, which clients do not see: it is finer than the code, for counting.
"""

from typing import ClassVar

MEDIA_TYPE = "application/problem+json"
_STORE_RETRY_SECONDS = 5
SEE_VLLM_LOG = "Посмотрите журнал vLLM (в Docker — docker compose logs vllm)."


class GatewayError(Exception):
    """An answer other than success; raised anywhere, rendered in one place.

    Attributes:
        kind: what vLLM did, short and stable; None where it was not asked.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]
    kind: ClassVar[str | None] = None
    detail: str = ""

    def __init__(self, detail: str | None = None, **helpful: int | str) -> None:
        """`detail` replaces the class's own; `helpful` are further members of the problem object."""
        self.detail = detail or self.detail
        self.helpful = helpful
        super().__init__(self.code)

    def problem(self) -> dict[str, int | str]:
        """The problem object of RFC 9457."""
        return {
            "type": f"urn:simple-chat-gateway:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            **self.helpful,
        }


class BadRequest(GatewayError):
    """The request cannot be served as it is; the same request will fail again."""


class ContextTooLong(BadRequest):
    """What cannot be left out of the context does not fit (`limit`, `needed`: tokens)."""

    status = 400
    code = "context_too_long"
    title = "Запрос не помещается в контекст"


class UpstreamRejected(BadRequest):
    """vLLM refuses the parameters, or would: the gateway renders the same template."""

    status = 400
    code = "upstream_rejected"
    title = "vLLM отклонил параметры запроса"


class RequestRejected(UpstreamRejected):
    """vLLM refused them; `detail` holds its own words."""

    kind = "rejected"


class MalformedRequest(BadRequest):
    """What came is no HTTP."""

    status = 400
    code = "malformed_request"
    title = "Это не запрос HTTP"
    detail = "Запрос не разбирается как HTTP/1.1. Проверьте адрес (http://, не https://) и заголовки."


class RequestTimeout(BadRequest):
    """The request did not arrive within REQUEST_TIMEOUT_SECONDS; the connection is closed."""

    status = 408
    code = "request_timeout"
    title = "Запрос приходит слишком долго"
    detail = (
        "Запрос не пришёл целиком вовремя, соединение закрыто. Повторите его; если сеть медленная, увеличьте "
        "REQUEST_TIMEOUT_SECONDS."
    )


class RequestTooLarge(BadRequest):
    """The body is over MAX_REQUEST_BYTES (`limit`: bytes)."""

    status = 413
    code = "request_too_large"
    title = "Слишком большой запрос"


class HeadersTooLarge(BadRequest):
    """The headers are too long or too many (`limit`: bytes); the connection is closed."""

    status = 431
    code = "headers_too_large"
    title = "Слишком большие заголовки"


class InvalidRequest(BadRequest):
    """The body does not have the promised form (`field`: where)."""

    status = 422
    code = "invalid_request"
    title = "Неверный запрос"


class NotFound(BadRequest):
    """No such path."""

    status = 404
    code = "not_found"
    title = "Адрес не найден"
    detail = "Такого адреса у шлюза нет. Список адресов: GET /docs."


class MethodNotAllowed(BadRequest):
    """The path exists, the method does not (`allow`: those that do)."""

    status = 405
    code = "method_not_allowed"
    title = "Метод не поддерживается"
    detail = "Этот адрес не принимает такой метод HTTP. Список адресов и методов: GET /docs."


class InvalidKey(GatewayError):
    """vLLM does not accept the key, or it cannot be put to it."""

    status = 401
    code = "invalid_key"
    title = "Неверный ключ vLLM"
    detail = (
        "vLLM не принимает этот ключ. Проверьте vllm_api_key: "
        "он должен совпадать с VLLM_API_KEY, с которым запущен vLLM."
    )


class KeyRejected(InvalidKey):
    """vLLM has answered 401 or 403 to it."""

    kind = "unauthorized"


class SessionNotFound(GatewayError):
    """Unknown, expired or stopped."""

    status = 404
    code = "session_not_found"
    title = "Сессия не найдена"
    detail = "Сессии нет: она истекла, остановлена или не создавалась. Откройте новую: POST /init_session."


class Conflict(GatewayError):
    """The session is in a state that does not allow this now."""


class SessionBusy(Conflict):
    """A turn is in flight."""

    status = 409
    code = "session_busy"
    title = "Сессия занята"
    detail = "В этой сессии ещё идёт ответ. Дождитесь его или остановите: POST /cancel."


class NothingToUndo(Conflict):
    """The history is empty."""

    status = 409
    code = "nothing_to_undo"
    title = "Отменять нечего"
    detail = "История сессии пуста: нет пары сообщений, которую можно убрать."


class TurnCancelled(Conflict):
    """The turn was stopped by /cancel or /stop_session before there was anything to answer with."""

    status = 409
    code = "cancelled"
    title = "Ответ остановлен"
    detail = "Ответ остановлен запросом /cancel или /stop_session; в историю ничего не записано."


class Limited(GatewayError):
    """Too much at once (`retry_after`: seconds)."""


class TooManyRequests(Limited):
    """vLLM limits the rate, or too many wrong keys came from one address."""

    status = 429
    code = "too_many_requests"
    title = "Слишком много запросов"
    detail = "Слишком много запросов. Повторите позже: через сколько секунд, сказано в заголовке Retry-After."


class RateLimited(TooManyRequests):
    """vLLM has answered 429."""

    kind = "rate_limited"


class Overloaded(Limited):
    """A limit of the gateway is reached."""

    status = 503
    code = "overloaded"
    title = "Шлюз сейчас не может ответить"


class Upstream(GatewayError):
    """vLLM did not answer as it should; nothing was written to the history."""


class UpstreamError(Upstream):
    """vLLM answered 5xx or something that is no answer."""

    status = 502
    code = "upstream_error"
    title = "Ошибка vLLM"


class UpstreamBroken(UpstreamError):
    """The connection ended before the answer did, or what came is no HTTP."""

    kind = "broken"


class UpstreamHTTPError(UpstreamError):
    """The status is 5xx, or one that is none of those expected."""

    kind = "http_error"


class UpstreamGarbage(UpstreamError):
    """A 200 that is no answer: no JSON, no UTF-8, too large, of another form, or without its end."""

    kind = "garbage"


class UpstreamErrorEvent(UpstreamError):
    """A 200 in which vLLM tells of an error of its own."""

    kind = "error_event"


class UpstreamUnavailable(Upstream):
    """vLLM cannot be reached."""

    status = 503
    code = "upstream_unavailable"
    title = "vLLM недоступен"
    kind = "unavailable"


class UpstreamTimeout(Upstream):
    """vLLM was too slow."""

    status = 504
    code = "upstream_timeout"
    title = "vLLM не успел ответить"
    kind = "timeout"
    detail = (
        "vLLM не ответил вовремя. Повторите запрос, уменьшите max_tokens или увеличьте VLLM_IDLE_TIMEOUT_SECONDS "
        "и VLLM_TOTAL_TIMEOUT_SECONDS."
    )


class StoreUnavailable(GatewayError):
    """Redis, where sessions are kept, does not do what it was asked for (`retry_after`: seconds).

    Attributes:
        passes: it may well do it in a moment.
    """

    status = 503
    code = "store_unavailable"
    title = "Хранилище сессий недоступно"

    def __init__(self, detail: str, *, passes: bool = False) -> None:
        super().__init__(detail, retry_after=_STORE_RETRY_SECONDS)
        self.passes = passes


class InternalError(GatewayError):
    """A defect of the gateway."""

    status = 500
    code = "internal_error"
    title = "Внутренняя ошибка шлюза"
    detail = "Ошибка в самом шлюзе. Найдите в его журнале строку с этим X-Request-Id и сообщите разработчикам."
