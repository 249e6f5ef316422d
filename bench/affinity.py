"""What it is worth that a session stays with one vLLM: `python -m bench.affinity`, with nginx installed.

Two real vLLMs on the CPU behind nginx, which chooses one by the session (`hash $http_x_session_id consistent`) or by
turns; a gateway before each of the two. The same number of sessions through either, their turns by turns too, so that
all meet the same machine. Columns: the share of prompt tokens that came from vLLM's prefix cache, and the time to the
first token in milliseconds (median, p90). The first turn of a session, before which nothing was cached, does not count.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from bench.load import percentile
from bench.peers import NGINX_PROGRAM, start_nginx
from bench.window import KEY, Talk
from client.api import GatewayClient
from demo.environments import prepare
from demo.stand import larger_model, start_gateway, start_vllm

CHOICES = {"by session": "hash $http_x_session_id consistent;", "by turns": ""}
SESSIONS = 8
TURNS = 8
HISTORY_PAIRS = 15


def main() -> None:
    """Print one row for each way to choose."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if NGINX_PROGRAM is None:
        print("nginx не найден: распределять некому (apt-get install nginx-light)", file=sys.stderr)
        return
    model = larger_model(layers=6, hidden=256)
    python = prepare("gateway")
    with ExitStack() as stack:
        vllms = [stack.enter_context(start_vllm(model, KEY)) for _ in range(2)]
        for vllm in vllms:
            vllm.wait_until_ready()
        talks: list[Talk] = []
        for name, method in CHOICES.items():
            nginx = stack.enter_context(start_nginx(*(vllm.url for vllm in vllms), method=method))
            nginx.wait_until_ready()
            gateway = stack.enter_context(start_gateway(python, nginx.url, model))
            gateway.wait_until_ready()
            client = stack.enter_context(GatewayClient(gateway.url))
            talks += [Talk(name, client, random.Random(f"{name} {n}")) for n in range(SESSIONS)]  # noqa: S311 - the same texts every time
        for talk in talks:
            talk.open(HISTORY_PAIRS)
        for _ in range(TURNS + 1):
            random.shuffle(talks)
            for talk in talks:
                talk.turn()
    print(f"\n{'':12}{'cached':>10}{'first token':>14}{'p90':>8}")
    for name in CHOICES:
        print_row(name, [talk for talk in talks if talk.name == name])


def print_row(name: str, talks: Sequence[Talk]) -> None:
    """All turns but the first of each talk."""
    contexts = [answer["context"] for talk in talks for answer in talk.answers[1:]]
    cached = sum(context["cached_tokens"] for context in contexts) / sum(context["used"] for context in contexts)
    seconds = [seconds for talk in talks for seconds in talk.seconds[1:]]
    median, p90 = 1000 * statistics.median(seconds), 1000 * percentile(seconds, 90)
    print(f"{name:12}{100 * cached:>8.1f} %{median:>14.0f}{p90:>8.0f}")


if __name__ == "__main__":
    main()
