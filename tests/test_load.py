"""Many clients at once that behave badly: they do not read, or they vanish."""

import json
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bench.overhead import resident_bytes
from bench.vanish import open_sockets
from tests.conftest import Gateway, SessionOf, Upstream, gateway_process, wait_until_idle
from tests.raw import connected, post
from tests.scripted_vllm import ScriptedVLLM, delta, hanging, streamed
from tests.servers import wait_until

VANISHING = 1000
SLOW = 8
PIECE = "x" * 50_000
PIECES = 600


@pytest.fixture
def process(upstream: Upstream, model_folder: Path) -> Iterator[tuple[Gateway, int]]:
    """A gateway in a process of its own, and the process's id."""
    with many_files(), gateway_process(upstream.url, model_folder, LOG_LEVEL="ERROR") as started:
        yield started


@contextmanager
def many_files() -> Iterator[None]:
    """The clients and the scripted vLLM live in this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert before[1] > 3 * VANISHING, "the system lets a process open too few files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def begun(session: SessionOf) -> socket.socket:
    """A connection on which a streamed /chat was sent and nothing is read."""
    connection = connected(session.gateway.url)
    body = json.dumps({"session_id": session.id, "message": "а", "stream": True}).encode()
    connection.sendall(post("/chat", body=body))
    return connection


def test_slow_readers_do_not_grow_the_gateway(process: tuple[Gateway, int], vllm: ScriptedVLLM) -> None:
    """vLLM has 240 MB for them; what they do not take stays there."""
    gateway, pid = process
    sessions = [gateway.open() for _ in range(SLOW + 1)]
    sessions[-1].events("раз")
    before = resident_bytes(pid)
    vllm.scripts += [streamed([*([delta(content=PIECE)] * PIECES), delta("stop")]) for _ in range(SLOW)]
    with ExitStack() as connections:
        for session in sessions[:SLOW]:
            connections.enter_context(begun(session))
        wait_until(lambda: vllm.running == SLOW)
        sent = -1
        while sent != vllm.sent_bytes:  # until it can send no more
            sent = vllm.sent_bytes
            time.sleep(0.5)
        grown = resident_bytes(pid) - before
        assert vllm.running == SLOW, "none has got its answer"
        # A reply is held until it is committed: as much of it as the sockets' buffers have taken.
        assert grown < SLOW * PIECES * len(PIECE) / 3, f"{grown / 1e6:.1f} MB"
    wait_until_idle(vllm)


def test_clients_that_vanish_leave_no_connection_to_vllm(process: tuple[Gateway, int], vllm: ScriptedVLLM) -> None:
    """Half of them close, half of them are cut off; `bench.vanish` measures how long it takes."""
    gateway, pid = process
    sessions = [gateway.open() for _ in range(VANISHING)]
    vllm.scripts += [hanging("нача") for _ in sessions]
    connections = [begun(session) for session in sessions]
    wait_until(lambda: vllm.running == VANISHING, 60)
    assert open_sockets(pid) >= 2 * VANISHING
    for number, connection in enumerate(connections):
        if number % 2:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    wait_until_idle(vllm, 60)
    wait_until(lambda: open_sockets(pid) < 20, 60)
    assert all(session.contents()[1:] in ([], ["нача"]) for session in sessions[:20])
    assert sessions[0].ok("/chat", message="ещё")["finish_reason"] == "stop"
