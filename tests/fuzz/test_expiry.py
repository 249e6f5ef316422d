"""A store's sessions end when their time is over, neither before nor after, whatever is done with them meanwhile.

On the store itself, with a clock of the test's own: through HTTP it would be a race against the real one.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from pydantic import SecretStr

from app.errors import GatewayError, Overloaded, SessionNotFound
from app.memory_store import MemoryStore
from app.sessions import Session
from tests.fuzz.watched import TIMES

TTL_SECONDS = 10
MAX_SESSIONS = 3

T = TypeVar("T")
choices = st.integers(0, 100)


class Turn:
    """As much of one as a store knows."""

    def __init__(self) -> None:
        self.finished = asyncio.Event()
        self.cancelled = False

    def cancel(self) -> None:
        """See TurnInFlight."""

    def lose(self, error: GatewayError) -> None:
        """See TurnInFlight."""


@dataclass
class Known:
    """A session, and when it must end."""

    session: Session
    end: int
    turn: Turn | None = None
    is_removed: bool = False


class Store(RuleBasedStateMachine):
    """Everything that is done with a store, at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.runner = asyncio.Runner()
        self.store = MemoryStore(TTL_SECONDS, MAX_SESSIONS, clock=lambda: self.now)
        self.known: list[Known] = []

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.runner.run(work)

    def one(self, choice: int) -> Known:
        """Any session that there ever was."""
        return self.known[choice % len(self.known)]

    def is_live(self, known: Known) -> bool:
        return not known.is_removed and (known.turn is not None or known.end > self.now)

    def live(self) -> list[Known]:
        return [known for known in self.known if self.is_live(known)]

    @rule()
    def add(self) -> None:
        session = Session(SecretStr("key"), "")
        if len(self.live()) < MAX_SESSIONS:
            assert self.run(self.store.add(session)) == TTL_SECONDS
            self.known.append(Known(session, self.now + TTL_SECONDS))
            return
        with pytest.raises(Overloaded) as caught:
            self.run(self.store.add(session))
        first = min(known.end for known in self.known if self.is_live(known))
        assert caught.value.helpful["retry_after"] == max(1, first - self.now)

    @rule(seconds=st.integers(1, TTL_SECONDS + 1))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @precondition(lambda self: self.known)
    @rule(choice=choices)
    def use(self, choice: int) -> None:
        """As every request does."""
        known = self.one(choice)
        if not self.is_live(known):
            with pytest.raises(SessionNotFound):
                self.run(self.store.read(known.session.id))
            known.is_removed = True
            return
        assert self.run(self.store.read(known.session.id)) == (known.session, TTL_SECONDS)
        known.end = self.now + TTL_SECONDS

    @precondition(lambda self: self.live())
    @rule(choice=choices)
    def begin_or_end_a_turn(self, choice: int) -> None:
        known = self.live()[choice % len(self.live())]
        if known.turn is None:
            known.turn = Turn()
            assert self.run(self.store.begin(known.session.id, known.turn)) is known.session
        else:
            assert self.run(self.store.release(known.session, known.turn)) == TTL_SECONDS
            known.turn = None
        known.end = self.now + TTL_SECONDS

    @precondition(lambda self: self.live())
    @rule(choice=choices)
    def remove(self, choice: int) -> None:
        """Also while a turn is in flight, which ends then in what is gone."""
        known = self.live()[choice % len(self.live())]
        self.run(self.remove_and_release(known))
        known.is_removed = True

    async def remove_and_release(self, known: Known) -> None:
        stopping = asyncio.create_task(self.store.stop(known.session.id))
        await asyncio.sleep(0)
        if known.turn is not None:
            assert not stopping.done()
            assert await self.store.release(known.session, known.turn) == 0
        await stopping

    @rule()
    def sweep(self) -> None:
        self.run(self.store.sweep())
        assert self.run(self.store.count()) == len(self.live()), "all that has expired, and nothing else"

    @invariant()
    def no_more_are_kept_than_may_be(self) -> None:
        assert len(self.live()) <= self.run(self.store.count()) <= MAX_SESSIONS

    def teardown(self) -> None:
        self.runner.close()


def test_expiry() -> None:
    bounds = settings(
        max_examples=200 * TIMES, stateful_step_count=30, derandomize=TIMES == 1, deadline=None, database=None
    )
    run_state_machine_as_test(Store, settings=bounds)
