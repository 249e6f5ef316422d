"""How soon vLLM stops after a reply is stopped: `python -m bench.cancel [ROUNDS]`, on the real vLLM on the CPU.

The time runs from the act (the client's socket closed, or /cancel sent) until vLLM's own count of requests in flight
is zero. Reading that count takes some milliseconds itself: `reading` is what one reading took, at the median. `stall`
is the longest that this machine kept a sleeping thread waiting meanwhile: no stop can be sooner than that.
"""

import argparse
import re
import statistics
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import httpx2

from client.api import GatewayClient
from demo.environments import prepare
from demo.stand import generated_model, start_gateway, start_vllm

KEY = "bench-key"
LONG = {"max_tokens": 4000, "extra": {"ignore_eos": True}}
GENERATING_SECONDS = 0.5

Act = Callable[[str, str], float]
"""Takes the gateway's address and a session; stops a reply that is under way and returns when it did."""


def leave_stream(url: str, session_id: str) -> float:
    """A client that dies in the middle of a stream."""
    with GatewayClient(url) as client:
        stream = client.stream(session_id, "вопрос", **LONG)
        started = time.monotonic()
        for _ in stream:
            if time.monotonic() - started > GENERATING_SECONDS:
                break
        acted = time.monotonic()
        stream.close()
    return acted


def leave_json(url: str, session_id: str) -> float:
    """A client that dies while it waits for a JSON answer."""
    body = {"session_id": session_id, "message": "вопрос", **LONG}
    try:
        httpx2.post(f"{url}/chat", json=body, timeout=GENERATING_SECONDS)
    except httpx2.ReadTimeout:
        return time.monotonic()
    raise AssertionError("the answer came too soon")


def cancel(url: str, session_id: str, *, stream: bool) -> float:
    """`/cancel` from a second connection."""
    body = {"session_id": session_id, "message": "вопрос", "stream": stream, **LONG}
    turn = threading.Thread(target=lambda: httpx2.post(f"{url}/chat", json=body, timeout=60))
    turn.start()
    time.sleep(GENERATING_SECONDS)
    with GatewayClient(url) as client:
        acted = time.monotonic()
        assert client.cancel(session_id), "the turn had not begun"
    turn.join()
    return acted


ACTS: dict[str, Act] = {
    "stream, client leaves": leave_stream,
    "JSON, client leaves": leave_json,
    "stream, /cancel": lambda url, session_id: cancel(url, session_id, stream=True),
    "JSON, /cancel": lambda url, session_id: cancel(url, session_id, stream=False),
}


def main() -> None:
    """Print one row per way to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounds", nargs="?", type=int, default=20, help="of each way to stop")
    rounds = parser.parse_args().rounds
    model = generated_model()
    with start_vllm(model, KEY) as vllm:
        vllm.wait_until_ready()
        with start_gateway(prepare("gateway"), vllm.url, model) as gateway:
            gateway.wait_until_ready()
            print("\nmilliseconds until vLLM has nothing to do    median      p99      max  reading    stall")
            for name, act in ACTS.items():
                with Stalls() as stalls:
                    stops, readings = measure(act, gateway.url, vllm.url, rounds)
                figures = [statistics.median(stops), stops[int(rounds * 0.99)], stops[-1], statistics.median(readings)]
                print(f"{name:<40}", *(f"{1000 * seconds:8.0f}" for seconds in (*figures, stalls.longest_seconds)))


class Stalls:
    """Watches how late a thread wakes that only sleeps."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            started = time.monotonic()
            time.sleep(0.01)
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started - 0.01)


def measure(act: Act, gateway_url: str, vllm_url: str, rounds: int) -> tuple[list[float], list[float]]:
    """Stop a reply again and again; the session must answer once more every time.

    Returns the seconds of every stop, sorted, and of every reading of vLLM's count.
    """
    stops: list[float] = []
    readings: list[float] = []
    with GatewayClient(gateway_url) as client, httpx2.Client(base_url=vllm_url, timeout=60) as metrics:
        session_id = client.init_session(KEY, "")["session_id"]
        in_flight(metrics)
        for _ in range(rounds):
            acted = act(gateway_url, session_id)
            busy = True
            while busy:
                started = time.monotonic()
                busy = in_flight(metrics) > 0
                readings.append(time.monotonic() - started)
            stops.append(time.monotonic() - acted)
            client.cancel(session_id)
            client.chat(session_id, "ещё", max_tokens=1)
            client.reset(session_id)
    return sorted(stops), readings


def in_flight(metrics: httpx2.Client) -> int:
    """vLLM's own count of requests, running and waiting."""
    text = metrics.get("/metrics").text
    counts = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*?\} (\S+)$", text, re.MULTILINE)
    assert len(counts) >= 2, text
    return int(sum(map(float, counts)))


if __name__ == "__main__":
    main()
