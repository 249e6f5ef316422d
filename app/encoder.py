"""Counting the tokens of texts as a model's tokenizer encodes them, by the quickest library that does so."""

import os
from collections.abc import Iterator, Sequence

import fastokens
from tokenizers import Tokenizer

# By itself it would start a thread for every core, each with a cache of up to 16 MB; and the first text that another
# thread encodes would hold the interpreter up for 100 ms. What is new in a prompt is encoded as soon without them.
os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")

_SPACES = ["", " ", "\n", " \n\n ", "\t", "\r\n", "\xa0", "\u3000", "\x1f", "\u200b"]
_TEXTS = [
    "Привет, мир! Ёж — это 1-й зверь; №42 «да»…",
    "It's 3.14, I'LL go\r\n\r\n\tx = [1, 2]  # don't",
    "中文字、カタカナ, 한국어 ไทย हिन्दी العربية",
    "🦔👩\u200d👧 e\u0301 é \u1e9b\u0323 ﬁ ½ Ⅷ ſ K ﷺ",
    "\x00\x7f\ufffd\U0010ffff",
    "7" * 40 + "aA" * 50 + "=" * 70,
]


class Encoder:
    """Counts tokens.

    fastokens, which vLLM has too (`--tokenizer-backend`), encodes texts tens of times sooner than tokenizers, but does
    not know every kind of tokenizer. So it is tried out, and where its counts are others, tokenizers counts.

    Safe to use from several threads.

    Attributes:
        is_fast: whether fastokens counts; the tokenizer is not held any longer then.
    """

    def __init__(self, backend: Tokenizer, samples: Sequence[str]) -> None:
        """Choose by trials.

        Args:
            backend: with truncation and padding off.
            samples: further texts to try.
        """
        trials = [*samples, *_trials([token.content for token in backend.get_added_tokens_decoder().values()])]
        try:
            fast = fastokens.Tokenizer.from_json_str(backend.to_str())
            self.is_fast = [len(encoded) for encoded in fast.encode_batch(trials)] == _count(backend, trials)
        except ValueError:  # fastokens does not know a part of it
            self.is_fast = False
        self._fast = fast if self.is_fast else None
        self._backend = None if self.is_fast else backend

    def count(self, texts: list[str]) -> list[int]:
        """Tokens of each text. Blocks, but lets other threads run meanwhile."""
        if self._fast is not None:
            return [len(encoded) for encoded in self._fast.encode_batch(texts)]
        assert self._backend is not None
        return _count(self._backend, texts)


def _count(backend: Tokenizer, texts: list[str]) -> list[int]:
    return [len(encoded) for encoded in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _trials(added: Sequence[str]) -> Iterator[str]:
    """Texts in which tokenizers differ."""
    yield from _TEXTS
    yield " ".join(_TEXTS)
    for token in added:
        yield "".join(f"{space}{token}{space}а{token[:-1]}" for space in _SPACES)
