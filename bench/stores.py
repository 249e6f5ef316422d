"""What keeping sessions in Redis adds to a turn: `python -m bench.stores [TOKENIZER]`, with redis-server installed.

The same gateway with its sessions in memory, and in Redis with its log on the disk once a second and at every write,
in front of the same quick upstream, in alternating rounds of one run. The gateways share one core; the upstream, the
clients and Redis have another. Turns are whole answers as JSON, in talks of 20 turns.

- 1 client: the median of a turn, and what that is more than in memory.
- 32 clients: turns a second, and as a ratio to memory.
- long talk: the median of turns around the 10th and around the 1000th of one talk.

TOKENIZER is the folder of a model's tokenizer; without it, the small model's is used.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench.overhead import EARLY_TURN, ROUNDS, TURN_CLIENTS, Subject, on_core
from bench.talks import GatewayTalk
from demo.environments import prepare
from demo.stand import Server, free_port, generated_model, start_gateway

LATE_TURN = 1000
FSYNCS = ("everysec", "always")
SECRET = "a secret of the measurement's own and of no use"  # noqa: S105 - it guards nothing


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", type=Path, help="folder of a model's tokenizer")
    model = parser.parse_args().tokenizer or generated_model()
    if shutil.which("redis-server") is None:
        print("redis-server не найден: без сравнения с ним (apt-get install redis-server)", file=sys.stderr)
        return
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        subjects = start(stack, model, cores)
        os.sched_setaffinity(0, cores[:1])
        uvloop.run(measure(subjects))
    report(subjects)


def start(stack: ExitStack, model: Path, cores: list[int]) -> list[Subject]:
    """Start the upstream and Redis on the first core, and the gateways on the last one."""
    python = prepare("gateway")
    port = free_port()
    with on_core(cores[0]):
        command = [str(python), "-m", "bench.quick_vllm", str(port)]
        upstream = stack.enter_context(Server("upstream", command, {}, port, "/health"))
        stores = {f"redis {fsync}": stack.enter_context(redis(fsync)) for fsync in FSYNCS}
    upstream.wait_until_ready()
    subjects = []
    with on_core(cores[-1]):
        for name, url in {"memory": "memory://", **stores}.items():
            settings = {"SESSION_STORE_URL": url, "SESSION_SECRET": SECRET}
            gateway = stack.enter_context(start_gateway(python, upstream.url, model, **settings))
            gateway.wait_until_ready()
            subjects.append(Subject(name, gateway, GatewayTalk))
    return subjects


@contextmanager
def redis(fsync: str) -> Iterator[str]:
    """A Redis that writes its log to the disk so; yields its URL."""
    with TemporaryDirectory() as folder:
        port = free_port()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", fsync]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - all our own words
            try:
                _wait_for(port)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(500):
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.01)
    sys.exit("redis-server не запустился.")


async def measure(subjects: list[Subject]) -> None:
    """All rounds, those of one kind by turns."""
    for clients in TURN_CLIENTS:
        for _ in range(ROUNDS):
            for subject in subjects:
                await subject.run_turns(clients)
    for subject in subjects:
        await subject.run_long_talk(LATE_TURN)


def report(subjects: list[Subject]) -> None:
    """Print the table."""
    one, many = TURN_CLIENTS
    print(f"\n{'':16}{'1 client':>22}{f'{many} clients':>22}{'long talk':>30}")
    print(f"{'':16}{'ms p50':>11}{'+ ms':>11}{'turns/s':>11}{'of memory':>11}", end="")
    print(f"{f'turn {EARLY_TURN} ms':>11}{f'turn {LATE_TURN} ms':>13}{'ratio':>6}")
    in_memory = subjects[0]
    for subject in subjects:
        median, base = (1000 * statistics.median(each.turn_seconds[one]) for each in (subject, in_memory))
        rate, most = (statistics.median(each.turns_per_second[many]) for each in (subject, in_memory))
        assert subject.long_talk_seconds
        early, late = subject.long_talk_seconds
        print(
            f"{subject.name:16}{median:>11.2f}{median - base:>+11.2f}{rate:>11.0f}{rate / most:>11.2f}"
            f"{1000 * early:>11.2f}{1000 * late:>13.2f}{late / early:>6.2f}"
        )


if __name__ == "__main__":
    main()
