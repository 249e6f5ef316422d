"""The client in a real terminal: what the person types and sees."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.conftest import Gateway, StartGateway, wait_until_idle
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, refusal, stream_of, streamed
from tests.servers import unused_url, wait_until

ROOT = Path(__file__).resolve().parents[1]
Talk = Callable[..., "pexpect.spawn[str]"]


def environ(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TERM": "xterm", "VLLM_API_KEY": KEY, **more}


@pytest.fixture
def talk(gateway: Gateway) -> Iterator[Talk]:
    """Starts the client in a terminal of 80 columns."""
    started: list[pexpect.spawn[str]] = []

    def start(*arguments: str, **more: str) -> "pexpect.spawn[str]":
        command = ["-m", "client", "--url", gateway.url, *arguments]
        terminal = pexpect.spawn(
            sys.executable, command, cwd=ROOT, env=environ(**more), encoding="utf-8", timeout=10, dimensions=(24, 80)
        )
        started.append(terminal)
        return terminal

    yield start
    for terminal in started:
        terminal.close(force=True)


def visible(text: str) -> str:
    """What a terminal shows of a text."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r\n", "\n")


def say(terminal: "pexpect.spawn[str]", text: str) -> None:
    terminal.expect_exact("Вы> ")
    terminal.sendline(text)
    terminal.expect_exact(text + "\r\n")


def leave(terminal: "pexpect.spawn[str]") -> None:
    terminal.expect_exact("Вы> ")
    terminal.sendeof()
    terminal.expect_exact("Сессия закрыта.")
    terminal.expect(pexpect.EOF)
    terminal.wait()
    assert terminal.exitstatus == 0


def test_a_conversation(talk: Talk, vllm: ScriptedVLLM, gateway: Gateway) -> None:
    vllm.scripts += [stream_of("При", "вет!"), stream_of("Да", finish_reason="length")]
    terminal = talk("--system", "Ты — ёж.", "--max-tokens", "9", "--temperature", "0.5")
    terminal.expect_exact("Модель /app/model. Ctrl-C — остановить ответ, Ctrl-D — выйти.")
    say(terminal, "Здравствуй")
    terminal.expect(r"Привет!\r\n.*\[контекст \d+ из 8000 ток\. · ответ 3 ток\. за \d+\.\d с\]")
    say(terminal, "Точно?")
    terminal.expect(r"Да\r\n.*· обрезано по")
    assert gateway.http.get("/health").json()["sessions"] == 1
    leave(terminal)
    assert gateway.http.get("/health").json()["sessions"] == 0, "leaving stops the session"
    first, second = vllm.seen
    assert first.body["messages"][0] == {"role": "system", "content": "Ты — ёж."}
    assert (first.body["max_tokens"], first.body["temperature"]) == (9, 0.5)
    assert len(second.body["messages"]) == 4


def test_the_reply_appears_as_it_comes(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("первое", " второе", gap=0.7))
    terminal = talk()
    say(terminal, "считай")
    terminal.expect_exact("первое")
    started = time.monotonic()
    terminal.expect_exact("второе")
    assert time.monotonic() - started > 0.4
    leave(terminal)


def test_what_the_model_thinks_is_set_apart(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(reasoning="Хм, "), delta(reasoning="так."), *stream_of("Да", ".").acts]))
    terminal = talk()
    say(terminal, "вопрос")
    terminal.expect_exact("[контекст")
    assert "Хм, так.\n\nДа.\n" in visible(terminal.before or "")
    leave(terminal)


def test_ctrl_c_stops_the_reply_and_keeps_the_session(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="нача"), delta(content="ло"), 60.0]))
    terminal = talk()
    say(terminal, "вопрос")
    terminal.expect_exact("начало")
    terminal.sendintr()
    terminal.expect(r"остановлено\]")
    wait_until_idle(vllm, 5)
    say(terminal, "ещё")
    terminal.expect_exact("Ответ 2.")
    leave(terminal)
    texts = [message["content"] for message in vllm.seen[1].body["messages"]]
    assert texts[1:] == ["вопрос", "начало", "ещё"]


def test_ctrl_c_before_the_first_word(talk: Talk, vllm: ScriptedVLLM) -> None:
    slow = stream_of("поздно")
    slow.delay = 60.0
    vllm.scripts.append(slow)
    terminal = talk()
    say(terminal, "вопрос")
    wait_until(lambda: vllm.running == 1)
    terminal.sendintr()
    terminal.expect_exact("Остановлено.")
    wait_until_idle(vllm, 5)
    leave(terminal)


