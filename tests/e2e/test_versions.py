"""Both pairs of base image and vLLM resolve, and the gateway's transformers is the one that vLLM is installed with."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.readme import ROOT, section
from tests.test_deploy import CHOICES, arguments

PYTHON_OF_THE_BASE = {"default": "3.11", "newer": "3.12"}
PAIRS = {"default": arguments("Dockerfile.vllm"), "newer": CHOICES}
COUNTING = [f"tests/test_{name}.py" for name in ("chunks", "template", "pattern", "pairwise", "tokenizer")]


def pins_of_the_gateway(vllm_version: str) -> dict[str, str]:
    """What the gateway's Dockerfile picks for a vLLM."""
    lines = re.findall(r'^ +(vllm-[^)]+)\) pins="(.+)" ;;', (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    [pins] = [
        pins for patterns, pins in lines for pattern in patterns.split("|") if fnmatch(f"vllm-{vllm_version}", pattern)
    ]
    return dict(pin.split("==") for pin in pins.split())


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.timeout(400)
def test_a_pair_resolves_as_its_image_is_built(pair: str) -> None:
    vllm = PAIRS[pair]["VLLM_VERSION"]
    torch = re.split("[:-]", PAIRS[pair]["BASE_IMAGE"])[1]
    bounds = re.findall(r'"(\w+<[\d.]+)"', (ROOT / "Dockerfile.vllm").read_text("utf-8"))
    resolved = resolve([f"vllm=={vllm}", f"torch=={torch}", *bounds], PYTHON_OF_THE_BASE[pair])
    assert (resolved["vllm"], resolved["torch"].partition("+")[0]) == (vllm, torch)
    assert {name: resolved[name] for name in ("transformers", "tokenizers")} == pins_of_the_gateway(vllm)
    table = section("Версии")
    for version in (vllm, torch, resolved["transformers"]):
        assert version in table


def test_the_gateway_outside_of_docker_has_the_newer_pairs_transformers() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    for name, version in pins_of_the_gateway(CHOICES["VLLM_VERSION"]).items():
        assert f"{name}=={version}" in lines


@pytest.mark.timeout(400)
def test_tokens_are_counted_exactly_with_the_default_pairs_transformers(tmp_path: Path) -> None:
    """All other tests run with the newer pair's."""
    pins = pins_of_the_gateway(PAIRS["default"]["VLLM_VERSION"])
    pip_install(["--target", str(tmp_path), "--quiet", *(f"{name}=={version}" for name, version in pins.items())])
    environ = {"PYTHONPATH": str(tmp_path)}
    versions = "from importlib.metadata import version; print(*map(version, {}))"
    assert output_of(["-c", versions.format(list(pins))], environ).split() == list(pins.values())
    report = output_of(["-m", "pytest", "-p", "no:cacheprovider", *COUNTING], environ)
    assert re.search(r"\d+ passed", report), report


def output_of(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """What Python prints in the project's folder."""
    environ = {**os.environ, **environ}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip_install(arguments: Sequence[str]) -> bytes:
    """Run `pip install`; returns its output."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "index", "versions", "pip"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no package index can be reached")
    return subprocess.run([*pip, "install", *arguments], capture_output=True, check=True, timeout=380).stdout


def resolve(requirements: list[str], python_version: str) -> dict[str, str]:
    """What pip would install into an empty environment, by name."""
    elsewhere = ["--python-version", python_version, "--only-binary", ":all:", "--target", "nowhere"]
    dry_run = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-", *elsewhere]
    report = pip_install([*dry_run, *requirements])
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report)["install"]}
