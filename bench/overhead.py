"""What the gateway adds to vLLM: `python -m bench.overhead [TOKENIZER]`.

In front of an upstream that is faster than any of them: the gateway as shipped and, where it is installed, nginx as a
plain proxy; on request LiteLLM's proxy and agentic-api, from virtual environments of their own. Each of them has one
core to itself, the upstream and the clients have another. All in one run, and every number also as a ratio to the
upstream without anything before it (direct) and to nginx.

- turns: whole answers as JSON, each client in talks of 20 turns, one after another without a pause. Where the server
  keeps no history, the client sends it.
- streams: so many at once, 50 tokens a second each; medians of some rounds. A gap is the time between two reads that
  brought something; failed are those that were refused, or not at their end five times as long after their start as
  they should be. Those that brought nothing at all are in no first token, which flatters a server that fails.
- long talk: what the last turns of a long talk cost, beside those at its beginning, one client.
- memory: resident, before and after all that.

TOKENIZER is the folder of a model's tokenizer; without it, the small model's is used.
"""

import argparse
import asyncio
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path

import uvloop

from bench.load import Connection, opened, percentile
from bench.peers import NGINX_PROGRAM, start_agentic_api, start_litellm, start_nginx
from bench.quick_vllm import TOKENS_PER_SECOND
from bench.talks import CompletionsTalk, GatewayTalk, ResponsesTalk, Talk
from demo.environments import prepare
from demo.stand import Server, free_port, generated_model, start_gateway

TURN_CLIENTS = (1, 32)
STREAMS = (1, 200, 1000)
ROUNDS = 3
ROUND_SECONDS = 3.0
TALK_TURNS = 20
STREAM_SECONDS = 5
LONG_TALKS = 3
EARLY_TURN, LATE_TURN = 10, 400
AROUND = 5
"""So many turns on either side are measured with the turn that is meant."""

STREAM_LIMIT_SECONDS = 25
REST_SECONDS = 60
IDLE = 0.2
"""Seconds of the processor in a second at most."""

LATENCIES = ("first p50", "first p99", "gap p50", "gap p99")


@dataclass
class Subject:
    """One of those that are measured, and what was measured of it."""

    name: str
    server: Server
    talk: Callable[[Connection], Talk]
    idle_bytes: int = 0
    turn_seconds: dict[int, list[float]] = field(default_factory=dict)
    turns_per_second: dict[int, list[float]] = field(default_factory=dict)
    streams: dict[int, list["Streamed"]] = field(default_factory=dict)
    long_talk_seconds: tuple[float, float] | None = None

    async def run_turns(self, clients: int) -> None:
        """A round of turns."""
        connections = await opened(self.server.url, clients)
        seconds = self.turn_seconds.setdefault(clients, [])
        before = len(seconds)
        started = time.perf_counter()
        end = started + ROUND_SECONDS

        async def run(talk: Talk) -> None:
            while time.perf_counter() < end:
                await talk.begin()
                for _ in range(TALK_TURNS):
                    begun = time.perf_counter()
                    await talk.turn()
                    seconds.append(time.perf_counter() - begun)

        await asyncio.gather(*map(run, map(self.talk, connections)))
        rate = (len(seconds) - before) / (time.perf_counter() - started)
        self.turns_per_second.setdefault(clients, []).append(rate)
        _close(connections)

    async def run_streams(self, number: int) -> None:
        """A round of so many streams that start at once."""
        tokens = STREAM_SECONDS * TOKENS_PER_SECOND
        streamed = await stream_at_once(self.server.url, self.talk, number, tokens, STREAM_LIMIT_SECONDS)
        self.streams.setdefault(number, []).append(streamed)
        if streamed.failures:
            await self._rest()

    async def _rest(self) -> None:
        """Wait until what it was too slow for is off its hands, and the core free for the others."""
        worked = processor_seconds(self.server.process.pid)
        for _ in range(REST_SECONDS):
            await asyncio.sleep(1)
            before, worked = worked, processor_seconds(self.server.process.pid)
            if worked - before < IDLE:
                return

    def events_per_second(self, number: int) -> float:
        """Of so many streams together."""
        return statistics.median(streamed.events_per_second for streamed in self.streams[number])

    async def run_long_talk(self, late_turn: int = LATE_TURN) -> None:
        """Long talks, of which the turns around an early one and this one count."""
        early, late = [], []
        for _ in range(LONG_TALKS):
            connections = await opened(self.server.url, 1)
            talk = self.talk(connections[0])
            await talk.begin()
            seconds = []
            for _ in range(late_turn + AROUND):
                begun = time.perf_counter()
                await talk.turn()
                seconds.append(time.perf_counter() - begun)
            early += seconds[EARLY_TURN - AROUND : EARLY_TURN + AROUND]
            late += seconds[late_turn - AROUND : late_turn + AROUND]
            _close(connections)
        self.long_talk_seconds = statistics.median(early), statistics.median(late)


