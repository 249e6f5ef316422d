"""Sessions and the store that keeps them in memory."""

import asyncio
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.context import Pair
from app.errors import NothingToUndo, Overloaded, SessionBusy, SessionNotFound
from app.sessions import MemoryStore, Session

pytestmark = pytest.mark.anyio


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class IdleTurn:
    """A turn that does nothing."""

    def __init__(self) -> None:
        self.finished = asyncio.Event()
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return MemoryStore(ttl_seconds=600, max_sessions=3, clock=clock)


async def new_session(store: MemoryStore) -> Session:
    session = Session(SecretStr("key"), "prompt")
    await store.add(session)
    return session


async def test_a_session_is_found_until_its_time_is_up(store: MemoryStore, clock: Clock) -> None:
    session = await new_session(store)
    clock.now += 599.9
    assert await store.get(session.id) is session
    clock.now += 0.2
    with pytest.raises(SessionNotFound):
        await store.get(session.id)
    assert await store.count() == 0, "gone on access, without the sweeper"


async def test_renewing_starts_the_time_anew(store: MemoryStore, clock: Clock) -> None:
    session = await new_session(store)
    clock.now += 599
    assert await store.renew(session) == 600
    clock.now += 599
    assert await store.get(session.id) is session


async def test_a_session_with_a_turn_in_flight_does_not_expire(store: MemoryStore, clock: Clock) -> None:
    session = await new_session(store)
    session.begin(IdleTurn())
    clock.now += 10_000
    assert await store.sweep() == 0
    assert await store.get(session.id) is session
    session.end()
    assert await store.sweep() == 1


async def test_the_sweeper_removes_what_expired_and_nothing_else(store: MemoryStore, clock: Clock) -> None:
    busy, old, renewed = [await new_session(store) for _ in range(3)]
    busy.begin(IdleTurn())
    clock.now += 300
    await store.renew(renewed)
    clock.now += 400
    assert await store.sweep() == 1
    assert await store.get(busy.id) is busy
    assert await store.get(renewed.id) is renewed
    with pytest.raises(SessionNotFound):
        await store.get(old.id)


async def test_nobody_is_evicted_for_a_newcomer(store: MemoryStore, clock: Clock) -> None:
    sessions = [await new_session(store) for _ in range(3)]
    clock.now += 100
    with pytest.raises(Overloaded) as caught:
        await new_session(store)
    assert caught.value.helpful == {"retry_after": 500}
    assert [await store.get(session.id) for session in sessions] == sessions


async def test_expired_sessions_make_room_before_the_sweeper_comes(store: MemoryStore, clock: Clock) -> None:
    for _ in range(3):
        await new_session(store)
    clock.now += 601
    await new_session(store)
    assert await store.count() == 1


async def test_others_go_on_while_many_sessions_are_removed(clock: Clock) -> None:
    store = MemoryStore(ttl_seconds=600, max_sessions=2000, clock=clock)
    for _ in range(2000):
        await new_session(store)
    clock.now += 601
    rounds = 0

    async def work() -> None:
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0)

    worker = asyncio.create_task(work())
    await asyncio.sleep(0)
    rounds = 0
    assert await store.sweep() == 2000
    worker.cancel()
    assert rounds >= 10
    assert await store.count() == 0


async def test_a_turn_that_outlasts_its_session_is_passed_over_by_the_sweep(store: MemoryStore, clock: Clock) -> None:
    sessions = [await new_session(store) for _ in range(3)]
    sessions[0].begin(IdleTurn())
    clock.now += 601
    assert await store.sweep() == 2
    assert await store.get(sessions[0].id) is sessions[0]


async def test_removing_twice_is_no_error(store: MemoryStore) -> None:
    session = await new_session(store)
    await store.remove(session)
    await store.remove(session)
    with pytest.raises(SessionNotFound):
        await store.get(session.id)


async def test_renewing_a_removed_session_does_not_bring_it_back(store: MemoryStore) -> None:
    session = await new_session(store)
    await store.remove(session)
    await store.renew(session)
    with pytest.raises(SessionNotFound):
        await store.get(session.id)


async def test_one_turn_at_a_time() -> None:
    session = Session(SecretStr("key"), "")
    first = IdleTurn()
    session.begin(first)
    for refused in (lambda: session.begin(IdleTurn()), session.undo, session.reset, session.require_idle):
        with pytest.raises(SessionBusy):
            refused()
    session.end()
    assert first.finished.is_set()
    session.begin(IdleTurn())


def test_undo_of_nothing() -> None:
    with pytest.raises(NothingToUndo):
        Session(SecretStr("key"), "").undo()


def test_a_session_does_not_show_its_secrets() -> None:
    session = Session(SecretStr("the-key"), "the prompt")
    session.commit(Pair.of("the question", "the answer", "stop"), 0, 1000)
    shown = repr(session)
    for secret in ("the-key", "the prompt", "the question", "the answer", session.id):
        assert secret not in shown
    assert session.id not in session.public_id
    assert session.public_id == session.public_id != Session(SecretStr("the-key"), "").public_id


pieces = st.text("aя", max_size=20)
commits = st.tuples(st.just("commit"), pieces, pieces, st.integers(0, 5))
restores = st.tuples(st.just("restore"), st.lists(pieces, max_size=5))
prompts = st.tuples(st.just("prompt"), pieces.map(lambda text: text[:15]))


@given(
    st.lists(st.one_of(commits, restores, prompts, st.tuples(st.sampled_from(["undo", "reset"]))), max_size=40),
    st.integers(30, 200),
)
def test_the_text_stays_within_its_bound_whatever_happens(steps: list[tuple[Any, ...]], max_bytes: int) -> None:
    session = Session(SecretStr("key"), "промпт")
    committed = removed = 0
    for name, *arguments in steps:
        if name == "commit":
            user, assistant, dropped = arguments
            session.commit(Pair.of(user, assistant, "stop"), min(dropped, len(session.pairs)), max_bytes)
            committed += 1
        elif name == "restore":
            session.extend([Pair.of(text, text, None) for text in arguments[0]], max_bytes)
            committed += len(arguments[0])
        elif name == "prompt":
            session.set_system_prompt(arguments[0], max_bytes)
        elif name == "undo" and session.pairs:
            session.undo()
            removed += 1
        elif name == "reset":
            session.reset()
            committed = removed = 0
        text_bytes = len(session.system_prompt.encode()) + sum(pair.size_bytes for pair in session.pairs)
        assert text_bytes <= max_bytes
        assert len(session.pairs) + session.forgotten_pairs + removed == committed
        assert 0 <= session.dropped_pairs <= len(session.pairs)


async def test_the_store_needs_no_event_loop_of_its_own() -> None:
    store = MemoryStore(1, 1)
    session = await new_session(store)
    await anyio.sleep(1.05)
    with pytest.raises(SessionNotFound):
        await store.get(session.id)
