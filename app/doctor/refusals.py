"""What Docker Compose refuses to resolve a stand for, and how to have it go on nevertheless, to see the rest."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.doctor.containers import hidden
from app.doctor.dotenv import DotEnv, setting_command
from app.doctor.findings import Finding, failure

_PLACEHOLDER = "placeholder-of-the-doctor-which-is-no-key"


@dataclass(frozen=True)
class Refusal:
    """Why it refuses.

    Attributes:
        findings: for the person; none where .env itself has been complained of already.
        environ: variables with which it may go on.
        skips_env: it can only go on without .env.
    """

    findings: Sequence[Finding]
    environ: Mapping[str, str]
    skips_env: bool = False


def explained(complaint: str, env: DotEnv, secrets: Sequence[str]) -> Refusal:
    """What its complaint means."""
    if missing := re.search(r"required variable (\w+) is missing", complaint):
        return Refusal(list(_missing(missing[1], env)), {missing[1]: _PLACEHOLDER})
    if "invalid command line string" in complaint:
        finding = failure(
            "extra_args_quote",
            "В VLLM_EXTRA_ARGS не закрыта кавычка",
            "Docker Compose не может разделить строку на слова.",
            "исправьте строку VLLM_EXTRA_ARGS в .env; в кавычки берут слово с пробелами, а не всю строку",
        )
        return Refusal([finding], {"VLLM_EXTRA_ARGS": ""})
    if re.search(r"invalid (host|container)?port|invalid ip|invalid port", complaint, re.IGNORECASE):
        finding = failure(
            "port_invalid",
            f"Порт стенда назван неправильно: {hidden(_last_line(complaint), secrets)}",
            "Docker Compose не знает, какой порт открыть.",
            "строка в .env: GATEWAY_PORT=8080 или GATEWAY_PORT=127.0.0.1:8080",
        )
        return Refusal([finding], {"GATEWAY_PORT": "8080", "GRAFANA_PORT": "3000"})
    if not env.is_sound or re.search(r"\.env\b|setenv", complaint):
        # A template that is none is a dollar, which is complained of already.
        known = not env.is_sound or "Invalid template" in complaint
        # What it quotes may be a part of any line of .env.
        unquoted = re.sub(r'".*', "…", _last_line(complaint))
        return Refusal([] if known else [_unclear(unquoted, secrets)], env.values, skips_env=True)
    return Refusal([_file(complaint, secrets)], {})


def _missing(name: str, env: DotEnv) -> Iterator[Finding]:
    if name == "VLLM_API_KEY" or not env.exists:
        return  # the checks of .env and of the key say so
    yield failure(
        f"{name.lower()}_missing",
        f"В .env нет {name}",
        "Без него Docker Compose не запустит ничего.",
        setting_command(name, 32) if "SECRET" in name else f"впишите {name} в .env",
    )


def _file(complaint: str, secrets: Sequence[str]) -> Finding:
    absent = re.search(r"(?:stat|open) (\S+): no such file", complaint)
    if absent:
        return failure(
            "compose_file_absent",
            f"Нет файла {absent[1]}, названного в COMPOSE_FILE или в другом файле стенда",
            "Docker Compose собирает стенд из всех названных файлов.",
            "проверьте COMPOSE_FILE в .env; без видеокарты — docker-compose.yaml:deploy/docker-compose.cpu.yaml",
        )
    return _unclear(complaint, secrets)


def _unclear(complaint: str, secrets: Sequence[str]) -> Finding:
    return failure(
        "compose_config",
        "Docker Compose не понимает файлов стенда",
        hidden(_last_line(complaint) or "Причины он не назвал.", secrets),
        "docker compose config --quiet\nсравните: diff docker-compose.example.yaml docker-compose.yaml",
    )


def _last_line(complaint: str) -> str:
    lines = [line for line in complaint.splitlines() if line.strip() and "level=warning" not in line]
    return lines[-1].strip() if lines else ""
