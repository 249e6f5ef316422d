"""Tokenizers of real models that lie beside the project."""

from pathlib import Path

from tests.conftest import SHARED_TOKENIZERS

REAL = ["qwen3", "mistral-nemo", "phi-4", "tinyllama", "gemma-2-hybrid"]


def folder_of(name: str) -> Path:
    """Where a real model's tokenizer lies."""
    return SHARED_TOKENIZERS / name
