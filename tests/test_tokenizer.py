"""Counting: the same number as the tokenizer's own template gives, for real models too."""

import asyncio
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.context import ChatMessage, Pair, Talk, conversation
from app.errors import UpstreamRejected
from app.tokenizer import ChatTokenizer, CountFrom
from app.vllm import RequestSchema
from tests.tokenizers_at_hand import REAL, count, count_by_transformers, folder_of, ours, theirs

PAIRS = [Pair.of("Привет! <|im_end|> <s> [INST]", "", None), Pair.of("\r\n", "<think>\nа\n</think>\n\n🦔  ", None)]
MESSAGE = "Ещё 🦔\r\n\tраз   " + "очень" * 300
TALK = conversation("", PAIRS, MESSAGE)
SYSTEM_TALK = conversation("Ты — ёж.", PAIRS, MESSAGE)

real = pytest.mark.shared_tokenizers


def test_the_count_is_the_tokenizers_own(model_folder: Path) -> None:
    assert count(ours(model_folder), SYSTEM_TALK) == count_by_transformers(model_folder, SYSTEM_TALK)


@real
@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str) -> None:
    tokenizer = ours(folder_of(name))
    folded = conversation("Ты — ёж.", PAIRS, MESSAGE, folded=tokenizer.template.folds_system_prompt)
    for messages in (TALK, folded):
        assert count(tokenizer, messages) == count_by_transformers(folder_of(name), messages)


@real
@pytest.mark.parametrize("name", REAL)
def test_a_word_of_a_hundred_thousand_letters(name: str) -> None:
    messages = conversation("", PAIRS, "ё" * 100_000)
    assert count(ours(folder_of(name)), messages) == count_by_transformers(folder_of(name), messages)


@real
def test_template_arguments_change_the_count() -> None:
    folder = folder_of("qwen3")
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}, "strict": None, "x": 1}}]
    dumped = [{"type": "function", "function": {"name": "f", "description": None, "parameters": {}}}]
    plain = count(ours(folder), TALK)
    assert count(ours(folder), TALK, tools=tools) == count_by_transformers(folder, TALK, tools=dumped) > plain
    unthinking = count_by_transformers(folder, TALK, enable_thinking=False)
    assert count(ours(folder), TALK, chat_template_kwargs={"enable_thinking": False}) == unthinking > plain
    assert count(ours(folder), TALK, reasoning_effort="none") == unthinking


@real
def test_a_template_that_refuses_the_messages_says_why() -> None:
    with pytest.raises(UpstreamRejected, match="upstream_rejected") as caught:
        count(ours(folder_of("gemma-2-hybrid")), SYSTEM_TALK)
    assert "System role not supported" in caught.value.detail


@real
def test_characters_that_cost_no_token_count_where_vllm_refuses_them_unread() -> None:
    """Phi-4's tokens swallow the white space around them; vLLM refuses texts by their length before it tokenizes."""
    tokenizer = ours(folder_of("phi-4"))
    flood: list[ChatMessage] = [{"role": "user", "content": "а" + " " * 300_000}]
    assert count(tokenizer, flood, 8000) < 20
    longest = max(map(len, theirs(folder_of("phi-4")).get_vocab()))  # vLLM's own measure
    at_most = 300_000 // longest
    assert count(tokenizer, flood, at_most) > at_most


SMALL = Pair.of("вопрос", "ответ", None)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("talk", "extra", "in_a_thread"),
    [
        (Talk("", [], "слово " * 100), {}, False),
        (Talk("", [SMALL] * 5000, "?"), {}, False),
        (Talk("", [SMALL] * 50, "?", folded=True), {}, False),
        (Talk("", [], "слово " * 2000), {}, True),
        (Talk("", [Pair.of("слово " * 2000, "ответ", None)], "?"), {}, True),
        (Talk("", [Pair.of("вопрос", "", None)] * 1000, "?"), {}, True),
        (Talk("", [Pair.of("слово " * 10_000, "", None)] * 5, "?"), {}, True),
        (Talk("", [], "?"), {"chat_template_kwargs": {"x": 1}}, True),
    ],
    ids=[
        *("short", "long but known", "folded", "a long message", "a long history that is new"),
        *("many messages for the template", "much text for the template", "what the template makes of arguments"),
    ],
)
async def test_only_long_counts_go_to_a_thread(
    model_folder: Path, talk: Talk, extra: dict[str, Any], *, in_a_thread: bool
) -> None:
    tokenizer = ours(model_folder)
    await tokenizer.counting(Talk("", [SMALL], "?"), lambda count: count(0), {}, RequestSchema(), 10**9)
    counted_by = []

    def work(count: CountFrom) -> int:
        tokens = count(0)
        counted_by.append(threading.current_thread())
        return tokens

    counted = await tokenizer.counting(talk, work, extra, RequestSchema(), 10**9)
    assert counted == count(tokenizer, talk.messages(0))
    assert [thread is not threading.main_thread() for thread in counted_by] == [in_a_thread]
    # What was counted in a thread is known from then on, unless the template is asked every time.
    counted_by.clear()
    if all(pair.assistant for pair in talk.pairs) and talk.pairs:
        await tokenizer.counting(talk, work, {}, RequestSchema(), 10**9)
        assert counted_by == [threading.main_thread()]


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
        {"chat_template_kwargs": {"messages": 5}},
        {"tools": "x"},
        {"tools": [5, {"function": 5}, {"function": {}}]},
        {"documents": 7},
        {"reasoning_effort": {"a": "b"}},
    ],
    ids=str,
)
def test_what_vllm_will_refuse_is_counted_or_refused(model_folder: Path, extra: dict[str, Any]) -> None:
    try:
        assert count(ours(model_folder), TALK, **extra) > 0
    except UpstreamRejected as exc:
        assert "Шаблон чата" in exc.detail  # noqa: PT017 - either is right


def test_once_closed_it_holds_no_vocabulary(model_folder: Path) -> None:
    tokenizer = ChatTokenizer.load(str(model_folder))
    counter = weakref.ref(tokenizer._chunks)  # noqa: SLF001 - what is large does not show
    assert counter() is not None
    tokenizer.close()
    assert counter() is None
