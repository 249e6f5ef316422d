"""Events on their way to a client that does not take them, and from a vLLM while nobody looks."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from starlette.types import Message

from app.streaming import EventStream
from tests.conftest import Upstream, gateway_process, gateways_before
from tests.proxy import network_to
from tests.scripted_vllm import delta, stream_of, streamed


@pytest.mark.anyio
async def test_one_comment_at_a_time_waits_for_a_client() -> None:
    sent: list[Message] = []
    reads = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 1:
            await reads.wait()

    stream = EventStream(send, keep_alive_seconds=0.02)
    await stream.open()
    await asyncio.sleep(0.3)
    assert len(sent) == 2
    reads.set()
    await asyncio.sleep(0.1)
    assert len(sent) > 2
    stream.keep_alive_no_more()


def test_a_gateway_that_stood_still_goes_on(upstream: Upstream, model_folder: Path) -> None:
    """What vLLM said meanwhile has come, although it was silent by the gateway's clock."""
    upstream.script.scripts.append(stream_of(*"абвгдежзийклмнопрстуфхцч", gap=0.1))
    with (
        gateway_process(upstream.url, model_folder, VLLM_IDLE_TIMEOUT_SECONDS="1") as (gateway, pid),
        gateway.open().stream("а") as source,
    ):
        events = iter(source)
        assert next(events).event == "delta"
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.3)
        os.kill(pid, signal.SIGCONT)
        assert [event.event for event in events][-1] == "done"


def test_what_breaks_while_the_client_does_not_read_is_no_defect_of_ours(
    upstream: Upstream, model_folder: Path
) -> None:
    with network_to(upstream.url) as network, gateways_before(network.url, model_folder)() as gateway:
        session = gateway.open()
        for size in (20_000, 40_000, 60_000, 80_000):
            upstream.script.scripts.append(streamed([*[delta(content="x" * size)] * 200, 60.0]))
            with session.stream("а") as source:
                time.sleep(0.3)  # the client reads nothing
                network.garble()
                last = [(event.event, event.json()) for event in source][-1]
            assert last[0] == "error"
            assert isinstance(last[1], dict)
            assert last[1]["code"] == "upstream_error"


def test_an_answer_that_nobody_asked_for_answers_nobody(upstream: Upstream, model_folder: Path) -> None:
    with network_to(upstream.url) as network, gateways_before(network.url, model_folder)() as gateway:
        first, second = gateway.open(), gateway.open()
        first.ok("/chat", message="раз")
        body = b'{"choices":[{"message":{"content":"EVIL"},"finish_reason":"stop"}]}'
        network.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        time.sleep(0.2)  # until it lies there
        assert second.ok("/chat", message="два")["reply"] == "Ответ 2."
