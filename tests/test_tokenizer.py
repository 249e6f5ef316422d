"""Counting: the same number as the tokenizer's own template gives, for real models too."""

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from app.context import ChatMessage
from app.errors import UpstreamRejected
from app.tokenizer import ChatTokenizer, template_arguments
from tests.conftest import SHARED_TOKENIZERS

TALK: list[ChatMessage] = [
    {"role": "user", "content": "Привет! <|im_end|> <s> [INST]"},
    {"role": "assistant", "content": ""},
    {"role": "user", "content": "Ещё 🦔\r\n\tраз   " + "очень" * 300},
]
SYSTEM: ChatMessage = {"role": "system", "content": "Ты — ёж."}

real = pytest.mark.shared_tokenizers
REAL_FOLDERS = ["qwen3", "mistral-nemo", "phi-4", "tinyllama", "gemma-2-hybrid"]


def count_by_transformers(folder: Path, messages: list[ChatMessage], **arguments: Any) -> int:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return len(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
        )
    )


def test_the_count_is_the_tokenizers_own(model_folder: Path) -> None:
    ours = ChatTokenizer.load(str(model_folder))
    assert ours.counter({})([SYSTEM, *TALK]) == count_by_transformers(model_folder, [SYSTEM, *TALK])


@real
@pytest.mark.parametrize("name", REAL_FOLDERS)
def test_real_models(name: str) -> None:
    folder = SHARED_TOKENIZERS / name
    messages = TALK if name == "gemma-2-hybrid" else [SYSTEM, *TALK]
    assert ChatTokenizer.load(str(folder)).counter({})(messages) == count_by_transformers(folder, messages)


@real
def test_template_arguments_change_the_count() -> None:
    folder = SHARED_TOKENIZERS / "qwen3"
    ours = ChatTokenizer.load(str(folder))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": None, "x": 1}}]
    dumped = [{"type": "function", "function": {"name": "f", "description": None, "parameters": {}}}]
    counts = {
        ours.counter(extra)(TALK)
        for extra in ({}, {"chat_template_kwargs": {"enable_thinking": False}}, {"tools": tools})
    }
    assert len(counts) == 3
    assert ours.counter({"tools": tools})(TALK) == count_by_transformers(folder, TALK, tools=dumped)
    assert ours.counter({"reasoning_effort": "none"})(TALK) == count_by_transformers(
        folder, TALK, enable_thinking=False
    )


@real
def test_a_template_that_refuses_the_messages_says_why() -> None:
    gemma = ChatTokenizer.load(str(SHARED_TOKENIZERS / "gemma-2-hybrid"))
    with pytest.raises(UpstreamRejected, match="upstream_rejected") as caught:
        gemma.counter({})([SYSTEM, *TALK])
    assert "System role not supported" in caught.value.detail


def test_what_the_template_is_given_of_extra() -> None:
    assert template_arguments({"top_p": 1}) == {}
    assert template_arguments({"chat_template_kwargs": {"a": 1, "tokenize": True, "padding": 1}}) == {"a": 1}
    assert template_arguments({"reasoning_effort": "low"}) == {"reasoning_effort": "low", "enable_thinking": True}
    own = {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}
    assert template_arguments(own) == {"reasoning_effort": "none", "enable_thinking": True}


@pytest.mark.anyio
async def test_cancelled_counts_do_not_pile_up(model_folder: Path) -> None:
    tokenizer = ChatTokenizer.load(str(model_folder))
    gate = threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        gate.wait(10)

    tasks = [asyncio.create_task(tokenizer.in_thread(partial(work, number))) for number in range(50)]
    await asyncio.sleep(0.1)
    at_once = len(begun)
    for task in tasks:
        task.cancel()
    assert all(
        isinstance(ended, asyncio.CancelledError) for ended in await asyncio.gather(*tasks, return_exceptions=True)
    )
    gate.set()
    assert await tokenizer.in_thread(lambda: "да") == "да"
    assert len(begun) == at_once < 50
    tokenizer.close()


@pytest.mark.parametrize(
    "extra",
    [
        {"chat_template_kwargs": []},
        {"chat_template_kwargs": {"messages": 5, "conversation": 5, "conversations": 5, "self": 5}},
        {"tools": "x"},
        {"tools": [5, {"function": 5}, {"function": {}}]},
        {"documents": 7},
        {"reasoning_effort": {"a": "b"}},
    ],
    ids=str,
)
def test_what_vllm_will_refuse_is_counted_or_refused(model_folder: Path, extra: dict[str, Any]) -> None:
    count = ChatTokenizer.load(str(model_folder)).counter(extra)
    try:
        assert count(TALK) > 0
    except UpstreamRejected as exc:
        assert "Шаблон чата" in exc.detail  # noqa: PT017 - either is right
