"""Settings of the client: what counts over what, and refusals that say which, where and what is allowed."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.config import DEFAULT_URL, FIELDS, ConfigError, default_paths, load, read, with_option
from client.words import as_text, is_json, plural, why
from tests.readme import ROOT

SECRET = "sk-НЕ-ДЛЯ-ЧУЖИХ-ГЛАЗ"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chat.json"


def saved(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def refusal(path: Path, flags: dict[str, Any] | None = None, **environ: str) -> str:
    """What is said of settings that cannot be used: one Russian sentence or two, and never the key."""
    with pytest.raises(ConfigError) as caught:
        load(path, flags or {}, environ)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert SECRET not in message
    message.encode()
    return message


# --- what counts over what ---


def test_nothing_said_is_the_defaults(path: Path) -> None:
    config = load(saved(path), {}, {})
    assert (config.url, config.key, config.key_origin) == (DEFAULT_URL, None, "")
    assert config.system_prompt is None
    assert config.options == {}


@pytest.mark.parametrize(("in_file", "in_flag"), [("из файла", "из параметра"), ("из файла", ""), ("", "да")])
def test_a_prompt_flag_counts_over_the_file(path: Path, in_file: str, in_flag: str) -> None:
    saved(path, system_prompt=in_file)
    assert load(path, {"system_prompt": None}, {}).system_prompt == in_file
    assert load(path, {"system_prompt": in_flag}, {}).system_prompt == in_flag


def test_flags_count_over_the_file_for_every_option_alone(path: Path) -> None:
    saved(path, max_tokens=5, temperature=0.5, extra={"top_p": 0.9})
    told = {"max_tokens": 5, "temperature": 0.5, "extra": {"top_p": 0.9}}
    assert load(path, {}, {}).options == told
    assert load(path, {"max_tokens": 6}, {}).options == told | {"max_tokens": 6}
    assert load(path, {"temperature": 0.0}, {}).options == told | {"temperature": 0.0}, "0 is said"


def test_an_address_flag_counts_over_the_environment_and_that_over_the_file(path: Path) -> None:
    saved(path, url="http://file")
    assert load(path, {}, {}).url == "http://file"
    assert load(path, {}, {"CHAT_GATEWAY_URL": ""}).url == "http://file"
    assert load(path, {}, {"CHAT_GATEWAY_URL": "http://env"}).url == "http://env"
    assert load(path, {"url": "http://flag"}, {"CHAT_GATEWAY_URL": "http://env"}).url == "http://flag"


@pytest.mark.parametrize("of_file", [{"key": SECRET}, {"key_file": "absent"}, {"key_env": "OTHER"}])
def test_a_key_flag_counts_over_the_environment_and_that_over_the_file(path: Path, of_file: dict[str, str]) -> None:
    saved(path, **of_file)
    path.with_name("flag.txt").write_text("of the flag")
    environ = {"VLLM_API_KEY": "of the environment", "OTHER": SECRET}
    config = load(path, {}, environ)
    assert (config.key, config.key_origin) == ("of the environment", "из переменной VLLM_API_KEY")
    config = load(path, {"key_file": path.with_name("flag.txt")}, environ)
    assert (config.key, config.key_origin) == ("of the flag", f"из файла {path.with_name('flag.txt')}")


def test_null_is_not_set(path: Path) -> None:
    saved(path, **dict.fromkeys(FIELDS))
    assert read(path) == {}
    assert load(path, dict.fromkeys(FIELDS), {}) == load(saved(path), {}, {})


def test_the_example_has_every_field_and_loads() -> None:
    example = ROOT / "client" / "chat.example.json"
    assert list(json.loads(example.read_text())) == list(FIELDS)
    config = load(example, {}, {"VLLM_API_KEY": SECRET})
    assert (config.url, config.key, config.system_prompt) == (DEFAULT_URL, SECRET, None)
    assert config.options == {"max_tokens": 512, "extra": {}}
    assert load(example, {}, {}).key is None


def test_a_file_with_a_mark_of_its_encoding_loads(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"max_tokens": 7}\r\n')
    assert load(path, {}, {}).options == {"max_tokens": 7}


# --- where the file is ---


def loaded_in(home: Path, **environ: str) -> str:
    """The address that a copy of the client beside this home finds in its settings."""
    result = subprocess.run(
        [sys.executable, "-c", "from client.config import load; print(load(None, {}).url)"],
        cwd=home.parent,
        env={"HOME": str(home), "LANG": "C.UTF-8", **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or result.stderr


def test_the_first_file_that_is_there_counts(tmp_path: Path) -> None:
    copy = shutil.copytree(ROOT / "client", tmp_path / "client", ignore=shutil.ignore_patterns("chat.json", "__py*"))
    assert loaded_in(tmp_path / "home") == DEFAULT_URL

    for folder, url in [("home/.config", "http://home"), ("xdg", "http://xdg")]:
        (tmp_path / folder / "simple-chat-gateway").mkdir(parents=True)
        saved(tmp_path / folder / "simple-chat-gateway" / "chat.json", url=url)
    assert loaded_in(tmp_path / "home") == "http://home"
    assert loaded_in(tmp_path / "home", XDG_CONFIG_HOME=str(tmp_path / "xdg")) == "http://xdg"

    saved(copy / "chat.json", url="http://beside")
    assert loaded_in(tmp_path / "home", XDG_CONFIG_HOME=str(tmp_path / "xdg")) == "http://beside"


def test_a_place_that_cannot_be_looked_at_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(None, {"url": "http://flag"}, {"XDG_CONFIG_HOME": "/" + "x" * 5000}).url == "http://flag"
    monkeypatch.setenv("HOME", "~")  # as where a user has no home
    assert len(default_paths({})) == 1
    assert load(None, {"url": "http://flag"}, {}).url == "http://flag"


# --- the key ---


def test_the_key_is_not_shown_by_accident(path: Path) -> None:
    config = load(saved(path, key=SECRET), {}, {})
    assert (config.key, config.key_origin) == (SECRET, "из файла настроек")
    assert SECRET not in repr(config)


@pytest.mark.parametrize("content", [f"{SECRET}", f" \t{SECRET}\r\n\n", f"\ufeff{SECRET}\n"])
@pytest.mark.parametrize("name", ["key.txt", "~/key.txt", "../{folder}/key.txt", "{home}/key.txt"])
def test_a_key_file_is_found_beside_the_settings_or_at_home(
    path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.chdir("/")
    path.with_name("key.txt").write_text(content, encoding="utf-8", newline="")
    saved(path, key_file=name.format(folder=path.parent.name, home=path.parent))
    assert load(path, {}, {}).key == SECRET


def test_a_key_file_of_a_flag_is_found_here(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = path.parent / "here"
    here.mkdir()
    (here / "key.txt").write_text(SECRET)
    monkeypatch.chdir(here)
    assert load(saved(path), {"key_file": Path("key.txt")}, {}).key == SECRET


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("absent.txt", "не читается: нет такого файла или папки"),
        ("~nobody-of-this-name/key.txt", "не читается: нет такого файла или папки"),
        ("chat.json/key.txt", "не читается: на пути к нему не папка"),
        (".", "не читается: это папка"),
        ("x" * 300, "не читается: слишком длинное имя"),
        ("a\0b", "не читается: такого имени у файла быть не может"),
        ("binary", "это не текст в UTF-8"),
        ("empty", "нет ключа"),
    ],
)
def test_a_key_file_without_a_key_is_named(path: Path, name: str, says: str) -> None:
    path.with_name("binary").write_bytes(SECRET.encode() + b"\xff")
    path.with_name("empty").write_bytes(b" \n")
    message = refusal(saved(path, key_file=name))
    assert name in message or name == "."
    assert str(path.parent) in message
    assert says in message


def test_a_key_can_be_in_any_variable(path: Path) -> None:
    saved(path, key_env="OTHER_KEY")
    config = load(path, {}, {"OTHER_KEY": SECRET})
    assert (config.key, config.key_origin) == (SECRET, "из переменной OTHER_KEY")
    assert load(path, {}, {"OTHER_KEY": "\udcff\udcfe"}).key == "??", "it can be sent, and vLLM will say"
    for environ in ({}, {"OTHER_KEY": ""}):
        config = load(path, {}, environ)
        assert (config.key, config.key_origin) == (None, "переменная OTHER_KEY не задана"), "a person may know it"


@pytest.mark.parametrize("names", [("key", "key_file"), ("key", "key_env"), ("key_file", "key_env")])
def test_two_keys_are_one_too_many(path: Path, names: tuple[str, str]) -> None:
    message = refusal(saved(path, **dict.fromkeys(names, SECRET)))
    assert f"{path}: ключ задан дважды, в {names[0]} и в {names[1]}." in message


# --- refusals ---


def test_text_that_is_no_json_is_shown_by_line_and_column(path: Path) -> None:
    path.write_text('{\n  "url": "http://a",\n  "key": "' + SECRET + '"\n  "max_tokens": 5\n}\n')
    message = refusal(path)
    assert f"{path}, строка 4, столбец 3: это не JSON. Проверьте запятые" in message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "строка 1, столбец 1: это не JSON"),
        ('{"key": "' + SECRET, "столбец 9: это не JSON"),
        ("// key\n{}", "строка 1, столбец 1: это не JSON"),
        ("[" * 100_000, "слишком глубокая вложенность"),
        ('{"extra": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", "слишком глубокая вложенность"),
        ('{"max_tokens": ' + "9" * 5000 + "}", "слишком длинное число"),
        (b"\xff{}", "не текст в UTF-8"),
        ('{"system_prompt": "Привет"}'.encode("utf-16"), "не текст в UTF-8"),
        ('{"system_prompt": "Привет"}'.encode("cp1251"), "не текст в UTF-8"),
        ("[]", "нужен объект JSON с полями url, key"),
        ("null", "нужен объект JSON"),
        ("NaN", "нужен объект JSON"),
        (f'"{SECRET}"', "нужен объект JSON"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(path: Path, content: str | bytes, says: str) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refusal(path)
    assert str(path) in message
    assert says in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    assert refusal(tmp_path / "absent") == f"{tmp_path / 'absent'} не читается: нет такого файла или папки."
    assert refusal(tmp_path) == f"{tmp_path} не читается: это папка."
    assert refusal(tmp_path / "link") == f"{tmp_path / 'link'} не читается: ссылки ведут по кругу."
    assert "слишком длинное имя" in refusal(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_token", " Может быть, max_tokens?"),
        ("Url", " Может быть, url?"),
        ("top_p", ""),
        ("ключ", ""),
        ("\n\x1b[31m", ""),
        ("\ud800", ""),
        ("x" * 100_000, ""),
    ],
)
def test_a_field_there_is_none_of_is_named(path: Path, name: str, near: str) -> None:
    path.write_text(json.dumps({"key": SECRET, name: SECRET}, indent=1))
    message = refusal(path)
    assert message.startswith(f"{path}, строка 3: поля {json.dumps(as_text(name[:64]), ensure_ascii=False)} нет.{near}")
    assert message.endswith(f" Есть {', '.join(FIELDS)}.")


WRONG = {
    "url": ["5", "true", "[]", r'"\ud800"'],
    "key": ["5", "{}", '""', r'"\udfff"'],
    "key_file": ["5", "false"],
    "key_env": ["5", "[]"],
    "system_prompt": ["5", "false", r'"\ud800"'],
    "max_tokens": ['"5"', "true", "false", "0", "-1", "1.0", "1e3", "[]"],
    "temperature": ['"0.5"', "true", "false", "-0.1", "2.1", "1e999", "NaN", "-Infinity", "{}"],
    "extra": ["5", "[]", '"{}"', "true", '{"a": NaN}', '{"a": [1e999]}', r'{"\ud800": 1}', r'{"a": "\ud800"}'],
}


def test_every_field_can_be_wrong() -> None:
    assert WRONG.keys() == FIELDS.keys()


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_shown_by_line_with_what_is_allowed(path: Path, name: str, value: str) -> None:
    path.write_text(f'{{\n  "{name}":\n{value}}}')
    assert refusal(path) == f"{path}, строка 2: в поле {name} нужно: {FIELDS[name].allowed}."


@pytest.mark.parametrize(
    "content",
    [
        '{"extra": {"max_tokens": 1}, "system_prompt": "{ \\" \\"max_tokens\\": [",\n"max_tokens": 0}',
        '{"max_tokens": 1,\n"max_tokens": 0}',
        '{\n"max_tokens": 0,\n"extra": {"max_tokens": 1},\n"system_prompt": "max_tokens"}',
        '{"extra": {"a": ["max_tokens"]}, "url": "max_tokens",\n"max\\u005ftokens"\n:0}',
        '\ufeff{"url": "\\\\",\r\n"max_tokens" : 0}',
    ],
)
def test_the_line_is_that_of_the_field_itself(path: Path, content: str) -> None:
    path.write_bytes(content.encode())
    assert "строка 2: в поле max_tokens" in refusal(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda some: st.lists(some, max_size=3)
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*FIELDS, "urls", "\n"]), json_values | st.just({}), max_size=4))
def test_any_object_is_settings_or_is_refused(tmp_path_factory: pytest.TempPathFactory, told: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(told))
    with suppress(ConfigError):
        config = load(path, {}, {})
        assert is_json([config.url, config.key, config.system_prompt, config.options])


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_settings_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(data)
    with suppress(ConfigError):
        assert read(path).keys() <= FIELDS.keys()


# --- one option ---


@pytest.mark.parametrize(
    ("name", "raw", "then"),
    [
        ("max_tokens", "7", {"max_tokens": 7, "extra": {"top_p": 0.9}}),
        ("max_tokens", "null", {"extra": {"top_p": 0.9}}),
        ("temperature", "0", {"max_tokens": 5, "temperature": 0, "extra": {"top_p": 0.9}}),
        ("temperature", "null", {"max_tokens": 5, "extra": {"top_p": 0.9}}),
        ("top_p", "null", {"max_tokens": 5}),
        ("top_p", "1", {"max_tokens": 5, "extra": {"top_p": 1}}),
        ("seed", "null", {"max_tokens": 5, "extra": {"top_p": 0.9}}),
        ("stop", '["a", "б"]', {"max_tokens": 5, "extra": {"top_p": 0.9, "stop": ["a", "б"]}}),
        ("stop", "конец", {"max_tokens": 5, "extra": {"top_p": 0.9, "stop": "конец"}}),
        ("stop", '"5"', {"max_tokens": 5, "extra": {"top_p": 0.9, "stop": "5"}}),
        ("stop", "", {"max_tokens": 5, "extra": {"top_p": 0.9, "stop": ""}}),
        ("stop", "[1", {"max_tokens": 5, "extra": {"top_p": 0.9, "stop": "[1"}}),
        ("skip", "true", {"max_tokens": 5, "extra": {"top_p": 0.9, "skip": True}}),
    ],
)
def test_one_option_is_changed_and_the_others_stay(name: str, raw: str, then: dict[str, Any]) -> None:
    options = {"max_tokens": 5, "extra": {"top_p": 0.9}}
    assert with_option(options, name, raw) == then
    assert options == {"max_tokens": 5, "extra": {"top_p": 0.9}}


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("max_tokens", "0", "целое число не меньше 1"),
        ("max_tokens", "5.0", "целое число"),
        ("max_tokens", "true", "целое число"),
        ("max_tokens", "много", "целое число"),
        ("max_tokens", '"5"', "целое число"),
        ("temperature", "2.01", "число от 0 до 2"),
        ("temperature", "NaN", "число от 0 до 2"),
        ("temperature", "", "число от 0 до 2"),
        ("extra", '{"top_p": 1}', "любой параметр vLLM"),
        ("extra", "null", "любой параметр vLLM"),
        ("system_prompt", "Ты — ёж.", "max_tokens, temperature"),
        ("key", SECRET, "любой параметр vLLM"),
        ("top_p", "NaN", "передать нельзя"),
        ("top_p", "[Infinity]", "передать нельзя"),
        ("top_p", "1e999", "передать нельзя"),
        ("stop", r'"\ud800"', "передать нельзя"),
        ("stop", "[" * 100_000, "слишком глубокая вложенность"),
        ("seed", "9" * 5000, "слишком длинное число"),
    ],
)
def test_an_option_that_cannot_be_is_refused(name: str, raw: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_option({}, name, raw)
    assert str(caught.value).startswith(name)
    assert says in str(caught.value)
    assert SECRET not in str(caught.value)


# --- words ---


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 пар"),
        (1, "1 пара"),
        (2, "2 пары"),
        (4, "4 пары"),
        (5, "5 пар"),
        (11, "11 пар"),
        (12, "12 пар"),
        (14, "14 пар"),
        (21, "21 пара"),
        (22, "22 пары"),
        (25, "25 пар"),
        (101, "101 пара"),
        (111, "111 пар"),
        (112, "112 пар"),
        (122, "122 пары"),
    ],
)
def test_a_noun_agrees_with_its_number(count: int, told: str) -> None:
    assert plural(count, "пара", "пары", "пар") == told


def test_a_reason_of_the_system_is_russian_where_a_person_may_meet_it() -> None:
    assert why(PermissionError(13, "Permission denied")) == "нет прав"
    assert why(OSError(12345, os.strerror(12345))) == os.strerror(12345)
