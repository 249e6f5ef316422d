"""Whether the gateway counts tokens as vLLM does, and what follows where it does not."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import transformers

from app.context import NO_SURPLUS, ChatMessage, Pair, Surplus, Talk
from app.errors import BadRequest, GatewayError
from app.template import template_arguments
from app.tokenizer import ChatTokenizer
from app.vllm import VLLMClient

log = logging.getLogger(__name__)

_TALK = [("Привет!", "Здравствуйте, чем помочь?"), ("2 + 2 = ?", "4")]
_TOOL = {"type": "function", "function": {"name": "погода", "parameters": {"type": "object", "properties": {}}}}

_UNKNOWN_CAUSE = (
    "Бывает от разных версий transformers у шлюза и у vLLM, от другого шаблона чата у vLLM и без config.json в папке "
    "модели."
)
_SEEN_BY_NO_PROBE = "Пробы при запуске сошлись, так что дело в самом запросе: в его extra или в необычном тексте."
_ASKS_EVERY_TIME = (
    "Чтобы запросы помещались, шлюз теперь спрашивает vLLM о каждом заранее: ответы начинаются чуть позже."
)
_KEEPS_A_MARGIN = (
    "Чтобы запросы помещались, шлюз оставляет запас по наибольшему расхождению: /tokenize у vLLM не отвечает или "
    "говорит не то, что потом насчитывает сам vLLM."
)
_WASTES_ROOM = "Запросы помещаются, но место в контексте используется не до конца."

# System prompt, questions and answers, message, extra: what chat templates and tokenizers are known to differ in.
PROBES: Sequence[tuple[str, Sequence[tuple[str, str]], str, Mapping[str, Any]]] = (
    ("", [], "Привет", {}),
    ("Ты — ёж.", [], "Кто ты?", {}),
    ("", _TALK, "А если прибавить ещё 1?", {}),
    ("Отвечай кратко.\n", _TALK * 3, "ещё", {}),
    ("", [("Скажи что-нибудь", "")], "  пробелы по краям \n", {}),
    ("", [("Думай", "<think>\nмысль\n</think>\n\nОтвет")], "А теперь?", {}),
    (
        "<s> </s>",
        [("<|im_start|> <|eot_id|>", "[/INST]<end_of_turn> ")],
        "<|im_end|>\n<|endoftext|> a",
        {},
    ),
    ("", [], "🦔 ё e\u0301 \u3000\xa0\u200b \r\n\r\n\tконец\x00", {}),
    ("", [("def f(x):\n    return x ** 2  # квадрат", "```python\nf(3)\n```")], "    1234567890", {}),
    ("", [], "слово" * 400, {}),
    ("Ты — ёж.", [], "Думай", {"chat_template_kwargs": {"enable_thinking": False}}),
    ("Ты — ёж.", [], "Какая погода?", {"tools": [_TOOL]}),
)


@dataclass(frozen=True, slots=True)
class Needed:
    """How many tokens vLLM will find in a prompt, as far as was known when the prompt was made.

    Attributes:
        counted: the gateway's own count.
        tokens: the same, unless vLLM is known to count otherwise.
        told: vLLM has said so itself.
    """

    counted: int
    tokens: int
    told: bool = False


class CountAgreement:
    """Compares the gateway's counts with vLLM's, and sees to it that a difference never makes a prompt too long.

    While the counts agree it asks vLLM nothing but the probes. Once vLLM has counted more, it is asked about every
    prompt before that is sent; where it cannot be asked, the largest difference seen is allowed for.

    Attributes:
        mismatches: counts that differed since the gateway was started.
    """

    def __init__(self, tokenizer: ChatTokenizer, vllm: VLLMClient) -> None:
        self.mismatches = 0
        self._tokenizer = tokenizer
        self._vllm = vllm
        self._forget()

    def _forget(self) -> None:
        self._difference = ""
        self._cause = _UNKNOWN_CAUSE
        self._worst = NO_SURPLUS
        self._asks = True

    @property
    def warning(self) -> str:
        """What the gateway's owner should know of it, in Russian; empty while the counts agree."""
        if not self._difference:
            return ""
        if not self._worst.tokens:
            return f"{self._difference} {_WASTES_ROOM}"
        return f"{self._difference} {_ASKS_EVERY_TIME if self._asks else _KEEPS_A_MARGIN}"

    async def probe(self) -> int:
        """Compare a dozen conversations with a vLLM that has just come; what was known of the last one is forgotten.

        Returns how many it could compare.
        """
        self._forget()
        compared = differing = 0
        for system_prompt, texts, message, extra in PROBES:
            pairs = [Pair.of(user, assistant, None) for user, assistant in texts]
            talk = Talk(system_prompt, pairs, message, folded=self._tokenizer.template.folds_system_prompt)
            messages = talk.messages(0)
            try:
                counted = await self._count(talk, extra)
                theirs = await self._ask(messages, extra)
            except BadRequest:
                continue  # no template has to take tools, or every form of a talk
            except GatewayError as exc:
                log.info("счёт токенов заранее не сверен, он сверяется с каждым ответом: %s", exc.detail)
                return compared
            if theirs != counted and not differing:
                self._cause = await self._likely_cause(messages, extra)
            compared += 1
            differing += theirs != counted
            self._note(counted, theirs)
        if compared and not differing:
            self._cause = _SEEN_BY_NO_PROBE
        log.info("счёт токенов сверен с vLLM: проб %d, расхождений %d", compared, differing)
        return compared

    def expected(self, last: Surplus) -> Surplus:
        """What vLLM will count more of the next prompt of a conversation.

        Args:
            last: what it counted more of the last one.
        """
        return last if self._asks and self._worst.tokens else self._worst

    async def needed(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any], counted: int) -> Needed:
        """How many tokens vLLM will find in messages that the gateway has counted."""
        if self._worst.tokens and (theirs := await self._told(messages, extra)) is not None:
            return Needed(counted, theirs, told=True)
        return Needed(counted, counted + self._worst.of(counted))

    def compare(self, needed: Needed, prompt_tokens: int) -> Surplus:
        """Take in what vLLM has found in the end (`usage.prompt_tokens`); returns what that was more.

        What cannot be in a prompt that vLLM has taken is no count: believed once, it would leave no room for any other.
        """
        if prompt_tokens > self._vllm.max_model_len:
            return NO_SURPLUS
        self._note(needed.counted, prompt_tokens)
        if needed.told and prompt_tokens > needed.tokens:
            self._ask_no_more()
        return Surplus.seen(needed.counted, prompt_tokens)

    async def explains_refusal(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any], needed: Needed) -> bool:
        """Whether vLLM may have refused messages because it finds more tokens in them than was known.

        Args:
            messages: as they were sent.
            extra: further fields of that request.
            needed: of that prompt; other turns may have learnt more since it was made.
        """
        if needed.told:
            return False
        theirs = await self._told(messages, extra)
        if theirs is None:
            return needed.counted + self._worst.of(needed.counted) > needed.tokens
        self._note(needed.counted, theirs)
        return theirs > needed.tokens

    async def _told(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> int | None:
        """What vLLM itself counts; None where it does not say. One that fails to is not asked again."""
        if not self._asks:
            return None
        try:
            return await self._ask(messages, extra)
        except BadRequest:
            return None
        except GatewayError as exc:
            log.debug("vLLM не сосчитал токены: %s", exc.detail)
            self._ask_no_more()
            return None

    def _ask_no_more(self) -> None:
        if self._asks and self._worst.tokens:
            log.warning("%s", _KEEPS_A_MARGIN)
        self._asks = False

    def _note(self, counted: int, theirs: int) -> None:
        if counted == theirs:
            return
        self.mismatches += 1
        surplus = Surplus.seen(counted, theirs)
        is_first = not self._difference or (surplus.tokens > 0 and not self._worst.tokens)
        if surplus.tokens:
            self._worst = self._worst.joined(surplus)
        if is_first:
            self._difference = f"Шлюз насчитал в запросе токенов: {counted}, а vLLM — {theirs}. {self._cause}"
            log.warning("%s", self.warning)

    async def _count(self, talk: Talk, extra: Mapping[str, Any]) -> int:
        schema = self._vllm.schema
        return await self._tokenizer.counting(talk, lambda count: count(0), extra, schema, sys.maxsize)

    async def _ask(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> int:
        arguments = template_arguments(extra, self._vllm.schema)
        arguments.pop("tools", None)
        return await self._vllm.count_messages(messages, extra.get("tools"), arguments)

    async def _likely_cause(self, messages: Sequence[ChatMessage], extra: Mapping[str, Any]) -> str:
        """Tell a different template from a different tokenizer: have vLLM count the text that it should have made."""
        text = self._tokenizer.template.render(messages, template_arguments(extra, self._vllm.schema))
        counted = await self._tokenizer.in_thread(partial(self._tokenizer.count_text, text))
        try:
            theirs = await self._vllm.count_text(text)
        except GatewayError:
            return _UNKNOWN_CAUSE
        if theirs == counted:
            return (
                "Похоже, у vLLM другой шаблон чата: проверьте его --chat-template и --default-chat-template-kwargs, "
                "а у шлюза — TOKENIZER_PATH."
            )
        if not self._tokenizer.has_config:
            return "Похоже, дело в том, что у шлюза в папке модели нет config.json: положите его туда."
        return (
            f"Похоже, разные версии: у шлюза transformers {transformers.__version__}, у vLLM "
            f"{await self._vllm.version()} — своя; шлюзу нужна она же (docs/operations.md, «Версии»)."
        )
