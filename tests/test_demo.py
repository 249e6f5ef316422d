"""The parts of the demo that need no vLLM: steps that show that they move, servers that are stopped whole."""

import sys
from pathlib import Path

import pytest

from demo.__main__ import max_model_len_in
from demo.progress import StepFailed, run_step
from demo.stand import Server, free_port
from tests.processes import is_alive
from tests.servers import wait_until


def test_a_step_that_fails_says_why_and_where_to_read_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "logs" / "step.log"
    with pytest.raises(StepFailed) as caught:
        run_step("дело", [[sys.executable, "-c", "open('/nonexistent')"]], log)
    assert "FileNotFoundError: [Errno 2]" in str(caught.value)
    assert str(log) in str(caught.value)
    assert "✗ дело" in capsys.readouterr().out


def test_the_cause_is_shown_though_much_follows_it(tmp_path: Path) -> None:
    script = "print('RuntimeError: the cause')\nfor i in range(100): print('later', i)\nraise SystemExit(1)"
    with pytest.raises(StepFailed, match="RuntimeError: the cause"):
        run_step("дело", [[sys.executable, "-c", script]], tmp_path / "step.log")


def test_the_cause_is_shown_as_pydantic_words_it_and_without_warnings(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('WARNING 11-26 OSError: [Errno 24] Too many open files')\n"
        "print('ValidationError: 1 validation error for ModelConfig')\n"
        "print('  Value error, the cause')\n"
        "for i in range(100): print('later', i)\nraise SystemExit(1)"
    )
    with pytest.raises(StepFailed, match="Value error, the cause") as caught:
        run_step("дело", [[sys.executable, str(script)]], tmp_path / "step.log")
    assert "Errno 24" not in str(caught.value)


def test_a_step_that_succeeds_shows_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_step("дело", [[sys.executable, "-c", "print(1)"], [sys.executable, "-c", "print(2)"]], tmp_path / "step.log")
    assert "✓ дело: " in capsys.readouterr().out
    assert (tmp_path / "step.log").read_text() == "1\n2\n"


def test_a_server_that_ends_instead_of_serving_is_told_of() -> None:
    command = [sys.executable, "-c", "raise SystemExit('ValueError: no such model')"]
    with Server("проба", command, {}, free_port(), "/") as server, pytest.raises(StepFailed, match="no such model"):
        server.wait_until_ready()


def test_a_server_is_stopped_with_everything_it_started(tmp_path: Path) -> None:
    """Even a child that heeds no signal."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    note = tmp_path / "child"
    script = (
        "import subprocess, sys, time, pathlib\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    with Server("проба", [sys.executable, "-c", script], {}, free_port(), "/"):
        wait_until(lambda: note.exists() and note.read_text() != "")
    pid = int(note.read_text())
    wait_until(lambda: not is_alive(pid))


def test_the_context_may_be_longer() -> None:
    assert max_model_len_in({}) == max_model_len_in({"VLLM_MAX_MODEL_LEN": ""}) == 8192
    assert max_model_len_in({"VLLM_MAX_MODEL_LEN": "32768"}) == 32768
    for given in ("0", "-1", "8k", "١"):
        with pytest.raises(StepFailed, match=f"VLLM_MAX_MODEL_LEN={given}: "):
            max_model_len_in({"VLLM_MAX_MODEL_LEN": given})
