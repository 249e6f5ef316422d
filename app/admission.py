"""Who may ask vLLM now: so many at once, some more wait a while, and nobody new once the gateway is being stopped."""

import asyncio
import math
from types import TracebackType

from app.config import Settings
from app.errors import Overloaded

# Time for whatever supervises the gateway to start it again.
_RESTART_SECONDS = 5


class Admission:
    """Places for requests to vLLM, taken by `async with`. Whoever has or awaits one is known by its task.

    Attributes:
        waiting: how many wait for a place.
        is_closing: nobody new is let in.
    """

    def __init__(self, settings: Settings) -> None:
        self.waiting = 0
        self.is_closing = False
        self._places = settings.max_concurrent_requests
        self._max_waiting = settings.max_waiting_requests
        self._max_wait_seconds = settings.max_wait_seconds
        self._sessions_stay = not settings.keeps_sessions_in_memory
        self._free = asyncio.Semaphore(self._places)
        self._admitted: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def in_flight(self) -> int:
        """How many have a place."""
        return len(self._admitted) - self.waiting

    async def __aenter__(self) -> bool:
        """Take a place, waiting for one if need be, first come first served; returns whether it was need.

        Raises:
            Overloaded: too many wait already, none became free in time, or the gateway is being stopped.
        """
        self.require_open()
        task = asyncio.current_task()
        assert task is not None
        assert task not in self._admitted, "one place at a time"
        if self._free.locked() and self.waiting >= self._max_waiting:
            raise self._overloaded(f"и ждут ещё {self.waiting}" if self.waiting else "а ждать места не разрешено")
        self._admitted.add(task)
        self._empty.clear()
        must_wait = self._free.locked()
        try:
            if must_wait:
                await self._wait()
            else:
                await self._free.acquire()
        except BaseException:
            self._forget(task)
            raise
        return must_wait

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the place back."""
        self._free.release()
        task = asyncio.current_task()
        assert task is not None
        self._forget(task)

    def require_open(self) -> None:
        """Raise Overloaded once the gateway is being stopped."""
        if self.is_closing:
            raise self.stopping()

    def stopping(self) -> Overloaded:
        """What is told to those who come, or are still here, when the gateway ends."""
        return Overloaded(
            "Шлюз останавливают. Сессия останется: повторите запрос, когда он запустится."
            if self._sessions_stay
            else "Шлюз останавливают, и его сессии пропадут. Когда он запустится, откройте новую: POST /init_session.",
            retry_after=_RESTART_SECONDS,
        )

    def close(self) -> None:
        """Let nobody in any more; those who wait already go on."""
        self.is_closing = True

    async def empty(self) -> None:
        """Wait until nobody has or awaits a place."""
        await self._empty.wait()

    def cancel_all(self) -> int:
        """Cancel the tasks of all who have or await a place; returns how many."""
        for task in self._admitted:
            task.cancel()
        return len(self._admitted)

    async def _wait(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_seconds):
                await self._free.acquire()
        except TimeoutError:
            raise self._overloaded(f"и за {self._max_wait_seconds:g} с место не освободилось") from None
        finally:
            self.waiting -= 1

    def _forget(self, task: "asyncio.Task[object]") -> None:
        self._admitted.discard(task)
        if not self._admitted:
            self._empty.set()

    def _overloaded(self, what: str) -> Overloaded:
        return Overloaded(
            f"Шлюз занят: у vLLM уже столько запросов, сколько можно (MAX_CONCURRENT_REQUESTS={self._places}), {what}. "
            "Повторите позже.",
            retry_after=math.ceil(self._max_wait_seconds),
        )
