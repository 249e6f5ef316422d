"""Tokenizers of real models that lie beside the project, and the longest way to a count."""

import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from app.context import ChatMessage
from app.template import template_arguments
from app.tokenizer import ChatTokenizer
from app.vllm import RequestSchema
from tests.conftest import SHARED_TOKENIZERS

REAL = ["qwen3", "mistral-nemo", "phi-4", "tinyllama", "gemma-2-hybrid"]


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
def _theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def count_by_transformers(folder: Path, messages: Sequence[ChatMessage], **arguments: Any) -> int:
    """Tokens of a prompt by transformers alone, template and encoding in one call."""
    return len(
        _theirs(folder).apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
        )
    )


def text_by_transformers(folder: Path, messages: Sequence[ChatMessage], arguments: Mapping[str, Any]) -> str:
    """A rendered prompt by transformers alone."""
    return str(
        _theirs(folder).apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False, **arguments)
    )
