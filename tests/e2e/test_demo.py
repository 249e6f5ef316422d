"""`make demo`: from its start to its end, and interrupted on the way."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from demo.assistant.corpus import load
from demo.assistant.exam import examine
from tests.processes import command_of, descendants, is_alive
from tests.screen import Screen
from tests.servers import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
MAKE = ["make", "--no-print-directory", "demo", f"PYTHON={sys.executable}"]


@contextmanager
def running_demo() -> Iterator["subprocess.Popen[str]"]:
    """The demo without a terminal, in a process group of its own."""
    demo = subprocess.Popen(
        MAKE,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        yield demo
    finally:
        demo.kill()
        demo.communicate()


def test_from_the_command_to_a_reply_and_nothing_left() -> None:
    """In a real terminal: a question, its answer by the real vLLM, a reply stopped by Ctrl-C, and the end by Ctrl-D.

    The reply would go on for a minute and more: what talks, draws and watches here shares the processor.
    """
    with Screen(MAKE, ROOT, {**os.environ, "VLLM_MAX_MODEL_LEN": "32768"}, columns=120, rows=40) as demo:
        demo.wait_for("export GATEWAY=http://127.0.0.1:", 300)
        demo.say("/set max_tokens 32000")
        assert demo.child.pid is not None
        started = descendants(demo.child.pid)
        assert len(started) >= 4, "the runner, vLLM and its engine, the gateway, the client"
        demo.say("/set ignore_eos true")
        demo.say("Привет")
        demo.wait_for_reply_to("Привет")
        demo.press("ctrl-c")
        demo.wait_for("Остановлено.", 60)
        demo.wait_for("/768 · ")
        demo.wait_for_prompt()
        demo.press("ctrl-d")
        demo.wait_for("Серверы остановлены.", 60)
        assert demo.wait_for_end() == 0, "Ctrl-C in the conversation is no failure of make"
        assert not any(map(is_alive, started))


IMPATIENCE = {
    "Ctrl-C": [signal.SIGINT],
    "Ctrl-C again and again": [signal.SIGINT] * 3,
    "told to end": [signal.SIGTERM],
    "terminal closed": [signal.SIGHUP, signal.SIGTERM],
}


@pytest.mark.parametrize("signals", IMPATIENCE.values(), ids=IMPATIENCE.keys())
def test_interrupted_on_the_way_it_stops_what_it_started(signals: list[signal.Signals]) -> None:
    with running_demo() as demo:
        assert demo.stdout is not None
        while "запуск vllm" not in demo.stdout.readline():
            assert demo.poll() is None
        # vLLM has begun its engine: it heeds no signal then.
        wait_until(lambda: any("spawn_main" in command_of(pid) for pid in descendants(demo.pid)), 60)
        started = descendants(demo.pid)
        for sent in signals:
            with suppress(ProcessLookupError):
                os.killpg(demo.pid, sent)
            time.sleep(0.3)
        _, errors = demo.communicate(timeout=60)
        assert demo.returncode != 0
        if signal.SIGINT in signals:
            assert "Прервано, всё остановлено." in errors
        assert "Traceback" not in errors
        wait_until(lambda: not any(map(is_alive, started)))


def test_it_knows_this_product_and_says_what_it_does_not_know() -> None:
    """Asked what it was not trained on, by another program first and then through a pipe."""
    with running_demo() as demo:
        assert demo.stdout is not None
        address = next(found for line in demo.stdout if (found := re.search(r"GATEWAY=(\S+) KEY=(\S+)", line)))
        results = list(examine(address[1], address[2]))
        assert {result.part.title: result.share for result in results if not result.passed} == {}
        output, errors = demo.communicate("Какой порт слушает шлюз?\n", timeout=60)
        assert demo.returncode == 0, errors
        assert load().answers["port"] in " ".join(output.split())
