"""The table of faults between the gateway and vLLM, and what the doctor says of each from inside."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.scripted_vllm import ScriptedVLLM, whole
from tests.servers import unused_url


@dataclass
class Inside:
    """What the gateway sees.

    Attributes:
        vllm: before it.
        environ: the gateway's.
        folder: an empty one.
        kept: what lasts as long as the test.
    """

    vllm: ScriptedVLLM
    environ: dict[str, str]
    folder: Path
    kept: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True)
class InnerFault:
    """A row of the table; see `Fault`."""

    title: str
    seed: Callable[[Inside], object]
    code: str
    says: str
    types: str
    status: str = "failure"
    also: frozenset[str] = frozenset()


def _sets(**values: str) -> Callable[[Inside], None]:
    return lambda inside: inside.environ.update(values)


def _counts_more(inside: Inside) -> None:
    count = inside.vllm.counter
    assert count is not None
    inside.vllm.counter = lambda body: count(body) + 7


def _loads(inside: Inside) -> None:
    inside.vllm.health_delay = 1.2


def _is_ill(inside: Inside) -> None:
    inside.vllm.healthy = False


def _has_no_key(inside: Inside) -> None:
    inside.vllm.key = None


def _serves_another(inside: Inside) -> None:
    inside.vllm.models_script = whole("")
    inside.vllm.models_script.acts = [b'{"data": [{"id": "qwen", "max_model_len": 8192}]}']


def _is_shorter(inside: Inside) -> None:
    inside.vllm.max_model_len = 4096


def _is_late(inside: Inside) -> None:
    inside.vllm.clock_ahead = -3600.0


def _lost_its_template(inside: Inside) -> None:
    model = Path(inside.environ["TOKENIZER_PATH"])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (inside.folder / name).symlink_to(model / name)
    inside.environ["TOKENIZER_PATH"] = str(inside.folder)


def _has_no_redis(inside: Inside) -> None:
    address = unused_url().removeprefix("http://")
    inside.environ |= {"SESSION_STORE_URL": f"redis://:parol@{address}/0", "SESSION_SECRET": "0123456789abcdef" * 2}


INNER_FAULTS = (
    InnerFault(
        "невозможная настройка шлюза",
        _sets(TRIM_TARGET_RATIO="0,7"),
        "settings",
        "Настройки шлюза: TRIM_TARGET_RATIO='0,7': нужно число",
        "исправьте .env",
    ),
    InnerFault(
        "токенизатор без шаблона чата",
        _lost_its_template,
        "tokenizer",
        "В папке … нет шаблона чата",
        "docker compose up -d --force-recreate",
    ),
    InnerFault(
        "имени vLLM нет в сети",
        _sets(VLLM_BASE_URL="http://vllm.invalid:8000/v1"),
        "vllm_name",
        "Имени vllm.invalid из VLLM_BASE_URL нет в сети",
        "docker compose ps vllm",
    ),
    InnerFault(
        "vLLM не запущен",
        lambda inside: inside.environ.update(VLLM_BASE_URL=unused_url() + "/v1"),
        "vllm_down",
        "vLLM не отвечает по адресу",
        "docker compose logs -f vllm",
    ),
    InnerFault(
        "vLLM загружает модель или завис",
        _loads,
        "vllm_silent",
        "vLLM не ответил за 1 с: он загружает модель или завис",
        "docker compose restart vllm",
    ),
    InnerFault(
        "vLLM отвечает ошибкой", _is_ill, "vllm_down", "vLLM ответил ошибкой 503", "docker compose logs -f vllm"
    ),
    InnerFault(
        "vLLM запущен с другим ключом",
        _sets(VLLM_API_KEY="drugoj-kljuch"),
        "key_refused",
        "vLLM не принимает ключ",
        "docker compose up -d",
    ),
    InnerFault(
        "vLLM запущен без ключа",
        _has_no_key,
        "vllm_keyless",
        "vLLM запущен без ключа и принимает любой",
        "впишите VLLM_API_KEY в .env",
        "warning",
    ),
    InnerFault(
        "vLLM обслуживает модель под другим именем",
        _serves_another,
        "model_name",
        "vLLM не обслуживает модель /app/model; у него есть: qwen",
        "уберите VLLM_MODEL_NAME",
    ),
    InnerFault(
        "контекст у vLLM короче, чем `MAX_CONTEXT_TOKENS`",
        _is_shorter,
        "context",
        "MAX_CONTEXT_TOKENS=8000, а контекст у vLLM — 4096 токенов",
        "MAX_CONTEXT_TOKENS=3584",
        "warning",
    ),
    InnerFault(
        "vLLM считает токены иначе",
        _counts_more,
        "count",
        "Шлюз насчитал в запросе токенов",
        "docs/operations.md, «Версии»",
        "warning",
    ),
    InnerFault("часы vLLM сбились", _is_late, "clocks", "Часы vLLM отстают на", "timedatectl set-ntp", "warning"),
    InnerFault("Redis не отвечает", _has_no_redis, "redis", "Redis не отвечает", "docker compose logs --tail 50 redis"),
)
