"""A gateway's process holds nothing of turns that came to nothing."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.overhead import resident_bytes
from tests.conftest import Gateway, SessionOf, Upstream, gateway_process, wait_until_idle
from tests.proxy import Network, network_to
from tests.scripted_vllm import DONE, ScriptedVLLM, delta, event, hanging, refusal, streamed

TURNS = 100
MESSAGE = "слово " * 20_000
MESSAGE_BYTES = len(MESSAGE.encode())

# As many at first fill pools and caches.
WARM_UP_TURNS = 20


@pytest.fixture
def network(upstream: Upstream) -> Iterator[Network]:
    """Between the gateway and the scripted vLLM."""
    with network_to(upstream.url) as network:
        yield network


@pytest.fixture
def process(upstream: Upstream, network: Network, model_folder: Path) -> Iterator[tuple[Gateway, int]]:
    """A gateway in a process of its own, which takes long messages, and the process's id."""
    upstream.script.max_model_len = 1_000_000
    long = {"MAX_CONTEXT_TOKENS": "900000", "LOG_LEVEL": "ERROR", "MAX_KEY_FAILURES_PER_MINUTE": "0"}
    with gateway_process(network.url, model_folder, **long) as started:
        yield started


def unknown(session: SessionOf, *_: object) -> None:
    session.gateway.refused(404, "session_not_found", "/chat", session_id="нет такой", message=MESSAGE)


def wrong_key(session: SessionOf, *_: object) -> None:
    session.gateway.refused(401, "invalid_key", "/init_session", vllm_api_key="wrong", system_prompt=MESSAGE)


def invalid(session: SessionOf, *_: object) -> None:
    session.refused(422, "invalid_request", "/chat", message=MESSAGE, max_tokens="много")


def refused_by_the_gateway(session: SessionOf, *_: object) -> None:
    session.refused(422, "invalid_request", "/chat", message=MESSAGE, extra={"n": 2})


def refused_by_vllm(session: SessionOf, vllm: ScriptedVLLM, *_: object) -> None:
    vllm.scripts.append(refusal(500, "engine died"))
    session.refused(502, "upstream_error", "/chat", message=MESSAGE)


def broken_off(session: SessionOf, vllm: ScriptedVLLM, *_: object) -> None:
    vllm.scripts.append(streamed([delta(content="нача"), None]))
    assert session.events(MESSAGE)[-1][0] == "error"


def failed_in_the_middle(session: SessionOf, vllm: ScriptedVLLM, *_: object) -> None:
    vllm.scripts.append(streamed([delta(content="нача"), event({"error": {"message": "engine died"}}), DONE]))
    assert session.events(MESSAGE)[-1][0] == "error"


def left(session: SessionOf, vllm: ScriptedVLLM, *_: object) -> None:
    vllm.scripts.append(hanging())
    with session.stream(MESSAGE) as source:
        assert source.response.status_code == 200
    wait_until_idle(vllm)
    session.ok("/cancel")


def unreachable(session: SessionOf, _: ScriptedVLLM, network: Network) -> None:
    network.go_down()
    assert session.gateway.post("/chat", session_id=session.id, message=MESSAGE).status_code in {502, 503}


@pytest.mark.parametrize(
    "turn",
    [
        unknown,
        wrong_key,
        invalid,
        refused_by_the_gateway,
        refused_by_vllm,
        broken_off,
        failed_in_the_middle,
        left,
        unreachable,
    ],
)
def test_failed_turns_leave_nothing(
    process: tuple[Gateway, int],
    vllm: ScriptedVLLM,
    network: Network,
    turn: Callable[[SessionOf, ScriptedVLLM, Network], None],
) -> None:
    """What a turn leaves in a circle of references stays until the garbage collector looks, which is seldom."""
    gateway, pid = process
    session = gateway.open()
    for _ in range(WARM_UP_TURNS):
        turn(session, vllm, network)
    before = resident_bytes(pid)
    for _ in range(TURNS):
        turn(session, vllm, network)
    grown = resident_bytes(pid) - before
    assert grown < TURNS * MESSAGE_BYTES / 4, f"{grown / 1e6:.1f} MB"