@dataclass(frozen=True)
class Streamed:
    """What came of streams that began together; all in seconds."""

    seconds: float
    events: int
    first: list[float]
    gaps: list[float]
    failures: int

    @classmethod
    def of(cls, connections: Sequence[Connection], started: float, failures: int) -> "Streamed":
        """By the connections over which they came."""
        arrivals = [connection.arrivals for connection in connections if connection.arrivals]
        return cls(
            max((times[-1] for times in arrivals), default=time.perf_counter()) - started,
            sum(connection.events for connection in connections),
            [times[0] - started for times in arrivals],
            [after - before for times in arrivals for before, after in pairwise(times)],
            failures,
        )

    @property
    def events_per_second(self) -> float:
        """Of all streams together."""
        return self.events / self.seconds

    def milliseconds(self) -> list[float]:
        """The columns of `LATENCIES`."""
        both = (self.first or [math.nan], self.gaps or [0])
        return [1000 * percentile(values, percent) for values in both for percent in (50, 99)]


def latencies(rounds: Sequence[Streamed]) -> list[str]:
    """The columns of `LATENCIES`: medians over rounds, in milliseconds."""
    columns = zip(*(streamed.milliseconds() for streamed in rounds), strict=True)
    return [f"{statistics.median(column):.1f}" for column in columns]


async def stream_at_once(
    url: str, talk_with: Callable[[Connection], Talk], number: int, tokens: int, limit_seconds: float | None = None
) -> Streamed:
    """So many streams that start at once; those are failed that are refused, or not at their end after so long."""
    connections = await opened(url, number)
    talks = list(map(talk_with, connections))
    for talk in talks:
        await talk.begin()
    started = time.perf_counter()
    tasks = [asyncio.create_task(talk.stream(tokens)) for talk in talks]
    ended, unfinished = await asyncio.wait(tasks, timeout=limit_seconds)
    failed = [task for task in ended if task.exception()]
    streamed = Streamed.of(connections, started, len(failed) + len(unfinished))
    for task in unfinished:
        task.cancel()
    _close(connections)
    return streamed


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", type=Path, help="folder of a model's tokenizer")
    parser.add_argument("--litellm", type=Path, metavar="PATH", help="a virtual environment that holds litellm[proxy]")
    parser.add_argument("--agentic-api", type=Path, metavar="PATH", help="a virtual environment that holds agentic-api")
    kinds = ("turns", "streams", "long")
    parser.add_argument("--only", nargs="+", default=kinds, choices=kinds, help="not all measurements")
    asked = parser.parse_args()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        subjects = start(stack, asked, cores)
        os.sched_setaffinity(0, cores[:1])
        uvloop.run(measure(subjects, asked.only))
        report(subjects)


def start(stack: ExitStack, asked: argparse.Namespace, cores: Sequence[int]) -> list[Subject]:
    """Start the upstream on the first core, and whatever is measured on the last one."""
    python = prepare("gateway")
    model = asked.tokenizer or generated_model()
    port = free_port()
    with on_core(cores[0]):
        command = [str(python), "-m", "bench.quick_vllm", str(port)]
        upstream = stack.enter_context(Server("upstream", command, {}, port, "/health"))
    upstream.wait_until_ready()
    subjects = [Subject("direct", upstream, CompletionsTalk)]

    def add(name: str, server: Server, talk: Callable[[Connection], Talk]) -> None:
        subjects.append(Subject(name, stack.enter_context(server), talk))

    with on_core(cores[-1]):
        if NGINX_PROGRAM:
            add("nginx", start_nginx(upstream.url), CompletionsTalk)
        else:
            print("nginx не найден: без сравнения с ним (apt-get install nginx-light)", file=sys.stderr)
        add("gateway", start_gateway(python, upstream.url, model), GatewayTalk)
        if asked.litellm:
            add("litellm", start_litellm(asked.litellm, upstream.url), CompletionsTalk)
        if asked.agentic_api:
            add("agentic-api", start_agentic_api(asked.agentic_api, upstream.url), ResponsesTalk)
    for subject in subjects[1:]:
        subject.server.wait_until_ready()
    for subject in subjects:
        subject.idle_bytes = resident_bytes(subject.server.process.pid)
    return subjects


