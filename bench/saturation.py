"""What the gateway leaves of a busy vLLM: `python -m bench.saturation VLLM_URL GATEWAY_URL --key KEY`.

So many streams at once, each a first turn of its own, in turns straight to vLLM and through a gateway in front of it,
all in one run: tokens per second of all streams together, time to first token, gaps between what comes, and how many
failed, whose tokens are not counted. Both must run already; a video card is busy with a few hundred streams.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import uvloop

from bench.load import Connection, opened
from bench.overhead import LATENCIES, Streamed, latencies, print_head, print_row, stream_at_once
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
        [connection] = await opened(url, 1)
        first = talk(connection)
        await first.begin()
        await first.stream(asked.tokens)  # so that nothing is done for the first time below; says what is wrong
        connection.close()
    for number in asked.streams:
        seen: dict[str, list[Streamed]] = {name: [] for name in talks}
        for _ in range(asked.rounds):
            for name, (url, talk) in talks.items():
                seen[name].append(await stream_at_once(url, talk, number, asked.tokens))
        report(number, asked.tokens, seen)


def report(number: int, tokens: int, seen: Mapping[str, Sequence[Streamed]]) -> None:
    """Print the table of so many streams of so many tokens each: medians over the rounds."""
    print(f"\nstreams: {number}", end="")
    print_head("tokens/s", "of direct", *LATENCIES, "failed")
    rates = {
        name: statistics.median((number - one.failures) * tokens / one.seconds for one in rounds)
        for name, rounds in seen.items()
    }
    for name, rounds in seen.items():
        print_row(
            name,
            f"{rates[name]:.0f}",
            f"{rates[name] / rates[DIRECT]:.3f}",
            *latencies(rounds),
            str(sum(one.failures for one in rounds)),
        )


if __name__ == "__main__":
    main()
