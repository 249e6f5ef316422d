"""What a client can do with a session, one method for each endpoint; knows nothing of HTTP."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import SecretStr

from app.admission import Admission
from app.config import Settings
from app.context import Pair
from app.errors import GatewayError, InvalidRequest
from app.guesses import KeyGuesses
from app.sessions import Session
from app.template import TEMPLATE_PARAMETERS
from app.turn import DEFAULT_MAX_TOKENS, ContextReceipt, Question, Resources, Turn

OWNED_FIELDS = frozenset(
    "model messages stream stream_options max_tokens max_completion_tokens n truncate_prompt_tokens truncation_side "
    "chat_template add_generation_prompt continue_final_message add_special_tokens echo session_id request_id "
    "kv_transfer_params ec_transfer_params".split()
)
_OWNED_HINTS = {
    "model": "Модель задаёт VLLM_MODEL_NAME.",
    "messages": "Историю ведёт сам шлюз, сообщение — в поле message.",
    "stream": "Задайте stream рядом с message.",
    "max_tokens": "Задайте max_tokens рядом с message.",
    "max_completion_tokens": "Задайте max_tokens рядом с message.",
}
_SHOWN_NAME_LETTERS = 64
_SIMILAR = 0.4


class Chat:
    """All sessions of one gateway. Unknown sessions raise SessionNotFound everywhere."""

    def __init__(self, settings: Settings, resources: Resources) -> None:
        self._settings = settings
        self._resources = resources
        self._sessions = resources.sessions
        self._prompts = resources.prompts
        self._vllm = resources.vllm
        self._guesses = KeyGuesses(settings.max_key_failures_per_minute)
        # As many places as turns have, but not theirs: whoever shows wrong keys must not crowd them out.
        self._key_checks = Admission(settings)

    async def open(
        self, vllm_api_key: SecretStr, system_prompt: str | None, history: Sequence[Pair] | None, address: str
    ) -> tuple[str, int, ContextReceipt | None]:
        """Open a session for a key that vLLM accepts; None is the default prompt, `address` the client's.

        Returns its id, its seconds to live and, for a given history, what of it the next prompt will hold.

        Raises:
            Overloaded: MAX_SESSIONS are open, or see `Admission`.
            TooManyRequests: too many wrong keys came from this address.
            InvalidKey, Upstream: see `VLLMClient.prove_key`.
            ContextTooLong: a history was given, and the system prompt alone does not fit.
            UpstreamRejected: the model's chat template refuses the history.
        """
        await self._sessions.require_room()
        await self._prove_key(vllm_api_key, address)
        if system_prompt is None:
            system_prompt = self._settings.default_system_prompt
        session = Session(vllm_api_key, system_prompt)
        context = None if history is None else await self._restore(session, history)
        return session.id, await self._sessions.add(session), context

    async def replace_key(self, session_id: str, vllm_api_key: SecretStr, address: str) -> int:
        """Give a live session another key, once vLLM accepts it; a turn in flight goes on with the old one."""
        await self._sessions.require(session_id)
        await self._prove_key(vllm_api_key, address)
        return await self._sessions.replace_key(session_id, vllm_api_key)

    async def set_system_prompt(self, session_id: str, system_prompt: str) -> int:
        """Replace the system prompt; the history stays. Raises SessionBusy. Returns the seconds to live."""

        def change(session: Session) -> None:
            session.set_system_prompt(system_prompt, self._settings.max_session_bytes)

        return (await self._sessions.change(session_id, change))[1]

    async def history(self, session_id: str) -> tuple[Session, int]:
        """The committed state, also while a turn is in flight."""
        return await self._sessions.read(session_id)

    async def cancel(self, session_id: str) -> tuple[bool, int]:
        """Stop the turn in flight and wait until the session is free. False: there was nothing to stop."""
        return await self._sessions.cancel(session_id)

    async def undo(self, session_id: str) -> tuple[Pair, int]:
        """Remove the last pair. Raises SessionBusy, NothingToUndo."""
        return await self._sessions.change(session_id, Session.undo)

    async def reset(self, session_id: str) -> int:
        """Empty the history. Raises SessionBusy."""
        return (await self._sessions.change(session_id, Session.reset))[1]

    async def stop(self, session_id: str) -> None:
        """End the session: it is gone for everyone at once, then its turn in flight is stopped."""
        await self._sessions.stop(session_id)

    def turn(self, session_id: str, question: Question) -> Turn:
        """A turn, which occupies the session while it is entered.

        Raises:
            InvalidRequest: `question.extra` holds a field that is the gateway's, or one that vLLM would ignore.
        """
        _check_extra(question.extra, self._vllm.schema.fields)
        return Turn(session_id, question, self._resources)

    async def _prove_key(self, key: SecretStr, address: str) -> None:
        await self._guesses.prove(address, partial(self._show_key, key))

    async def _show_key(self, key: SecretStr) -> None:
        """See `VLLMClient.prove_key`."""
        self._resources.admission.require_open()
        async with self._key_checks:
            try:
                await self._vllm.prove_key(key)
            except GatewayError as exc:
                self._resources.metrics.failed(exc)
                raise

    async def _restore(self, session: Session, history: Sequence[Pair]) -> ContextReceipt:
        """Bring an earlier talk into a new session. The receipt is of a next prompt whose message is empty."""
        session.extend(history, self._settings.max_session_bytes)
        # A model that the default fills has room for those who ask for less.
        max_tokens = DEFAULT_MAX_TOKENS if self._vllm.max_model_len > DEFAULT_MAX_TOKENS else 1
        advice = "увеличьте контекст: MAX_CONTEXT_TOKENS, VLLM_MAX_MODEL_LEN"
        allowed = replace(self._prompts.budget(max_tokens), advice=advice)
        talk = self._prompts.talk(session, "")
        prompt = await self._prompts.fit(talk, session.surplus, allowed, extra={}, start=None)
        session.dropped_pairs = prompt.dropped_pairs
        return ContextReceipt(
            limit=prompt.limit,
            used=prompt.used,
            history_pairs=prompt.history_pairs,
            dropped_pairs=prompt.dropped_pairs,
            forgotten_pairs=session.forgotten_pairs,
        )


def _check_extra(extra: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse what the gateway owns and what vLLM would silently ignore; `known` is empty where it could not be read."""
    for name in extra:
        shown = name[:_SHOWN_NAME_LETTERS]
        if name in OWNED_FIELDS:
            hint = _OWNED_HINTS.get(name, "")
            raise InvalidRequest(
                f"Задать extra.{name} нельзя: этим управляет шлюз. {hint}".rstrip(), field=f"extra.{name}"
            )
        if known and name not in known:
            nearest = difflib.get_close_matches(shown, known, n=1, cutoff=_SIMILAR)
            hint = f"Ближайшее известное имя: {nearest[0]}." if nearest else ""
            raise InvalidRequest(
                f"vLLM не знает параметра extra.{shown} и молча пропустил бы его. {hint}".rstrip(),
                field=f"extra.{shown}",
            )
    arguments = extra.get("chat_template_kwargs")
    for name in arguments if isinstance(arguments, dict) else ():
        if name in TEMPLATE_PARAMETERS:
            # vLLM would hand them on to transformers: `tools` unchecked, `padding` to be counted as prompt tokens.
            hint = f" Передайте {name} в самом extra." if name in ("tools", "documents") else ""
            raise InvalidRequest(
                f"Задать extra.chat_template_kwargs.{name} нельзя: для шаблона это не переменная, а то, как его "
                f"применяют, и этим управляет шлюз.{hint}",
                field=f"extra.chat_template_kwargs.{name}",
            )
