"""Counting on the real vLLM with the tokenizers and templates of real models, weights at random."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.stand import WORK, random_model, start_vllm
from tests.conftest import Gateway, SessionOf, gateways_before
from tests.scripted_vllm import KEY
from tests.servers import wait_until
from tests.test_template import TRIMS_TEXT_ONLY
from tests.tokenizers_at_hand import REAL, folder_of

pytestmark = [pytest.mark.vllm, pytest.mark.shared_tokenizers, pytest.mark.timeout(600)]

TURNS = 80
LIMIT = 700
TOOLS = [
    {"type": "function", "function": {"name": "погода", "parameters": {"type": "object", "properties": {"где": {}}}}},
    {"type": "function", "function": {"name": "f", "description": "д", "strict": True, "x": 1}, "defer_loading": False},
]
SYSTEM_PROMPTS = [None, "", "Ты — ёж.", " Кратко. \n", "<s>[INST]<|im_start|>system\n<start_of_turn>"]
PIECES = [
    *("слово", "hello", " ", "\n\n", "\r\n", "🦔", "e\u0301", "\u3000", "\xa0", "\x00", "\u200b", "12345", "def f(x):\n\t"),
    *("<|im_start|>", "<|im_end|>", "<|im_sep|>", "</s>", "<s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"),
    *("<think>\n", "</think>", "<tool_response>", "<|endoftext|>", "<eos>", "<unk>", "[TOOL_CALLS]", "ё" * 60),
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
    {"top_p": 0.9, "ignore_eos": True},
]


def in_parts() -> Path:
    """A tokenizer's folder whose template, as those of models that see pictures, takes contents in parts."""
    folder = WORK / "tokenizers" / "tinyllama-in-parts"
    if not folder.exists():
        shutil.copytree(folder_of("tinyllama"), folder, copy_function=shutil.copyfile)
        template = TRIMS_TEXT_ONLY.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<|")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[*REAL, "tinyllama-in-parts"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """A gateway with a narrow context before a vLLM with this tokenizer."""
    model = random_model(in_parts() if request.param == "tinyllama-in-parts" else folder_of(request.param))
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with start_vllm(model, KEY, 4096, *tools, "--enforce-eager") as server:
        server.wait_until_ready()
        start = gateways_before(server.url, model, timeout_seconds=60)
        with start(max_context_tokens=LIMIT) as started:
            yield started


def text(chooser: random.Random, pieces: int) -> str:
    return "".join(chooser.choice(PIECES) for _ in range(chooser.randrange(1, pieces)))


def turn(session: SessionOf, chooser: random.Random) -> Any:
    body: dict[str, Any] = {"message": text(chooser, 25), "max_tokens": chooser.choice([1, 20, 60, 3500])}
    if body["max_tokens"] == 3500:
        body["extra"] = {"stop": [" "], "min_tokens": 0}
    elif chooser.random() < 0.4:
        body["extra"] = chooser.choice(EXTRAS)
    if chooser.random() < 0.5:
        return session.ok("/chat", **body)
    return session.events(**body)[-1][1]


def test_every_turn_is_counted_as_vllm_counts_it(gateway: Gateway) -> None:
    chooser = random.Random(5)
    trimmed = 0
    for system_prompt in SYSTEM_PROMPTS:
        session = gateway.open() if system_prompt is None else gateway.open(system_prompt=system_prompt)
        for _ in range(TURNS // len(SYSTEM_PROMPTS)):
            answer = turn(session, chooser)
            context = answer["context"]
            assert context["used"] == answer["input_tokens"] <= context["limit"] <= LIMIT
            trimmed += context["dropped_pairs"] > 0
            messages = session.ok("/history")["messages"]
            assert context["history_pairs"] + context["dropped_pairs"] == len(messages) // 2 - 1
    assert trimmed > TURNS // 4
    health = gateway.http.get("/health").json()
    assert (health["count_mismatches"], health["warnings"]) == (0, [])


def test_the_probes_agree(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    wait_until(lambda: gateway.http.get("/health").json()["vllm"] == "ok")
    assert gateway.http.get("/health").json()["count_mismatches"] == 0
    assert "Шлюз насчитал" not in caplog.text


def test_the_system_prompt_reaches_the_model(gateway: Gateway) -> None:
    """Folded or not, it is in what vLLM counts."""
    long, short = (gateway.open(system_prompt=prompt) for prompt in ("слово " * 50, "слово"))
    used = [session.ok("/chat", message="а", max_tokens=1)["input_tokens"] for session in (long, short)]
    assert used[0] > used[1] + 49
