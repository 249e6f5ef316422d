"""The store in memory, by a clock that the test moves; what every store does is in `test_contract`."""

import asyncio

import pytest
from pydantic import SecretStr

from app.errors import Overloaded, SessionNotFound
from app.memory_store import MemoryStore
from app.sessions import Session
from tests.stores.turns import Clock, IdleTurn

pytestmark = pytest.mark.anyio


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
    await store.require(session.id)
    clock.now += 0.2
    with pytest.raises(SessionNotFound):
        await store.require(session.id)
    assert await store.count() == 0, "gone on access, without the sweeper"


async def test_reading_starts_the_time_anew(store: MemoryStore, clock: Clock) -> None:
    session = await new_session(store)
    clock.now += 599
    assert await store.read(session.id) == (session, 600)
    clock.now += 599
    await store.require(session.id)


async def test_a_session_with_a_turn_in_flight_does_not_expire(store: MemoryStore, clock: Clock) -> None:
    session, turn = await new_session(store), IdleTurn()
    await store.begin(session.id, turn)
    clock.now += 10_000
    assert await store.sweep() == 0
    await store.require(session.id)
    await store.release(session, turn)
    assert await store.sweep() == 0, "its time has begun anew"
    clock.now += 601
    assert await store.sweep() == 1


async def test_the_sweeper_removes_what_expired_and_nothing_else(store: MemoryStore, clock: Clock) -> None:
    busy, old, renewed = [await new_session(store) for _ in range(3)]
    await store.begin(busy.id, IdleTurn())
    clock.now += 300
    await store.read(renewed.id)
    clock.now += 400
    assert await store.sweep() == 1
    await store.require(busy.id)
    await store.require(renewed.id)
    with pytest.raises(SessionNotFound):
        await store.require(old.id)


async def test_a_newcomer_is_told_when_there_may_be_room(store: MemoryStore, clock: Clock) -> None:
    for _ in range(3):
        await new_session(store)
    clock.now += 100
    with pytest.raises(Overloaded) as caught:
        await new_session(store)
    assert caught.value.helpful == {"retry_after": 500}


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
    await store.begin(sessions[0].id, IdleTurn())
    clock.now += 601
    assert await store.sweep() == 2
    await store.require(sessions[0].id)
