"""Being stopped: turns in flight get time to end before the server does."""

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.admission import Admission

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@asynccontextmanager
async def draining_on_signal(admission: Admission, drain_seconds: float) -> AsyncIterator[None]:
    """Stand between a signal to end and the server while inside.

    From the first SIGTERM or SIGINT on nobody new is let in, but the server goes on serving: those who ask get a clear
    answer, /ready among them. It is told to end once all turns are over. What is left of them `drain_seconds` later, or
    at a second signal, is cancelled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are for others
        return
    loop = asyncio.get_running_loop()
    of_the_server = {number: signal.getsignal(number) for number in _SIGNALS}
    drain = _Drain(admission, drain_seconds)

    def tell_the_server(number: signal.Signals) -> None:
        handler = of_the_server[number]
        if callable(handler):
            handler(number, None)
        else:
            signal.signal(number, handler)
            signal.raise_signal(number)

    for number in _SIGNALS:
        loop.add_signal_handler(number, drain.on_signal, tell_the_server, number)
    try:
        yield
    finally:
        for number, handler in of_the_server.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Drain:
    def __init__(self, admission: Admission, drain_seconds: float) -> None:
        self._admission = admission
        self._drain_seconds = drain_seconds
        self._task: asyncio.Task[None] | None = None
        self._is_cut_short = False

    def on_signal(self, tell_the_server: Callable[[signal.Signals], None], number: signal.Signals) -> None:
        """The first begins the drain, the second ends it, further ones are the server's."""
        if self._task is None:
            self._admission.close()
            self._task = asyncio.get_running_loop().create_task(self._drain())
            self._task.add_done_callback(lambda _: tell_the_server(number))
        elif self._task.done() or self._is_cut_short:
            tell_the_server(number)
        else:
            self._is_cut_short = True
            log.warning("Ждать не велено, оборвано ответов: %d.", self._admission.cancel_all())

    async def _drain(self) -> None:
        if self._admission.in_flight or self._admission.waiting:
            log.info("Шлюз останавливают: начатым ответам даётся %g с.", self._drain_seconds)
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._admission.empty()
        except TimeoutError:
            log.warning("Время вышло, оборвано ответов: %d.", self._admission.cancel_all())
