"""Whatever is done through several gateways with their copies, a session is what it would be in the memory of one."""

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from fractions import Fraction
from typing import ClassVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pydantic import SecretStr

from app.context import Pair, Surplus
from app.errors import NothingToUndo
from app.idempotency import KeptAnswer
from app.memory_store import MemoryStore
from app.sessions import Session, SessionStore, T
from tests.fuzz.watched import TIMES
from tests.redis_process import RedisProcess
from tests.stores.conftest import redis_store
from tests.stores.turns import IdleTurn

GATEWAYS = 3
MAX_BYTES = 60

gateways = st.integers(0, GATEWAYS - 1)
texts = st.text("aя", max_size=20)


class OneSession(RuleBasedStateMachine):
    """A session, used through any gateway; and the same one in memory."""

    redis: ClassVar[RedisProcess]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.opened = AsyncExitStack()
        self.memory: SessionStore = MemoryStore(600, 10)
        self.gateways = [self.run(self.opened.enter_async_context(redis_store(self.redis))) for _ in range(GATEWAYS)]
        sessions = [Session(SecretStr("key"), "п", "its id") for _ in range(2)]
        self.redis.client.flushall()
        self.run(self.memory.add(sessions[0]))
        self.run(self.gateways[0].add(sessions[1]))

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.runner.run(work)

    def both(self, gateway: int) -> tuple[SessionStore, SessionStore]:
        return self.memory, self.gateways[gateway]

    @rule(gateway=gateways, user=texts, assistant=texts, dropped=st.integers(0, 3), replaces_last=st.booleans())
    def take_turn(self, gateway: int, user: str, assistant: str, dropped: int, replaces_last: bool) -> None:  # noqa: FBT001
        for store in self.both(gateway):
            self.run(self.turn_on(store, Pair.of(user, assistant, "stop"), dropped, replaces_last=replaces_last))

    async def turn_on(self, store: SessionStore, said: Pair, dropped: int, *, replaces_last: bool) -> None:
        turn = IdleTurn()
        session = await store.begin("its id", turn)
        session.surplus = Surplus(dropped, Fraction(dropped + 3, 3))
        replaces_last = replaces_last and bool(session.pairs)
        session.commit(said, min(dropped, len(session.pairs)), MAX_BYTES, replaces_last=replaces_last)
        if dropped == 1:
            session.keep(said, KeptAnswer("a key", b"question", b"answer"))
        await store.commit(session, turn)

    @rule(gateway=gateways)
    def begin_in_vain(self, gateway: int) -> None:
        for store in self.both(gateway):
            turn = IdleTurn()
            self.run(store.release(self.run(store.begin("its id", turn)), turn))

    @rule(gateway=gateways)
    def undo(self, gateway: int) -> None:
        assert self.outcomes(gateway, Session.undo) in ([False, False], [True, True])

    @rule(gateway=gateways)
    def reset(self, gateway: int) -> None:
        self.outcomes(gateway, Session.reset)

    @rule(gateway=gateways, prompt=texts)
    def set_system_prompt(self, gateway: int, prompt: str) -> None:
        self.outcomes(gateway, lambda session: session.set_system_prompt(prompt, MAX_BYTES))

    def outcomes(self, gateway: int, change: Callable[[Session], object]) -> list[bool]:
        """Whether it could be done, with each store."""
        done = []
        for store in self.both(gateway):
            try:
                self.run(store.change("its id", change))
            except NothingToUndo:
                done.append(False)
            else:
                done.append(True)
        return done

    @rule(gateway=gateways, key=st.text("ab", min_size=1, max_size=3))
    def replace_key(self, gateway: int, key: str) -> None:
        for store in self.both(gateway):
            self.run(store.replace_key("its id", SecretStr(key)))

    @rule(gateway=gateways)
    def is_the_same(self, gateway: int) -> None:
        mine, its = [self.run(store.read("its id"))[0] for store in self.both(gateway)]
        assert shown(mine) == shown(its)

    @invariant()
    def is_the_same_for_one_that_knows_nothing(self) -> None:
        assert self.run(self.seen_anew()) == shown(self.run(self.memory.read("its id"))[0])

    async def seen_anew(self) -> object:
        async with redis_store(self.redis) as store:
            return shown((await store.read("its id"))[0])

    def teardown(self) -> None:
        self.run(self.opened.aclose())
        self.runner.close()


def shown(session: Session) -> object:
    """All that there is to a session."""
    return dataclasses.asdict(session)


def test_copies(redis: RedisProcess) -> None:
    OneSession.redis = redis
    bounds = settings(
        max_examples=20 * TIMES, stateful_step_count=20, derandomize=TIMES == 1, deadline=None, database=None
    )
    run_state_machine_as_test(OneSession, settings=bounds)
