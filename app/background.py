"""What the gateway does on its own while it runs."""

import asyncio
import logging
from contextlib import suppress

from pydantic import SecretStr

from app.admission import Admission
from app.agreement import CountAgreement
from app.errors import GatewayError, StoreUnavailable, UpstreamError
from app.metrics import Metrics
from app.sessions import SessionStore
from app.stall import StallWatch
from app.tokenizer import ChatTokenizer
from app.vllm import VLLMClient

log = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0
_WATCH_SECONDS = 5.0
_FIRST_WATCH_SECONDS = 1.0
_NOTE_SECONDS = 1.0

KEYLESS_WARNING = (
    "vLLM запущен без ключа и принимает любой: проверка vllm_api_key ничего не защищает. "
    "Задайте VLLM_API_KEY и перезапустите vLLM."
)


async def sweep_sessions(sessions: SessionStore, every_seconds: float = SWEEP_SECONDS) -> None:
    """Remove expired sessions, for ever."""
    while True:
        await asyncio.sleep(every_seconds)
        with suppress(StoreUnavailable):  # which the store's own log tells
            removed = await sessions.sweep()
            if removed:
                log.info("истекло сессий: %d, осталось: %d", removed, await sessions.count())


async def note_state(metrics: Metrics, admission: Admission, watch: "VLLMWatch") -> None:
    """Have other processes know how things stand in this one, for ever."""
    while metrics.is_one_of_several:
        metrics.note(admission.in_flight, admission.waiting, watch.count_mismatches)
        await asyncio.sleep(_NOTE_SECONDS)


class VLLMWatch:
    """Notices when vLLM comes and goes, and learns anew what the one that came is like."""

    def __init__(
        self, vllm: VLLMClient, tokenizer: ChatTokenizer, agreement: CountAgreement, stall: StallWatch
    ) -> None:
        self._vllm = vllm
        self._stall = stall
        self._tokenizer = tokenizer
        self._agreement = agreement
        self._of_the_server = list(tokenizer.folder_warnings)
        self._up: bool | None = None

    @property
    def warnings(self) -> list[str]:
        """What the gateway's owner should change, in Russian."""
        counts = [self._agreement.warning] if self._agreement.warning else []
        return [*self._of_the_server, *self._tokenizer.warnings, *counts]

    @property
    def count_mismatches(self) -> int:
        """How many token counts were not vLLM's since the start of the gateway."""
        return self._agreement.mismatches

    @property
    def is_up(self) -> bool:
        """Whether vLLM answered when it was last looked at."""
        return bool(self._up)

    @property
    def is_stalled(self) -> bool:
        """Whether vLLM's engine is known to hang."""
        return self._stall.ailment is not None

    async def ailment(self) -> str | None:
        """Why vLLM does not answer, in Russian; None where it does. Takes at most a second."""
        return await self._vllm.ailment() or self._stall.ailment

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
            elif not self._vllm.schema.fields:
                await self._vllm.learn_schema()
        except GatewayError as exc:
            if self._up is not False:
                log.warning("%s%s", "Связь с vLLM потеряна. " if self._up else "", exc.detail)
            self._up = False

    async def _meet(self) -> None:
        keyless = await self._vllm.accepts_any_key()
        await self._vllm.learn_schema()
        self._of_the_server = [KEYLESS_WARNING, *await self._wrong_model()] if keyless else []
        log.info("vLLM отвечает, известных параметров запроса: %d", len(self._vllm.schema.fields))
        for warning in self._of_the_server:
            log.warning("ВНИМАНИЕ! %s", warning)
        await self._agreement.probe()

    async def _wrong_model(self) -> list[str]:
        """What only a vLLM without a key tells before the first session: that it serves another model."""
        try:
            await self._vllm.prove_key(SecretStr("any"))
        except UpstreamError as exc:
            return [exc.detail]
        return []
