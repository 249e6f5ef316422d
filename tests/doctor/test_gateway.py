"""The inner half: before a scripted vLLM, and a real Redis."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from app.doctor.gateway import examine_from_inside
from tests.conftest import Upstream
from tests.doctor.faults_inside import INNER_FAULTS, InnerFault, Inside
from tests.doctor.world import begins, troubles
from tests.readme import ROOT
from tests.redis_process import PASSWORD, redis_process
from tests.scripted_vllm import KEY
from tests.test_agreement import counter_of
from tests.tokenizers_at_hand import ours


@pytest.fixture
def inside(upstream: Upstream, model_folder: Path, tmp_path: Path) -> Iterator[Inside]:
    upstream.script.counter = counter_of(ours(model_folder))
    environ = {"VLLM_BASE_URL": f"{upstream.url}/v1", "TOKENIZER_PATH": str(model_folder), "VLLM_API_KEY": KEY}
    made = Inside(upstream.script, environ, tmp_path)
    with made.kept:
        yield made


def look(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """What it finds, in an environment of the test's own."""
    for name, value in inside.environ.items():
        monkeypatch.setenv(name, value)
    return [asdict(finding) for finding in examine_from_inside()]


@pytest.mark.parametrize("fault", INNER_FAULTS, ids=lambda fault: fault.code)
def test_a_fault_is_named_and_nothing_else(inside: Inside, fault: InnerFault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.seed(inside)
    found = look(inside, monkeypatch)
    wrong = troubles(found)
    assert {finding["code"] for finding in wrong} == {fault.code} | fault.also, wrong
    assert wrong[0]["status"] == fault.status
    assert begins(wrong[0]["what"], fault.says), wrong[0]["what"]
    assert fault.types in wrong[0]["command"]
    assert wrong[0]["why"]
    assert not [secret for secret in (KEY, "parol") if secret in str(found)]


def test_good_health_is_not_complained_of(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding["status"] for finding in look(inside, monkeypatch)} == {"ok"}


def test_without_a_key_it_says_what_it_could_not_look_at(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    inside.environ["VLLM_API_KEY"] = ""
    found = look(inside, monkeypatch)
    assert not troubles(found)
    [finding] = [finding for finding in found if finding["status"] == "unchecked"]
    assert "exec -e VLLM_API_KEY gateway python -m app.doctor" in finding["command"]


def test_redis_is_asked_whether_it_answers_and_what_time_it_is(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_process(inside.folder) as redis:
        inside.environ |= redis.environ
        found = look(inside, monkeypatch)
    assert not troubles(found)
    assert "Redis отвечает" in [finding["what"] for finding in found]
    assert PASSWORD not in str(found)


def test_as_it_is_started_in_the_container(inside: Inside) -> None:
    """Its output is JSON and nothing else, and it ends with 1 where something is wrong."""
    inside.environ["VLLM_API_KEY"] = "drugoj-kljuch"
    environ = {**os.environ, **inside.environ}
    command = [sys.executable, "-m", "app.doctor", "--json"]
    ran = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert ran.stderr == ""
    assert [finding["code"] for finding in troubles(json.loads(ran.stdout)["findings"])] == ["key_refused"]
    assert "drugoj-kljuch" not in ran.stdout
    assert ran.returncode == 1
