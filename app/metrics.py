"""What the gateway measures of itself, for Prometheus. No label names a session, and none holds a text.

Where it is several processes, whichever is asked answers for all of them: each writes its numbers into its own files
(https://prometheus.github.io/client_python/multiprocess/).
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from app.errors import GatewayError

FILES_OF_PROCESSES = "PROMETHEUS_MULTIPROC_DIR"
"""The library's variable: a folder, set before it is imported; only where there are several processes."""

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_PREFIX = "chat_gateway"
_LATER_SECONDS = 0.05
# A language model's first token takes tens of milliseconds, or minutes in a queue, and an answer up to half an hour.
_FIRST_TOKEN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 25, 60, 120, 300)
_GAP_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 30)
_TURN_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800)
_ADDED_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5)
_WAIT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 300)


@dataclass(frozen=True, slots=True)
class State:
    """What is looked at when somebody asks, instead of being counted as it happens.

    Attributes:
        sessions: open ones; None where the store does not answer.
        vllm_up: vLLM answers.
        vllm_stalled: vLLM answers, but its engine does not.
    """

    sessions: int | None
    vllm_up: bool
    vllm_stalled: bool


class Metrics:
    """The metrics of one gateway.

    Attributes:
        is_one_of_several: there are other processes, which ask for this one's numbers when they like.
    """

    def __init__(self) -> None:
        self.is_one_of_several = FILES_OF_PROCESSES in os.environ
        self._registry = CollectorRegistry()
        self.turns = self._counter("turns", "Turns that are over, by how they ended.", "outcome")
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens, by vLLM's count.")
        self.completion_tokens = self._counter("completion_tokens", "Completion tokens, by vLLM's count.")
        self.cached_tokens = self._counter("cached_tokens", "Prompt tokens that vLLM had in its prefix cache.")
        self.dropped_pairs = self._counter("dropped_pairs", "Pairs that went out of the prompt for want of room.")
        self.upstream_errors = self._counter("upstream_errors", "Failures of requests to vLLM, by kind.", "kind")
        self.time_to_first_token = self._histogram(
            "time_to_first_token", "From a streamed question to the first token of its answer.", _FIRST_TOKEN_SECONDS
        )
        self.inter_token = self._histogram(
            "inter_token", "Between one read of tokens from vLLM and the next, in a stream.", _GAP_SECONDS
        )
        self.turn = self._histogram("turn", "From a question to the end of its whole answer.", _TURN_SECONDS)
        self.added = self._histogram(
            "added",
            "The gateway's part of a turn: before vLLM is asked to answer (in what it asks about tokens) and after.",
            _ADDED_SECONDS,
        )
        self.wait = self._histogram(
            "wait", "In the waiting room, of turns that had to wait and were let in.", _WAIT_SECONDS
        )
        self._in_flight = self._gauge("turns_in_flight", "Requests to vLLM that have a place.")
        self._waiting_turns = self._gauge("turns_waiting", "Requests that wait for a place.")
        self._mismatches = self._counter("count_mismatches", "Prompts in which vLLM found other tokens.")
        self._known_mismatches = 0
        self._waiting: list[Callable[[], None]] = []
        self._state = _StateCollector()
        if self.is_one_of_several:
            _forget_dead_processes()
        else:
            self._registry.register(self._state)
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        for outcome in ("completed", "cancelled"):
            self.turns.labels(outcome)

    def failed(self, error: GatewayError) -> None:
        """Count an error that vLLM is the cause of; others are none of its failures."""
        if error.kind is not None:
            self.upstream_errors.labels(error.kind).inc()

    def later(self, tell: Callable[[], None]) -> None:
        """Have something told shortly, with what others have to tell: together it costs half, and no turn waits."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(_LATER_SECONDS, self.flush)
        self._waiting.append(tell)

    def flush(self) -> None:
        """Have all told that waits."""
        waiting, self._waiting = self._waiting, []
        for tell in waiting:
            tell()

    def note(self, in_flight: int, waiting: int, count_mismatches: int) -> None:
        """How things stand: requests that have a place at vLLM, those that wait for one, wrong token counts so far."""
        self._in_flight.set(in_flight)
        self._waiting_turns.set(waiting)
        self._mismatches.inc(count_mismatches - self._known_mismatches)
        self._known_mismatches = count_mismatches

    def exposition(self, state: State) -> bytes:
        """All of it as Prometheus reads it, in `MEDIA_TYPE`."""
        self.flush()
        self._state.now = state
        registry = self._registry
        if self.is_one_of_several:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._state)
        return generate_latest(registry)

    def close(self) -> None:
        """No more is to come: what was counted stays, how things stood is forgotten."""
        self.flush()
        if self.is_one_of_several:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]

    def _gauge(self, name: str, description: str) -> Gauge:
        """What is added up over the processes that live."""
        return Gauge(f"{_PREFIX}_{name}", description, multiprocess_mode="livesum", registry=self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", description, labels, registry=self._registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}_seconds", description, buckets=buckets, registry=self._registry)


class _StateCollector(Collector):
    def __init__(self) -> None:
        self.now: State | None = None

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        state = self.now
        if state is None:
            return
        store_up = state.sessions is not None
        yield GaugeMetricFamily(f"{_PREFIX}_store_up", "1: the sessions' store answers.", store_up)
        if state.sessions is not None:
            yield GaugeMetricFamily(f"{_PREFIX}_sessions", "Open sessions.", state.sessions)
        yield GaugeMetricFamily(f"{_PREFIX}_vllm_up", "1: vLLM answers.", state.vllm_up)
        yield GaugeMetricFamily(f"{_PREFIX}_vllm_stalled", "1: vLLM answers, but no request moves.", state.vllm_stalled)


def _forget_dead_processes() -> None:
    """What a process leaves that could not `close`: how things stood with it would be added to how they stand."""
    for file in Path(os.environ[FILES_OF_PROCESSES]).glob("gauge_live*.db"):
        pid = int(file.stem.rsplit("_", 1)[1])
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
