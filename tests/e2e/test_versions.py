"""Both pairs of base image and vLLM resolve, and the gateway's transformers is the one that vLLM is installed with."""

import json
import re
import subprocess
import sys
from fnmatch import fnmatch

import pytest

from tests.readme import ROOT, section
from tests.test_deploy import CHOICES, arguments

PAIRS = {"default": arguments("Dockerfile.vllm"), "newer": CHOICES}


def transformers_of_the_gateway(vllm_version: str) -> str:
    """What the gateway's Dockerfile picks for a vLLM."""
    lines = re.findall(r"^ +(vllm-[^)]+)\) version=(\S+) ;;", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    found: list[str] = [
        version
        for patterns, version in lines
        for pattern in patterns.split("|")
        if fnmatch(f"vllm-{vllm_version}", pattern)
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.timeout(400)
def test_a_pair_resolves_as_its_image_is_built(pair: str) -> None:
    vllm = PAIRS[pair]["VLLM_VERSION"]
    torch = re.split("[:-]", PAIRS[pair]["BASE_IMAGE"])[1]
    bounds = re.findall(r'"(\w+<[\d.]+)"', (ROOT / "Dockerfile.vllm").read_text("utf-8"))
    wanted = [f"vllm=={vllm}", f"torch=={torch}", *bounds]
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
    report = subprocess.run([*pip, *wanted], capture_output=True, check=True, timeout=380).stdout
    resolved = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(report)["install"]}
    assert (resolved["vllm"], resolved["torch"].partition("+")[0]) == (vllm, torch)
    assert resolved["transformers"] == transformers_of_the_gateway(vllm)
    table = section("Версии")
    for version in (vllm, torch, resolved["transformers"]):
        assert version in table
