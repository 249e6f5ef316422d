"""Whether the gateway counts tokens as vLLM does, and what follows where it does not."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers

from app.context import ChatMessage, Pair, conversation
from app.errors import BadRequest, GatewayError
from app.template import template_arguments
from app.tokenizer import ChatTokenizer
from app.vllm import VLLMClient

log = logging.getLogger(__name__)

_TALK = [Pair("Привет!", "Здравствуйте, чем помочь?", None), Pair("2 + 2 = ?", "4", None)]
_TOOL = {"type": "function", "function": {"name": "погода", "parameters": {"type": "object", "properties": {}}}}

_UNKNOWN_CAUSE = (
    "Бывает от разных версий transformers у шлюза и у vLLM, от другого шаблона чата у vLLM и без config.json в папке "
    "модели."
)
_SEEN_BY_NO_PROBE = "Пробы при запуске сошлись, так что дело в самом запросе: в его extra или в необычном тексте."
_ASKS_EVERY_TIME = (
    "Чтобы запросы помещались, шлюз теперь спрашивает vLLM о каждом заранее: ответы начинаются чуть позже."
)
_WASTES_ROOM = "Запросы помещаются, но место в контексте используется не до конца."

# System prompt, pairs, message, extra: what chat templates and tokenizers are known to differ in.
PROBES: Sequence[tuple[str, Sequence[Pair], str, Mapping[str, Any]]] = (
    ("", [], "Привет", {}),
    ("Ты — ёж.", [], "Кто ты?", {}),
    ("", _TALK, "А если прибавить ещё 1?", {}),
    ("Отвечай кратко.\n", _TALK * 3, "ещё", {}),
    ("", [Pair("Скажи что-нибудь", "", None)], "  пробелы по краям \n", {}),
    ("", [Pair("Думай", "<think>\nмысль\n</think>\n\nОтвет", None)], "А теперь?", {}),
    ("<s> </s>", [Pair("<|im_start|> <|eot_id|>", "[/INST]<end_of_turn> ", None)], "<|im_end|>\n<|endoftext|> a", {}),
    ("", [], "🦔 ё e\u0301 \u3000\xa0\u200b \r\n\r\n\tконец\x00", {}),
    ("", [Pair("def f(x):\n    return x ** 2  # квадрат", "```python\nf(3)\n```", None)], "    1234567890", {}),
    ("", [], "слово" * 400, {}),
    ("Ты — ёж.", [], "Думай", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("Ты — ёж.", [], "Какая погода?", {"tools": [_TOOL]}),
)


@dataclass(frozen=True, slots=True)
class Needed:
    """How many tokens vLLM will find in a prompt.

    Attributes:
        tokens: the gateway's own count, unless vLLM is known to count more.
        told: vLLM has said so itself.
    """

    tokens: int
    told: bool = False


class CountAgreement:
    """Compares the gateway's counts with vLLM's, and sees to it that a difference never makes a prompt too long.

    While the counts agree it asks vLLM nothing but the probes. Once vLLM has counted more, it is asked about every
    prompt before that is sent; where it does not say, the largest difference seen is added.

    Attributes:
        mismatches: counts that differed since the gateway was started.
        warning: what its owner should know of it, in Russian; empty while the counts agree.
    """

    def __init__(self, tokenizer: ChatTokenizer, vllm: VLLMClient) -> None:
        self.mismatches = 0
        self.warning = ""
        self._tokenizer = tokenizer
        self._vllm = vllm
        self._forget()

    def _forget(self) -> None:
        self.warning = ""
        self._cause = _UNKNOWN_CAUSE
        self._shortfall = 0
        self._believes_tokenize = True

    async def probe(self) -> None:
        """Compare a dozen conversations with a vLLM that has just come; what was known of the last one is forgotten."""
        self._forget()
        compared = differing = 0
        for system_prompt, pairs, message, extra in PROBES:
            messages = conversation(system_prompt, pairs, message, folded=self._tokenizer.template.folds_system_prompt)
            try:
                counted = await self._count(messages, extra)
                theirs = await self._ask(messages, extra)
                if theirs != counted and not differing:
                    self._cause = await self._likely_cause(messages, extra)
            except BadRequest:
                continue  # no template has to take tools, or every form of a talk
            except GatewayError as exc:
                log.info("счёт токенов заранее не сверен, он сверяется с каждым ответом: %s", exc.detail)
                return
            compared += 1
            differing += theirs != counted
            self._note(counted, theirs)
        if not differing:
            self._cause = _SEEN_BY_NO_PROBE
        log.info("счёт токенов сверен с vLLM: проб %d, расхождений %d", compared, differing)

    async def needed(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any], counted: int) -> Needed:
        """How many tokens vLLM will find in messages that the gateway has counted."""
        if not self._shortfall:
            return Needed(counted)
        if self._believes_tokenize:
            try:
                return Needed(await self._ask(messages, extra), told=True)
            except GatewayError as exc:
                log.debug("vLLM не сосчитал токены: %s", exc.detail)
        return Needed(counted + self._shortfall)

    def compare(self, counted: int, needed: Needed, prompt_tokens: int) -> None:
        """Take in what vLLM has found in the end (`usage.prompt_tokens`)."""
        self._note(counted, prompt_tokens)
        if needed.told and prompt_tokens > needed.tokens:
            self._believes_tokenize = False

    async def explains_refusal(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any], counted: int) -> bool:
        """Whether vLLM may have refused messages because it finds more tokens in them than was known until now."""
        if self._shortfall:
            return False
        try:
            self._note(counted, await self._ask(messages, extra))
        except GatewayError:
            return False
        return self._shortfall > 0

    def _note(self, counted: int, theirs: int) -> None:
        if counted == theirs:
            return
        self.mismatches += 1
        too_few = theirs > counted
        if not self.warning or (too_few and not self._shortfall):
            follows = _ASKS_EVERY_TIME if too_few else _WASTES_ROOM
            self.warning = f"Шлюз насчитал в запросе токенов: {counted}, а vLLM — {theirs}. {self._cause} {follows}"
            log.warning("%s", self.warning)
        self._shortfall = max(self._shortfall, theirs - counted)

    async def _count(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> int:
        count = self._tokenizer.counter(extra, self._vllm.schema, sys.maxsize)
        return await self._tokenizer.in_thread(partial(count, messages))

    async def _ask(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> int:
        arguments = template_arguments(extra, self._vllm.schema)
        arguments.pop("tools", None)
        return await self._vllm.count_messages(messages, extra.get("tools"), arguments)

    async def _likely_cause(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> str:
        """Tell a different template from a different tokenizer: have vLLM count the text that it should have made."""
        text = self._tokenizer.template.render(messages, template_arguments(extra, self._vllm.schema))
        counted = await self._tokenizer.in_thread(partial(self._tokenizer.count_text, text))
        if await self._vllm.count_text(text) == counted:
            return (
                "Похоже, у vLLM другой шаблон чата: проверьте его --chat-template и --default-chat-template-kwargs, "
                "а у шлюза — TOKENIZER_PATH."
            )
        if not self._tokenizer.has_config:
            return "Похоже, дело в том, что у шлюза в папке модели нет config.json: положите его туда."
        return (
            f"Похоже, разные версии: у шлюза transformers {transformers.__version__}, у vLLM "
            f"{await self._vllm.version()} — своя; шлюзу нужна она же (README, «Версии»)."
        )
