"""Settings of the terminal client: flags over environment over file."""

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.words import as_text, is_json, why

DEFAULT_URL = "http://127.0.0.1:8080"
KEY_VARIABLE = "VLLM_API_KEY"
URL_VARIABLE = "CHAT_GATEWAY_URL"


class ConfigError(Exception):
    """The settings cannot be used; the message is Russian and says which, where and what is allowed."""


@dataclass(frozen=True)
class Config:
    """What the client talks with.

    Attributes:
        url: the gateway's address.
        key: vLLM's; None if it is to be asked for.
        key_origin: where the key comes from, or why there is none where it should be, in Russian.
        system_prompt: None is the gateway's default.
        options: what every `/chat` is sent beside the message: max_tokens, temperature, extra.
    """

    url: str = DEFAULT_URL
    key: str | None = field(default=None, repr=False)
    key_origin: str = ""
    system_prompt: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Field:
    accepts: Callable[[Any], bool]
    allowed: str


def _is_text(value: object) -> bool:
    return isinstance(value, str) and as_text(value) == value


def _is_max_tokens(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 2


FIELDS: Mapping[str, _Field] = {
    "url": _Field(lambda value: _is_text(value) and value != "", "строка, адрес шлюза: http://127.0.0.1:8080"),
    "key": _Field(lambda value: _is_text(value) and value != "", "строка, непустая"),
    "key_file": _Field(_is_text, "строка, путь к файлу с ключом"),
    "key_env": _Field(_is_text, "строка, имя переменной окружения с ключом"),
    "system_prompt": _Field(_is_text, "строка"),
    "max_tokens": _Field(_is_max_tokens, "целое число не меньше 1"),
    "temperature": _Field(_is_temperature, "число от 0 до 2"),
    "extra": _Field(lambda value: isinstance(value, dict) and is_json(value), "объект с параметрами vLLM"),
}
_SINGLE_OPTIONS = ("max_tokens", "temperature")
OPTIONS = (*_SINGLE_OPTIONS, "extra")
_KEY_FIELDS = ("key", "key_file", "key_env")
# What tells in JSON how deep a string stands, and whether it is a name.
_TOKEN = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")\s*(?P<colon>:)?|[][{}]')


def default_paths(environ: Mapping[str, str]) -> list[Path]:
    """Where the settings are looked for when none are named, the first one found counts."""
    paths = [Path(__file__).with_name("chat.json")]
    with suppress(RuntimeError):  # there is no telling where home is
        folder = Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        paths.append(folder / "simple-chat-gateway" / "chat.json")
    return paths


def load(path: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Config:
    """The settings.

    Args:
        path: the file; None is the first of `default_paths` that exists, and none of them is needed.
        flags: what the command line says, by the names of `FIELDS`; None says nothing.
        environ: the environment.

    Raises:
        ConfigError: the file cannot be read or says what is not allowed, or there is no key where it should be.
    """
    if path is None:
        # Not Path.exists, which fails where it may not look.
        path = next(filter(os.path.exists, default_paths(environ)), None)
    told = {} if path is None else read(path)
    if url := environ.get(URL_VARIABLE):
        told["url"] = as_text(url)
    if environ.get(KEY_VARIABLE):
        told = _without_key(told) | {"key_env": KEY_VARIABLE}
    folder = Path() if path is None else path.parent
    if flags.get("key_file") is not None:
        told, folder = _without_key(told), Path()
    told |= {name: value for name, value in flags.items() if value is not None}
    key, origin = _key(told, folder, environ)
    options = {name: told[name] for name in OPTIONS if name in told}
    return Config(told.get("url") or DEFAULT_URL, key, origin, told.get("system_prompt"), options)


def read(path: Path) -> dict[str, Any]:
    """The fields of a file of settings that are not null.

    Raises:
        ConfigError: names the file, the line and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        told = json.loads(text)
    except OSError as exc:
        raise ConfigError(f"{path} не читается: {why(exc)}.") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: это не текст в UTF-8. Сохраните файл в UTF-8.") from exc
    except json.JSONDecodeError as exc:
        raise ConfigError(
            f"{path}, строка {exc.lineno}, столбец {exc.colno}: это не JSON. Проверьте запятые, двойные кавычки и "
            "скобки; примечаний в JSON не бывает."
        ) from exc
    except (RecursionError, ValueError) as exc:
        raise ConfigError(f"{path}: слишком глубокая вложенность или слишком длинное число.") from exc
    if not isinstance(told, dict):
        raise ConfigError(f"{path}: нужен объект JSON с полями {', '.join(FIELDS)}.")
    for name, value in told.items():
        if name not in FIELDS:
            wrong = f"поля {_shown(name)} нет.{_nearest(name)} Есть {', '.join(FIELDS)}."
        elif value is not None and not FIELDS[name].accepts(value):
            wrong = f"в поле {name} нужно: {FIELDS[name].allowed}."
        else:
            continue
        raise ConfigError(f"{path}, строка {_line_of(name, text)}: {wrong}")
    keys = [name for name in _KEY_FIELDS if told.get(name) is not None]
    if len(keys) > 1:
        raise ConfigError(f"{path}: ключ задан дважды, в {' и в '.join(keys)}. Оставьте одно, остальным — null.")
    return {name: value for name, value in told.items() if value is not None}


def with_option(options: Mapping[str, Any], name: str, raw: str) -> dict[str, Any]:
    """The options with one of them changed.

    Args:
        options: max_tokens, temperature, extra.
        name: one of the first two, or a parameter of vLLM, which goes into `extra`.
        raw: JSON, or the text itself where it is none; null takes the option away.

    Raises:
        ConfigError: the value is not allowed.
    """
    try:
        value = json.loads(raw)
    except json.JSONDecodeError:
        value = raw
    except (RecursionError, ValueError) as exc:
        raise ConfigError(f"{name}: слишком глубокая вложенность или слишком длинное число.") from exc
    if name in FIELDS and name not in _SINGLE_OPTIONS:
        raise ConfigError(
            f"{name} так не задать. Можно {', '.join(_SINGLE_OPTIONS)} и любой параметр vLLM, например top_p."
        )
    if name in _SINGLE_OPTIONS:
        if value is not None and not FIELDS[name].accepts(value):
            raise ConfigError(f"{name}: нужно {FIELDS[name].allowed}.")
        return _with(options, name, value)
    if not is_json({name: value}):
        raise ConfigError(f"{name}: такое значение передать нельзя.")
    return _with(options, "extra", _with(options.get("extra", {}), name, value) or None)


def _with(told: Mapping[str, Any], name: str, value: object) -> dict[str, Any]:
    """A copy with one member changed, or without it."""
    rest = {other: kept for other, kept in told.items() if other != name}
    return rest if value is None else {**rest, name: value}


def _without_key(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if name not in _KEY_FIELDS}


def _key(told: Mapping[str, Any], folder: Path, environ: Mapping[str, str]) -> tuple[str | None, str]:
    """The key and where it comes from; a variable that is not set leaves the key to be asked for."""
    match told:
        case {"key": key}:
            return key, "из файла настроек"
        case {"key_env": name}:
            key = environ.get(name)
            return (as_text(key), f"из переменной {name}") if key else (None, f"переменная {name} не задана")
        case {"key_file": name}:
            file = folder / os.path.expanduser(name)  # noqa: PTH111  # leaves the ~ of nobody as it is
            return _key_in(file), f"из файла {file}"
    return None, ""


def _key_in(file: Path) -> str:
    try:
        key = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"В файле {file} не ключ: это не текст в UTF-8.") from exc
    except (OSError, ValueError) as exc:
        raise ConfigError(f"Файл с ключом {file} не читается: {why(exc)}.") from exc
    if not key:
        raise ConfigError(f"В файле {file} нет ключа: он пуст.")
    return key


def _line_of(name: str, text: str) -> int:
    """The line of a field of the outermost object; of its last one, which is the one that counts."""
    line, depth = 1, 0
    for token in _TOKEN.finditer(text):
        if token[0] in ("{", "["):
            depth += 1
        elif token[0] in ("}", "]"):
            depth -= 1
        elif depth == 1 and token["colon"] and json.loads(token["string"]) == name:
            line = text.count("\n", 0, token.start()) + 1
    return line


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, FIELDS, n=1)
    return f" Может быть, {near[0]}?" if near else ""


def _shown(name: str) -> str:
    return json.dumps(as_text(name[:64]), ensure_ascii=False)