def test_a_second_ctrl_c_breaks_off_what_the_first_could_not(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="нача"), 60.0]))
    terminal = talk()
    say(terminal, "вопрос")
    terminal.expect_exact("нача")
    terminal.sendintr()
    terminal.sendintr()
    terminal.expect("Соединение оборвано|остановлено")
    leave(terminal)
    wait_until_idle(vllm, 5)


def test_ctrl_c_at_the_prompt_only_tells_how_to_leave(talk: Talk) -> None:
    terminal = talk()
    terminal.expect_exact("Вы> ")
    terminal.send("недописан")
    terminal.expect_exact("недописан")
    terminal.sendintr()
    terminal.expect_exact("Выйти — Ctrl-D.")
    leave(terminal)


def test_an_error_is_shown_and_the_talk_goes_on(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(refusal(500, "engine died"))
    terminal = talk()
    say(terminal, "вопрос")
    terminal.expect_exact("Ошибка: vLLM ответил ошибкой 500.")
    say(terminal, "ещё")
    terminal.expect_exact("Ответ 2.")
    leave(terminal)


def test_an_expired_session_is_opened_anew_with_a_word(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    with start_gateway(session_ttl_seconds=1) as gateway:
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "client", "--url", gateway.url],
            cwd=ROOT,
            env=environ(),
            encoding="utf-8",
            timeout=10,
        )
        terminal.expect_exact("Вы> ")
        time.sleep(1.2)
        terminal.sendline("вопрос")
        terminal.expect_exact("Сессия истекла; открываю новую")
        terminal.expect_exact("Ответ 1.")
        leave(terminal)
        terminal.close()
    assert len(vllm.seen) == 1


def test_a_models_text_cannot_steer_the_terminal(talk: Talk, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("a\x1b[2Jb\x07c\x9b1md\r[bold]e[/bold] :smile:\tf"))
    terminal = talk(TERM="dumb")
    say(terminal, "вопрос")
    terminal.expect_exact("[контекст")
    shown = terminal.before or ""
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "a\ufffd[2Jb\ufffdc\ufffd1md\ufffd[bold]e[/bold] :smile:" in shown
    leave(terminal)


def test_a_long_line_is_not_broken_by_the_client(talk: Talk, vllm: ScriptedVLLM) -> None:
    line = "слово" * 60
    vllm.scripts.append(stream_of(*(line[i : i + 7] for i in range(0, len(line), 7))))
    terminal = talk()
    say(terminal, "вопрос")
    terminal.expect_exact("[контекст")
    assert line in visible(terminal.before or "")
    leave(terminal)


# --- not in a terminal ---


def run(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "client", *arguments],
        cwd=ROOT,
        env=environ(**more),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_lines_from_a_pipe(gateway: Gateway) -> None:
    result = run(stdin="раз\n\nдва\n", CHAT_GATEWAY_URL=gateway.url)
    assert result.returncode == 0
    assert result.stdout.count("Ответ ") == 2
    assert "\x1b" not in result.stdout


def test_help_in_russian() -> None:
    result = run("--help")
    assert result.returncode == 0
    for word in ("--url", "VLLM_API_KEY", "Ctrl-C", "коды возврата", "пример"):
        assert word in result.stdout


def test_wrong_arguments_are_2() -> None:
    assert run("--max-tokens", "x").returncode == 2
    assert run("--nonsense").returncode == 2
    for temperature in ("nan", "3", "x"):
        result = run("--temperature", temperature)
        assert result.returncode == 2
        assert "нужно число от 0 до 2" in result.stderr


def test_no_gateway_is_1_with_one_line() -> None:
    result = run("--url", unused_url())
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert "Нет связи со шлюзом" in line


def test_bytes_that_are_no_text_are_1_or_pass(gateway: Gateway) -> None:
    result = run("--url", gateway.url, "--system", b"\xff".decode(errors="surrogateescape"), stdin="раз\n")
    assert result.returncode == 0, result.stderr
    result = run("--url", gateway.url, VLLM_API_KEY=b"\xff".decode(errors="surrogateescape"))
    assert result.returncode == 1
    assert "VLLM_API_KEY" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_wrong_key_is_1_with_what_to_do(gateway: Gateway) -> None:
    result = run("--url", gateway.url, VLLM_API_KEY="wrong")
    assert result.returncode == 1
    assert "VLLM_API_KEY" in result.stderr
    assert "wrong" not in result.stderr
