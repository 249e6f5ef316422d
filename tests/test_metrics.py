"""/metrics: what a run has done is what it says."""

import re
from typing import Any

import pytest

from tests.conftest import Gateway, SessionOf, StartGateway, problem
from tests.scripted_vllm import KEY, ScriptedVLLM, delta, hanging, refusal, stream_of, streamed, whole
from tests.servers import unused_url, wait_until

USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 4,
    "total_tokens": 24,
    "prompt_tokens_details": {"cached_tokens": 16},
}


def test_a_stream_is_measured(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(stream_of("раз", "два", "три", gap=0.5, usage=USAGE))
    session.events("а")
    now = session.gateway.metrics()
    assert now("turns_total", "completed") == 1
    assert (now("prompt_tokens_total"), now("completion_tokens_total"), now("cached_tokens_total")) == (20, 4, 16)
    assert now("time_to_first_token_seconds_count") == 1
    assert 0.5 <= now("time_to_first_token_seconds_sum") < now("turn_seconds_sum")
    assert now("inter_token_seconds_count") == 2
    assert now("inter_token_seconds_bucket", "0.05") == 0, "the gaps are longer than that"
    assert now("turn_seconds_count") == now("added_seconds_count") == 1
    assert now("wait_seconds_count") == 0, "there was a place"
    assert 0 < now("added_seconds_sum") < now("turn_seconds_sum") - 1, "vLLM's time is not the gateway's"


def test_a_json_answer_has_no_first_token(session: SessionOf, vllm: ScriptedVLLM) -> None:
    vllm.scripts.append(whole("да", usage=USAGE))
    session.ok("/chat", message="а")
    now = session.gateway.metrics()
    assert now("turns_total", "completed") == now("turn_seconds_count") == 1
    assert now("completion_tokens_total") == 4
    assert now("time_to_first_token_seconds_count") == now("inter_token_seconds_count") == 0


def test_every_end_of_a_turn_has_its_name(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    session = gateway.open()
    vllm.scripts += [whole("да"), hanging("нача"), refusal(500, "no"), streamed([delta(content="а"), None])]
    session.ok("/chat", message="а")
    with session.stream("а") as source:
        events = iter(source)
        next(events)
        now = gateway.metrics()
        assert (now("turns_in_flight"), now("turns_waiting"), now("sessions")) == (1, 0, 1)
        session.ok("/cancel")
    session.refused(502, "upstream_error", "/chat", message="а")
    session.events("а")
    session.refused(400, "context_too_long", "/chat", message="а", max_tokens=10_000)
    now = gateway.metrics()
    assert now("turns_total", "completed") == 1
    assert now("turns_total", "cancelled") == 1
    assert now("turns_total", "upstream_error") == 2
    assert now("turns_total", "context_too_long") == 1
    assert now("turn_seconds_count") == 1, "what broke off tells nothing of how long an answer takes"
    assert now("turns_in_flight") == 0


def test_a_refused_key_is_counted(gateway: Gateway) -> None:
    gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong")
    gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="ключ")
    assert gateway.metrics()("upstream_errors_total", "unauthorized") == 1, "the other one was not shown to vLLM"


def test_dropped_pairs_are_counted_once(start_gateway: StartGateway) -> None:
    with start_gateway(max_context_tokens=150) as gateway:
        session = gateway.open(system_prompt="")
        receipts = [session.ok("/chat", message="слово " * 12)["context"] for _ in range(12)]
        assert receipts[-1]["dropped_pairs"] > 0
        assert gateway.metrics()("dropped_pairs_total") == receipts[-1]["dropped_pairs"]


def test_vllm_is_up_or_not(gateway: Gateway, start_gateway: StartGateway) -> None:
    wait_until(lambda: gateway.metrics()("vllm_up") == 1)
    assert gateway.metrics()("vllm_stalled") == 0
    with start_gateway(vllm_base_url=f"{unused_url()}/v1") as alone:
        assert alone.metrics()("vllm_up") == 0


def test_counts_that_disagree_are_counted(session: SessionOf) -> None:
    receipt: Any = session.ok("/chat", message="а")
    assert receipt["context"]["used"] != receipt["input_tokens"]
    assert session.gateway.metrics()("count_mismatches_total") == 1


def test_no_label_names_a_session_or_holds_a_text(gateway: Gateway) -> None:
    session = gateway.open(system_prompt="тайна")
    session.ok("/chat", message="тайна")
    labels = set(re.findall(r"(\w+)=\"", gateway.http.get("/metrics").text))
    assert labels == {"outcome", "le", "version", "implementation", "major", "minor", "patchlevel"}


def test_the_process_is_measured_too(gateway: Gateway) -> None:
    assert gateway.metrics()("process_resident_memory_bytes") > 1e6


def test_metrics_can_be_turned_off(start_gateway: StartGateway) -> None:
    with start_gateway(metrics_enabled=False) as gateway:
        problem(gateway.http.get("/metrics"), 404, "not_found")
        assert "/metrics" not in gateway.http.get("/openapi.json").json()["paths"]
        assert gateway.ok("/init_session", vllm_api_key=KEY)


@pytest.mark.parametrize("outcome", ["completed", "cancelled"])
def test_what_has_not_happened_yet_is_zero_not_absent(gateway: Gateway, outcome: str) -> None:
    assert f'chat_gateway_turns_total{{outcome="{outcome}"}} 0.0' in gateway.http.get("/metrics").text


def test_it_is_in_prometheus_own_format(gateway: Gateway) -> None:
    assert gateway.http.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
