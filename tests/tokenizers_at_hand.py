"""Tokenizers of real models that lie beside the project, and the longest way to a count."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from app.context import ChatMessage
from app.template import template_arguments
from app.tokenizer import ChatTokenizer
from app.vllm import RequestSchema
from tests.conftest import SHARED_TOKENIZERS

REAL = ["qwen3", "mistral-nemo", "phi-4", "tinyllama", "gemma-2-hybrid"]


WORDS = "слово мир hello  return 123 e\u0301 ё 🦔 \n \r\n \t \xa0 \u3000 \u200b \x1f \x85 </ < > | <| [ ] a".split(" ")


def folder_of(name: str) -> Path:
    """Where a real model's tokenizer lies."""
    return SHARED_TOKENIZERS / name


@cache
def ours(folder: Path) -> ChatTokenizer:
    """The gateway's tokenizer for a folder; loaded once."""
    return ChatTokenizer.load(str(folder))


def count(
    tokenizer: ChatTokenizer, messages: Sequence[ChatMessage], max_prompt_tokens: int = sys.maxsize, **extra: Any
) -> int:
    """Tokens of a prompt by the gateway's tokenizer."""
    arguments = template_arguments(extra, RequestSchema())
    return tokenizer._count(arguments, max_prompt_tokens, messages)  # noqa: SLF001 - without an event loop


@cache
def theirs(folder: Path) -> Any:
    """The tokenizer of transformers for a folder; loaded once."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def count_by_transformers(folder: Path, messages: Sequence[ChatMessage], **arguments: Any) -> int:
    """Tokens of a prompt by transformers alone, template and encoding in one call."""
    return len(
        theirs(folder).apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
        )
    )


def text_by_transformers(folder: Path, messages: Sequence[ChatMessage], arguments: Mapping[str, Any]) -> str:
    """A rendered prompt by transformers alone."""
    return str(
        theirs(folder).apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, **arguments)
    )


def byte_level(*added: AddedToken, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """A tokenizer of bytes with added tokens: every byte that no added token takes is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_tokens(list(added))
    return tokenizer


def load(name: str) -> Tokenizer:
    """A real model's tokenizer without truncation and padding."""
    backend = Tokenizer.from_file(str(folder_of(name) / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    return backend


def whole(backend: Tokenizer, text: str) -> int:
    """Tokens of a text by tokenizers alone, in one encoding."""
    return len(backend.encode(text, add_special_tokens=False).ids)
