"""Counting prompt tokens as vLLM will: the model's own chat template and tokenizer, in a thread."""

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.config import ConfigError
from app.context import ChatMessage
from app.errors import UpstreamRejected

T = TypeVar("T")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
_TEMPLATE_PARAMETERS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
# What evaluating a template over well-formed messages can raise; jinja passes Python's own errors through.
_RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTokenizer:
    """A model's chat template and tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes a loaded tokenizer and switches its baked-in truncation and padding off."""
        self._tokenizer = tokenizer
        self._threads = anyio.CapacityLimiter(max(2, os.cpu_count() or 2))
        self._backend = tokenizer.backend_tokenizer if isinstance(tokenizer, PreTrainedTokenizerFast) else None
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @classmethod
    def load(cls, folder: str) -> "ChatTokenizer":
        """Load from a model folder; nothing is ever downloaded. Takes seconds.

        Raises:
            ConfigError: the folder is absent, has no tokenizer files, is damaged or lacks a chat template.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ConfigError(f"Нет папки модели {folder}: положите модель туда или укажите папку в TOKENIZER_PATH")
        if not any((path / name).is_file() for name in _TOKENIZER_FILES):
            raise ConfigError(
                f"В папке {folder} нет файлов токенизатора ({', '.join(_TOKENIZER_FILES[:3])} …): "
                "скачайте модель целиком или укажите папку с ними в TOKENIZER_PATH"
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except Exception as exc:  # whatever a damaged file makes of a dozen parsers: the start fails all the same
            raise ConfigError(f"Токенизатор из папки {folder} не загружается: {_one_line(exc)}") from exc
        if not tokenizer.chat_template:
            raise ConfigError(
                f"В папке {folder} нет шаблона чата (chat_template.jinja или chat_template в tokenizer_config.json): "
                "нужна модель для диалога (instruct, chat)"
            )
        return cls(tokenizer)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work that counts, without holding up the event loop; cancelling does not wait for the thread."""
        return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)

    def counter(self, extra: Mapping[str, Any]) -> Callable[[list[ChatMessage]], int]:
        """A function that counts the prompt tokens of messages; it blocks: call it in a thread.

        Args:
            extra: further fields of the request to vLLM; those that change the prompt are rendered.
        """
        return partial(self._count, template_arguments(extra))

    def _count(self, arguments: Mapping[str, Any], messages: list[ChatMessage]) -> int:
        """Prompt tokens of `messages`, generation prompt included.

        Raises:
            UpstreamRejected: the chat template refuses these messages, as vLLM's will.
        """
        conversation: Any = messages  # transformers' type for a message is a plain dict
        try:
            text = self._tokenizer.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True, **arguments
            )
        except _RENDER_ERRORS as exc:
            raise UpstreamRejected(f"Шаблон чата модели не принимает эти сообщения: {_one_line(exc)}") from exc
        if self._backend is not None:
            return len(self._backend.encode_batch_fast([text], add_special_tokens=False)[0])
        return len(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def template_arguments(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request to vLLM its chat template is given.

    As vLLM does (vllm/entrypoints/openai/chat_completion/protocol.py, `build_chat_params`): `reasoning_effort` also
    sets `enable_thinking` unless given, and names that are parameters of `apply_chat_template` are not the user's.
    """
    given = extra.get("chat_template_kwargs")
    arguments = (
        {name: value for name, value in given.items() if name not in _TEMPLATE_PARAMETERS}
        if isinstance(given, dict)
        else {}
    )
    effort = extra.get("reasoning_effort")
    if effort is not None:
        arguments.setdefault("enable_thinking", effort != "none")
        arguments["reasoning_effort"] = effort
    if extra.get("documents"):
        arguments["documents"] = extra["documents"]
    tools = extra.get("tools")
    if isinstance(tools, list):
        arguments["tools"] = [_tool_as_vllm_dumps_it(tool) for tool in tools]
    return arguments


def _tool_as_vllm_dumps_it(tool: object) -> object:
    """vLLM parses a tool into its own model and dumps that: what is absent becomes null. What it refuses stays."""
    match tool:
        case {"function": {"name": _} as function}:
            return {"type": "function", "function": {"name": None, "description": None, "parameters": None, **function}}
    return tool


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
