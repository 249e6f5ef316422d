"""Both pairs of base image and vLLM resolve, and the gateway's transformers is the one that vLLM is installed with."""

import re

import pytest

from tests.e2e.conftest import Begun
from tests.e2e.pairs import PAIRS, pins_of_the_gateway, torch_of
from tests.readme import OPERATIONS, ROOT, section
from tests.test_deploy import CHOICES

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_resolves_as_its_image_is_built(pair: str, begun: Begun) -> None:
    vllm, torch = PAIRS[pair]["VLLM_VERSION"], torch_of(pair)
    resolved = begun.resolved[pair].result()
    assert (resolved["vllm"], resolved["torch"].partition("+")[0]) == (vllm, torch)
    assert {name: resolved[name] for name in ("transformers", "tokenizers")} == pins_of_the_gateway(vllm)
    table = section("Версии", OPERATIONS)
    for version in (vllm, torch, resolved["transformers"]):
        assert version in table


def test_the_gateway_outside_of_docker_has_the_newer_pairs_transformers() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    for name, version in pins_of_the_gateway(CHOICES["VLLM_VERSION"]).items():
        assert f"{name}=={version}" in lines


def test_tokens_are_counted_exactly_with_the_default_pairs_transformers(begun: Begun) -> None:
    """All other tests run with the newer pair's."""
    versions, report = begun.counted.result()
    assert versions == list(pins_of_the_gateway(PAIRS["default"]["VLLM_VERSION"]).values())
    assert re.search(r"\d+ passed", report), report
