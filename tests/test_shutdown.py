"""SIGTERM to the gateway, started as its image starts it: soon over, and every client is told."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from demo.stand import Server, free_port
from tests.conftest import Gateway, Upstream, gateway_process, problem
from tests.processes import is_alive
from tests.readme import ROOT
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, hanging, streamed, whole
from tests.servers import wait_until


def command_of_the_image(port: int) -> list[str]:
    """The image's own, but for where it listens."""
    [line] = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    words: list[str] = json.loads(line)
    for option, value in (("--host", "127.0.0.1"), ("--port", str(port))):
        words[words.index(option) + 1] = value
    return [sys.executable, *words[1:]]


@pytest.fixture
def server(upstream: Upstream, model_folder: Path) -> Iterator[Server]:
    port = free_port()
    environ = {"VLLM_BASE_URL": f"{upstream.url}/v1", "TOKENIZER_PATH": str(model_folder), "DRAIN_SECONDS": "2"}
    with Server("gateway-shutdown", command_of_the_image(port), environ, port, "/ready") as started:
        started.wait_until_ready()
        yield started


@pytest.fixture
def gateway(server: Server) -> Iterator[Gateway]:
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        yield Gateway(server.url, http)


def check_it_ended_well(server: Server, vllm: ScriptedVLLM) -> None:
    # uvicorn ends by the signal that it was sent; where it is the container's first process that is a plain 0.
    assert server.process.wait(10) in {0, -signal.SIGTERM}
    assert "Traceback" not in server.log.read_text(encoding="utf-8")
    wait_until(lambda: vllm.running == 0)


def test_a_gateway_that_is_loading_ends_at_once(model_folder: Path) -> None:
    """A container's first process would not hear of it without a handler of its own."""
    port = free_port()
    environ = {"TOKENIZER_PATH": str(model_folder)}
    with Server("gateway-loading", command_of_the_image(port), environ, port, "/ready") as server:
        caught = f"/proc/{server.process.pid}/status"
        wait_until(lambda: bool(int(re.findall(r"SigCgt:\s*(\w+)", Path(caught).read_text("ascii"))[0], 16) >> 14 & 1))
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert server.log.read_text(encoding="utf-8") == ""


def test_an_idle_gateway_ends_at_once(server: Server, vllm: ScriptedVLLM) -> None:
    server.process.terminate()
    check_it_ended_well(server, vllm)


def test_checks_that_go_well_are_not_logged(server: Server, gateway: Gateway) -> None:
    """Docker asks every few seconds, and the log is of bounded size."""
    gateway.open()
    gateway.http.get("/health")
    gateway.http.get("/metrics")
    gateway.http.get("/nothing")
    server.stop()
    log = server.log.read_text(encoding="utf-8")
    assert '"POST /init_session' in log
    assert '"GET /nothing HTTP/1.1" 404 request=' in log
    assert '"GET /health' not in log
    assert '"GET /metrics' not in log
    assert '"GET /ready HTTP/1.1" 200' not in log
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [A-Z]+ ", line) for line in log.splitlines())


def test_a_turn_is_logged_by_one_line(server: Server, gateway: Gateway) -> None:
    session = gateway.open()
    session.ok("/chat", message="раз")
    session.refused(422, "invalid_request", "/chat", message="")
    server.stop()
    log = server.log.read_text(encoding="utf-8")
    assert log.count("turn outcome=completed") == 1
    assert 'POST /chat HTTP/1.1" 200' not in log
    assert log.count('POST /chat HTTP/1.1" 422') == 1


def test_a_thousand_streams_need_no_setting_of_the_system(upstream: Upstream, model_folder: Path) -> None:
    """Where a process may open but few files, as long as nobody asks for more."""
    port = free_port()
    environ = {"VLLM_BASE_URL": f"{upstream.url}/v1", "TOKENIZER_PATH": str(model_folder)}
    few = ["sh", "-c", 'ulimit -S -n 64 && exec "$@"', "sh", *command_of_the_image(port)]
    with Server("gateway-files", few, environ, port, "/ready") as started:
        started.wait_until_ready()
        now, most = resource.prlimit(started.process.pid, resource.RLIMIT_NOFILE)
    assert now >= min(most, 2000) > 64


def test_several_workers_are_refused_by_one_line(model_folder: Path) -> None:
    environ = {**os.environ, "WEB_CONCURRENCY": "2", "TOKENIZER_PATH": str(model_folder)}
    result = subprocess.run(
        command_of_the_image(free_port()),
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "WEB_CONCURRENCY=2" in line


def test_a_stream_ends_with_an_error(server: Server, gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="Пока"), 60.0]))
    with gateway.open().stream("?") as source:
        events = iter(source)
        assert next(events).json() == {"text": "Пока"}
        server.process.terminate()
        [last] = events
    error: Any = last.json()
    assert (last.event, error["code"], error["status"]) == ("error", "overloaded", 503)
    assert "останавливают" in error["detail"]
    check_it_ended_well(server, vllm)


def test_a_json_answer_becomes_an_error(server: Server, gateway: Gateway, vllm: ScriptedVLLM) -> None:
    answer = whole("поздно")
    answer.delay = 60.0
    vllm.scripts.append(answer)
    session = gateway.open()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(gateway.post, "/chat", session_id=session.id, message="?")
        wait_until(lambda: vllm.running == 1)
        server.process.terminate()
        response = waiting.result()
    assert problem(response, 503, "overloaded")["retry_after"] == int(response.headers["retry-after"])
    check_it_ended_well(server, vllm)


def test_a_turn_that_ends_in_time_is_answered(server: Server, gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(streamed([delta(content="Успел"), 0.5, delta("stop", content="")]))
    with gateway.open().stream("?") as source:
        events = iter(source)
        next(events)
        server.process.terminate()
        [last] = events
    answer: Any = last.json()
    assert (last.event, answer["reply"]) == ("done", "Успел")
    check_it_ended_well(server, vllm)


def test_while_turns_end_the_others_are_told(upstream: Upstream, model_folder: Path) -> None:
    upstream.script.scripts.append(hanging("Пока"))
    with gateway_process(upstream.url, model_folder, DRAIN_SECONDS="600") as (gateway, pid):
        session, other = gateway.open(), gateway.open()
        with session.stream("?") as source:
            events = iter(source)
            next(events)
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: gateway.http.get("/ready").status_code == 503)
            assert "останавливают" in problem(gateway.http.get("/ready"), 503, "overloaded")["detail"]
            other.refused(503, "overloaded", "/chat", message="?")
            gateway.refused(503, "overloaded", "/init_session", vllm_api_key=KEY)
            assert gateway.http.get("/health").status_code == 200, "it lives"
            assert other.contents() == []
            assert session.ok("/cancel")["status"] == "cancelled"
            [last] = events
        assert last.event == "done"
        wait_until(lambda: not is_alive(pid))


def test_a_second_signal_waits_no_longer(upstream: Upstream, model_folder: Path) -> None:
    upstream.script.scripts.append(streamed([delta(content="Пока"), 60.0]))
    with gateway_process(upstream.url, model_folder, DRAIN_SECONDS="600") as (gateway, pid):
        with gateway.open().stream("?") as source:
            events = iter(source)
            next(events)
            os.kill(pid, signal.SIGINT)
            wait_until(lambda: gateway.http.get("/ready").status_code == 503)
            os.kill(pid, signal.SIGINT)
            [last] = events
        error: Any = last.json()
        assert (last.event, error["code"]) == ("error", "overloaded")
        wait_until(lambda: not is_alive(pid))
    wait_until(lambda: upstream.script.running == 0)
