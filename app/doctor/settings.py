"""Whether the stand's settings are possible, and agree with each other and with the model."""

import re
from collections.abc import Iterator, Mapping

from app.doctor import facts
from app.doctor.cards import share_of
from app.doctor.dotenv import EXAMPLE_KEY, setting_command
from app.doctor.findings import Finding, failure, gib, ok, or_else, unchecked, warning
from app.doctor.machine import Machine
from app.doctor.model import Model
from app.doctor.needs import allowed_context, cards_of_this_machine, needs_of
from app.doctor.stand import MODEL_TARGET, Service, Stand

INTEGERS = (
    "MAX_CONTEXT_TOKENS SESSION_TTL_SECONDS MAX_CONCURRENT_REQUESTS MAX_WAITING_REQUESTS MAX_REQUEST_BYTES "
    "MAX_KEY_FAILURES_PER_MINUTE MAX_SESSIONS MAX_SESSION_BYTES WEB_CONCURRENCY"
).split()
"""Variables of the gateway that are whole numbers."""

_MAY_BE_ZERO = {"MAX_WAITING_REQUESTS", "MAX_KEY_FAILURES_PER_MINUTE"}
DEFAULT_MAX_TOKENS = 512
_GRACE_AFTER_DRAIN = 10.0
_GIB = 2**30
_DOCKERS_SHM_BYTES = 64 * 2**20


def key(given: str) -> Iterator[Finding]:
    """Whether the key is the owner's own, and can be sent."""
    new = f"{setting_command('VLLM_API_KEY', 16)}\nзатем docker compose up -d"
    if not given:
        yield failure(
            "key_missing", "В .env нет ключа VLLM_API_KEY", "Без него Docker Compose не запустит ничего.", new
        )
    elif given == EXAMPLE_KEY:
        why = "Этот ключ знают все, кто читал README: он ничего не защищает."
        yield warning("key_example", "VLLM_API_KEY — ключ из примера", why, new)
    elif not re.fullmatch(r"[!-~]{1,4096}", given):
        why = "Такой ключ не передать в заголовке: шлюз и vLLM его не примут."
        yield failure("key_letters", "В VLLM_API_KEY есть пробелы или не латинские буквы", why, new)
    else:
        yield ok("key", "Ключ свой")


def length_of(vllm: Service) -> int | None:
    """The context's length that vLLM is asked for; None where it is not said or no number."""
    return facts.tokens(vllm.option("--max-model-len") or "")


def numbers(stand: Stand) -> Iterator[Finding]:
    """Whether what must be a number is one."""
    for name in INTEGERS:
        value = stand.gateway.environment.get(name)
        if value is None:
            continue
        number = facts.whole(value)
        if number is None or number < 0 or (number == 0 and name not in _MAY_BE_ZERO):
            yield failure(
                "not_a_number",
                f"{name}={value!r}: нужно целое число {'не меньше' if name in _MAY_BE_ZERO else 'больше'} 0",
                "С таким значением шлюз не запустится.",
                f"исправьте {name} в .env; что он значит — в .env.example",
            )
    for vllm in stand.vllms[:1]:
        given = vllm.option("--max-model-len")
        if given is not None and not length_of(vllm) and given not in {"auto", "-1"}:
            yield failure(
                "length_not_a_number",
                f"VLLM_MAX_MODEL_LEN={given!r}: нужно целое число",
                "vLLM не запустится.",
                "строка в .env: VLLM_MAX_MODEL_LEN=8192",
            )
        share = vllm.option("--gpu-memory-utilization")
        if share is not None and share_of(share) is None:
            yield failure(
                "utilization",
                f"VLLM_GPU_MEMORY_UTILIZATION={share!r}: нужна доля больше 0, до 1",
                "vLLM не запустится.",
                "строка в .env: VLLM_GPU_MEMORY_UTILIZATION=0.90",
            )


