"""The quick encoder: used only where it counts as tokenizers does, and then in every text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

from app.encoder import Encoder
from tests.tokenizers_at_hand import REAL, WORDS, byte_level, load, whole

TEXT = "Привет, мир! <b> it's 3.14\n\n  🦔 e\u0301"


@pytest.mark.shared_tokenizers
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_are_encoded_fast_and_the_same(name: str) -> None:
    backend = load(name)
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
