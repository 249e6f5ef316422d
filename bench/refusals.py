"""Seeking a refusal by vLLM: `python -m bench.refusals [SESSIONS] [TOKENIZER]`, on the real vLLM on the CPU.

Random sessions with system prompts, messages, answers and `extra` of every kind and size, many of them at the edge of
what the model takes. No prompt may be refused by vLLM, counted otherwise than vLLM counts it, or leave an answer less
room than it was promised. TOKENIZER is a folder as a model would carry it; without it, the small model's is used.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from client.api import Answer, Done, GatewayClient, GatewayProblem
from demo.environments import prepare
from demo.progress import Step
from demo.stand import generated_model, random_models, start_gateway, start_vllm

KEY = "bench-key"
MAX_MODEL_LEN = 1024
VLLM_ARGUMENTS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
MAX_CONTEXT_TOKENS = 700
WORKERS = 4
TURNS = 6
AT_THE_EDGE_TOKENS = 5

# Answered as asked; or refused by the gateway because a message alone does not fit, which was meant.
EXPECTED = ("answered", "too long")
DEFECTS = ("refused by vLLM", "miscounted", "over the limit", "cut short", "failed otherwise")

TOOLS = [
    {"type": "function", "function": {"name": "погода", "parameters": {"type": "object", "properties": {"где": {}}}}},
    {"type": "function", "function": {"name": "f", "description": "д", "strict": True, "x": 1}, "defer_loading": False},
]
EXTRAS: list[dict[str, Any]] = [
    {"tools": TOOLS},
    {"tools": TOOLS[:1], "tool_choice": "none"},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": None, "bos_token": "<B>"}},
    {"reasoning_effort": "none"},
    {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": "auto"}},
    {"documents": [{"title": "т", "text": "д"}]},
    {"documents": []},
    {"top_p": 0.9, "seed": 1},
    {"stop": ["а"]},
]
MARKERS = (
    "<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> </s> <s> <eos> <unk> [INST] [/INST] [TOOL_CALLS] "
    "<start_of_turn> <end_of_turn> <think> </think> <tool_response>"
).split()
SPACES = " |\n\n|\r\n|\u3000|\xa0|\u200b|\x00|<think>\n|def f(x):\n\t".split("|")
PIECES = [*MARKERS, *SPACES, "слово ", "hello ", "🦔", "e\u0301", "12345", "ё" * 20, " " * 50]


class Seeker:
    """Leads random sessions and notes how every turn went.

    Attributes:
        seen: turns by their outcome, and how many were trimmed or at the edge of the limit.
    """

    def __init__(self, client: GatewayClient, key: str, chooser: random.Random) -> None:
        self.seen: Counter[str] = Counter()
        self._client = client
        self._key = key
        self._chooser = chooser

    def lead_session(self) -> None:
        """A session of some turns, with changes in between."""
        chooser, client = self._chooser, self._client
        prompt = chooser.choice([None, "", "Ты — ёж.", " Кратко. \n", self._text(30), self._text(200)])
        session_id = client.init_session(self._key, prompt)["session_id"]
        for _ in range(chooser.randint(1, 2 * TURNS)):
            if chooser.random() < 0.1:
                client.set_system_prompt(session_id, self._text(20))
            if chooser.random() < 0.1:
                with suppressed("nothing_to_undo"):
                    client.undo(session_id)
            self.take_turn(session_id)
        client.stop_session(session_id)

    def take_turn(self, session_id: str) -> None:
        """Ask; where the message alone is too long, ask with as much of it as just fits."""
        chooser = self._chooser
        options: dict[str, Any] = {"max_tokens": chooser.choice([1, 2, 10, 40, 300, MAX_MODEL_LEN - 60])}
        extra = dict(chooser.choice(EXTRAS)) if chooser.random() < 0.4 else {}
        if options["max_tokens"] > 40:
            extra["stop"] = list("ae о")  # room is what matters, not what is said in it
        elif "stop" not in extra:
            extra["ignore_eos"] = True
        message = self._text(chooser.choice([3, 10, 40, 150, 400]))
        while message:
            try:
                answer = self._ask(session_id, message, {**options, "extra": extra})
            except GatewayProblem as problem:
                if problem.code != "context_too_long":
                    self.seen["refused by vLLM" if problem.code == "upstream_rejected" else "failed otherwise"] += 1
                    print(problem.code, problem.detail, options, extra, file=sys.stderr)
                    return
                self.seen["too long"] += 1
                surplus = problem.problem["needed"] - problem.problem["limit"]
                message = message[: len(message) - surplus]
            else:
                self._note(answer, options, extra)
                return

    def _ask(self, session_id: str, message: str, options: dict[str, Any]) -> Answer:
        if self._chooser.random() < 0.5:
            return self._client.chat(session_id, message, **options)
        *_, last = self._client.stream(session_id, message, **options)
        assert isinstance(last, Done)
        return last.answer

    def _note(self, answer: Answer, options: dict[str, Any], extra: dict[str, Any]) -> None:
        context, max_tokens = answer["context"], options["max_tokens"]
        assert answer["input_tokens"] is not None
        self.seen["answered"] += 1
        self.seen["trimmed"] += context["dropped_pairs"] > 0
        self.seen["at the edge"] += context["limit"] - context["used"] < AT_THE_EDGE_TOKENS
        self.seen["miscounted"] += context["used"] != answer["input_tokens"]
        self.seen["over the limit"] += answer["input_tokens"] > min(MAX_CONTEXT_TOKENS, MAX_MODEL_LEN - max_tokens)
        self.seen["cut short"] += "ignore_eos" in extra and answer["output_tokens"] != max_tokens

    def _text(self, pieces: int) -> str:
        return "".join(self._chooser.choice(PIECES) for _ in range(self._chooser.randint(1, pieces)))


@contextmanager
def suppressed(code: str) -> Iterator[None]:
    """Take a problem with this code for granted."""
    try:
        yield
    except GatewayProblem as problem:
        if problem.code != code:
            raise


def defects(seen: Counter[str]) -> dict[str, int]:
    """What must not have happened, where it did."""
    return {outcome: seen[outcome] for outcome in DEFECTS if seen[outcome]}


def main() -> int:
    """Lead the sessions, some at a time, and print what became of their turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sessions", nargs="?", type=int, default=2000)
    parser.add_argument("tokenizer", nargs="?", type=Path, help="folder of a model's tokenizer")
    asked = parser.parse_args()
    sessions = asked.sessions
    model = random_models(asked.tokenizer)[0] if asked.tokenizer else generated_model()
    with start_vllm(model, KEY, MAX_MODEL_LEN, *VLLM_ARGUMENTS) as vllm:
        vllm.wait_until_ready()
        narrow = str(MAX_CONTEXT_TOKENS)
        with start_gateway(prepare("gateway"), vllm.url, model, MAX_CONTEXT_TOKENS=narrow) as gateway:
            gateway.wait_until_ready()
            seen = lead(gateway.url, sessions)
            with GatewayClient(gateway.url) as client:
                print(
                    f"\n{model.name}: {sessions} sessions, mismatches in /health: {client.health()['count_mismatches']}"
                )
    for outcome in (*EXPECTED, "trimmed", "at the edge", *DEFECTS):
        print(f"{outcome:<18}{seen[outcome]:>7}")
    return 1 if defects(seen) else 0


def lead(gateway_url: str, sessions: int) -> Counter[str]:
    """Lead sessions, some at once; returns what became of all their turns."""
    step = Step(f"разговоров: {sessions}")
    with GatewayClient(gateway_url) as client, ThreadPoolExecutor(WORKERS) as pool:
        # Each has its own chance, so that one that went wrong can be led again alone.
        seekers = [Seeker(client, KEY, random.Random(number)) for number in range(sessions)]  # noqa: S311
        for led in [pool.submit(seeker.lead_session) for seeker in seekers]:
            led.result()
            step.tick()
    step.done()
    return sum((seeker.seen for seeker in seekers), Counter())


if __name__ == "__main__":
    sys.exit(main())
