"""The inner half: looks at vLLM and Redis from where the gateway is, with the gateway's own settings and clients."""

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from urllib.parse import urlsplit

from pydantic import SecretStr

from app.agreement import CountAgreement
from app.background import KEYLESS_WARNING
from app.config import ConfigError, Settings, load_settings
from app.doctor.findings import Finding, failure, ok, unchecked, warning
from app.errors import GatewayError, InvalidKey, StoreUnavailable, Upstream, UpstreamTimeout
from app.redis_server import RedisServer
from app.tokenizer import ChatTokenizer
from app.turn import DEFAULT_MAX_TOKENS
from app.vllm import VLLMClient

_RESOLVE_SECONDS = 5.0
# A second is what Date counts in, and another one passes on the way.
_CLOCK_SECONDS = 5.0
_KEY_HINT = "VLLM_API_KEY=ваш_ключ docker compose exec -e VLLM_API_KEY gateway python -m app.doctor"
_RESTART = "docker compose up -d"
_SET_CLOCK = "на обеих машинах: sudo timedatectl set-ntp true"


def examine_from_inside() -> Iterator[Finding]:
    """Look from inside; each finding as soon as it is there."""
    try:
        settings = load_settings()
    except ConfigError as exc:
        why = "Шлюз с такими настройками не запустится."
        yield failure("settings", f"Настройки шлюза: {exc}", why, f"исправьте .env, затем {_RESTART}")
        yield unchecked("vllm", "vLLM, токенизатор и Redis", "сначала нужны возможные настройки")
        return
    yield ok("settings", "Настройки шлюза возможны")
    with asyncio.Runner() as runner:
        findings = aiter(_everything(settings))
        while finding := runner.run(_next(findings)):
            yield finding


async def _next(findings: AsyncIterator[Finding]) -> Finding | None:
    return await anext(findings, None)


async def _everything(settings: Settings) -> AsyncIterator[Finding]:
    tokenizer, found = await asyncio.to_thread(_load_tokenizer, settings)
    yield found
    with closing(VLLMClient(settings)) as vllm:
        async for finding in _vllm(vllm, settings, tokenizer):
            yield finding
    if not settings.keeps_sessions_in_memory:
        async for finding in _redis(settings):
            yield finding


def _load_tokenizer(settings: Settings) -> tuple[ChatTokenizer | None, Finding]:
    try:
        tokenizer = ChatTokenizer.load(settings.tokenizer_folder)
    except ConfigError as exc:
        why = "Шлюз не запустится: без токенизатора и шаблона чата нечем считать."
        command = f"исправьте папку model, затем {_RESTART} --force-recreate"
        return None, failure("tokenizer", str(exc), why, command)
    return tokenizer, ok("tokenizer", "Токенизатор и шаблон чата загружаются")


def _tokenizer_warnings(tokenizer: ChatTokenizer | None, *, served: bool) -> Iterator[Finding]:
    """What the gateway itself would warn of; a folder that vLLM has loaded is good enough for it."""
    if tokenizer is not None:
        why = "Счёт токенов или ответы могут быть не такими, как ожидается."
        for said in [*([] if served else tokenizer.folder_warnings), *tokenizer.warnings]:
            yield warning(
                "tokenizer_warning",
                said,
                why,
                "docs/context.md, «Любой шаблон чата» и «Сверка с vLLM»; docs/operations.md, «Версии»",
            )


async def _vllm(vllm: VLLMClient, settings: Settings, tokenizer: ChatTokenizer | None) -> AsyncIterator[Finding]:
    unreachable = await _unreachable(vllm, settings)
    for finding in _tokenizer_warnings(tokenizer, served=unreachable is None):
        yield finding
    if unreachable:
        yield unreachable
        yield unchecked("key", "Ключ, имя модели, счёт токенов", "vLLM не отвечает")
        return
    yield ok("vllm", f"vLLM {await vllm.version()} отвечает по адресу {settings.vllm_base_url}".replace("  ", " "))
    async for finding in _key(vllm):
        yield finding
    if tokenizer is not None:
        yield await _agreement(vllm, tokenizer)
    yield _budget(vllm, settings)
    yield _clock("vLLM", await vllm.clock())


async def _unreachable(vllm: VLLMClient, settings: Settings) -> Finding | None:
    """Why vLLM is not reached; None where it is."""
    parts = urlsplit(settings.vllm_base_url)
    assert parts.hostname is not None
    if not await _resolves(parts.hostname):
        return failure(
            "vllm_name",
            f"Имени {parts.hostname} из VLLM_BASE_URL нет в сети",
            "Шлюз не знает, где vLLM. В стенде это имя — у запущенного контейнера vllm.",
            f"docker compose ps vllm; {_RESTART}\nили исправьте VLLM_BASE_URL в .env",
        )
    try:
        await vllm.probe()
    except UpstreamTimeout as exc:
        why = "Большая модель загружается минутами; если уже работал — завис."
        return failure(
            "vllm_silent", exc.detail, why, "docker compose logs -f vllm\nзавис: docker compose restart vllm"
        )
    except Upstream as exc:
        return failure(
            "vllm_down", exc.detail, "Пока vLLM не отвечает, шлюз отвечает 503.", "docker compose logs -f vllm"
        )
    return None


