"""The stand's containers: how they are, and the telling line of those that are not well."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.doctor import facts
from app.doctor.findings import Finding, failure, ok, or_else, unchecked, warning

_SHOWN_LETTERS = 300
_RESTARTS = 2
# Its own end, and the signals with which Docker ends it when it is told to.
_STOPPED = {0, 128 + 2, 128 + 9, 128 + 15}
_HIDDEN = "***"

# What vLLM and the gateway say last, and what to do about it. The first that is found in a log counts.
_KNOWN: Sequence[tuple[str, str, str]] = (
    (r"Ошибка: .+", "Невозможная настройка или папка модели.", "исправьте, затем docker compose up -d"),
    (
        r"No available memory for the cache blocks.*|CUDA out of memory.*|torch\.OutOfMemoryError.*",
        "Модель и кэш не помещаются в память видеокарты.",
        "строка в .env: VLLM_MAX_MODEL_LEN поменьше; модель меньше или квантованная",
    ),
    (
        r"Free memory on device .*|.*is larger than the maximum number of tokens that can be stored in KV cache.*",
        "Памяти видеокарты меньше, чем ему велено занять.",
        "nvidia-smi; строка в .env: VLLM_GPU_MEMORY_UTILIZATION или VLLM_MAX_MODEL_LEN поменьше",
    ),
    (
        r".*is greater than the derived max_model_len.*",
        "Модель не умеет такой контекст.",
        "строка в .env: VLLM_MAX_MODEL_LEN поменьше",
    ),
    (
        r".*NVIDIA driver on your system is too old.*",
        "Драйвер старше, чем нужно CUDA в образе.",
        "обновите драйвер или возьмите другую версию (docs/operations.md, «Версии»)",
    ),
    (
        r".*(?:SafetensorError|header too large|HeaderTooLarge|MetadataIncompleteBuffer).*",
        "Файл весов недокачан или это указатель Git LFS.",
        "скачайте модель заново",
    ),
    (
        r".*does not recognize this architecture.*",
        "Модель новее, чем vLLM.",
        "возьмите новую линию версий (docs/operations.md, «Версии»)",
    ),
    (r".*unrecognized arguments: .+", "Такого параметра у этого vLLM нет.", "исправьте VLLM_EXTRA_ARGS в .env"),
    (r".*Bfloat16 is only supported.*", "Карта не умеет bfloat16.", "в .env, к VLLM_EXTRA_ARGS добавьте: --dtype half"),
    (
        r".*(?:Permission denied|PermissionError).*",
        "Файл не читается не от root.",
        "chmod -R a+rX model/; с SELinux ещё chcon -Rt container_file_t model/",
    ),
)
_ANY_ERROR = re.compile(r"\b\w*(?:Error|Exception)\b: .+")


@dataclass(frozen=True)
class Container:
    """A container of the stand, as Compose lists it and Docker knows it."""

    name: str
    service: str
    state: str
    health: str
    exit_code: int
    ports: frozenset[int]
    restarts: int = 0
    was_out_of_memory: bool = False


def listed(ps: str, inspected: Any) -> list[Container]:
    """From `docker compose ps --all --format json` and `docker inspect`."""
    details = {
        facts.text(facts.mapping(one).get("Name")).lstrip("/"): facts.mapping(one) for one in facts.sequence(inspected)
    }
    return [_container(given, details.get(facts.text(given.get("Name")), {})) for given in facts.objects(ps)]


def _container(given: Mapping[str, Any], details: Mapping[str, Any]) -> Container:
    publishers = [facts.mapping(publisher) for publisher in facts.sequence(given.get("Publishers"))]
    numbers = [facts.whole(publisher.get("PublishedPort")) for publisher in publishers]
    return Container(
        facts.text(given.get("Name")),
        facts.text(given.get("Service")),
        facts.text(given.get("State")),
        facts.text(given.get("Health")),
        facts.whole(given.get("ExitCode")) or 0,
        frozenset(number for number in numbers if number),
        facts.whole(details.get("RestartCount")) or 0,
        facts.mapping(details.get("State")).get("OOMKilled") is True,
    )


def states(containers: Sequence[Container], log_of: Callable[[str], str], secrets: Sequence[str]) -> Iterator[Finding]:
    """How they are.

    Args:
        containers: of the stand.
        log_of: the end of a service's log.
        secrets: what must not be shown.
    """
    if not containers:
        yield unchecked("containers", "Контейнеры", "стенд не запущен", "make up")
    for container in containers:
        fine = ok("container", f"{container.service}: {_state(container)}")
        yield from or_else(_ailments(container, log_of, secrets), fine)


def _state(container: Container) -> str:
    waits = "запускается" if container.health == "starting" else ""
    return waits or {"running": "работает", "exited": "остановлен"}.get(container.state, container.state)


def _ailments(container: Container, log_of: Callable[[str], str], secrets: Sequence[str]) -> Iterator[Finding]:
    service = container.service
    if container.was_out_of_memory and container.state != "running":
        yield failure(
            "container_memory",
            f"{service}: убит, потому что кончилась память машины",
            "Docker отметил это (OOMKilled).",
            "free -g; модель поменьше, без видеокарты — меньше VLLM_CPU_KVCACHE_SPACE в .env",
        )
    elif container.state == "restarting":
        yield _fallen(service, f"падает и запускается снова (код {container.exit_code})", log_of, secrets)
    elif container.state == "dead" or (container.state == "exited" and container.exit_code not in _STOPPED):
        yield _fallen(service, f"упал и не запускается (код {container.exit_code})", log_of, secrets)
    elif container.restarts >= _RESTARTS and container.health == "starting":
        yield _fallen(service, f"перезапускался уже {container.restarts} раз", log_of, secrets)
    elif container.health == "unhealthy":
        yield _fallen(service, "запущен, но не отвечает (unhealthy)", log_of, secrets)
    elif container.state in {"exited", "created", "paused"}:
        yield warning("container_stopped", f"{service}: остановлен", "Стенд работает не весь.", "docker compose up -d")


def _fallen(service: str, what: str, log_of: Callable[[str], str], secrets: Sequence[str]) -> Finding:
    line, why, command = telling_line(log_of(service), secrets)
    why = f"{why} Журнал: {line}" if line else "В журнале причины не видно."
    return failure(
        "container_fallen", f"{service}: {what}", why, f"{command}\ndocker compose logs --tail 100 {service}"
    )


def telling_line(log: str, secrets: Sequence[str]) -> tuple[str, str, str]:
    """The line that says why, what it means, and what to do; without secrets."""
    for pattern, why, command in _KNOWN:
        if found := re.findall(pattern, log):
            return hidden(found[-1].strip(), secrets), why, command
    found = _ANY_ERROR.findall(log)
    line = hidden(found[-1], secrets) if found else ""
    return line, "Он сам говорит почему.", "исправьте названное, затем docker compose up -d"


def hidden(text: str, secrets: Sequence[str]) -> str:
    """A text of somebody else's without secrets, and not too long."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN)
    return re.sub(r"(\w+://[^:@/\s]*:)[^@\s]+@", rf"\1{_HIDDEN}@", text)[:_SHOWN_LETTERS]
