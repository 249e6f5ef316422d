"""The pairs of base image and vLLM: what pip makes of them, and the tests of counting with the default pair's."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.readme import ROOT
from tests.test_deploy import CHOICES, arguments

PYTHON_OF_THE_BASE = {"default": "3.11", "newer": "3.12"}
PAIRS = {"default": arguments("Dockerfile.vllm"), "newer": CHOICES}
COUNTING = [f"tests/test_{name}.py" for name in ("encoder", "chunks", "template", "pattern", "pairwise", "tokenizer")]


def torch_of(pair: str) -> str:
    """The torch of a pair's base image."""
    return re.split("[:-]", PAIRS[pair]["BASE_IMAGE"])[1]


def pins_of_the_gateway(vllm_version: str) -> dict[str, str]:
    """What the gateway's Dockerfile picks for a vLLM."""
    lines = re.findall(r'^ +(vllm-[^)]+)\) pins="(.+)" ;;', (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    [pins] = [
        pins for patterns, pins in lines for pattern in patterns.split("|") if fnmatch(f"vllm-{vllm_version}", pattern)
    ]
    return dict(pin.split("==") for pin in pins.split())


def resolve(pair: str) -> dict[str, str]:
    """What pip would install for a pair into an empty environment, by name."""
    bounds = re.findall(r'"(\w+<[\d.]+)"', (ROOT / "Dockerfile.vllm").read_text("utf-8"))
    requirements = [f"vllm=={PAIRS[pair]['VLLM_VERSION']}", f"torch=={torch_of(pair)}", *bounds]
    elsewhere = ["--python-version", PYTHON_OF_THE_BASE[pair], "--only-binary", ":all:", "--target", "nowhere"]
    dry_run = ["--dry-run", "--ignore-installed", "--quiet", "--report", "-", *elsewhere]
    report = _pip_install([*dry_run, *requirements])
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report)["install"]}


def count_with_the_default_pair(folder: Path) -> tuple[list[str], str]:
    """Run the tests of counting with its libraries, installed into a folder: their versions, and pytest's report."""
    pins = pins_of_the_gateway(PAIRS["default"]["VLLM_VERSION"])
    _pip_install(["--target", str(folder), "--quiet", *(f"{name}=={version}" for name, version in pins.items())])
    environ = {"PYTHONPATH": str(folder)}
    show = f"from importlib.metadata import version; print(*map(version, {list(pins)}))"
    versions = _output_of(["-c", show], environ).split()
    report = _output_of(["-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *COUNTING], environ)
    return versions, report


def _output_of(arguments: Sequence[str], environ: Mapping[str, str]) -> str:
    """What Python prints in the project's folder, while others have the processor first."""
    environ = {**os.environ, **environ}
    command = ["nice", "-n", "19", sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _pip_install(arguments: Sequence[str]) -> bytes:
    """Run `pip install`; returns its output."""
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "index", "versions", "pip"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no package index can be reached")
    return subprocess.run([*pip, "install", *arguments], capture_output=True, check=True, timeout=380).stdout
