"""What the gateway leaves of a busy vLLM: `python -m bench.saturation VLLM_URL GATEWAY_URL --key KEY`.

So many streams at once, each a first turn of its own, in turns straight to vLLM and through a gateway in front of it,
all in one run: tokens per second of all streams together, time to first token, gaps between what comes. Both must run
already; a video card is busy with a few hundred streams.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import uvloop

from bench.load import Connection, opened, percentile
from bench.overhead import Streamed, print_head, print_row
from bench.talks import CompletionsTalk, GatewayTalk, Talk

STREAMS = (1, 64, 256)
TOKENS = 256
ROUNDS = 3
GATEWAY, DIRECT = "gateway", "direct"


def main() -> None:
    """Measure and print the tables."""
    uvloop.run(measure(arguments()))


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vllm", help="its root, as http://127.0.0.1:8001; serves under the name /app/model")
    parser.add_argument("gateway", help="its root, as http://127.0.0.1:8000")
    parser.add_argument("--key", required=True, help="vLLM's")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS, help="how many at once")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="in each reply")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args(words)


async def measure(asked: argparse.Namespace) -> None:
    """All rounds, one after another."""
    talks: dict[str, tuple[str, Callable[[Connection], Talk]]] = {
        DIRECT: (asked.vllm, partial(CompletionsTalk, key=asked.key, piece="", more=',"ignore_eos":true')),
        GATEWAY: (asked.gateway, partial(GatewayTalk, key=asked.key, piece="", more=',"extra":{"ignore_eos":true}')),
    }
    for url, talk in talks.values():
        await run_streams(url, talk, 1, asked.tokens)  # so that nothing is done for the first time below
    for number in asked.streams:
        seen: dict[str, list[tuple[float, Streamed]]] = {name: [] for name in talks}
        for _ in range(asked.rounds):
            for name, (url, talk) in talks.items():
                seen[name].append(await run_streams(url, talk, number, asked.tokens))
        report(number, seen)


async def run_streams(
    url: str, talk_with: Callable[[Connection], Talk], number: int, tokens: int
) -> tuple[float, Streamed]:
    """So many streams that start at once; returns their tokens per second, and what came of them."""
    connections = await opened(url, number)
    talks = list(map(talk_with, connections))
    for talk in talks:
        await talk.begin()
    started = time.perf_counter()
    await asyncio.gather(*(talk.stream(tokens) for talk in talks))
    seconds = time.perf_counter() - started
    streamed = Streamed.of(connections, started, 0)
    for connection in connections:
        connection.close()
    return number * tokens / seconds, streamed


def report(number: int, seen: dict[str, list[tuple[float, Streamed]]]) -> None:
    """Print the table of so many streams: medians over the rounds."""
    print(f"\nstreams: {number}", end="")
    print_head("tokens/s", "of direct", "first p50", "first p99", "gap p50", "gap p99")
    direct = statistics.median(rate for rate, _ in seen[DIRECT])
    for name, rounds in seen.items():
        rate = statistics.median(rate for rate, _ in rounds)
        milliseconds = [
            1000 * statistics.median(percentile(values(streamed), percent) for _, streamed in rounds)
            for values in (_first, _gaps)
            for percent in (50, 99)
        ]
        print_row(name, f"{rate:.0f}", f"{rate / direct:.3f}", *(f"{value:.1f}" for value in milliseconds))


def _first(streamed: Streamed) -> list[float]:
    return streamed.first


def _gaps(streamed: Streamed) -> list[float]:
    return streamed.gaps or [0]


if __name__ == "__main__":
    main()
