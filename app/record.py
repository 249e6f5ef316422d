"""What is measured of one turn; the log and the metrics are told when it is over."""

import logging
import time
from collections.abc import Sequence
from functools import partial

from pydantic import SecretStr

from app.logs import fields
from app.metrics import Metrics
from app.progress import Progress
from app.vllm import Message, Usage

log = logging.getLogger("app.turn")


class TurnRecord:
    """One turn's times and counts, noted as they come.

    Attributes:
        dropped_pairs: pairs left out of its prompt.
        newly_dropped_pairs: those of them that the prompt before still had.
        history_pairs: pairs sent.
    """

    def __init__(self, metrics: Metrics, progress: Progress) -> None:
        """The turn begins now."""
        self.history_pairs = self.dropped_pairs = self.newly_dropped_pairs = 0
        self._metrics = metrics
        self._progress = progress
        self._started = time.perf_counter()
        self._is_admitted = False
        self._waited_seconds = 0.0
        self._own_seconds = 0.0
        self._own_since: float | None = self._started
        self._first_token_seconds: float | None = None
        self._last_read = 0.0

    def admitted(self, *, has_waited: bool) -> None:
        """The turn may ask vLLM, at once or after a while in the waiting room."""
        self._is_admitted = True
        if has_waited:
            self._own_since = time.perf_counter()
            self._waited_seconds = self._own_since - self._started
            self._metrics.wait.observe(self._waited_seconds)

    def asks(self, key: SecretStr) -> None:
        """The request to vLLM is made: what comes now takes vLLM's time."""
        self._stop_own()
        self._progress.began(self, key)

    def answered(self) -> None:
        """vLLM has said all, or failed: what comes now takes the gateway's time."""
        self._progress.ended(self)
        self._own_since = time.perf_counter()

    def read(self, pieces: Sequence[Message]) -> None:
        """Something has come: of a stream the next pieces, or all there is."""
        now = self._progress.moved()
        for piece in pieces:
            if piece.content or piece.reasoning or piece.tool_calls:
                break
        else:
            return
        if self._first_token_seconds is None:
            self._first_token_seconds = now - self._started
            self._metrics.time_to_first_token.observe(self._first_token_seconds)
        else:
            self._metrics.inter_token.observe(now - self._last_read)
        self._last_read = now

    def close(self, outcome: str, session: str, request_id: str, usage: Usage | None) -> None:
        """The turn is over.

        Args:
            outcome: completed, cancelled, repeated, an error's code, or failed: by a defect.
            session: its public id.
            request_id: of the request that asked for it.
            usage: vLLM's own counts, where it sent them.
        """
        self._stop_own()
        seconds = time.perf_counter() - self._started
        if not self._is_admitted:
            self._waited_seconds, self._own_seconds = seconds, 0.0
        self._metrics.later(partial(self._tell, outcome, session, request_id, usage, seconds))

    def _tell(self, outcome: str, session: str, request_id: str, usage: Usage | None, seconds: float) -> None:
        metrics = self._metrics
        metrics.turns.labels(outcome).inc()
        if outcome == "completed":
            metrics.turn.observe(seconds)
            metrics.added.observe(self._own_seconds)
        if self.newly_dropped_pairs:
            metrics.dropped_pairs.inc(self.newly_dropped_pairs)
        cached = None
        if usage is not None:
            cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
            metrics.prompt_tokens.inc(usage.prompt_tokens)
            metrics.completion_tokens.inc(usage.completion_tokens or 0)
            metrics.cached_tokens.inc(cached or 0)
        if log.isEnabledFor(logging.INFO):
            first_token = self._first_token_seconds
            told = fields(
                outcome=outcome,
                session=session[:8],
                request=request_id,
                prompt_tokens=usage.prompt_tokens if usage else None,
                completion_tokens=usage.completion_tokens if usage else None,
                cached_tokens=cached,
                history_pairs=self.history_pairs,
                dropped_pairs=self.dropped_pairs,
                seconds=round(seconds, 4),
                first_token_seconds=first_token and round(first_token, 4),
                waited_seconds=round(self._waited_seconds, 4),
                added_seconds=round(self._own_seconds, 4),
            )
            log.info("turn", extra=told)

    def _stop_own(self) -> None:
        if self._own_since is not None:
            self._own_seconds += time.perf_counter() - self._own_since
            self._own_since = None
