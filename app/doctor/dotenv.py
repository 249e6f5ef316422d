"""The file .env: what it says, as Docker Compose reads it, and what is suspicious about it."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.doctor.findings import Finding, failure, some, warning

EXAMPLE_KEY = "INTERNAL_VLLM_KEY"
SECRET_NAMES = ("VLLM_API_KEY", "SESSION_SECRET", "SESSION_STORE_URL")
# A variable that may be nothing; ${NAME:-…} says what stands for it then.
_VARIABLE = re.compile(r"(?<![\\$])\$(?:\{(\w+)\}|([A-Za-z_]\w*)|(\{)(?!\w+(?:\}|:?[-+?])))")
# Docker's own, beside those that the stand's files name.
_DOCKERS = re.compile(r"(COMPOSE|DOCKER|BUILDKIT|BUILDX)_\w+")
# A name alone: its value comes from the shell.
_NAME = re.compile(r"(?:export\s+)?[A-Z_][A-Z0-9_]*")
_LINE = re.compile(r"\s*(?:export\s+)?([^\s=:#]+)\s*[=:]\s*(.*)", re.DOTALL)
_WORLD_READABLE = 0o004
# Less alike names are of something else: GRAFANA_PASSWORD is no GRAFANA_PORT.
_ALIKE = 0.8
_TEXTS = ("VLLM_API_KEY", "SESSION_SECRET", "DEFAULT_SYSTEM_PROMPT")


@dataclass(frozen=True)
class Entry:
    """A line that sets a variable.

    Attributes:
        quote: the one around the value, or none.
        cut: a comment behind it was taken off.
    """

    number: int
    name: str
    value: str
    quote: str = ""
    cut: bool = False


@dataclass(frozen=True)
class DotEnv:
    """What the file says.

    Attributes:
        exists: whether it is there.
        problem: why it cannot be read, in Russian.
        mode: its permissions.
        broken: numbers of lines that set nothing and are no comment.
        unclosed: numbers of lines whose quote is not closed.
    """

    exists: bool = True
    problem: str = ""
    mode: int = 0o600
    entries: Sequence[Entry] = ()
    broken: Sequence[int] = ()
    unclosed: Sequence[int] = ()

    @property
    def values(self) -> dict[str, str]:
        """Variable: value; of several the last one counts."""
        return {entry.name: entry.value for entry in self.entries}

    @property
    def is_sound(self) -> bool:
        """Whether Docker Compose can read it, as far as can be told."""
        return not (self.problem or self.broken or self.unclosed)


@dataclass
class _Reading:
    entries: list[Entry] = field(default_factory=list)
    broken: list[int] = field(default_factory=list)
    unclosed: list[int] = field(default_factory=list)


def read(content: bytes, mode: int) -> DotEnv:
    """Read the file's content."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return DotEnv(problem="это не текст в UTF-8", mode=mode)
    if "\0" in text:
        return DotEnv(problem="в нём нулевые байты: это не текст", mode=mode)
    found, lines = _Reading(), text.replace("\r\n", "\n").split("\n")
    number = 0
    while number < len(lines):
        number += _read_entry(found, number + 1, lines[number:])
    return DotEnv(mode=mode, entries=found.entries, broken=found.broken, unclosed=found.unclosed)


def _read_entry(found: _Reading, number: int, lines: Sequence[str]) -> int:
    """Read what the first line begins; returns how many lines that was."""
    line = lines[0].strip()
    if not line or line.startswith("#") or _NAME.fullmatch(line):
        return 1
    parts = _LINE.fullmatch(line)
    if not parts or not re.fullmatch(r"[A-Za-z_][\w.-]*", parts[1], re.ASCII):
        found.broken.append(number)
        return 1
    name, value = parts[1], parts[2]
    if value[:1] in {"'", '"'}:
        quoted = _quoted(value, lines[1:])
        if quoted is None:
            found.unclosed.append(number)
            return 1
        found.entries.append(Entry(number, name, quoted, value[0]))
        return 1 + quoted.count("\n")
    kept = value.split(" #", 1)
    found.entries.append(Entry(number, name, kept[0].rstrip(), cut=len(kept) > 1))
    return 1


def _quoted(value: str, following: Sequence[str]) -> str | None:
    """What is in the quotes that a value begins with; None where they are not closed.

    Compose closes them on a later line too. Where more follows there, that was the quote of another value.
    """
    quote = value[0]
    closed = re.compile(rf"{quote}((?:\\[\s\S]|[^\\{quote}])*){quote}")
    if on_the_line := closed.match(value):
        return on_the_line[1]
    text = "\n".join([value, *following])
    if not (later := closed.match(text)):
        return None
    rest = text[later.end() :].partition("\n")[0].strip()
    return later[1] if not rest or rest.startswith("#") else None


def named_defaults(env_example: str) -> dict[str, str]:
    """Variable: value of all lines of .env.example, commented out or not."""
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", env_example, re.MULTILINE))


