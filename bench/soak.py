"""What stays in memory: `python -m bench.soak [--sessions N] [--turns N]`, a short run by default.

- sessions: so many idle ones of 8k tokens each, and what each of them takes beside the UTF-8 of its texts; then all of
  them expire at once, and meanwhile the event loop is watched for how long the cleaner keeps it waiting;
- turns: so many of them, by clients that open sessions, talk and stop, through a gateway in front of a scripted
  upstream; the resident memory of the gateway after every tenth of them.

`--sessions 100000 --turns 1000000` is the long run: some 5 GB of memory, and half an hour.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import time
import uuid
from itertools import count

import uvloop
from pydantic import SecretStr

from app.config import DEFAULT_SYSTEM_PROMPT
from app.context import Pair
from app.memory_store import MemoryStore
from app.sessions import Session
from bench.context import Lag
from bench.load import Connection, opened
from bench.overhead import resident_bytes
from bench.talks import KEY, QUESTIONS
from bench.texts import words
from demo.environments import prepare
from demo.stand import Server, free_port, generated_model, start_gateway

SESSIONS = 5_000
TURNS = 20_000
CLIENTS = 32
TALK_TURNS = 10
TENTHS = 10

SESSION_TOKENS = 8_000
# As bench.texts has them: some 1.8 tokens a word, for most tokenizers.
TOKENS_PER_WORD = 1.8
QUESTION_WORDS, REPLY_WORDS = 40, 120
TTL_SECONDS = 600


def main() -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=SESSIONS)
    parser.add_argument("--turns", type=int, default=TURNS)
    asked = parser.parse_args()
    if asked.sessions:
        uvloop.run(idle_sessions(asked.sessions))
    if asked.turns:
        many_turns(asked.turns)


async def idle_sessions(number: int) -> None:
    """Fill a store, and have all of it expire at once."""
    now = 0.0
    store = MemoryStore(TTL_SECONDS, number, clock=lambda: now)
    chooser = random.Random(0)  # noqa: S311 - the same texts every time
    pairs = round(SESSION_TOKENS / TOKENS_PER_WORD / (QUESTION_WORDS + REPLY_WORDS))
    questions = [words(chooser, QUESTION_WORDS) for _ in range(100)]
    replies = [words(chooser, REPLY_WORDS) for _ in range(100)]
    gc.collect()
    before, text = resident_bytes(os.getpid()), 0
    for _ in range(number):
        session = Session(SecretStr(str(uuid.uuid4())), DEFAULT_SYSTEM_PROMPT)
        said = [Pair.of(chooser.choice(questions), chooser.choice(replies), "stop") for _ in range(pairs)]
        session.extend(said, 1 << 30)
        text += sum(pair.size_bytes for pair in said)
        await store.add(session)
    del session, said
    taken = resident_bytes(os.getpid()) - before
    print(f"sessions: {number} of {text / number / 1000:.1f} kB of text take {taken / text:.2f} times their text")
    now = TTL_SECONDS + 1.0
    async with Lag() as lag:
        await asyncio.sleep(0.1)
        still = lag.worst_seconds
        started = time.perf_counter()
        await store.sweep()
        seconds = time.perf_counter() - started
    print(
        f"cleaner: removed all in {seconds:.2f} s, kept others waiting for {1000 * lag.worst_seconds:.1f} ms at most "
        f"({1000 * still:.1f} ms without it)"
    )


def many_turns(number: int) -> None:
    """Lead talks through a gateway, and watch its memory."""
    python = prepare("gateway")
    port = free_port()
    command = [str(python), "-m", "bench.quick_vllm", str(port)]
    with Server("upstream", command, {}, port, "/health") as upstream:
        upstream.wait_until_ready()
        with start_gateway(python, upstream.url, generated_model(), LOG_LEVEL="WARNING") as gateway:
            gateway.wait_until_ready()
            uvloop.run(lead_talks(gateway, number))


async def lead_talks(gateway: Server, number: int) -> None:
    """So many turns by all clients together, and a tenth more at first, which fills pools and caches."""
    connections = await opened(gateway.url, CLIENTS)
    share = max(1, number // TENTHS)
    first = 0
    for tenth in range(TENTHS + 1):
        turns = count()
        started = time.perf_counter()
        await asyncio.gather(*(talk(connection, turns, share) for connection in connections))
        rate = share / (time.perf_counter() - started)
        resident = resident_bytes(gateway.process.pid)
        first = first or resident
        print(
            f"turns: {tenth * share:>8}   resident {resident / 1e6:6.1f} MB, {(resident - first) / 1e6:+5.1f} MB   "
            f"{rate:.0f} turns/s",
            flush=True,
        )


async def talk(connection: Connection, turns: "count[int]", number: int) -> None:
    """One client: a session, some turns, another session, until all clients together have had so many turns."""
    while True:
        opened = json.loads(await connection.post("/init_session", b'{"vllm_api_key":"%b"}' % KEY.encode()))
        session_id = opened["session_id"].encode()
        for _ in range(TALK_TURNS):
            if next(turns) >= number:
                break
            body = b'{"session_id":"%b","message":%b}' % (session_id, QUESTIONS.next())
            await connection.post("/chat", body)
        await connection.post("/stop_session", b'{"session_id":"%b"}' % session_id)
        if next(turns) > number:
            return


if __name__ == "__main__":
    main()
