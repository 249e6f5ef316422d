"""Notices a vLLM whose server answers while its engine hangs: vLLM's own /health says 200 then."""

import asyncio
import logging

from pydantic import SecretStr

from app.errors import GatewayError, UpstreamTimeout
from app.progress import Progress
from app.vllm import VLLMClient

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
_ONE_TOKEN = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1}


class StallWatch:
    """Asks a suspicious vLLM for one token. It is suspected when nothing comes of all that it works on, only then.

    The question bears the key of the session that has waited longest, because the gateway has none of its own. While
    vLLM is known to hang it is asked again and again, so that its recovery is noticed without a turn. One that goes on
    with other tokens by its own count only has the question wait.
    """

    def __init__(self, vllm: VLLMClient, progress: Progress, stall_seconds: float) -> None:
        """`stall_seconds` is how long nothing may come, and then how long the one token may take; 0: never ask."""
        self._vllm = vllm
        self._progress = progress
        self._stall_seconds = stall_seconds
        self._moved_before: float | None = None  # when it is stalled

    @property
    def ailment(self) -> str | None:
        """What is wrong, in Russian; None while nothing is known to be."""
        if self._moved_before is None or self._progress.moved_at > self._moved_before:
            return None
        return (
            f"vLLM завис: {self._stall_seconds:g} с не продвигался ни один начатый ответ, и столько же не было ответа "
            "на вопрос в один токен. Перезапустите vLLM (в Docker — docker compose restart vllm)."
        )

    async def run(self) -> None:
        """Look every second, for ever."""
        while self._stall_seconds:
            await asyncio.sleep(min(_LOOK_SECONDS, self._stall_seconds))
            silence = self._progress.silence()
            if silence is not None and silence[0] >= self._stall_seconds:
                await self._suspect(silence[1])

    async def _suspect(self, key: SecretStr) -> None:
        """Ask again and again, until there is an answer or something else moves."""
        moved_at, tokens = self._progress.moved_at, await self._vllm.tokens_done()
        while await self._is_silent(key) and self._progress.moved_at == moved_at:
            before, tokens = tokens, await self._vllm.tokens_done()
            if before is not None and tokens is not None and tokens > before:
                break  # the question waits in a queue: for answers that show nothing yet, or for those of others
            if self._moved_before is None:
                log.warning("vLLM завис: не продвигается ни один ответ.")
            self._moved_before = moved_at
        self._progress.moved()
        if self._moved_before is not None:
            log.info("vLLM больше не висит.")
        self._moved_before = None

    async def _is_silent(self, key: SecretStr) -> bool:
        """Ask for one token, for so long. An error is an answer too: from whoever gives it the engine does not hang."""
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._vllm.complete({"model": self._vllm.model, **_ONE_TOKEN}, key, {})
        except (TimeoutError, UpstreamTimeout):
            return True
        except GatewayError:
            return False
        return False
