"""The description of the API is true: whatever is sent, and whatever vLLM does, what comes back is declared.

For a long run: FUZZ_TIMES=20 python -m pytest tests/fuzz -s --timeout=0
"""

import os
import subprocess
import sys
from pathlib import Path

from tests.fuzz.faults import PATIENCE_SECONDS, FuzzedVLLM
from tests.fuzz.watched import TIMES, Watched, watched_gateway
from tests.servers import serve, unused_url

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
MAX_REQUEST_BYTES = 50_000
OF_ALL = {200, 404, 405, 413, 422}


def fuzz(url: str, watched: Watched, examples: int, *arguments: str) -> None:
    """Have Schemathesis try the gateway by its own description; what it finds is in the assertion's message."""
    randomness = ["--generation-deterministic"] if TIMES == 1 else []
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    run = subprocess.run(
        [*command, *randomness, f"--max-examples={examples * TIMES}", "--continue-on-failure", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(run.stdout, dict(sorted(watched.answers.items())), sep="\n")  # noqa: T201 - shown where the test fails
    assert run.returncode == 0, run.stderr
    watched.wait_until_quiet()


def test_every_answer_is_declared(model_folder: Path) -> None:
    bound = {"max_request_bytes": MAX_REQUEST_BYTES}
    with serve(FuzzedVLLM()) as vllm_url, watched_gateway(vllm_url, model_folder, **bound) as (gateway, watched):
        fuzz(gateway.url, watched, 60)
    assert watched.statuses("/init_session") >= {*OF_ALL, 401}
    assert watched.statuses("/chat") >= {*OF_ALL, 400, 409}
    for path in ("/set_system_prompt", "/undo", "/reset"):
        assert watched.statuses(path) >= {*OF_ALL, 409}, path
    for path in ("/history", "/cancel", "/stop_session"):
        assert watched.statuses(path) >= OF_ALL, path
    for path in ("/health", "/ready"):
        assert watched.statuses(path) == {200, 405}, path


def test_every_answer_is_declared_whatever_vllm_does(model_folder: Path) -> None:
    impatient = dict.fromkeys(("vllm_idle_timeout_seconds", "vllm_total_timeout_seconds"), PATIENCE_SECONDS)
    with (
        serve(FuzzedVLLM(is_faulty=True)) as vllm_url,
        watched_gateway(vllm_url, model_folder, **impatient) as (gateway, watched),
    ):
        only = ("--mode=positive", "--include-path=/init_session", "--include-path=/chat")
        fuzz(gateway.url, watched, 150, *only)
    assert watched.statuses("/init_session") >= {200, 400, 401, 429, 502}
    assert watched.statuses("/chat") >= {200, 400, 401, 429, 502, 504}


def test_every_answer_is_declared_without_vllm(model_folder: Path) -> None:
    with watched_gateway(unused_url(), model_folder) as (gateway, watched):
        fuzz(gateway.url, watched, 20, "--exclude-path=/chat")
    assert 503 in watched.statuses("/init_session")
    assert watched.statuses("/ready") == {503, 405}
    assert watched.statuses("/health") == {200, 405}
