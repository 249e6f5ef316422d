"""The client in scripts: what it prints where, and its exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import __main__ as client
from tests.conftest import Gateway, StartGateway, wait_until_idle
from tests.readme import ROOT
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, event, refusal, stream_of, streamed
from tests.servers import unused_url, wait_until

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def environ(gateway: Gateway, tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "LANG": "C.UTF-8",
        "VLLM_API_KEY": KEY,
        "CHAT_GATEWAY_URL": gateway.url,
    }


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Run:
    """Runs the client to its end."""

    def start(*arguments: str, stdin: bytes | str = b"", **more: str) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(
            [sys.executable, "-m", "client", *arguments],
            cwd=tmp_path,
            env={**environ, **more},
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )

    return start


def check_failed(result: "subprocess.CompletedProcess[bytes]", code: int, words: str) -> None:
    """One Russian line and nothing on standard output."""
    assert result.returncode == code, result.stderr.decode()
    assert result.stdout == b""
    [line] = result.stderr.decode().splitlines()
    assert line.startswith("Ошибка: ")
    assert words in line


# --- the question and the reply ---


def test_a_question_prints_only_the_reply(run: Run, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    result = run("Сколько", "будет", "2+2?")
    assert (result.returncode, result.stdout.decode(), result.stderr) == (client.OK, "Ответ 1.\n", b"")
    assert vllm.said() == ["Сколько будет 2+2?"]
    assert gateway.session_count() == 0


def test_a_question_from_a_pipe(run: Run, vllm: ScriptedVLLM) -> None:
    result = run(stdin="раз\nдва\n")
    assert result.stdout.decode() == "Ответ 1.\n"
    assert vllm.said() == ["раз\nдва"]


def test_a_question_about_what_is_in_the_pipe(run: Run, vllm: ScriptedVLLM) -> None:
    run("Что здесь?", stdin="- было\n+ стало\n")
    assert vllm.said() == ["Что здесь?\n\n- было\n+ стало"]


def test_the_reply_is_exact(run: Run, vllm: ScriptedVLLM) -> None:
    reply = "# **a**\x1b[1m\x00\r\n\n  `б`\t🦔 \n"
    vllm.scripts.append(streamed([delta(reasoning="Хм."), *stream_of(*reply).acts]))
    result = run("вопрос")
    assert result.stdout == reply.encode(), "no Markdown, no second line end, no reasoning"


def test_the_reply_is_printed_as_it_comes(environ: dict[str, str], vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="первое"), 60.0]))
    command = [sys.executable, "-m", "client", "вопрос"]
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100).decode() == "первое"
        process.kill()
    wait_until_idle(vllm, 5)


def test_json_is_the_whole_answer(run: Run, vllm: ScriptedVLLM) -> None:
    result = run("--json", "--max-tokens", "7", "--temperature", "0.5", "--set", "top_p=0.9", "вопрос")
    answer = json.loads(result.stdout)
    assert (answer["reply"], answer["finish_reason"], answer["total_tokens"]) == ("Ответ 1.", "stop", 14)
    assert answer["context"]["limit"] == 8000
    body = vllm.seen[0].body
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (7, 0.5, 0.9)
    assert result.stderr == b""


def test_what_is_wrong_with_a_reply_goes_to_standard_error(run: Run, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("нача", finish_reason="length"))
    result = run("вопрос")
    assert (result.returncode, result.stdout.decode()) == (client.OK, "нача\n")
    assert "обрезан по max_tokens" in result.stderr.decode()


def test_settings_of_a_file(run: Run, vllm: ScriptedVLLM, tmp_path: Path) -> None:
    path = tmp_path / "my.json"
    path.write_text('{"system_prompt": "Ты — ёж.", "max_tokens": 9, "extra": {"top_k": 3}}', encoding="utf-8")
    run("--config", str(path), "--set", "seed=1", "вопрос")
    body = vllm.seen[0].body
    assert body["messages"][0] == {"role": "system", "content": "Ты — ёж."}
    assert (body["max_tokens"], body["top_k"], body["seed"]) == (9, 3, 1)


# --- sessions across runs ---


def test_a_kept_session_is_gone_on_with(run: Run, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    run("--keep", "раз")
    run("--continue", "--keep", "два", VLLM_API_KEY="")
    assert vllm.said() == ["раз", "Ответ 1.", "два"]
    assert gateway.session_count() == 1
    vllm.scripts.append(refusal(500, "engine died"))
    assert run("--continue", "три").returncode == client.FAILED
    assert gateway.session_count() == 1, "what is to be gone on with is not lost by an error"
    run("--continue", "четыре")
    assert vllm.said()[-3:] == ["два", "Ответ 2.", "четыре"]
    assert gateway.session_count() == 0
    check_failed(run("--continue", "пять"), client.REFUSED, "Продолжать нечего")


def test_a_kept_session_that_has_expired(run: Run, start_gateway: StartGateway) -> None:
    with start_gateway(session_ttl_seconds=1) as gateway:
        run("--keep", "раз", CHAT_GATEWAY_URL=gateway.url)
        wait_until(lambda: gateway.session_count() == 1)

        time.sleep(1.1)
        check_failed(run("--continue", "два", CHAT_GATEWAY_URL=gateway.url), client.REFUSED, "Продолжать нечего")


# --- exit codes ---


@pytest.mark.parametrize(
    ("arguments", "more", "words"),
    [
        (["--json"], {}, "Вопрос пуст"),
        ([], {}, "Вопрос пуст"),
        (["вопрос"], {"VLLM_API_KEY": ""}, "Нет ключа. Задайте ключ vLLM"),
        (["--config", "нет.json", "вопрос"], {}, "нет.json не читается: нет такого файла"),
        (["--config", "variable.json", "вопрос"], {"VLLM_API_KEY": ""}, "Нет ключа: переменная OTHER не задана."),
        (["--max-tokens", "0", "вопрос"], {}, "--max-tokens"),
    ],
)
def test_wrong_use_is_2(run: Run, tmp_path: Path, arguments: list[str], more: dict[str, str], words: str) -> None:
    (tmp_path / "variable.json").write_text('{"key_env": "OTHER"}', encoding="utf-8")
    check_failed(run(*arguments, **more), client.WRONG_USE, words)


def test_no_libraries_is_2(environ: dict[str, str]) -> None:
    command = [sys.executable, "-S", "-m", "client", "вопрос"]
    result = subprocess.run(command, env=environ, capture_output=True, timeout=30, check=False)
    check_failed(result, client.WRONG_USE, "нет библиотеки httpx2. Поставьте: pip install -r client/requirements.txt")


def test_what_is_no_text_is_2(run: Run) -> None:
    check_failed(run(stdin="привет".encode("cp1251")), client.WRONG_USE, "не текст в UTF-8")


def test_no_gateway_is_3(run: Run) -> None:
    check_failed(run("--url", unused_url(), "вопрос"), client.UNREACHABLE, "Нет связи со шлюзом")
    check_failed(run("--url", "http://h:abc", "вопрос"), client.UNREACHABLE, "Неверный адрес шлюза")


@pytest.mark.parametrize("url", ["http://u:secret@h:abc", "u:secret@h:99999x", "ftp://u:sec/secret@h"])
def test_a_password_in_an_address_is_not_shown(run: Run, url: str) -> None:
    result = run("--url", url, "вопрос")
    check_failed(result, client.UNREACHABLE, "Неверный адрес шлюза")
    assert b"secret" not in result.stderr


def test_a_wrong_key_is_4(run: Run) -> None:
    result = run("вопрос", VLLM_API_KEY="wrong")
    check_failed(result, client.WRONG_KEY, "vLLM не принимает этот ключ")
    assert b"wrong" not in result.stderr


def test_a_refusal_is_5(run: Run, gateway: Gateway) -> None:
    check_failed(run("слово " * 10_000), client.REFUSED, "не помещаются")
    check_failed(run("--set", "top_p=1", "--set", "stream=true", "вопрос"), client.REFUSED, "extra.stream")
    assert gateway.session_count() == 0


def test_a_failure_is_6(run: Run, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    vllm.scripts.append(refusal(500, "engine died"))
    check_failed(run("вопрос"), client.FAILED, "vLLM ответил ошибкой 500")
    vllm.scripts.append(streamed([delta(content="нача"), event({"error": {"message": "engine died"}})]))
    result = run("вопрос")
    assert (result.returncode, result.stdout.decode()) == (client.FAILED, "нача")
    vllm.scripts.append(refusal(429, "slow down"))
    check_failed(run("--json", "вопрос"), client.FAILED, "Слишком много запросов")
    assert gateway.session_count() == 0


def start_hanging(environ: dict[str, str], vllm: ScriptedVLLM, *arguments: str) -> "subprocess.Popen[bytes]":
    """A client in the middle of a reply."""
    vllm.scripts.append(streamed([delta(content="нача"), 60.0]))
    command = [sys.executable, "-m", "client", *arguments]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, **pipes)
    wait_until(lambda: vllm.running == 1)
    return process


@pytest.mark.parametrize("arguments", [["вопрос"], ["--json", "вопрос"]])
def test_ctrl_c_is_130_and_stops_the_generation(
    environ: dict[str, str], vllm: ScriptedVLLM, gateway: Gateway, arguments: list[str]
) -> None:
    with start_hanging(environ, vllm, *arguments) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors.strip()) == (client.INTERRUPTED, b"")
    wait_until_idle(vllm, 5)
    assert gateway.session_count() == 0


def test_a_closed_pipe_is_141_and_stops_the_generation(
    environ: dict[str, str], vllm: ScriptedVLLM, gateway: Gateway
) -> None:
    vllm.scripts.append(streamed([x for _ in range(600) for x in (delta(content="слово " * 1000), 0.05)]))
    command = f"{sys.executable} -m client вопрос | head -c 10; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    assert (result.returncode, result.stderr) == (client.BROKEN_PIPE, b"")
    wait_until_idle(vllm, 5)
    assert gateway.session_count() == 0


def test_where_nothing_can_be_written_is_1(environ: dict[str, str], gateway: Gateway) -> None:
    for arguments in ("вопрос", "--json вопрос"):
        command = ["bash", "-c", f"{sys.executable} -m client {arguments} > /dev/full"]
        result = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
        )
        check_failed(result, client.NOT_WRITTEN, "на диске нет места")
    assert gateway.session_count() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_session(
    environ: dict[str, str], vllm: ScriptedVLLM, gateway: Gateway, signum: signal.Signals
) -> None:
    with start_hanging(environ, vllm, "вопрос") as process:
        process.send_signal(signum)
        _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (128 + signum, b"")
    wait_until_idle(vllm, 5)
    assert gateway.session_count() == 0


def test_nohup_is_heeded(environ: dict[str, str], vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("а", "б", gap=0.5))
    command = ["nohup", sys.executable, "-m", "client", "вопрос"]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, **pipes) as process:
        wait_until(lambda: vllm.running == 1)
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=10)
    assert (process.returncode, output.decode()) == (client.OK, "аб\n")


def test_an_interrupted_session_can_be_gone_on_with(
    environ: dict[str, str], run: Run, vllm: ScriptedVLLM, gateway: Gateway
) -> None:
    run("--keep", "раз")
    with start_hanging(environ, vllm, "--continue", "два") as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert gateway.session_count() == 1
    vllm.key = "another"
    result = run("--continue", "--system", "Ты — ёж.", "три", VLLM_API_KEY="another")
    assert result.returncode == client.OK, result.stderr.decode()
    assert vllm.seen[-1].body["messages"][0]["content"] == "Ты — ёж."
    assert vllm.said()[0] == "раз"


def test_a_pipe_is_no_terminal_whatever_is_forced(run: Run, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("# **а**"))
    assert run("вопрос", FORCE_COLOR="1", TTY_COMPATIBLE="1").stdout.decode() == "# **а**\n"


def test_no_standard_error(environ: dict[str, str], vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("нача", finish_reason="length"))
    command = ["bash", "-c", f"{sys.executable} -m client вопрос 2>&- </dev/null"]
    result = subprocess.run(command, env=environ, capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stdout.decode()) == (client.OK, "нача\n")


def test_a_letter_that_the_output_does_not_know(run: Run, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("ёж 🦔"))
    result = run("вопрос", PYTHONIOENCODING="koi8-r")
    assert (result.returncode, result.stdout) == (client.OK, "ёж ?\n".encode("koi8-r"))


def test_no_standard_input_at_all(environ: dict[str, str]) -> None:
    command = ["bash", "-c", f"{sys.executable} -m client вопрос <&-"]
    result = subprocess.run(command, env=environ, capture_output=True, timeout=30, check=False)
    assert (result.returncode, result.stdout.decode()) == (client.OK, "Ответ 1.\n")
