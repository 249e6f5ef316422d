"""The command line: what it understands, and Russian words for what it does not."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import client.__main__ as program
from client.arguments import parse
from client.config import KEY_VARIABLE, URL_VARIABLE
from tests.readme import ROOT

ARGPARSES_OWN = re.compile(
    r"usage|options|optional|positional|argument|show|message and exit|default|expected|invalid|value|unrecognized"
    r"|ambiguous|ignored|explicit|required|choose|error",
    re.IGNORECASE,
)


@pytest.fixture
def help_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    output = capsys.readouterr()
    assert output.err == ""
    return output.out


def test_help_is_russian_and_fits_the_screen(help_text: str) -> None:
    assert not ARGPARSES_OWN.findall(help_text)
    assert help_text.startswith("использование: python -m client ")
    assert max(map(len, help_text.splitlines())) <= 80


def test_help_is_asked_for_by_one_letter_too(help_text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["-h"])
    assert capsys.readouterr().out == help_text


def flags() -> Iterator[str]:
    names = vars(parse([])).keys() | {"help", "continue"}
    return (f"--{name.replace('_', '-')}" for name in names - {"question", "resume"})


def test_help_tells_of_everything(help_text: str) -> None:
    for flag in flags():
        assert re.search(rf"^  (-h, )?{flag}\b.*  \S", help_text, re.MULTILINE), flag
    for variable in (KEY_VARIABLE, URL_VARIABLE, "NO_COLOR"):
        assert f"\n  {variable} " in help_text
    for file in ("client/chat.json", "~/.config/simple-chat-gateway/chat.json", "client/chat.example.json"):
        assert file in help_text
    codes = {value for name, value in vars(program).items() if name.isupper() and isinstance(value, int)}
    section = help_text.partition("коды возврата:\n")[2].partition("\n\n")[0]
    assert {int(code) for code in re.findall(r"^  (\d+)  ", section, re.MULTILINE)} == codes


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ([], "question", []),
        (["Кто", "ты?"], "question", ["Кто", "ты?"]),
        (["--json", "Кто ты?"], "question", ["Кто ты?"]),
        (["Кто ты?", "--json"], "question", ["Кто ты?"]),
        (["--", "--json"], "question", ["--json"]),
        (["--keep", "--", "-5", "--", "x"], "question", ["-5", "--", "x"]),
        (["-5 + 3?"], "question", ["-5 + 3?"]),
        (["\udcff?"], "question", ["??"]),
        (["--config", "~/\udcff.json"], "config", Path("~/\udcff.json")),
        (["--url", "http://a"], "url", "http://a"),
        (["--key-file", "\udcff"], "key_file", Path("\udcff")),
        (["--system", ""], "system", ""),
        (["--system", "- кратко"], "system", "- кратко"),
        (["--system=-5"], "system", "-5"),
        (["--max-tokens", "7"], "max_tokens", 7),
        (["--max-tokens=٣"], "max_tokens", 3),
        (["--temperature", "0"], "temperature", 0.0),
        (["--temperature", "2"], "temperature", 2.0),
        (["--set", "top_p=0.9", "--set=stop=a=b"], "set", [("top_p", "0.9"), ("stop", "a=b")]),
        (["--set", "stop="], "set", [("stop", "")]),
        (["--set", "max_tokens=null"], "set", [("max_tokens", "null")]),
        (["--json"], "json", True),
        (["--keep"], "keep", True),
        (["--continue"], "resume", True),
    ],
)
def test_what_is_understood(argv: list[str], name: str, value: Any) -> None:
    told = vars(parse(argv))
    assert told[name] == value
    silent = vars(parse([]))
    assert {other for other in told if told[other] != silent[other]} <= {name, "question", "json", "keep"}


def test_nothing_said_is_nothing_set() -> None:
    assert [value for value in vars(parse([])).values() if value] == []
    parse(["--set", "top_p=1"])
    assert parse([]).set == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--bogus"], "неизвестные параметры: --bogus"),
        (["--bogus", "--also=5"], "неизвестные параметры: --bogus --also=5"),
        (["-x"], "неизвестные параметры: -x"),
        (["--a\nb\x85c"], "неизвестные параметры: --a b c"),
        (["--set=argument --url: expected one argument=NaN"], "--set: argument --url: expected one argument: "),
        (["--temp", "1"], "неизвестные параметры: --temp"),
        (["--cont"], "неизвестные параметры: --cont"),
        (["--hel"], "неизвестные параметры: --hel"),
        (["вопрос", "--json", "ещё"], "неизвестные параметры: ещё"),
        (["--json=1"], "у --json не бывает значения"),
        (["--json="], "у --json не бывает значения"),
        (["--keep=да", "вопрос"], "у --keep не бывает значения"),
        (["--help=x"], "у -h/--help не бывает значения"),
        (["-hx"], "у -h/--help не бывает значения"),
        (["--set", "a\nb=NaN"], "--set: a b: такое значение передать нельзя"),
        (["--set", "top_p"], "--set: нужно ИМЯ=ЗНАЧЕНИЕ"),
        (["--set", ""], "--set: нужно ИМЯ=ЗНАЧЕНИЕ"),
        (["--set", "=5"], "--set: нужно ИМЯ=ЗНАЧЕНИЕ"),
        (["--set", "max_tokens"], "--set: нужно ИМЯ=ЗНАЧЕНИЕ"),
        (["--set", "max_tokens=0"], "--set: max_tokens: нужно целое число не меньше 1"),
        (["--set", "temperature=3"], "--set: temperature: нужно число от 0 до 2"),
        (["--set", "extra={}"], "--set: extra так не задать"),
        (["--set", "top_p=NaN"], "--set: top_p: такое значение передать нельзя"),
        *((["--max-tokens", bad], "--max-tokens: нужно целое число не меньше 1") for bad in "0 -1 1.0 x".split()),
        *((["--max-tokens", bad], "--max-tokens: нужно целое число не меньше 1") for bad in ["", "²", "9" * 5000]),
        *((["--temperature", bad], "--temperature: нужно число от 0 до 2") for bad in "-0.1 2.1 nan inf x".split()),
        *((["--temperature", bad], "--temperature: нужно число от 0 до 2") for bad in ["", "1,5", "9" * 5000]),
        *(([flag], f"у {flag} должно быть значение") for flag in sorted(flags()) if flag.count("-") == 3),
        *(
            ([flag, "--json"], f"у {flag} должно быть значение")
            for flag in ("--config", "--url", "--system", "--temperature", "--set")
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_russian_line(
    capsys: pytest.CaptureFixture[str], argv: list[str], says: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"Ошибка: {says}")
    assert output.err.endswith(". Справка: python -m client --help\n")
    assert len(output.err.splitlines()) == 1
    assert not ARGPARSES_OWN.findall(output.err.replace("argument --url: expected one argument", ""))


def test_the_program_ends_with_the_code_that_help_tells() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "client", "--max-tokens", "0"],
        cwd=ROOT,
        env={"LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (program.WRONG_USE, "")
    assert result.stderr.startswith("Ошибка: --max-tokens: ")
