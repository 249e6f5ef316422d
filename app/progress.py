"""Whether the requests that vLLM has taken move."""

import time

from pydantic import SecretStr


class Progress:
    """The requests that vLLM works on, and when it last said anything to any of them.

    Attributes:
        moved_at: the latter, by `time.perf_counter`.
    """

    def __init__(self) -> None:
        self.moved_at = 0.0
        self._running: dict[object, tuple[float, SecretStr]] = {}

    def moved(self) -> float:
        """vLLM has said something; returns when."""
        self.moved_at = time.perf_counter()
        return self.moved_at

    def began(self, request: object, key: SecretStr) -> None:
        """vLLM is being asked, with this key."""
        self._running[request] = (time.perf_counter(), key)

    def ended(self, request: object) -> None:
        """vLLM works on it no more; without effect where it never did."""
        self._running.pop(request, None)

    def silence(self) -> tuple[float, SecretStr] | None:
        """For how many seconds nothing has come though something was to come, and the key of the longest request.

        None where vLLM works on nothing.
        """
        if not self._running:
            return None
        began_at, key = next(iter(self._running.values()))
        return time.perf_counter() - max(began_at, self.moved_at), key
