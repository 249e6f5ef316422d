"""The real vLLM exposes what the dashboard shows."""

import re

import httpx2
import pytest

from tests.conftest import SessionOf
from tests.e2e.conftest import RealVLLM
from tests.test_monitoring import VLLM_METRICS

pytestmark = pytest.mark.vllm


def test_vllm_exposes_what_the_dashboard_shows(real_vllm: RealVLLM, session: SessionOf) -> None:
    session.ok("/chat", message="Привет", max_tokens=5)
    exposed = httpx2.get(f"{real_vllm.url}/metrics", timeout=60).text  # without a key, as Prometheus asks
    assert set(re.findall(r"^([\w:]+)\{", exposed, re.MULTILINE)) >= VLLM_METRICS
