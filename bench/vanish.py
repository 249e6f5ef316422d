"""How soon nothing is left of streams whose clients vanish at once: `python -m bench.vanish [CLIENTS] [ROUNDS]`.

The clients are one process, which is killed while each of its streams gets 50 tokens a second. The time goes from there
until the upstream, a scripted one, has so few of its connections left: half, one in a hundred, none.
"""

import argparse
import asyncio
import multiprocessing
import os
import resource
import statistics
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import uvloop

from bench.load import opened
from bench.overhead import on_core
from bench.talks import GatewayTalk
from demo.environments import prepare
from demo.stand import Server, free_port, generated_model, start_gateway

TOKENS = 5000
"""More than a stream gets to see."""

LEFT = (0.5, 0.01, 0.0)


def main() -> None:
    """Measure and print a row for every round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="?", type=int, default=1000)
    parser.add_argument("rounds", nargs="?", type=int, default=5)
    asked = parser.parse_args()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    cores = sorted(os.sched_getaffinity(0))
    python, port = prepare("gateway"), free_port()
    with on_core(cores[0]):
        upstream = Server("upstream", [str(python), "-m", "bench.quick_vllm", str(port)], {}, port, "/health")
    with upstream, on_core(cores[-1]):
        upstream.wait_until_ready()
        with start_gateway(python, upstream.url, generated_model()) as gateway:
            gateway.wait_until_ready()
            os.sched_setaffinity(0, cores[:1])
            rounds = [vanish(gateway.url, upstream.process.pid, asked.clients) for _ in range(asked.rounds)]
    print(f"\nmilliseconds until of {asked.clients} connections to the upstream are left   half     1 %    none")
    for number, seconds in enumerate(rounds, start=1):
        print(f"round {number:<56}", *(f"{1000 * left:8.0f}" for left in seconds))
    print(f"{'median':<62}", *(f"{1000 * statistics.median(left):8.0f}" for left in zip(*rounds, strict=True)))


def vanish(url: str, upstream: int, clients: int) -> list[float]:
    """Seconds until so much as `LEFT` is left of the connections of the process `upstream`."""
    spawning = multiprocessing.get_context("spawn")
    all_stream = spawning.Event()
    before = open_sockets(upstream)
    holder = spawning.Process(target=hold, args=(url, clients, all_stream))
    holder.start()
    assert all_stream.wait(60), "not all streams have begun"
    assert open_sockets(upstream) >= clients
    holder.kill()  # the system closes its sockets
    started = time.perf_counter()
    seconds: list[float] = []
    while len(seconds) < len(LEFT):
        left = open_sockets(upstream) - before
        seconds += [time.perf_counter() - started] * sum(left <= clients * share for share in LEFT[len(seconds) :])
        time.sleep(0.005)
    holder.join()
    return seconds


def hold(url: str, clients: int, all_stream: Event) -> None:
    """Read so many streams, for ever."""
    uvloop.run(_hold(url, clients, all_stream))


async def _hold(url: str, clients: int, all_stream: Event) -> None:
    connections = await opened(url, clients)
    talks = list(map(GatewayTalk, connections))
    await asyncio.gather(*(talk.begin() for talk in talks))
    async with asyncio.TaskGroup() as streams:
        for talk in talks:
            streams.create_task(talk.stream(TOKENS))
        while not all(connection.events for connection in connections):  # noqa: ASYNC110 - it is only begun once
            await asyncio.sleep(0.1)
        all_stream.set()


def open_sockets(pid: int) -> int:
    """How many sockets a process has open."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += str(path.readlink()).startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return found


if __name__ == "__main__":
    main()