async def _resolves(host: str) -> bool:
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        return False
    return True


async def _key(vllm: VLLMClient) -> AsyncIterator[Finding]:
    """Whether vLLM asks for a key, takes ours, and serves what it should."""
    key = SecretStr(os.environ.get("VLLM_API_KEY", ""))
    try:
        keyless = await vllm.accepts_any_key()
        if keyless:
            command = f"впишите VLLM_API_KEY в .env, затем {_RESTART}"
            yield warning("vllm_keyless", KEYLESS_WARNING, "Говорить с моделью может всякий, кто видит шлюз.", command)
        if not key.get_secret_value() and not keyless:
            why = "ключа в окружении нет (у самого шлюза его и не бывает)"
            yield unchecked("key", "Принимает ли vLLM ключ, то ли имя у модели", why, _KEY_HINT)
            return
        await vllm.prove_key(SecretStr("any") if keyless else key)
        yield ok("key_accepted", f"Ключ принят, модель {vllm.model} обслуживается")
    except InvalidKey as exc:
        why = "Шлюз отвечал бы 401: vLLM запущен с другим ключом, чем этот."
        command = f"ключ в .env меняли? {_RESTART} — vLLM прочтёт новый"
        yield failure("key_refused", f"vLLM не принимает ключ. {exc.detail}", why, command)
    except GatewayError as exc:
        why = "Шлюз просит у vLLM модель по этому имени; сессии не откроются."
        command = f"уберите VLLM_MODEL_NAME и VLLM_BASE_URL из .env, если они не нужны, затем {_RESTART}"
        yield failure("model_name", exc.detail, why, command)


async def _agreement(vllm: VLLMClient, tokenizer: ChatTokenizer) -> Finding:
    await vllm.learn_schema()
    agreement = CountAgreement(tokenizer, vllm)
    compared = await agreement.probe()
    if agreement.warning:
        why = "Иначе история обрезалась бы не там, где нужно."
        return warning(
            "count", agreement.warning, why, "docs/operations.md, «Версии»: одна версия transformers у шлюза и vLLM"
        )
    if not compared:
        return unchecked("count", "Счёт токенов", "vLLM не отвечает на /tokenize; он сверяется с каждым ответом")
    return ok("count", f"Токены шлюз и vLLM считают одинаково (проб: {compared})")


def _budget(vllm: VLLMClient, settings: Settings) -> Finding:
    length, tokens = vllm.max_model_len, settings.max_context_tokens
    if not length:
        return unchecked("context", "Длина контекста у vLLM", "он называет её тому, кто прислал верный ключ")
    limit = min(tokens, length - DEFAULT_MAX_TOKENS)
    if tokens >= length:
        return warning(
            "context",
            f"MAX_CONTEXT_TOKENS={tokens}, а контекст у vLLM — {length} токенов",
            f"Запросу остаётся не больше {limit}, когда на ответ отводится {DEFAULT_MAX_TOKENS}.",
            f"строка в .env: MAX_CONTEXT_TOKENS={max(limit, 1)}, затем {_RESTART}\n"
            "или VLLM_MAX_MODEL_LEN больше, если модель и память позволяют",
        )
    return ok("context", f"Контекст у vLLM — {length} токенов, на запрос — до {limit}")


def _clock(whose: str, theirs: float | None) -> Finding:
    if theirs is None:
        return unchecked("clocks", f"Часы {whose}", "он не говорит, который час")
    ahead = theirs - time.time()
    if abs(ahead) > _CLOCK_SECONDS:
        return warning(
            "clocks",
            f"Часы {whose} {'спешат' if ahead > 0 else 'отстают'} на {abs(ahead):.0f} с по сравнению со шлюзом",
            "Журналы и измерения не сопоставить, сроки сессий сбиваются.",
            _SET_CLOCK,
        )
    return ok("clocks", f"Часы {whose} и шлюза совпадают")


async def _redis(settings: Settings) -> AsyncIterator[Finding]:
    server = RedisServer(settings.session_store_url, settings.session_store_timeout_seconds)
    async with aclosing(server):
        if ailment := await server.ailment():
            why = "Сессии живут в нём: шлюз отвечает 503 store_unavailable."
            yield failure("redis", ailment, why, "docker compose ps redis; docker compose logs --tail 50 redis")
            return
        yield ok("redis", "Redis отвечает")
        try:
            told = (await server.about()).get("server_time_usec")
        except StoreUnavailable:
            told = None  # its user may not ask
        yield _clock("Redis", int(told) / 1e6 if told else None)
