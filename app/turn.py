"""One turn: fit the history, ask vLLM, commit both messages together or nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from app.admission import Admission
from app.context import Pair
from app.errors import (
    SEE_VLLM_LOG,
    GatewayError,
    InvalidRequest,
    Overloaded,
    SessionNotFound,
    TurnCancelled,
    UpstreamGarbage,
    UpstreamRejected,
    UpstreamTimeout,
)
from app.idempotency import HEADER, KeptAnswer, digest
from app.metrics import Metrics
from app.progress import Progress
from app.prompt import Prompt, Prompts
from app.record import TurnRecord
from app.sessions import Session, SessionStore
from app.vllm import Answer, Message, ToolCall, Usage, VLLMClient

CANCELLED = "cancelled"
DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Question:
    """What one `/chat` asks.

    Attributes:
        message: the user's, at least one character.
        max_tokens: completion tokens at most.
        temperature: None is not sent, so that the model's own generation_config.json applies.
        extra: further fields of vLLM's request body.
        request_id: sent to vLLM as X-Request-Id.
        idempotency_key: by which the answer can be asked for again; None: it cannot.
    """

    message: str
    max_tokens: int
    temperature: float | None
    extra: Mapping[str, Any]
    request_id: str
    idempotency_key: str | None = None

    def digest(self) -> bytes:
        """Of all that is asked; the form of the answer is no part of it."""
        return digest(self.message, self.max_tokens, self.temperature, self.extra)


@dataclass(frozen=True, slots=True)
class ContextReceipt:
    """What of the conversation was sent, and what of it is still stored.

    Attributes:
        limit: the budget in prompt tokens.
        used: the gateway's own count, made before the request.
        history_pairs: earlier pairs sent.
        dropped_pairs: earlier pairs not sent, still in /history.
        forgotten_pairs: no longer stored.
        cached_tokens: prompt tokens that vLLM had in its prefix cache, where it says so.
    """

    limit: int
    used: int
    history_pairs: int
    dropped_pairs: int
    forgotten_pairs: int
    cached_tokens: int | None = None


@dataclass(slots=True)
class Reply:
    """What the model has said so far, from one JSON answer or from the events of a stream."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    finish_reason: str | None = None
    usage: Usage | None = None

    def add(self, answer: Answer) -> None:
        """Take an answer, or the next event, in."""
        if answer.usage is not None:
            self.usage = answer.usage
        if not answer.choices:
            return
        choice = answer.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        message = choice.message or choice.delta
        if message is None:
            return
        if message.content:
            self.text.append(message.content)
        if message.reasoning:
            self.reasoning.append(message.reasoning)
        if message.tool_calls:
            self._add_tool_calls(message.tool_calls)

    def _add_tool_calls(self, pieces: list[ToolCall]) -> None:
        for position, piece in enumerate(pieces):
            index = position if piece.index is None else piece.index
            call = self.tool_calls.setdefault(index, ToolCall(index=index))
            call.id = piece.id or call.id
            call.type = piece.type or call.type
            call.function.name = piece.function.name or call.function.name
            call.function.arguments = (call.function.arguments or "") + (piece.function.arguments or "")


@dataclass(frozen=True, slots=True)
class TurnResult:
    """A turn that ended with something to show: whole, or stopped on the way."""

    reply: str
    reasoning: str
    tool_calls: list[ToolCall]
    finish_reason: str | None
    usage: Usage | None
    context: ContextReceipt


class Sink(Protocol):
    """Where a stream goes."""

    async def open(self) -> None:
        """vLLM has accepted the request."""

    async def write(self, messages: list[Message]) -> None:
        """The next pieces, all that came with one read."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What all turns of a gateway work with.

    Attributes:
        sessions: what they belong to.
        vllm: whom they ask.
        prompts: makes what they ask.
        admission: lets them ask.
        progress: knows whether vLLM answers them.
        metrics: are told of them.
        max_session_bytes: text that one session may hold.
    """

    sessions: SessionStore
    vllm: VLLMClient
    prompts: Prompts
    admission: Admission
    progress: Progress
    metrics: Metrics
    max_session_bytes: int


