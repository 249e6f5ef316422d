"""Running something beside what goes on, for as long as that goes on."""

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

log = logging.getLogger(__name__)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` as a task until the block is left; then cancel it and wait for its end."""
    task = asyncio.create_task(work)
    task.add_done_callback(_tell)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _tell(task: "asyncio.Task[None]") -> None:
    """Have a defect that ended a task known when it happens, not when the gateway ends; without values."""
    if not task.cancelled() and (exc := task.exception()):
        where = "".join(traceback.format_tb(exc.__traceback__))
        log.error("Фоновая работа прервалась: %s\n%s", type(exc).__qualname__, where)
