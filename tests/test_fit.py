"""Fitting a prompt: it is counted before it is sent where that may change it, and else once there is time."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.agreement import Needed
from app.config import Settings
from app.context import Pair
from app.prompt import Prompt, Prompts
from app.sessions import Session
from app.vllm import VLLMClient
from demo.stand import free_port
from tests.tokenizers_at_hand import ours

pytestmark = pytest.mark.anyio

MODEL_TOKENS = 400


@pytest.fixture
async def prompts(model_folder: Path) -> AsyncIterator[Prompts]:
    """Of a vLLM that is not there, so that it cannot be asked."""
    url = f"http://127.0.0.1:{free_port()}/v1"
    settings = Settings(vllm_base_url=url, tokenizer_path=str(model_folder), max_context_tokens=MODEL_TOKENS - 100)
    async with VLLMClient(settings) as vllm:
        vllm.max_model_len = MODEL_TOKENS
        yield Prompts(settings, ours(model_folder), vllm)


def session(*pairs: tuple[str, str]) -> Session:
    made = Session(SecretStr("k"), "Ты — ёж.")
    made.extend([Pair.of(user, assistant, "stop") for user, assistant in pairs], 1 << 20)
    return made


async def fit(prompts: Prompts, session: Session, message: str = "ещё", start: int | None = 0) -> Prompt:
    return await prompts.fit(session, message, prompts.budget(10), extra={}, start=start)


def is_counted(prompt: Prompt) -> bool:
    return isinstance(prompt._needed, Needed)  # noqa: SLF001 - that it is not yet does not show


async def test_what_plainly_fits_is_counted_when_asked(prompts: Prompts) -> None:
    for start in (0, None):
        prompt = await fit(prompts, session(("раз", "два")), start=start)
        assert not is_counted(prompt)
        needed = await prompt.needed()
        assert is_counted(prompt)
        counted_first = await fit(prompts, session(("раз", "два")), "ещё", start=1)
        assert is_counted(counted_first)
        assert needed == await counted_first.needed()
        assert (prompt.history_pairs, prompt.dropped_pairs, len(prompt.messages)) == (1, 0, 4)


async def test_what_may_not_fit_is_counted_first(prompts: Prompts) -> None:
    assert is_counted(await fit(prompts, session(("раз", "ёж " * 40))))


async def test_a_window_that_has_moved_is_counted_first(prompts: Prompts) -> None:
    assert is_counted(await fit(prompts, session(("раз", "два"), ("три", "четыре")), start=1))


async def test_where_vllm_counts_more_it_is_counted_first(prompts: Prompts) -> None:
    prompts.agreement.compare(Needed(10, 10), 12)
    assert is_counted(await fit(prompts, session()))
