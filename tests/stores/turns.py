"""What stores are tested with: time that a test moves, and turns that do nothing."""

import asyncio

from app.errors import GatewayError


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class IdleTurn:
    """A turn that does nothing; see TurnInFlight."""

    def __init__(self) -> None:
        self.finished = asyncio.Event()
        self.cancelled = False
        self.stopped = asyncio.Event()
        self.lost: GatewayError | None = None

    def cancel(self) -> None:
        """Note that it was asked to stop."""
        self.stopped.set()

    def lose(self, error: GatewayError) -> None:
        """Note why."""
        self.lost = error
