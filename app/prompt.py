"""What of a conversation is sent: fitted into the budget by the model's own tokens."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from app.agreement import CountAgreement, Needed
from app.config import Settings
from app.context import Budget, ChatMessage, Surplus, Talk, Window, budget, fit
from app.sessions import Session
from app.tokenizer import ChatTokenizer, CountFrom
from app.vllm import VLLMClient

T = TypeVar("T")


@dataclass(slots=True)
class Prompt:
    """A conversation cut to its budget.

    Attributes:
        messages: what is sent, oldest first.
        limit: the budget in prompt tokens.
        history_pairs: earlier pairs among `messages`.
        dropped_pairs: earlier pairs left out.
    """

    messages: list[ChatMessage]
    limit: int
    history_pairs: int
    dropped_pairs: int
    _needed: Needed | Callable[[], Awaitable[int]]

    async def needed(self) -> Needed:
        """Prompt tokens of `messages`, generation prompt included; counted now where nothing depended on it before."""
        if not isinstance(self._needed, Needed):
            counted = await self._needed()
            self._needed = Needed(counted, counted)
        return self._needed


class Prompts:
    """Makes the prompts of all sessions for one vLLM.

    Attributes:
        agreement: whether vLLM counts as the gateway does.
    """

    def __init__(self, settings: Settings, tokenizer: ChatTokenizer, vllm: VLLMClient) -> None:
        self.agreement = CountAgreement(tokenizer, vllm)
        self._max_context_tokens = settings.max_context_tokens
        self._target_ratio = settings.trim_target_ratio
        self._tokenizer = tokenizer
        self._vllm = vllm

    def budget(self, max_tokens: int) -> Budget:
        """What a prompt may take beside an answer of `max_tokens`. Raises ContextTooLong where that fills the model."""
        return budget(self._max_context_tokens, self._vllm.max_model_len, max_tokens, self._target_ratio)

    async def fit(
        self,
        session: Session,
        message: str,
        allowed: Budget,
        *,
        extra: Mapping[str, Any],
        start: int | None,
    ) -> Prompt:
        """Lay out a prompt within its budget.

        Args:
            session: whose system prompt and history it begins with.
            message: the user's new one.
            allowed: the budget.
            extra: further fields of the request to vLLM.
            start: pairs that the last prompt left out; None: there was none.

        Raises:
            ContextTooLong: the system prompt and the message alone are over the limit.
            UpstreamRejected: the model's chat template refuses the conversation.
        """
        folded = self._tokenizer.template.folds_system_prompt
        talk = Talk(session.system_prompt, tuple(session.pairs), message, folded=folded)
        stored = len(talk.pairs)

        async def counting(work: Callable[[CountFrom], T]) -> T:
            schema, max_prompt_tokens = self._vllm.schema, allowed.max_prompt_tokens
            return await self._tokenizer.counting(talk, work, extra, schema, max_prompt_tokens)

        if not start and not self.agreement.counts_more:
            most = self._tokenizer.most(talk, extra, self._vllm.schema)
            if most is not None and most <= allowed.limit:
                count_all = partial(counting, lambda count: count(0))
                return Prompt(talk.messages(0), allowed.limit, stored, 0, count_all)

        async def fit_into(allowed: Budget, start: int | None) -> tuple[Window, list[ChatMessage], Needed]:
            window = await counting(partial(fit, stored, start, allowed))
            sent = talk.messages(window.start)
            return window, sent, await self.agreement.needed(sent, extra, window.used)

        surplus = self.agreement.expected(session.surplus)
        window, sent, needed = await fit_into(allowed.lowered_by(surplus), start)
        while needed.tokens > allowed.limit and window.start < stored:
            surplus = Surplus.seen(needed.counted, needed.tokens)
            window, sent, needed = await fit_into(allowed.lowered_by(surplus), window.start)
        if needed.tokens > allowed.limit:
            raise allowed.too_long(needed.tokens, message)
        return Prompt(sent, allowed.limit, stored - window.start, window.start, needed)