def suspicions(env: DotEnv, known: Sequence[str], environ: Mapping[str, str]) -> Iterator[Finding]:
    """What is wrong with the file itself.

    Args:
        env: what it says.
        known: names that mean something to the stand.
        environ: of the shell, which goes before the file.
    """
    if not env.exists:
        yield _missing(environ)
        return
    yield from _unreadable(env)
    yield from _values(env, environ)
    yield from _names(env, known, environ)
    if env.mode & _WORLD_READABLE and not env.problem:
        yield warning(
            "env_readable", "Файл .env могут читать все на этой машине", "В нём ключ от vLLM.", "chmod 600 .env"
        )


def _missing(environ: Mapping[str, str]) -> Finding:
    create = (
        "cp .env.example .env && chmod 600 .env\n"
        "затем впишите в .env свой VLLM_API_KEY (придумает: openssl rand -hex 16)"
    )
    if environ.get("VLLM_API_KEY"):
        why = "Ключ есть в вашей оболочке, но в другой его не будет, и make up без .env не запускает."
        return warning("env_missing", "Нет файла .env", why, create)
    why = "В нём ключ и настройки стенда; без ключа Docker Compose не запустит ничего."
    return failure("env_missing", "Нет файла .env", why, create)


def setting_command(name: str, size: int) -> str:
    """Gives a secret a new value, whether .env has one already or not, and shows it."""
    return (
        f"sed -E -i '/^\\s*(export\\s+)?{name}\\s*[=:]/d' .env; "
        f'printf "\\n{name}=%s\\n" "$(openssl rand -hex {size})" >> .env; grep {name}= .env'
    )


def _unreadable(env: DotEnv) -> Iterator[Finding]:
    if env.problem:
        yield failure(
            "env_broken",
            f"Файл .env не читается: {env.problem}",
            "Docker Compose его не поймёт.",
            "ls -l .env; если он не ваш: sudo chown $USER .env\n"
            "если испорчен: cp .env.example .env && chmod 600 .env, затем впишите в него свой VLLM_API_KEY",
        )
    for numbers, what, remedy in (
        (env.broken, "не ИМЯ=ЗНАЧЕНИЕ и не комментарий", "исправьте или закомментируйте (#)"),
        (env.unclosed, "не закрыта кавычка", "закройте кавычку"),
    ):
        if numbers:
            yield failure(
                "env_quote" if numbers is env.unclosed else "env_line",
                f"В .env {_lines(numbers)}: {what}",
                "Docker Compose остановится на этом или пропустит сказанное.",
                f"nano +{numbers[0]} .env — {remedy}",
            )


def _lines(numbers: Sequence[int]) -> str:
    return f"строка {some(map(str, numbers))}" if len(numbers) == 1 else f"строки {some(map(str, numbers))}"


def _values(env: DotEnv, environ: Mapping[str, str]) -> Iterator[Finding]:
    known = {**environ, **env.values}
    for entry in env.entries:
        lost = [a or b or c for a, b, c in _VARIABLE.findall(entry.value)]
        if entry.quote != "'" and any(name not in known for name in lost):
            yield failure(
                "env_dollar",
                f"В .env, строка {entry.number}: в значении {entry.name} есть $, и часть его пропадёт",
                "Docker Compose принимает $ за начало имени переменной и ставит вместо неё пустую строку.",
                f"nano +{entry.number} .env — возьмите значение в одинарные кавычки: {entry.name}='…'",
            )
        if entry.cut and entry.name in _TEXTS:
            yield warning(
                "env_hash",
                f"В .env, строка {entry.number}: всё, что в {entry.name} после « #», — комментарий",
                "Если # — часть значения, значение обрезано.",
                f"nano +{entry.number} .env — возьмите значение в одинарные кавычки: {entry.name}='…'",
            )


def _names(env: DotEnv, known: Sequence[str], environ: Mapping[str, str]) -> Iterator[Finding]:
    numbers: dict[str, list[int]] = {}
    for entry in env.entries:
        numbers.setdefault(entry.name, []).append(entry.number)
    for name, lines in numbers.items():
        if name not in known and not _DOCKERS.fullmatch(name):
            yield _unknown(name, lines[0], known)
        if lines[1:]:
            yield warning(
                "env_twice",
                f"В .env {name} задан несколько раз: {_lines(lines)}",
                "Действует последняя строка, остальные — нет.",
                f"nano +{lines[0]} .env — оставьте одну",
            )
        if environ.get(name, env.values[name]) != env.values[name]:
            yield warning(
                "env_overridden",
                f"{name} задан и в .env, и в вашей оболочке, по-разному",
                "Docker Compose берёт значение из оболочки, строка в .env не действует.",
                f"unset {name}",
            )


def _unknown(name: str, number: int, known: Sequence[str]) -> Finding:
    nearest = difflib.get_close_matches(name.upper(), known, 1, _ALIKE)
    meant = f"наверное, это {nearest[0]}" if nearest else "список — в .env.example"
    remedy = (
        f"sed -i '{number}s/{name}/{nearest[0]}/' .env" if nearest else f"nano +{number} .env — уберите или исправьте"
    )
    return warning(
        "env_unknown",
        f"В .env, строка {number}: стенд не знает {name} — {meant}",
        "Строка ни на что не влияет.",
        remedy,
    )