def budget(stand: Stand, defaults: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the gateway's budget is within the model's context."""
    length = next((length for vllm in stand.vllms if (length := length_of(vllm))), None)
    given = stand.gateway.environment.get("MAX_CONTEXT_TOKENS") or defaults.get("MAX_CONTEXT_TOKENS", "")
    tokens = facts.whole(given)
    if not length or not tokens or not stand.uses_its_vllm:
        yield unchecked("budget", "Бюджет контекста", "длина контекста vLLM или MAX_CONTEXT_TOKENS неизвестны")
        return
    limit = min(tokens, length - DEFAULT_MAX_TOKENS)
    if limit <= 0:
        yield failure(
            "length_tiny",
            f"VLLM_MAX_MODEL_LEN={length}: на разговор не остаётся места",
            f"На ответ по умолчанию отводится {DEFAULT_MAX_TOKENS} токенов.",
            "строка в .env: VLLM_MAX_MODEL_LEN=8192",
        )
    elif tokens >= length:
        yield warning(
            "budget",
            f"MAX_CONTEXT_TOKENS={tokens} не меньше VLLM_MAX_MODEL_LEN={length}",
            f"Столько в запрос не поместится: с ответом в {DEFAULT_MAX_TOKENS} токенов — не больше {limit}.",
            f"строка в .env: MAX_CONTEXT_TOKENS={limit}",
        )
    else:
        yield ok("budget", f"Контекст: {length} токенов, из них на запрос до {limit}")


def length(vllm: Service, model: Model) -> Iterator[Finding]:
    """Whether the model takes a context of that length."""
    asked, most = length_of(vllm), allowed_context(model, vllm)
    if asked and most and asked > most:
        yield failure(
            "length_over_model",
            f"VLLM_MAX_MODEL_LEN={asked}, а модель умеет {most} (config.json)",
            "vLLM остановится: is greater than the derived max_model_len.",
            f"строка в .env: VLLM_MAX_MODEL_LEN={most}\nи MAX_CONTEXT_TOKENS меньше него",
        )


def together(stand: Stand, defaults: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the gateway's settings agree with each other and with the stand."""
    gateway = stand.gateway
    environment = {**defaults, **gateway.environment}
    workers = facts.whole(environment.get("WEB_CONCURRENCY")) or 1
    store = environment.get("SESSION_STORE_URL", "")
    if workers > 1 and store in {"", "memory://"}:
        yield failure(
            "workers_without_redis",
            f"WEB_CONCURRENCY={workers}, а сессии — в памяти",
            "У каждого процесса были бы свои сессии; шлюз так не запускается.",
            "строка в .env: WEB_CONCURRENCY=1\nили сессии в Redis: docs/scaling.md",
        )
    if store.startswith("redis") and len(environment.get("SESSION_SECRET", "").split(",")[0].strip()) < 32:
        yield failure(
            "secret_missing",
            "SESSION_SECRET не задан или короче 32 знаков, а сессии — в Redis",
            "Им шифруются ключи vLLM; без него шлюз не запустится.",
            setting_command("SESSION_SECRET", 32),
        )
    yield from _drain(gateway, environment)
    path = environment.get("TOKENIZER_PATH") or MODEL_TARGET
    if not (stand.is_guessed or gateway.mount_of(path)):
        yield failure(
            "tokenizer_path",
            f"TOKENIZER_PATH={path}: такой папки в контейнере шлюза нет",
            "Шлюз ищет токенизатор внутри контейнера и не запустится.",
            "уберите TOKENIZER_PATH из .env\nили подключите папку в docker-compose.yaml (gateway, volumes)",
        )


def _drain(gateway: Service, environment: Mapping[str, str]) -> Iterator[Finding]:
    given = environment.get("DRAIN_SECONDS", "")
    drain = float(given) if re.fullmatch(r"\d{1,9}(\.\d+)?", given) else 0.0
    if drain + _GRACE_AFTER_DRAIN > gateway.grace_seconds:
        yield warning(
            "drain",
            f"DRAIN_SECONDS={given}, а stop_grace_period — {gateway.grace_seconds:g} с",
            "Docker убьёт шлюз раньше, чем он договорит начатые ответы.",
            f"в docker-compose.yaml у gateway: stop_grace_period: {drain + 15:g}s\nили строка в .env: DRAIN_SECONDS=30",
        )


def shared_memory(vllm: Service) -> Iterator[Finding]:
    """Whether vLLM's processes have room to talk with each other."""
    size = _DOCKERS_SHM_BYTES if vllm.shm_bytes is None else vllm.shm_bytes
    if vllm.shares_memory or size >= _GIB:
        shown = "общая с машиной" if vllm.shares_memory else gib(size)
        yield ok("shm", f"Общая память {vllm.name}: {shown}")
        return
    is_split = cards_of_this_machine(vllm) > 1
    say = failure if is_split else warning
    yield say(
        "shm",
        f"У {vllm.name} общей памяти {gib(size)}",
        "Через неё обмениваются процессы vLLM; "
        + ("на нескольких картах он без неё упадёт." if is_split else "на одной карте может хватить и этого."),
        f"в docker-compose.yaml у {vllm.name}: shm_size: 8gb",
    )


def processor(machine: Machine, vllm: Service, model: Model) -> Iterator[Finding]:
    """Whether the model fits this machine's own memory, where vLLM works on the processor."""
    if machine.flags and "avx2" not in machine.flags:
        yield failure(
            "avx2", "Процессор не умеет AVX2", "vLLM без него на процессоре не работает.", "нужна другая машина"
        )
    needs = needs_of(model, vllm)
    cache = (facts.whole(vllm.environment.get("VLLM_CPU_KVCACHE_SPACE")) or 4) * _GIB
    asked = length_of(vllm) or 0
    yield from _cache(needs.cache_bytes_per_token or 0, cache, asked)
    if not machine.memory_bytes or needs.weights_bytes is None:
        yield unchecked("ram", "Хватит ли памяти", needs.why or "сколько её, неизвестно")
        return
    needed = needs.weights_bytes + cache
    fine = ok("ram", f"Память: весам и кэшу нужно {gib(needed)} из {gib(machine.memory_bytes)}")
    yield from or_else(_ram(machine.memory_bytes, needed, cache), fine)


def _cache(per_token: int, cache: int, asked: int) -> Iterator[Finding]:
    if per_token * asked > cache:
        fits = cache // per_token // 1024 * 1024
        yield failure(
            "cpu_cache",
            f"В VLLM_CPU_KVCACHE_SPACE={cache // _GIB} (ГиБ) не помещается контекст VLLM_MAX_MODEL_LEN={asked}",
            f"Ему нужно {gib(per_token * asked)}: vLLM не запустится.",
            f"строка в .env: VLLM_CPU_KVCACHE_SPACE={-(-per_token * asked // _GIB)}\nили VLLM_MAX_MODEL_LEN={fits}",
        )


def _ram(total: int, needed: int, cache: int) -> Iterator[Finding]:
    if needed > total:
        yield failure(
            "ram",
            f"Памяти на машине {gib(total)}, а весам и кэшу нужно {gib(needed)}",
            "Система убьёт vLLM, когда память кончится.",
            f"модель поменьше\nили кэш поменьше, строка в .env: VLLM_CPU_KVCACHE_SPACE={max(1, cache // _GIB // 2)}",
        )
