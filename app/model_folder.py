"""The model folder: files that cannot be used, named before anybody stumbles over them."""

import os
from collections.abc import Iterable
from pathlib import Path

LFS_POINTER = b"version https://git-lfs"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")


def unusable_files(folder: str, paths: Iterable[Path]) -> str:
    """Which files cannot be used and what to do, in one Russian sentence; empty where all can.

    Weights are often saved for their owner only, a cache of Hugging Face consists of links, and a clone without Git LFS
    of notes on where the files are. vLLM says something else of each, and little that helps.
    """
    seen = sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: path.name)
    if unreadable := [path.name for path in seen if not os.access(path, os.R_OK)]:
        return (
            f"В папке {folder} не читаются файлы: {_some(unreadable)}. Если нет прав — дайте доступ (chmod -R a+rX), "
            "если это ссылки — положите вместо них сами файлы (hf download … --local-dir)"
        )
    if pointers := [path.name for path in seen if path.is_file() and _begins_with(path, LFS_POINTER)]:
        return (
            f"В папке {folder} вместо файлов — указатели Git LFS: {_some(pointers)}. "
            "Скачайте модель целиком (hf download … --local-dir или git lfs pull)"
        )
    return ""


def _begins_with(path: Path, beginning: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(beginning)) == beginning


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" …" if names[3:] else "")