class Turn:
    """One exchange of a session, which is busy with it while it is entered.

    `cancel()` may be called by anyone at any time: it closes the connection to vLLM at once, wherever the turn is.

    Attributes:
        finished: see `TurnInFlight`.
        cancelled: see `TurnInFlight`.
        is_repeated: whether the answer is that of an earlier turn, asked for again by its key.
        expires_in: whole seconds that the session had to live when the turn ended.
    """

    _session: Session

    def __init__(self, session_id: str, question: Question, resources: Resources) -> None:
        self.finished = asyncio.Event()
        self.cancelled = False
        self.is_repeated = False
        self.expires_in = 0
        self._session_id = session_id
        self._question = question
        self._sessions = resources.sessions
        self._vllm = resources.vllm
        self._prompts = resources.prompts
        self._admission = resources.admission
        self._max_session_bytes = resources.max_session_bytes
        self._metrics = resources.metrics
        self._record = TurnRecord(resources.metrics, resources.progress)
        self._replaces_last = False
        self._stopped = False
        self._lost: GatewayError | None = None
        self._time: asyncio.Timeout | None = None
        self._prompt: Prompt | None = None
        self._opened = False
        self._reply = Reply()
        self._is_committed = False

    async def __aenter__(self) -> Self:
        """Occupy the session.

        Raises:
            SessionNotFound, SessionBusy: see `SessionStore.begin`.
        """
        self._session = session = await self._sessions.begin(self._session_id, self)
        self._key = session.vllm_api_key  # which may be replaced meanwhile
        self._headers = {"X-Request-Id": self._question.request_id, "X-Session-Id": session.public_id}
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Free the session, where that is not done."""
        if not self._is_committed:
            self.expires_in = await self._sessions.release(self._session, self)

    def cancel(self) -> None:
        """Stop the turn; without effect once vLLM's answer is complete."""
        self._stopped = True
        if self._time is not None and not self._time.expired():
            self._time.reschedule(0)

    def lose(self, error: GatewayError) -> None:
        """See TurnInFlight; without effect where it is stopped already."""
        if not self._stopped:
            self._lost = error
            self.cancel()

    def reply(self) -> Awaitable[TurnResult]:
        """Ask for a JSON answer.

        Raises:
            TurnCancelled: stopped; nothing was committed.
        """
        return self._run(None)

    def stream(self, sink: Sink) -> Awaitable[TurnResult]:
        """Ask for a stream and pass it on to `sink`. Stopped after its start, it returns what had come by then.

        An answer that is repeated is returned only.

        Raises:
            TurnCancelled: stopped before vLLM accepted the request; nothing was committed.
        """
        return self._run(sink)

    async def _run(self, sink: Sink | None) -> TurnResult:
        outcome = "failed"
        try:
            if (earlier := self._earlier()) is not None:
                self.is_repeated = True
                outcome = "repeated"
                return earlier
            prompt = await self._ask_in_scope(partial(self._stream, sink) if sink else self._complete)
            if prompt is None:
                raise TurnCancelled
            result = self._finish(prompt)
            await self._commit()
        except GatewayError as exc:
            outcome = exc.code
            self._metrics.failed(exc)
            raise
        except asyncio.CancelledError:
            outcome = Overloaded.code  # so the client is told: the gateway ends
            raise
        else:
            outcome = CANCELLED if self.cancelled else "completed"
            return result
        finally:
            self._record.close(outcome, self._session.public_id, self._question.request_id, self._reply.usage)

    def _earlier(self) -> TurnResult | None:
        """The answer to the same question, if it was asked before with the same key.

        A stopped answer is no answer: where it is the last one, this turn replaces it.

        Raises:
            InvalidRequest: something else was asked with this key.
        """
        key, session = self._question.idempotency_key, self._session
        pair = session.asked_with(key) if key is not None else None
        if pair is None or pair.kept is None:
            return None
        if pair.kept.question != self._question.digest():
            raise InvalidRequest(
                f"С этим {HEADER} уже задан другой вопрос. Для нового вопроса нужен новый ключ.", field=HEADER
            )
        if pair.finish_reason == CANCELLED and pair is session.pairs[-1]:
            self._replaces_last = True
            return None
        return replace(msgspec.json.decode(pair.kept.answer, type=TurnResult), reply=pair.assistant)

    async def _ask_in_scope(self, ask: Callable[[dict[str, Any]], Awaitable[None]]) -> Prompt | None:
        """Fit and ask. None: cancelled with nothing to show for it."""
        try:
            # To stop is to have the time end now.
            async with asyncio.timeout(0 if self._stopped else self._vllm.total_timeout_seconds) as self._time:
                await self._fit_and_ask(ask)
        except TimeoutError:
            if not self._stopped:
                raise UpstreamTimeout from None
            if self._lost is not None:
                raise self._lost from None
            if self._reply.finish_reason is None:
                self.cancelled = True
                self._reply.finish_reason = CANCELLED
                return self._prompt if self._opened else None
        finally:
            self._time = None
        if self._reply.finish_reason is None:
            raise UpstreamGarbage(f"vLLM не закончил ответ: в нём нет finish_reason. {SEE_VLLM_LOG}")
        return self._prompt

    async def _fit_and_ask(self, ask: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        """Wait for a place, fit, ask; and once more where vLLM finds more tokens than was known until now."""
        async with self._admission as has_waited:
            self._record.admitted(has_waited=has_waited)
            if not self._vllm.max_model_len:  # it was another gateway that the session's key was shown to
                await self._vllm.prove_key(self._key)
            prompt = await self._fit()
            try:
                await self._ask(ask, prompt)
            except UpstreamRejected:
                agreement = self._prompts.agreement
                if not await agreement.explains_refusal(prompt.messages, self._question.extra, prompt.needed):
                    raise
                await self._ask(ask, await self._fit())

    async def _ask(self, ask: Callable[[dict[str, Any]], Awaitable[None]], prompt: Prompt) -> None:
        request = self._request(prompt)
        self._prompt = prompt
        self._record.history_pairs, self._record.dropped_pairs = prompt.history_pairs, prompt.dropped_pairs
        self._record.asks(self._key)
        try:
            await ask(request)
        finally:
            self._record.answered()

    async def _fit(self) -> Prompt:
        session, question = self._session, self._question
        talk = self._prompts.talk(session, question.message, without_last=self._replaces_last)
        allowed = self._prompts.budget(question.max_tokens)
        start = min(session.dropped_pairs, len(talk.pairs))
        return await self._prompts.fit(talk, session.surplus, allowed, extra=question.extra, start=start)

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        request = {
            **self._question.extra,
            "model": self._vllm.model,
            "messages": prompt.messages,
            "max_tokens": self._question.max_tokens,
        }
        if self._question.temperature is not None:
            request["temperature"] = self._question.temperature
        return request

    async def _complete(self, request: dict[str, Any]) -> None:
        self._reply.add(await self._vllm.complete(request, self._key, self._headers))
        self._record.read([])

    async def _stream(self, sink: Sink, request: dict[str, Any]) -> None:
        async with self._vllm.stream(request, self._key, self._headers) as stream:
            await sink.open()
            self._opened = True
            while answers := await stream.read():
                deltas = []
                for answer in answers:
                    self._reply.add(answer)
                    if answer.choices and answer.choices[0].delta:
                        deltas.append(answer.choices[0].delta)
                self._record.read(deltas)
                await sink.write(deltas)

    async def _commit(self) -> None:
        """Have the store keep what the turn has changed; where the session was ended, and with it the turn, nothing."""
        try:
            self.expires_in = await self._sessions.commit(self._session, self)
            self._is_committed = True
        except SessionNotFound:
            if not self._stopped or self._lost is not None:
                raise

    def _finish(self, prompt: Prompt) -> TurnResult:
        """Write the turn into the session, unless it was stopped before the first token of the reply."""
        reply, session = self._reply, self._session
        if reply.usage is not None:
            session.surplus = self._prompts.agreement.compare(prompt.needed, reply.usage.prompt_tokens)
        text = "".join(reply.text)
        dropped_pairs = prompt.dropped_pairs
        pair = None
        if text or not self.cancelled:
            self._record.newly_dropped_pairs = max(0, dropped_pairs - session.dropped_pairs)
            pair = Pair.of(self._question.message, text, reply.finish_reason)
            session.commit(pair, dropped_pairs, self._max_session_bytes, replaces_last=self._replaces_last)
            dropped_pairs = session.dropped_pairs
        details = reply.usage.prompt_tokens_details if reply.usage else None
        result = TurnResult(
            reply=text,
            reasoning="".join(reply.reasoning),
            tool_calls=list(reply.tool_calls.values()),
            finish_reason=reply.finish_reason,
            usage=reply.usage,
            context=ContextReceipt(
                limit=prompt.limit,
                used=prompt.used,
                history_pairs=prompt.history_pairs,
                dropped_pairs=dropped_pairs,
                forgotten_pairs=session.forgotten_pairs,
                cached_tokens=details.cached_tokens if details else None,
            ),
        )
        key = self._question.idempotency_key
        if pair is not None and key is not None:
            answer = msgspec.json.encode(replace(result, reply=""))
            session.keep(pair, KeptAnswer(key, self._question.digest(), answer))
        return result
