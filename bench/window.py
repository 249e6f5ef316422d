"""What the window's hysteresis saves vLLM: `python -m bench.window [RATIO ...]`, on the real vLLM on the CPU.

For each TRIM_TARGET_RATIO (1 is pair by pair) a session whose history fills the context, and as many turns of it, one
after another with those of the others, so that all meet the same machine. Columns: the time to the first token in
milliseconds (median, p90); the share of prompt tokens that came from vLLM's prefix cache; how often the window moved;
and what share of the limit the prompts took, which is what a lower ratio costs.
"""

import argparse
import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from bench.texts import words
from client.api import Answer, Delta, Done, GatewayClient, message_of
from demo.environments import prepare
from demo.stand import larger_model, start_gateway, start_vllm

KEY = "bench-key"
RATIOS = ("1", "0.7")
TURNS = 60
QUESTION_WORDS = 60
REPLY_TOKENS = 150
HISTORY_PAIRS = 60


@dataclass
class Talk:
    """A session, and what was seen of it.

    Attributes:
        name: what sets it apart: a ratio here.
        seconds: to the first token, of each turn.
        answers: to each turn.
    """

    name: str
    client: GatewayClient
    chooser: random.Random
    session_id: str = ""
    seconds: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def open(self, pairs: int = HISTORY_PAIRS) -> None:
        """Open the session with a history, of more than fits if not said otherwise."""
        history = [
            message_of(role, words(self.chooser, count))
            for _ in range(pairs)
            for role, count in (("user", QUESTION_WORDS), ("assistant", REPLY_TOKENS // 2))
        ]
        self.session_id = self.client.init_session(KEY, history=history)["session_id"]

    def turn(self) -> None:
        """Ask, and note when the first token came."""
        options = {"max_tokens": REPLY_TOKENS, "extra": {"ignore_eos": True}}
        started = time.perf_counter()
        first = None
        for event in self.client.stream(self.session_id, words(self.chooser, QUESTION_WORDS), **options):
            if isinstance(event, Delta) and first is None:
                first = time.perf_counter() - started
            if isinstance(event, Done):
                self.answers.append(event.answer)
        assert first is not None, "a reply without a token"
        self.seconds.append(first)

    def row(self) -> str:
        """The figures, without those of the first turn, before which nothing was cached."""
        contexts = [answer["context"] for answer in self.answers]
        cached = sum(context["cached_tokens"] for context in contexts[1:])
        prompted = sum(context["used"] for context in contexts[1:])
        starts = [context["dropped_pairs"] for context in contexts]
        moves = sum(now != before for before, now in pairwise(starts))
        filled = statistics.mean(context["used"] / context["limit"] for context in contexts)
        median, p90 = statistics.median(self.seconds[1:]), sorted(self.seconds[1:])[int(0.9 * len(self.seconds[1:]))]
        return (
            f"{self.name:>5}{1000 * median:>12.0f}{1000 * p90:>8.0f}{100 * cached / prompted:>11.1f} %{moves:>8}"
            f"{100 * filled:>9.0f} %"
        )


def main() -> None:
    """Print one row per ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ratios", nargs="*", default=RATIOS, metavar="RATIO", help="a TRIM_TARGET_RATIO")
    ratios = parser.parse_args().ratios
    model = larger_model(layers=6, hidden=256)
    python = prepare("gateway")
    with start_vllm(model, KEY) as vllm, ExitStack() as stack:
        vllm.wait_until_ready()
        talks = [talk_through(stack, python, vllm.url, model, ratio) for ratio in ratios]
        for talk in talks:
            talk.open()
        for _ in range(TURNS + 1):
            for talk in talks:
                talk.turn()
        print(f"\n{'ratio':>5}{'first token':>12}{'p90':>8}{'cached':>13}{'moves':>8}{'filled':>11}")
        for talk in talks:
            print(talk.row())
        first, *others = talks
        for talk in others:
            times = statistics.median(first.seconds[1:]) / statistics.median(talk.seconds[1:])
            print(f"first token at {talk.name}, at the median: {times:.1f} times sooner than at {first.name}")


def talk_through(stack: ExitStack, python: Path, vllm_url: str, model: Path, ratio: str) -> Talk:
    """Start a gateway with this ratio and return a session to come."""
    gateway = stack.enter_context(start_gateway(python, vllm_url, model, TRIM_TARGET_RATIO=ratio))
    gateway.wait_until_ready()
    client = stack.enter_context(GatewayClient(gateway.url))
    return Talk(ratio, client, random.Random(ratio))  # noqa: S311 - the same texts every time


if __name__ == "__main__":
    main()
