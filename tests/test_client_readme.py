"""The HTTP walk and the program of `client/README.md`, typed and run as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from client.arguments import EPILOG, parse
from client.commands import COMMANDS, KEYS
from client.config import FIELDS, KEY_VARIABLE, URL_VARIABLE
from tests.conftest import Gateway
from tests.readme import ROOT, section, type_the_walk
from tests.scripted_vllm import KEY, Script, ScriptedVLLM, delta, event, refusal, stream_of, streamed, whole
from tests.servers import serve, unused_url

PAGE = (ROOT / "client" / "README.md").read_text(encoding="utf-8")
WALK = "Что под этим: HTTP по шагам"
# For those who watch over a gateway, not for those who talk through it.
NO_CONCERN = {"/metrics"}


def program() -> str:
    """The page's program."""
    [text] = re.findall(r"^```python\n(.*?)^```$", section(WALK, PAGE), re.MULTILINE | re.DOTALL)
    return str(text)


def run(gateway_url: str, folder: Path, stdin: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run the program as a person does, with a proxy that nothing may be sent to."""
    path = folder / "talk.py"
    path.write_text(program(), encoding="utf-8")
    environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "ALL_PROXY": unused_url()}
    result = subprocess.run(
        [sys.executable, str(path)],
        env={**environ, "GATEWAY": gateway_url, "KEY": key},
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result


# --- the terminal client ---


def rows(title: str) -> list[list[str]]:
    """The cells of a section's tables, without their heads."""
    lines = [line for line in section(title, PAGE).splitlines() if line.startswith("|")]
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|---")}
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for number, line in enumerate(lines)
        if number not in heads and not line.startswith("|---")
    ]


def test_keys_and_commands_are_those_of_the_help() -> None:
    told = {row[0]: row[1] for row in rows("Говорить")}
    for name, command in COMMANDS.items():
        assert told.pop(f"{name} {command.usage}".strip()) == command.does
    for keys, does in KEYS.items():
        assert told.pop(keys) == does
    assert not [name for name in told if name.startswith("/")]


def test_settings_are_those_of_the_file() -> None:
    assert [row[0] for row in rows("Настроить")] == list(FIELDS)
    flags = parse([])
    for _, _, flag, variable in rows("Настроить"):
        if flag:
            assert hasattr(flags, flag.removeprefix("--").partition(" ")[0].replace("-", "_"))
        assert variable in {"", URL_VARIABLE, KEY_VARIABLE}


def test_exit_codes_and_examples_are_those_of_the_help() -> None:
    for code, meaning in rows("В скриптах"):
        assert re.search(rf"^  {code} +{re.escape(meaning)}$", EPILOG, re.MULTILINE)
    for example in re.findall(r"```text\n(.*?)```", section("В скриптах", PAGE), re.DOTALL)[0].splitlines():
        assert f"  {example}\n" in EPILOG


def test_the_status_line_is_told_part_by_part() -> None:
    told = [row[0] for row in rows("Говорить")][-7:]
    assert [row[0] for row in rows("Строка состояния")][:4] == told[:4]
    assert set(told) == {row[0] for row in rows("Строка состояния")}


# --- the walk ---


def test_every_command_gives_the_documented_answer(gateway: Gateway, vllm: ScriptedVLLM, tmp_path: Path) -> None:
    until_cancelled = streamed([delta(content="Жили"), delta(content="-были"), 60.0])
    vllm.scripts += [stream_of("Жил", "-был"), until_cancelled, whole("Жил.")]
    shown = type_the_walk(gateway.url, KEY, tmp_path, WALK, PAGE)
    assert '"finish_reason":"cancelled"' in shown
    assert '"history_pairs":2' in shown, "the talk went on in a new session"
    assert gateway.session_count() == 0
    assert list(tmp_path.iterdir()) == [], "nothing is left lying about"


def test_every_endpoint_is_on_the_page(gateway: Gateway) -> None:
    text = section(WALK, PAGE)
    for path in gateway.http.get("/openapi.json").json()["paths"].keys() - NO_CONCERN:
        assert f"$GATEWAY{path}" in text, path


def test_every_error_of_a_talk_is_in_the_table_of_what_to_repeat(gateway: Gateway) -> None:
    text = section("Что повторять, а что нет", PAGE)
    paths = gateway.http.get("/openapi.json").json()["paths"]
    for status, response in paths["/chat"]["post"]["responses"].items():
        if status != "200":
            assert status in text
        if status not in {"200", "400", "413", "422"}:  # that are told by their statuses
            for code in re.findall(r"`(\w+)`", response["description"]):
                assert f"`{code}`" in text


# --- the program ---


def test_the_program_is_at_most_twenty_lines() -> None:
    lines = [line for line in program().splitlines() if line.strip()]
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100


def test_a_talk_of_two_messages(gateway: Gateway, vllm: ScriptedVLLM, tmp_path: Path) -> None:
    vllm.scripts += [stream_of("При", "вет!"), streamed([delta(reasoning="Хм."), *stream_of("По", "ка\u2028!").acts])]
    result = run(gateway.url, tmp_path, "Здравствуй\nПрощай\n")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "Привет!\nПока\u2028!\n"
    assert len(vllm.seen[1].body["messages"]) == 4, "one talk"
    assert [seen.body["messages"][-1]["content"] for seen in vllm.seen] == ["Здравствуй", "Прощай"]
    assert all(seen.body["stream"] for seen in vllm.seen)
    assert gateway.session_count() == 0


def test_a_wrong_key(gateway: Gateway, tmp_path: Path) -> None:
    result = run(gateway.url, tmp_path, "вопрос\n", key="wrong")
    assert result.returncode == 1
    assert "vLLM не принимает этот ключ." in result.stderr
    assert gateway.session_count() == 0


def test_no_gateway(tmp_path: Path) -> None:
    result = run(unused_url(), tmp_path, "вопрос\n")
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("Нет связи со шлюзом: ")


def test_a_connection_that_breaks_within_a_reply(tmp_path: Path) -> None:
    async def breaks(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/chat":
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            )
            sent = b'event: delta\ndata: {"text": "a"}\n\n'
            await send({"type": "http.response.body", "body": sent, "more_body": True})
        else:
            await JSONResponse({"session_id": "x"})(scope, receive, send)

    with serve(breaks) as url:
        result = run(url, tmp_path, "вопрос\n")
    assert result.stdout.startswith("a\nОшибка: Нет связи со шлюзом: ")


@pytest.mark.parametrize(
    ("failing", "shown"),
    [
        (streamed([delta(content="нача"), event({"error": {"message": "engine died"}})]), "нача\nОшибка: vLLM прервал"),
        (refusal(500, "engine died"), "\nОшибка: vLLM ответил ошибкой 500."),
        (refusal(429, "slow down", **{"Retry-After": "7"}), "\nОшибка: Слишком много запросов."),
    ],
)
def test_an_error_is_shown_and_the_talk_goes_on(
    gateway: Gateway, vllm: ScriptedVLLM, tmp_path: Path, failing: Script, shown: str
) -> None:
    vllm.scripts += [failing, stream_of("Жив", ".")]
    result = run(gateway.url, tmp_path, "раз\nдва\n")
    assert result.returncode == 0
    assert result.stdout.startswith(shown)
    assert result.stdout.endswith("\nЖив.\n")
    assert [message["content"] for message in vllm.seen[1].body["messages"][1:]] == ["два"]
    assert gateway.session_count() == 0
