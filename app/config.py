"""Settings: read once from the environment, checked, frozen."""

import os
import re
from ipaddress import ip_network
from typing import Annotated, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.validation import Text, reason

IN_MEMORY = "memory://"
ONE_PROCESS = (
    "сессии живут в памяти одного процесса, поэтому рабочий процесс может быть только один; уберите WEB_CONCURRENCY и "
    "--workers или храните сессии в Redis (SESSION_STORE_URL)"
)
_TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})
_SECRET = ("session_store_url", "session_secret")
_SECRET_LETTERS = 32
DEFAULT_SYSTEM_PROMPT = "Ты — полезный ассистент. Отвечай по-русски, точно и по делу."


class ConfigError(Exception):
    """The gateway cannot start; the message is one Russian line that says what to change."""


def _check_base_url(url: str) -> str:
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")
        usable = parts.scheme in ("http", "https") and host and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        usable = False
    if not usable or not url.endswith("/v1") or set(url) & set("?# \t"):
        raise PydanticCustomError("base_url", "нужен адрес вида http://vllm:8000/v1")
    return url


def _check_store_url(url: SecretStr) -> SecretStr:
    """What redis-py would take otherwise than it is meant. None of its words: they may hold the password."""
    given = url.get_secret_value()
    if given == IN_MEMORY:
        return url
    try:
        parts = urlsplit(given)
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        known_options = _TLS_OPTIONS if parts.scheme == "rediss" else frozenset()
        usable = (
            parts.scheme in ("redis", "rediss")
            and bool(parts.hostname)
            and parts.port != 0
            and parts.netloc.count("@") <= 1
            and re.fullmatch(r"(/\d*)?", parts.path) is not None
            and options.keys() <= known_options
            and not set(given) & set("# \t")
        )
    except ValueError:
        usable = False
    if not usable:
        raise PydanticCustomError(
            "store_url",
            "нужен адрес вида redis://redis:6379/0 (с паролем — redis://:пароль@redis:6379/0) или memory://; "
            "особые знаки в пароле пишут как %2F, после ? бывают только ssl_ca_certs, ssl_certfile и ssl_keyfile у rediss://",
        )
    return url


def _split_secrets(value: object) -> object:
    return tuple(secret.strip() for secret in value.split(",") if secret.strip()) if isinstance(value, str) else value


