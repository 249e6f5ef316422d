"""Counting in chunks: always what the whole text encodes to, and only what is new is encoded."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from app.chunks import ChunkCounter, TooMuchNew
from app.tokenizer import ChatTokenizer
from tests.tokenizers_at_hand import REAL, WORDS, byte_level, folder_of, load, whole

# A talk of so many pairs, and such a text, are too long to be encoded at once rather than by chunks.
MANY = 40
BULK = "я" * 1001


def token(content: str, **how: bool) -> AddedToken:
    return AddedToken(content, **{"normalized": False, **how})


def chat(boundary: str, pairs: int = 8) -> str:
    """A rendered talk in which every message begins with the boundary."""
    return "".join(f"{boundary}user\nвопрос {number}{boundary}assistant\nответ\n" for number in range(pairs))


BOUNDARIES = {
    "qwen3": "<|im_start|>",
    "mistral-nemo": "[INST]",
    "phi-4": "<|im_start|>",
    "tinyllama": "</s>",
    "gemma-2-hybrid": "<start_of_turn>",
}


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_any_text_counts_as_its_whole_encoding(name: str) -> None:
    backend = load(name)
    counter = ChunkCounter(backend, [chat(BOUNDARIES[name])])
    assert counter.boundary == BOUNDARIES[name]
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    pieces = st.sampled_from([*WORDS, *added[:40], BOUNDARIES[name], BOUNDARIES[name][:-1], BOUNDARIES[name][1:]])

    @settings(max_examples=300, deadline=None)
    @given(st.lists(pieces | st.text(max_size=5), max_size=30).map("".join))
    def check(text: str) -> None:
        for any_length in (text, text + chat(BOUNDARIES[name], MANY) + text):
            assert counter.count(any_length) == counter.count(any_length) == whole(backend, any_length)

    check()


# What is added, and which of it texts may be cut at.
ADDED: dict[str, tuple[list[AddedToken], normalizers.Normalizer | None, str | None]] = {
    "alone": ([token("<b>")], None, "<b>"),
    "swallows space": ([token("<b>", lstrip=True, rstrip=True)], None, "<b>"),
    "swallows space, and a token is space": ([token("<b>", lstrip=True), token("\n\n")], None, None),
    "a token that is space": ([token("<b>"), token("\n\n")], None, "<b>"),
    "begins a longer one": ([token("<b>"), token("<b>user")], None, "<b>"),
    "is the end of a longer one": ([token("<b>"), token("x<b>")], None, None),
    "overlaps the end of another": ([token("<b>"), token("a<")], None, None),
    "is in another": ([token("<b>"), token("a<b>c")], None, None),
    "word only": ([token("<b>", single_word=True)], None, None),
    "a letter at its beginning": ([token("b>")], None, "b>"),
    "a letter at its beginning, and a word only": ([token("b>"), token("x", single_word=True)], None, None),
    "begins a longer one that swallows space": (
        [token("<b>"), token("<b>user", lstrip=True), token(" ")],
        None,
        None,
    ),
    "is space": ([token("\n"), token("x", lstrip=True)], None, None),
    "begins a word only": ([token("<b>"), token("<b>user", single_word=True)], None, None),
    "normalized, nothing to normalize": ([token("<b>", normalized=True)], None, "<b>"),
    "normalized": ([token("<b>", normalized=True)], normalizers.Lowercase(), None),
    "another one is normalized": ([token("<b>"), token("a<", normalized=True)], normalizers.Lowercase(), "<b>"),
    "normalized, and another takes its head": ([token("<b>", normalized=True), token("<")], None, "<"),
    "normalized, and another takes its tail": ([token("<b>", normalized=True), token("b>u")], None, "b>u"),
    "normalizer that changes beginnings": ([token("<b>")], normalizers.Prepend("_"), "<b>"),
}


@pytest.mark.parametrize(("added", "normalizer", "boundary"), ADDED.values(), ids=ADDED.keys())
def test_a_token_is_cut_at_only_where_that_is_exact(
    added: list[AddedToken], normalizer: normalizers.Normalizer | None, boundary: str | None
) -> None:
    backend = byte_level(*added, normalizer=normalizer)
    counter = ChunkCounter(backend, [chat("<b>")])
    assert counter.boundary == boundary
    parts = st.sampled_from(["<b>", "a", "b>", "<", "user", "x", " ", "\n\n", "\n", "c", "B", "<B>", "\u2003"])

    @settings(max_examples=200, deadline=None)
    @given(st.lists(parts, max_size=20).map("".join))
    def check(text: str) -> None:
        for any_length in (text, text + chat("<b>", MANY) + text):
            assert counter.count(any_length) == whole(backend, any_length)

    check()


def test_the_token_that_cuts_finest_is_chosen() -> None:
    backend = byte_level(token("<eos>"), token("<turn>"), token("<bos>"))
    sample = "<bos>" + "".join(f"<turn>вопрос {n}<turn>ответ<eos>" for n in range(8))
    assert ChunkCounter(backend, [sample]).boundary == "<turn>"


def test_without_a_token_in_every_pair_texts_are_encoded_whole() -> None:
    backend = byte_level(token("<bos>"))
    sample = "<bos>" + "".join(f"USER: вопрос {n} ASSISTANT: ответ" for n in range(8))
    for samples in ([sample], []):
        counter = ChunkCounter(backend, samples)
        assert counter.boundary is None
        assert counter.count(sample) == whole(backend, sample)


def test_only_what_is_new_is_encoded() -> None:
    backend = byte_level(token("<b>"))
    counter = ChunkCounter(backend, [chat("<b>")])
    talk = chat("<b>", MANY)
    with pytest.raises(TooMuchNew):
        counter.count(talk, at_most_new=0)
    counter.count(talk)
    cut = talk.removeprefix("<b>user\nвопрос 0")
    for known in (talk, cut):
        assert counter.count(known, at_most_new=0) == whole(backend, known)
    longer = talk + "<b>вопрос"
    assert counter.count(longer, at_most_new=len("<b>вопрос")) == whole(backend, longer)


def test_the_same_text_is_another_chunk_at_the_very_beginning() -> None:
    counter = ChunkCounter(byte_level(token("<b>")), [chat("<b>")])
    for text in ("привет", BULK):
        length = len(text.encode())
        assert counter.count(text) == length
        assert counter.count(f"<b>{text}") == 1 + length
        assert counter.count(f"{text}<b>{text}") == 1 + 2 * length


def test_what_is_used_is_remembered_and_what_is_not_is_forgotten() -> None:
    counter = ChunkCounter(byte_level(token("<b>")), [chat("<b>")], remembered=100)
    counter.count(f"{BULK}<b>забыто")
    for number in range(1000):
        counter.count(f"{BULK}<b>помнится<b>{number}")
    counter.count(f"{BULK}<b>помнится", at_most_new=0)
    with pytest.raises(TooMuchNew):
        counter.count(f"{BULK}<b>забыто", at_most_new=0)


@pytest.mark.shared_tokenizers
def test_a_baked_in_limit_is_off(tmp_path: Path) -> None:
    for path in folder_of("qwen3").iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    backend = load("qwen3")
    backend.enable_truncation(256)
    backend.enable_padding(length=256)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "слово " * 1000
    assert ChatTokenizer.load(str(tmp_path)).count_text(text) == whole(load("qwen3"), text) > 1000
