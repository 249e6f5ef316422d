"""What the gateway measures of itself, for Prometheus. No label names a session, and none holds a text."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from app.errors import GatewayError

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
        in_flight: requests to vLLM.
        waiting: requests that wait for a place.
        count_mismatches: token counts that were not vLLM's, since the start.
        vllm_up: vLLM answers.
        vllm_stalled: vLLM answers, but its engine does not.
    """

    sessions: int | None
    in_flight: int
    waiting: int
    count_mismatches: int
    vllm_up: bool
    vllm_stalled: bool


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
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
        self._waiting: list[Callable[[], None]] = []
        self._state = _StateCollector()
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

    def exposition(self, state: State) -> bytes:
        """All of it as Prometheus reads it, in `MEDIA_TYPE`."""
        self.flush()
        self._state.now = state
        return generate_latest(self._registry)

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
        yield GaugeMetricFamily(f"{_PREFIX}_turns_in_flight", "Requests to vLLM that have a place.", state.in_flight)
        yield GaugeMetricFamily(f"{_PREFIX}_turns_waiting", "Requests that wait for a place.", state.waiting)
        yield CounterMetricFamily(
            f"{_PREFIX}_count_mismatches", "Prompts in which vLLM found other tokens.", state.count_mismatches
        )
        yield GaugeMetricFamily(f"{_PREFIX}_vllm_up", "1: vLLM answers.", state.vllm_up)
        yield GaugeMetricFamily(f"{_PREFIX}_vllm_stalled", "1: vLLM answers, but no request moves.", state.vllm_stalled)