def _check_secrets(secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    if any(len(secret.get_secret_value()) < _SECRET_LETTERS for secret in secrets):
        raise PydanticCustomError(
            "secret", f"нужны строки не короче {_SECRET_LETTERS} знаков через запятую; придумайте: openssl rand -hex 32"
        )
    return secrets


def _split_list(value: object) -> object:
    return (
        tuple(item.strip().rstrip("/") for item in value.split(",") if item.strip())
        if isinstance(value, str)
        else value
    )


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise PydanticCustomError(
                "origin", "допустимы *, пустое значение или адреса вида https://site.example через запятую"
            )
    return origins


def _check_proxies(addresses: str) -> str:
    """Uvicorn reads the variable itself, and takes what is no address for a name that no client has."""
    try:
        for address in addresses.split(",") if addresses != "*" else ():
            if address.strip():
                ip_network(address.strip())
    except ValueError:
        raise PydanticCustomError(
            "proxies", "нужны адреса или сети прокси через запятую, например 127.0.0.1,172.16.0.0/12"
        ) from None
    return addresses


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


# Bounds that only a slip of the finger exceeds, and that any arithmetic on them stands.
Count = Annotated[int, Field(gt=0, le=10**15)]
CountOrNone = Annotated[int, Field(ge=0, le=10**15)]
Seconds = Annotated[float, Field(gt=0, le=10**9, allow_inf_nan=False)]
SecondsOrNone = Annotated[float, Field(ge=0, le=10**9, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What the environment says. Field names in upper case are the variables' names."""

    model_config = SettingsConfigDict(frozen=True)

    vllm_base_url: Annotated[str, AfterValidator(_check_base_url)] = "http://vllm:8000/v1"
    vllm_model_name: Annotated[str, Field(min_length=1)] = "/app/model"
    tokenizer_path: str = ""
    max_context_tokens: Count = 8000
    trim_target_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.7
    session_ttl_seconds: Annotated[int, Field(gt=0, le=10**9)] = 600
    default_system_prompt: Text = DEFAULT_SYSTEM_PROMPT
    cors_allow_origins: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(_split_list), AfterValidator(_check_origins)
    ] = ("*",)
    docs_enabled: bool = True
    metrics_enabled: bool = True
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = "INFO"
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower)] = "text"
    max_concurrent_requests: Count = 2048
    max_waiting_requests: CountOrNone = 512
    max_wait_seconds: Seconds = 30.0
    drain_seconds: SecondsOrNone = 30.0
    max_request_bytes: Count = 1024 * 1024
    request_timeout_seconds: Seconds = 30.0
    max_key_failures_per_minute: CountOrNone = 30
    forwarded_allow_ips: Annotated[str, AfterValidator(_check_proxies)] = "127.0.0.1,::1"
    max_sessions: Count = 10_000
    max_session_bytes: Count = 4 * 1024 * 1024
    vllm_connect_timeout_seconds: Seconds = 5.0
    vllm_idle_timeout_seconds: Seconds = 300.0
    vllm_total_timeout_seconds: Seconds = 1800.0
    vllm_stall_seconds: SecondsOrNone = 30.0
    session_store_url: Annotated[SecretStr, AfterValidator(_check_store_url)] = SecretStr(IN_MEMORY)
    session_secret: Annotated[
        tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_secrets), AfterValidator(_check_secrets)
    ] = ()
    session_store_timeout_seconds: Seconds = 5.0
    web_concurrency: Count = 1

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_session_bytes < self.max_request_bytes:
            raise PydanticCustomError(
                "session_bytes",
                "MAX_SESSION_BYTES={session} меньше MAX_REQUEST_BYTES={request}: "
                "одно сообщение не поместилось бы в сессию; увеличьте MAX_SESSION_BYTES",
                {"session": self.max_session_bytes, "request": self.max_request_bytes},
            )
        if self.keeps_sessions_in_memory:
            if self.web_concurrency != 1:
                raise PydanticCustomError(
                    "processes", "WEB_CONCURRENCY={processes}: " + ONE_PROCESS, {"processes": self.web_concurrency}
                )
        elif not self.session_secret:
            raise PydanticCustomError(
                "no_secret",
                "SESSION_SECRET не задан, а с SESSION_STORE_URL=redis://… нужен: им шифруются ключи vLLM в Redis; "
                "придумайте его (openssl rand -hex 32) и задайте один и тот же всем шлюзам",
            )
        return self

    @property
    def keeps_sessions_in_memory(self) -> bool:
        """Whether they live in the memory of this process, and end with it."""
        return self.session_store_url.get_secret_value() == IN_MEMORY

    @property
    def tokenizer_folder(self) -> str:
        """The folder that holds the tokenizer's files: the model's own unless TOKENIZER_PATH names another."""
        return self.tokenizer_path or self.vllm_model_name

    @property
    def vllm_root_url(self) -> str:
        """vLLM's address without `/v1`, where /health, /version and /openapi.json are."""
        return self.vllm_base_url.removesuffix("/v1")


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        ConfigError: names every wrong variable, its value and what is allowed.
    """
    try:
        return Settings()
    except ValidationError as exc:
        raise ConfigError("; ".join(_explain(error) for error in exc.errors())) from None


def _explain(error: ErrorDetails) -> str:
    if not error["loc"]:
        return reason(error)
    field = str(error["loc"][0])
    name = field.upper()
    if field in _SECRET:
        return f"{name}: {reason(error)}"
    return f"{name}={os.environ.get(name, error['input'])!r}: {reason(error)}"
