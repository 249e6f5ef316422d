"""Counting pair by pair: the same as the whole prompt rendered by the template and encoded at once."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chunks import ChunkCounter
from app.context import Pair, Talk
from app.pairwise import NotPairwise, PairwiseCounter
from app.tokenizer import ChatTokenizer
from tests.tokenizers_at_hand import REAL, folder_of, ours, theirs

PIECES = [
    *("<|im_start|>", "<|im_end|>", "</think>", "<s>", "</s>", "[INST]", "<end_of_turn>", "<|user|>", "<|im_sep|>"),
    *(" ", "\n", "\u3000", "🦔", "e\u0301", "ё" * 30, "слово ", "word", "7"),
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
TALKS = st.builds(Talk, TEXTS, st.lists(st.builds(Pair.of, TEXTS, TEXTS, st.none()), max_size=8), TEXTS)


def whole(tokenizer: ChatTokenizer, folder: Path, talk: Talk, start: int) -> int:
    """By the template itself and one encoding."""
    text = tokenizer.template._plain.render(talk.messages(start), {})  # noqa: SLF001 - without what is learnt
    return len(theirs(folder)(text, add_special_tokens=False)["input_ids"])


def pairwise(tokenizer: ChatTokenizer, talk: Talk, start: int) -> int | None:
    counter = tokenizer._pairwise  # noqa: SLF001 - whether it counts so does not show
    assert counter is not None
    try:
        return counter.count(talk, start, sys.maxsize)
    except NotPairwise:
        return None


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str) -> None:
    tokenizer = ours(folder_of(name))
    folded = tokenizer.template.folds_system_prompt
    counted = 0

    @settings(max_examples=200, deadline=None)
    @given(TALKS, st.integers(0, 8))
    def check(talk: Talk, start: int) -> None:
        nonlocal counted
        talk = Talk(talk.system_prompt, talk.pairs, talk.message, folded)
        for _ in range(2):  # not yet known, and known
            tokens = pairwise(tokenizer, talk, start)
            assert tokens in (whole(tokenizer, folder_of(name), talk, start), None)
        counted += tokens is not None

    check()
    assert counted, "or nothing was tried"


def test_the_small_model(model_folder: Path) -> None:
    tokenizer = ours(model_folder)
    talk = Talk("Ты — ёж.", [Pair.of("раз", "два", None), Pair.of("три <|im_start|>", "\n", None)], "ещё")
    for start in (0, 1, 2, 0):
        assert pairwise(tokenizer, talk, start) == whole(tokenizer, model_folder, talk, start)


def test_what_the_template_looks_for_is_counted_as_a_whole(model_folder: Path) -> None:
    tokenizer = ours(model_folder)
    for pair, message in ((Pair.of("раз", "", None), "?"), (Pair.of("раз", "два", None), "")):
        assert pairwise(tokenizer, Talk("", [pair], message), 0) is None
        assert pairwise(tokenizer, Talk("", [pair], message), 0) is None


PARTS = {
    "no words before the first pair": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    "a boundary before the questions only": "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{% endif %}"
    "{{ m.content }}|{% endfor %}",
    "no boundary between pairs": "<|im_start|>{% for m in messages %}{{ m.content }}|{% endfor %}",
    "other words after the first": "{% for m in messages %}{{ '<|im_end|>' if loop.first else '<|im_start|>' }}"
    "{{ m.content }}{% endfor %}",
    "other words under a system message": "{% for m in messages %}<|im_start|>{{ m.content }}"
    "{{ '!' if messages[0].role == 'system' }}{% endfor %}",
    "other words at the end": "{% for m in messages %}{{ '!' if loop.revindex < 3 }}<|im_start|>{{ m.content }}"
    "{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_any_form_of_template(linked_model: Path, name: str) -> None:
    (linked_model / "chat_template.jinja").unlink()
    (linked_model / "chat_template.jinja").write_text(PARTS[name], encoding="utf-8")
    tokenizer = ChatTokenizer.load(str(linked_model))
    pairs: list[Any] = [Pair.of(f"вопрос {n} ", f" ответ {n}", None) for n in range(12)]
    for system in ("", "Ты — ёж."):
        for start in (0, 1, 5, 11, 12):
            talk = Talk(system, pairs, " ещё ")
            assert pairwise(tokenizer, talk, start) in (whole(tokenizer, linked_model, talk, start), None)


def test_a_text_with_fewer_tokens_than_could_hold_it_is_counted_as_a_whole(model_folder: Path) -> None:
    tokenizer = ours(model_folder)
    pattern = tokenizer.template.pattern
    assert pattern is not None
    chunks = tokenizer._chunks  # noqa: SLF001
    assert isinstance(chunks, ChunkCounter)
    talk = Talk("", [Pair.of("раз два три", "четыре", None)], "пять")
    with pytest.raises(NotPairwise):
        PairwiseCounter(pattern, chunks, longest_token=1).count(talk, 0, sys.maxsize)
