"""What of a conversation is sent: fitted into the budget by the model's own tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.agreement import CountAgreement, Needed
from app.config import Settings
from app.context import Budget, ChatMessage, Surplus, Talk, Window, budget, fit
from app.sessions import Session
from app.tokenizer import ChatTokenizer
from app.vllm import VLLMClient


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation cut to its budget.

    Attributes:
        messages: what is sent, oldest first.
        needed: prompt tokens of `messages`, generation prompt included.
        limit: the budget in prompt tokens.
        history_pairs: earlier pairs among `messages`.
        dropped_pairs: earlier pairs left out.
    """

    messages: list[ChatMessage]
    needed: Needed
    limit: int
    history_pairs: int
    dropped_pairs: int

    @property
    def used(self) -> int:
        """Prompt tokens by the gateway's own count."""
        return self.needed.counted


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

    def talk(self, session: Session, message: str, *, without_last: bool = False) -> Talk:
        """What a session and a new message of the user make; the last pair may be about to be replaced."""
        pairs = tuple(session.pairs[:-1] if without_last else session.pairs)
        return Talk(session.system_prompt, pairs, message, folded=self._tokenizer.template.folds_system_prompt)

    async def fit(
        self, talk: Talk, seen_surplus: Surplus, allowed: Budget, *, extra: Mapping[str, Any], start: int | None
    ) -> Prompt:
        """Lay out a prompt within its budget.

        Args:
            talk: what it is made of.
            seen_surplus: what vLLM counted more of the session's last prompt.
            allowed: the budget.
            extra: further fields of the request to vLLM.
            start: pairs that the last prompt left out; None: there was none.

        Raises:
            ContextTooLong: the system prompt and the message alone are over the limit.
            UpstreamRejected: the model's chat template refuses the conversation.
        """
        stored = len(talk.pairs)

        async def fit_into(allowed: Budget, start: int | None) -> tuple[Window, list[ChatMessage], Needed]:
            work = partial(fit, stored, start, allowed)
            schema, max_prompt_tokens = self._vllm.schema, allowed.max_prompt_tokens
            window = await self._tokenizer.counting(talk, work, extra, schema, max_prompt_tokens)
            sent = talk.messages(window.start)
            return window, sent, await self.agreement.needed(sent, extra, window.used)

        surplus = self.agreement.expected(seen_surplus)
        window, sent, needed = await fit_into(allowed.lowered_by(surplus), start)
        while needed.tokens > allowed.limit and window.start < stored:
            surplus = Surplus.seen(needed.counted, needed.tokens)
            window, sent, needed = await fit_into(allowed.lowered_by(surplus), window.start)
        if needed.tokens > allowed.limit:
            raise allowed.too_long(needed.tokens, talk.message)
        return Prompt(sent, needed, allowed.limit, stored - window.start, window.start)
