"""What counting a prompt costs: `python -m bench.context [FOLDER ...]`, for tokenizers of real models.

Milliseconds at the median, for a history of so many tokens:

- cold: the first prompt of a session, nothing of it was ever counted;
- turn: one more turn of it, with the reply to the last message and a new one;
- full: the same prompt by transformers, template and encoding in one call, as is usual;
- lag: the longest that the event loop kept others waiting meanwhile, of all counts in the row.

All but `full` is the way that every /chat goes: `Prompts.fit`, with its thread.
"""

import argparse
import asyncio
import random
import statistics
import time
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr
from transformers import AutoTokenizer

from app.config import DEFAULT_SYSTEM_PROMPT, Settings
from app.context import Pair
from app.prompt import Prompt, Prompts
from app.sessions import Session
from app.tokenizer import ChatTokenizer
from app.vllm import VLLMClient
from bench.texts import words
from demo.stand import generated_model

REAL_TOKENIZERS = Path(__file__).resolve().parents[2] / "shared" / "tokenizers"
SIZES_TOKENS = (8_000, 32_000, 128_000)
TURNS = 15
FULL_COUNTS = 5
MAX_TOKENS = 512
# Some 100 and 400 tokens, and what the template puts around them.
QUESTION_WORDS = 60
REPLY_WORDS = 250
FRAME_TOKENS = 9
TURN_TOKENS = 600


def main() -> None:
    """Print one row per folder and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help="of a model's tokenizer")
    folders = parser.parse_args().folders or sorted(REAL_TOKENIZERS.glob("*/")) or [generated_model()]
    print(
        f"{'tokenizer':<16}{'tokens':>8}{'pairs':>7}{'cold':>8}{'turn':>8}{'full':>8}{'full/turn':>11}{'lag':>6}  same"
    )
    for folder in folders:
        for size in SIZES_TOKENS:
            asyncio.run(measure(folder, size))


async def measure(folder: Path, size_tokens: int) -> None:
    """Print a row."""
    tokenizer = ChatTokenizer.load(str(folder))
    chooser = random.Random(size_tokens)  # noqa: S311 - the same texts every time
    session = Session(SecretStr(""), DEFAULT_SYSTEM_PROMPT)
    session.pairs = long_history(tokenizer, size_tokens, chooser)
    settings = Settings(max_context_tokens=10**6)
    vllm = VLLMClient(settings)
    vllm.max_model_len = 10**6
    prompts = Prompts(settings, tokenizer, vllm)
    async with Lag() as lag:

        async def fit(message: str) -> tuple[float, Prompt]:
            started = time.perf_counter()
            talk = prompts.talk(session, message)
            prompt = await prompts.fit(talk, session.surplus, prompts.budget(MAX_TOKENS), extra={}, start=0)
            return time.perf_counter() - started, prompt

        cold_seconds, _ = await fit("ещё")
        turns = []
        for _ in range(TURNS):
            message = words(chooser, QUESTION_WORDS)
            await fit(message)
            session.pairs.append(Pair.of(message, words(chooser, REPLY_WORDS), None))
            seconds, prompt = await fit(words(chooser, QUESTION_WORDS))
            turns.append(seconds)
            session.pairs.pop()
    tokenizer.close()
    turn_seconds = statistics.median(turns)
    full_seconds, tokens = full_count(folder, prompt)
    milliseconds = "".join(f"{1000 * seconds:8.1f}" for seconds in (cold_seconds, turn_seconds, full_seconds))
    same = "yes" if tokens == prompt.used else f"NO: {tokens}"
    print(
        f"{folder.name:<16}{prompt.used:>8}{prompt.history_pairs:>7}{milliseconds}"
        f"{full_seconds / turn_seconds:>10.0f}x{1000 * lag.worst_seconds:>6.0f}  {same}"
    )


def long_history(tokenizer: ChatTokenizer, tokens: int, chooser: random.Random) -> list[Pair]:
    """Pairs as default settings give them, until a prompt has so many tokens."""
    pairs: list[Pair] = []
    while tokens > TURN_TOKENS:
        pair = Pair.of(words(chooser, QUESTION_WORDS), words(chooser, REPLY_WORDS), None)
        tokens -= tokenizer.count_text(pair.user) + tokenizer.count_text(pair.assistant) + FRAME_TOKENS
        pairs.append(pair)
    return pairs


def full_count(folder: Path, prompt: Prompt) -> tuple[float, int]:
    """Seconds at the median and the count of a prompt by transformers alone."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    seconds = []
    for _ in range(FULL_COUNTS):
        started = time.perf_counter()
        ids = tokenizer.apply_chat_template(prompt.messages, add_generation_prompt=True, return_dict=False)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), len(ids)


class Lag:
    """Watches how late a task wakes that only sleeps, while its block runs."""

    def __init__(self) -> None:
        self.worst_seconds = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(0.001)
            self.worst_seconds = max(self.worst_seconds, time.perf_counter() - started - 0.001)


if __name__ == "__main__":
    main()