async def measure(subjects: Sequence[Subject], only: Sequence[str]) -> None:
    """All measurements, those of one kind one after another, so that all meet the same machine."""
    if "turns" in only:
        for clients, _, subject in product(TURN_CLIENTS, range(ROUNDS), subjects):
            await subject.run_turns(clients)
    if "streams" in only:
        for number, _, subject in product(STREAMS, range(ROUNDS), subjects):
            await subject.run_streams(number)
    if "long" in only:
        for subject in subjects:
            await subject.run_long_talk()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started meanwhile runs on one core."""
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def report(subjects: Sequence[Subject]) -> None:
    """Print the tables."""
    direct = subjects[0]
    nginx = next((subject for subject in subjects if subject.name == "nginx"), None)
    for clients in direct.turn_seconds:
        print(f"\nturns, {clients} client{'s' * (clients > 1)}", end="")
        print_head("turns/s", "of direct", "of nginx", "p50 ms", "p99 ms", "+ p50", "+ p99")
        for subject in subjects:
            rates = [statistics.median(one.turns_per_second[clients]) if one else 0 for one in (subject, direct, nginx)]
            p50, p99 = (1000 * percentile(subject.turn_seconds[clients], percent) for percent in (50, 99))
            d50, d99 = (1000 * percentile(direct.turn_seconds[clients], percent) for percent in (50, 99))
            print_row(
                subject.name, f"{rates[0]:.0f}", *ratios(rates), *(f"{v:.2f}" for v in (p50, p99, p50 - d50, p99 - d99))
            )
    for number in direct.streams:
        print(f"\nstreams: {number}", end="")
        print_head("events/s", "of direct", "of nginx", *LATENCIES, "failed")
        for subject in subjects:
            rounds = subject.streams[number]
            rates = [one.events_per_second(number) if one else 0 for one in (subject, direct, nginx)]
            failures = sum(streamed.failures for streamed in rounds)
            print_row(subject.name, f"{rates[0]:.0f}", *ratios(rates), *latencies(rounds), str(failures))
    if direct.long_talk_seconds:
        print("\nlong talk", end="")
        print_head(f"turn {EARLY_TURN} ms", f"turn {LATE_TURN} ms", "ratio")
        for subject in subjects:
            assert subject.long_talk_seconds
            early, late = subject.long_talk_seconds
            print_row(subject.name, f"{1000 * early:.2f}", f"{1000 * late:.2f}", f"{late / early:.2f}")
    print("\nmemory", end="")
    print_head("idle MB", "after MB")
    for subject in subjects:
        print_row(
            subject.name,
            *(f"{size / 1e6:.0f}" for size in (subject.idle_bytes, resident_bytes(subject.server.process.pid))),
        )


def print_head(*columns: str) -> None:
    """The names of columns, on a line of their own."""
    print()
    print_row("", *columns)


def print_row(name: str, *columns: str) -> None:
    """A row of a table."""
    print(f"  {name:<14}" + "".join(f"{column:>12}" for column in columns))


def ratios(rates: Sequence[float]) -> list[str]:
    """A rate as a part of direct's and of nginx's."""
    own, *others = rates
    return [f"{own / other:.3f}" if other else "-" for other in others]


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children."""
    total = 0
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    total = 1024 * int(status.partition("VmRSS:")[2].split()[0])
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return total + sum(resident_bytes(int(child)) for child in children)


def processor_seconds(pid: int) -> float:
    """What a process has used of the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _close(connections: Sequence[Connection]) -> None:
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
