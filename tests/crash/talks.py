"""Clients that go on talking whatever happens, and remember what they were promised."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.scripted_vllm import KEY

_AGAIN_SECONDS = 0.05


@dataclass
class Talk:
    """One session, and what became of every question in it.

    Attributes:
        id: of the session.
        asks_again: what is in doubt is asked again, with the same `Idempotency-Key`, until there is an answer.
        answers: of the turns that were acknowledged, by the number of the question.
        in_doubt: questions that nobody has answered: there may be a turn, or none.
        busy_seconds: the longest time for which it was occupied by a turn that nobody waited for.
    """

    id: str
    asks_again: bool
    answers: dict[int, str] = field(default_factory=dict)
    in_doubt: set[int] = field(default_factory=set)
    busy_seconds: float = 0.0

    async def lead(self, clients: Sequence[httpx2.AsyncClient], goes_on: Callable[[int], bool]) -> None:
        """Ask one question after another of any gateway, for as long as `goes_on` says so of the next one."""
        number, busy_since = 0, 0.0
        while goes_on(number):
            outcome = await self._ask(random.choice(clients), number)
            if outcome == "session_busy":
                busy_since = busy_since or time.monotonic()
                self.busy_seconds = max(self.busy_seconds, time.monotonic() - busy_since)
            else:
                busy_since = 0.0
            if outcome == "answered" or (outcome == "in doubt" and not self.asks_again):
                number += 1
            else:
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _ask(self, client: httpx2.AsyncClient, number: int) -> str:
        """Ask a question, and note what became of it: it is answered, in doubt, or refused with the code returned."""
        try:
            status, answer = await _ask(client, self.id, number, stream=random.random() < 0.5)
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            return "not asked"
        except (httpx2.HTTPError, httpx2.SSEError):
            self.in_doubt.add(number)
            return "in doubt"
        if status == 200:
            self.answers[number] = answer["reply"]
            self.in_doubt.discard(number)
            return "answered"
        if answer["code"] == "store_unavailable":
            self.in_doubt.add(number)
            return "in doubt"
        assert answer["code"] in {"session_busy", "overloaded"}, answer
        return str(answer["code"])

    def check(self, messages: Sequence[dict[str, Any]]) -> int:
        """Compare with a history; returns how many turns it holds that were in doubt to the end.

        All that was acknowledged is there as it was, nothing else but what is in doubt, each once and in order.
        """
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        kept = {
            int(question["content"].split()[1]): answer["content"]
            for question, answer in zip(messages[::2], messages[1::2], strict=True)
        }
        assert len(kept) * 2 == len(messages), "no turn is there twice"
        assert list(kept) == sorted(kept), "in the order of the questions"
        assert kept.items() >= self.answers.items(), "an acknowledged turn is lost"
        assert kept.keys() <= self.answers.keys() | self.in_doubt
        return len(kept) - len(self.answers)


async def _ask(client: httpx2.AsyncClient, session_id: str, number: int, *, stream: bool) -> tuple[int, Any]:
    """The status and the answer, or the problem, of one question; of a stream those of its last event."""
    body = {"session_id": session_id, "message": f"вопрос {number}", "stream": stream}
    headers = {"Idempotency-Key": str(number)}
    if not stream:
        response = await client.post("/chat", json=body, headers=headers)
        return response.status_code, response.json()
    async with client.sse("/chat", method="POST", json=body, headers=headers) as source:
        if source.response.status_code != 200:
            return source.response.status_code, json.loads(await source.response.aread())
        last = None
        async for event in source:
            last = event
    if last is None or last.event not in {"done", "error"}:
        raise httpx2.RemoteProtocolError("the stream has no end")
    answer: Any = last.json()
    return (200 if last.event == "done" else answer["status"]), answer


async def open_talks(client: httpx2.AsyncClient, count: int) -> list[Talk]:
    """So many new sessions; in every second one what is in doubt is asked again."""
    answers = [await client.post("/init_session", json={"vllm_api_key": KEY}) for _ in range(count)]
    return [Talk(answer.json()["session_id"], asks_again=bool(number % 2)) for number, answer in enumerate(answers)]
