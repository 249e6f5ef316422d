"""What the gateway does on its own while it runs."""

import asyncio
import logging
from collections.abc import Sequence

from pydantic import SecretStr

from app.chat import Chat
from app.errors import GatewayError, UpstreamError
from app.sessions import SessionStore
from app.vllm import VLLMClient

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
_WATCH_SECONDS = 5.0
_FIRST_WATCH_SECONDS = 1.0

KEYLESS_WARNING = (
    "vLLM запущен без ключа и принимает любой: проверка vllm_api_key ничего не защищает. "
    "Задайте VLLM_API_KEY и перезапустите vLLM."
)


async def sweep_sessions(sessions: SessionStore, every_seconds: float = SWEEP_SECONDS) -> None:
    """Remove expired sessions, for ever."""
    while True:
        await asyncio.sleep(every_seconds)
        removed = await sessions.sweep()
        if removed:
            log.info("истекло сессий: %d, осталось: %d", removed, await sessions.count())


class VLLMWatch:
    """Notices when vLLM comes and goes, and learns anew what the one that came is like.

    Attributes:
        warnings: what its owner should change.
    """

    def __init__(self, vllm: VLLMClient, chat: Chat, at_first: Sequence[str] = ()) -> None:
        """`at_first` are warnings of what may keep vLLM from answering at all."""
        self.warnings = list(at_first)
        self._vllm = vllm
        self._chat = chat
        self._up: bool | None = None

    async def run(self) -> None:
        """Look every few seconds, for ever; a restart of a vLLM takes longer than that."""
        while True:
            await self._look()
            await asyncio.sleep(_WATCH_SECONDS if self._up else _FIRST_WATCH_SECONDS)

    async def _look(self) -> None:
        try:
            await self._vllm.probe()
            if not self._up:
                await self._meet()
                self._up = True
            elif not self._chat.known_fields:
                self._chat.known_fields = await self._vllm.request_fields()
        except GatewayError as exc:
            if self._up is not False:
                log.warning("%s%s", "Связь с vLLM потеряна. " if self._up else "", exc.detail)
            self._up = False

    async def _meet(self) -> None:
        keyless = await self._vllm.accepts_any_key()
        self._chat.known_fields = await self._vllm.request_fields()
        self.warnings = [KEYLESS_WARNING, *await self._wrong_model()] if keyless else []
        log.info("vLLM отвечает, известных параметров запроса: %d", len(self._chat.known_fields))
        for warning in self.warnings:
            log.warning("ВНИМАНИЕ! %s", warning)

    async def _wrong_model(self) -> list[str]:
        """What only a vLLM without a key tells before the first session: that it serves another model."""
        try:
            await self._vllm.max_model_len(SecretStr("any"))
        except UpstreamError as exc:
            return [exc.detail]
        return []
