"""Counting prompt tokens as vLLM will: the model's own chat template and tokenizer, in a thread."""

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from app.config import ConfigError
from app.context import ChatMessage
from app.errors import UpstreamRejected
from app.model_folder import unusable_files

log = logging.getLogger(__name__)

T = TypeVar("T")

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model")
_TEMPLATE_PARAMETERS = frozenset(
    name
    for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    for name in inspect.signature(function).parameters
)
# What evaluating a template over well-formed messages can raise; jinja passes Python's own errors through.
_RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class ChatTokenizer:
    """A model's chat template and tokenizer.

    Attributes:
        warnings: what about the model's folder will trouble vLLM or the count.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, warnings: Sequence[str]) -> None:
        """Takes a loaded tokenizer and switches its baked-in truncation and padding off."""
        self.warnings = warnings
        self._tokenizer = tokenizer
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 2), "tokenizer")
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
        try:
            paths = list(Path(folder).iterdir())
        except OSError as exc:
            raise ConfigError(
                f"Папка модели {folder} не читается ({exc.strerror}): положите модель туда, дайте к ней доступ "
                "(chmod -R a+rX) или укажите другую папку в TOKENIZER_PATH"
            ) from exc
        files = {path.name for path in paths}
        if files.isdisjoint(_TOKENIZER_FILES):
            raise ConfigError(
                f"В папке {folder} нет файлов токенизатора ({', '.join(_TOKENIZER_FILES[:3])} …): "
                "скачайте модель целиком или укажите папку с ними в TOKENIZER_PATH"
            )
        unusable = unusable_files(folder, paths)
        try:
            tokenizer, warnings = _load(folder)
        except Exception as exc:  # whatever a damaged file makes of a dozen parsers: the start fails all the same
            raise ConfigError(unusable or f"Токенизатор из папки {folder} не загружается: {_one_line(exc)}") from exc
        if not tokenizer.chat_template:
            raise ConfigError(
                f"В папке {folder} нет шаблона чата (chat_template.jinja или chat_template в tokenizer_config.json): "
                "нужна модель для диалога (instruct, chat)"
            )
        if unusable:
            warnings.append(f"{unusable}. vLLM не от имени root такую модель не загрузит")
        if "config.json" not in files:
            warnings.append(f"В папке {folder} нет config.json: счёт токенов может разойтись со счётом vLLM")
        for warning in warnings:
            log.warning("%s", warning)
        loaded = cls(tokenizer, warnings)
        try:
            loaded.counter({})([{"role": "user", "content": "?"}])
        except UpstreamRejected as exc:
            raise ConfigError(f"Шаблон чата из папки {folder} не работает. {exc.detail}") from exc
        return loaded

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work that counts, without holding up the event loop.

        Cancelling drops work that still waits for a thread, and does not wait for work that has one.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False, cancel_futures=True)

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


def _load(folder: str) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer of a folder, by transformers 4 or 5, whichever the vLLM before us has, and what to warn of."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), []
    except ValueError as exc:
        if "TokenizersBackend" not in str(exc):
            raise
        # Folders saved by transformers 5 name by this word what transformers 4 calls PreTrainedTokenizerFast.
        warning = (
            f"Модель в папке {folder} сохранена transformers 5, а здесь 4: vLLM с transformers 4 её не загрузит. "
            "Возьмите новую линию версий (README, «Версии»)"
        )
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True), [warning]


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
    """As vLLM's own model of a tool: an absent description becomes null, what it does not know goes.

    What vLLM will refuse stays as it is. (vllm/entrypoints/generate/base/protocol.py, `FunctionDefinition`)
    """
    match tool:
        case {"function": {"name": name} as function}:
            dumped = {
                "name": name,
                "description": function.get("description"),
                "parameters": function.get("parameters"),
            }
            for optional in ("strict", "defer_loading"):
                if function.get(optional) is not None:
                    dumped[optional] = function[optional]
            return {"type": "function", "function": dumped}
    return tool


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
