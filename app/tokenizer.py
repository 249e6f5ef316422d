"""Counting prompt tokens as vLLM will: the model's own chat template and tokenizer, in a thread."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from app.chunks import ChunkCounter, TooMuchNew
from app.config import ConfigError
from app.context import ChatMessage, Pair, Talk, conversation
from app.errors import UpstreamRejected
from app.model_folder import TOKENIZER_FILES, unusable_files
from app.pairwise import NotPairwise, PairwiseCounter
from app.template import ChatTemplate, one_line, template_arguments
from app.vllm import RequestSchema

log = logging.getLogger(__name__)

T = TypeVar("T")
CountFrom = Callable[[int], int]

# Some 2 ms of rendering and as much of encoding, which is when the way to a thread and back begins to pay.
_AT_ONCE_MESSAGES = 300
_AT_ONCE_CHARACTERS = 150_000
_AT_ONCE_NEW_CHARACTERS = 3_000

# One more than a text needs that takes long. Each holds memory, see app/encoder.py.
_FAST_THREADS = 2

_SAMPLE_TEXTS = [
    ("Привет!  ", "  Здравствуйте.\n"),
    ("ещё 🦔\r\n\tраз", ""),
    ("\n\n" + "очень" * 40, "def f(x):\n    return x  # 1234567"),
    (" ", "e\u0301 \u3000\u200b"),
]


class _TakesLong(Exception):
    """More is to be counted than the event loop should wait for."""


class _Allowance:
    """How much may still be rendered at once."""

    def __init__(self) -> None:
        self._messages = _AT_ONCE_MESSAGES
        self._characters = _AT_ONCE_CHARACTERS

    def take(self, messages: Sequence[ChatMessage]) -> None:
        """Raises _TakesLong where these are too many."""
        self._messages -= len(messages)
        self._characters -= sum([len(message["content"]) for message in messages])
        if self._messages < 0 or self._characters < 0:
            raise _TakesLong


class ChatTokenizer:
    """A model's chat template and tokenizer.

    Attributes:
        template: how a conversation becomes text.
        has_config: whether config.json lies beside the tokenizer, which may decide how it is loaded.
        folder_warnings: what about the model's folder will trouble vLLM or the count; settled once vLLM answers.
        warnings: what will stay as it is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        """Takes a loaded tokenizer and switches its baked-in truncation and padding off."""
        self.template = template
        self.has_config = True
        self.folder_warnings: list[str] = []
        self.warnings = list(template.warnings)
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._chunks: ChunkCounter | None = None
        self._in_python: PreTrainedTokenizerBase | None = None
        if isinstance(tokenizer, PreTrainedTokenizerFast):
            backend = tokenizer.backend_tokenizer
            backend.no_truncation()
            backend.no_padding()
            self._chunks = ChunkCounter(backend, self._samples())
        else:
            self._in_python = tokenizer
        is_fast = self._chunks is not None and self._chunks.is_fast
        self._threads = ThreadPoolExecutor(_FAST_THREADS if is_fast else max(2, os.cpu_count() or 2), "tokenizer")
        self._pairwise: PairwiseCounter | None = None
        if self._chunks is not None and template.pattern is not None:
            self._pairwise = PairwiseCounter(template.pattern, self._chunks, self._longest_token)
        if self._chunks is None or self._chunks.boundary is None:
            self.warnings.append(
                "Токены этой модели приходится считать каждый раз по всему разговору: в её шаблоне нет токена, по "
                "которому текст можно точно делить на части. Длинные разговоры будут отвечать медленнее"
            )

    @classmethod
    def load(cls, folder: str) -> "ChatTokenizer":
        """Load from a model folder; nothing is ever downloaded. Takes seconds.

        Raises:
            ConfigError: the folder is absent, has no tokenizer files, is damaged or lacks a usable chat template.
        """
        try:
            paths = list(Path(folder).iterdir())
        except OSError as exc:
            raise ConfigError(
                f"Папка модели {folder} не читается ({exc.strerror}): положите модель туда, дайте к ней доступ "
                "(chmod -R a+rX) или укажите другую папку в TOKENIZER_PATH"
            ) from exc
        files = {path.name for path in paths}
        if files.isdisjoint(TOKENIZER_FILES):
            raise ConfigError(
                f"В папке {folder} нет файлов токенизатора ({', '.join(TOKENIZER_FILES[:3])} …): "
                "скачайте модель целиком или укажите папку с ними в TOKENIZER_PATH"
            )
        unusable = unusable_files(folder, paths)
        try:
            tokenizer, warnings = _load(folder)
        except Exception as exc:  # whatever a damaged file makes of a dozen parsers: the start fails all the same
            raise ConfigError(unusable or f"Токенизатор из папки {folder} не загружается: {one_line(exc)}") from exc
        try:
            template = ChatTemplate(tokenizer, Path(folder))
        except LookupError as exc:
            raise ConfigError(
                f"В папке {folder} нет шаблона чата (chat_template.jinja или chat_template в tokenizer_config.json): "
                "нужна модель для диалога (instruct, chat)"
            ) from exc
        except UpstreamRejected as exc:
            raise ConfigError(f"Шаблон чата из папки {folder} не работает. {exc.detail}") from exc
        if unusable:
            warnings.append(f"{unusable}. vLLM не от имени root такую модель не загрузит")
        if "config.json" not in files:
            warnings.append(f"В папке {folder} нет config.json: счёт токенов может разойтись со счётом vLLM")
        loaded = cls(tokenizer, template)
        loaded.has_config, loaded.folder_warnings = "config.json" in files, warnings
        for warning in warnings + loaded.warnings:
            log.warning("%s", warning)
        return loaded

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run work that counts, without holding up the event loop.

        Cancelling drops work that still waits for a thread, and does not wait for work that has one.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let the threads go, and the vocabulary: FastAPI's caches hold on to an app that has ended, and so to this."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._chunks = self._pairwise = self._in_python = None

    async def counting(
        self,
        talk: Talk,
        work: Callable[[CountFrom], T],
        extra: Mapping[str, Any],
        schema: RequestSchema,
        max_prompt_tokens: int,
    ) -> T:
        """Run work that counts prompt tokens: at once where that is short, else in a thread.

        Args:
            talk: what is to be counted.
            work: is given a function that counts the talk without its first so many pairs; may be begun again.
            extra: further fields of the request to vLLM; those that change the prompt are rendered.
            schema: the form of vLLM's requests.
            max_prompt_tokens: what vLLM takes. A text with too many characters for that counts as the fewest tokens
                that could hold them, because vLLM refuses it without a look at its tokens.

        Raises:
            UpstreamRejected: the chat template refuses the messages, as vLLM's will.
        """
        arguments = template_arguments(extra, schema)

        def whole(start: int) -> int:
            return self._count(arguments, max_prompt_tokens, talk.messages(start))

        if arguments:
            return await self.in_thread(partial(work, whole))
        if self._pairwise is not None:
            pair_by_pair = partial(self._pairwise.count, talk)
            with suppress(NotPairwise):
                with suppress(TooMuchNew):
                    return work(partial(pair_by_pair, at_most_new=_AT_ONCE_NEW_CHARACTERS))
                return await self.in_thread(partial(work, partial(pair_by_pair, at_most_new=sys.maxsize)))
        with suppress(_TakesLong, TooMuchNew):
            return work(partial(self._count_at_once, _Allowance(), max_prompt_tokens, talk))
        return await self.in_thread(partial(work, whole))

    def _count_at_once(self, allowance: "_Allowance", max_prompt_tokens: int, talk: Talk, start: int) -> int:
        """As `_count`, but raises where it would hold up the event loop for long."""
        messages = talk.messages(start)
        allowance.take(messages)
        return self._count({}, max_prompt_tokens, messages, _AT_ONCE_NEW_CHARACTERS)

    def _count(
        self,
        arguments: Mapping[str, Any],
        max_prompt_tokens: int,
        messages: Sequence[ChatMessage],
        at_most_new: int = sys.maxsize,
    ) -> int:
        """Prompt tokens of `messages`, generation prompt included."""
        text = self.template.render(messages, arguments)
        fewest = -(-len(text) // self._longest_token)
        return fewest if fewest > max_prompt_tokens else self.count_text(text, at_most_new)

    def count_text(self, text: str, at_most_new: int = sys.maxsize) -> int:
        """Tokens of a rendered text. Raises TooMuchNew where it was not to encode so many characters."""
        if self._chunks is not None:
            return self._chunks.count(text, at_most_new)
        if len(text) > at_most_new:
            raise TooMuchNew
        assert self._in_python is not None
        return len(self._in_python(text, add_special_tokens=False)["input_ids"])

    def _samples(self) -> list[str]:
        """A conversation as the template renders it, for the choice of where to cut; empty where it is refused."""
        pairs = [Pair.of(user, assistant, None) for user, assistant in _SAMPLE_TEXTS]
        folded = self.template.folds_system_prompt
        try:
            return [
                self.template.render(conversation(system, pairs * number, "?", folded=folded), {})
                for system, number in (("Ты — ёж.", 1), ("", 2))
            ]
        except UpstreamRejected:
            return []


def _load(folder: str) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer of a folder, by transformers 4 or 5, whichever the vLLM before us has, and what to warn of."""
    # It warns of what it guesses about files; what matters here is whether vLLM counts the same, and that is checked.
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), []
    except ValueError as exc:
        if "TokenizersBackend" not in str(exc):
            raise
        # Folders saved by transformers 5 name by this word what transformers 4 calls PreTrainedTokenizerFast.
        warning = (
            f"Модель в папке {folder} сохранена transformers 5, а здесь 4: vLLM с transformers 4 её не загрузит. "
            "Возьмите новую линию версий (docs/operations.md, «Версии»)"
        )
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True), [warning]
