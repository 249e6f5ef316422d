"""The quick encoder: used only where it counts as tokenizers does, and then in every text."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from app.encoder import Encoder
from tests.tokenizers_at_hand import REAL, WORDS, byte_level, folder_of, theirs, whole

# TinyLlama's, as transformers 5 builds it, is unknown to the quick one.
FAST = [name for name in REAL if name != "tinyllama"]
TEXT = "Привет, мир! <b> it's 3.14\n\n  🦔 e\u0301"


def real(name: str) -> Tokenizer:
    """A real model's tokenizer as the gateway has it: built by transformers, without truncation and padding."""
    backend: Tokenizer = theirs(folder_of(name)).backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", FAST)
def test_real_tokenizers_are_encoded_fast_and_the_same(name: str) -> None:
    backend = real(name)
    encoder = Encoder(backend, [])
    assert encoder.is_fast
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    pieces = st.sampled_from([*WORDS, *added[:100]]) | st.text(max_size=5)
    runs = st.builds(str.__mul__, pieces, st.integers(1, 40))

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.lists(pieces | runs, max_size=20).map("".join), max_size=10))
    def check(texts: list[str]) -> None:
        assert encoder.count(texts) == [whole(backend, text) for text in texts]

    check()


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", FAST)
def test_what_was_encoded_before_changes_no_count(name: str) -> None:
    """The quick one keeps what it found out about long texts, and 0.3.2 used it where the next text went on otherwise.

    https://github.com/crusoecloud/fastokens, its cache of matches: a run of spaces ended where that of the text before
    had ended, if both began with the same 4 KiB.
    """
    backend = real(name)
    encoder = Encoder(backend, [])
    chooser = random.Random(0)
    runs = [" " * 3, " " * 700, "\n\n", "\t", "x" * 300, "7" * 50]
    for run in runs:
        words = "".join(chooser.choice([f" {word}" for word in WORDS]) for _ in range(2_000))
        beginning = words + run
        texts = [beginning + end for end in ("x", "", " ", "\n", "\tx", "y", *runs)]
        one_by_one = [encoder.count([text])[0] for text in texts]
        assert one_by_one == [whole(backend, text) for text in texts]


def test_texts_are_encoded_without_threads_of_the_library() -> None:
    encoder = Encoder(byte_level(), [])
    assert encoder.is_fast
    encoder.count([TEXT * 50] * 100)
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in names if "fastokens" in name]


def wordpiece() -> Tokenizer:
    return Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))


def special_tokens_as_text() -> Tokenizer:
    tokenizer = byte_level(AddedToken("<b>", normalized=False, special=True))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.mark.parametrize(
    "backend",
    [wordpiece(), byte_level(normalizer=normalizers.NFKC()), special_tokens_as_text()],
    ids=["another model", "another normalizer", "special tokens are text"],
)
def test_what_the_quick_one_does_not_know_is_left_to_tokenizers(backend: Tokenizer) -> None:
    encoder = Encoder(backend, [])
    assert not encoder.is_fast
    assert encoder.count([TEXT, ""]) == [whole(backend, TEXT), 0]
