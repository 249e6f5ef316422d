"""What every store promises, each of them tried with it."""

import asyncio
from fractions import Fraction

import pytest
from pydantic import SecretStr

from app.context import Pair, Surplus
from app.errors import NothingToUndo, Overloaded, SessionBusy, SessionNotFound
from app.idempotency import KeptAnswer
from app.sessions import Session, SessionStore
from tests.stores.conftest import MAX_SESSIONS, OpenStore
from tests.stores.turns import IdleTurn

pytestmark = pytest.mark.anyio

MAX_BYTES = 10_000


async def new_session(store: SessionStore, pairs: int = 0) -> Session:
    session = Session(SecretStr("the-key"), "промпт")
    session.extend([pair(number) for number in range(pairs)], MAX_BYTES)
    assert await store.add(session) == 600
    return session


def pair(number: int) -> Pair:
    return Pair.of(f"вопрос {number}", f"ответ {number}", "stop")


async def take_turn(store: SessionStore, session_id: str, said: Pair, *, dropped_pairs: int = 0) -> None:
    turn = IdleTurn()
    session = await store.begin(session_id, turn)
    session.commit(said, dropped_pairs, MAX_BYTES)
    assert await store.commit(session, turn) == 600
    assert turn.finished.is_set()


async def pairs_of(store: SessionStore, session_id: str) -> list[Pair]:
    return (await store.read(session_id))[0].pairs


async def test_what_was_added_is_found_again(store: SessionStore) -> None:
    session = Session(SecretStr("the-key"), "промпт")
    session.extend([Pair.of("а", "б", None), Pair.of("\x00", "🙂", "length")], MAX_BYTES)
    session.dropped_pairs = 1
    session.surplus = Surplus(7, Fraction(5, 3))
    await store.add(session)
    await store.require(session.id)
    found, expires_in = await store.read(session.id)
    assert expires_in == 600
    assert found.vllm_api_key.get_secret_value() == "the-key"
    assert (found.id, found.public_id) == (session.id, session.public_id)
    assert (found.system_prompt, found.pairs) == (session.system_prompt, session.pairs)
    assert (found.dropped_pairs, found.forgotten_pairs, found.surplus) == (1, 0, session.surplus)


@pytest.mark.parametrize("session_id", ["", "no such", "\ud800", "x" * 100_000])
async def test_what_was_not_added_is_not_found(store: SessionStore, session_id: str) -> None:
    await new_session(store)
    for look_up in (
        lambda: store.require(session_id),
        lambda: store.read(session_id),
        lambda: store.begin(session_id, IdleTurn()),
        lambda: store.change(session_id, Session.reset),
        lambda: store.replace_key(session_id, SecretStr("other")),
        lambda: store.cancel(session_id),
        lambda: store.stop(session_id),
    ):
        with pytest.raises(SessionNotFound):
            await look_up()


async def test_a_turn_is_kept_whole(store: SessionStore) -> None:
    session = await new_session(store, pairs=2)
    turn = IdleTurn()
    changed = await store.begin(session.id, turn)
    changed.surplus = Surplus(1, Fraction(3, 2))
    said = pair(2)
    changed.commit(said, 1, MAX_BYTES)
    changed.keep(said, KeptAnswer("a key", b"digest", b"{}"))
    await store.commit(changed, turn)
    found, _ = await store.read(session.id)
    assert found.pairs[:2] == [pair(0), pair(1)]
    assert (found.pairs[2].user, found.pairs[2].kept) == (said.user, KeptAnswer("a key", b"digest", b"{}"))
    assert (found.dropped_pairs, found.surplus) == (1, Surplus(1, Fraction(3, 2)))
    assert found.asked_with("a key") == found.pairs[2]


async def test_what_a_turn_changes_is_not_seen_before_it_commits(store: SessionStore) -> None:
    session = await new_session(store, pairs=1)
    turn = IdleTurn()
    changed = await store.begin(session.id, turn)
    assert await pairs_of(store, session.id) == [pair(0)]
    assert not turn.finished.is_set()
    assert await store.release(changed, turn) == 600
    assert turn.finished.is_set()
    assert await pairs_of(store, session.id) == [pair(0)]
    await take_turn(store, session.id, pair(1))
    assert await pairs_of(store, session.id) == [pair(0), pair(1)]


async def test_one_turn_at_a_time(store: SessionStore) -> None:
    session = await new_session(store, pairs=1)
    turn = IdleTurn()
    changed = await store.begin(session.id, turn)
    for refused in (
        lambda: store.begin(session.id, IdleTurn()),
        lambda: store.change(session.id, Session.undo),
        lambda: store.change(session.id, Session.reset),
    ):
        with pytest.raises(SessionBusy):
            await refused()
    changed.commit(pair(1), 0, MAX_BYTES)
    await store.commit(changed, turn)
    assert await pairs_of(store, session.id) == [pair(0), pair(1)]


async def test_a_turn_may_take_the_place_of_the_last_one(store: SessionStore) -> None:
    session = await new_session(store, pairs=3)
    turn = IdleTurn()
    changed = await store.begin(session.id, turn)
    changed.commit(pair(7), 0, MAX_BYTES, replaces_last=True)
    await store.commit(changed, turn)
    assert await pairs_of(store, session.id) == [pair(0), pair(1), pair(7)]
    await take_turn(store, session.id, pair(8))
    assert await pairs_of(store, session.id) == [pair(0), pair(1), pair(7), pair(8)]


async def test_the_oldest_pairs_are_forgotten(store: SessionStore) -> None:
    session = await new_session(store)
    size = Pair.of("вопрос 0", "ответ 0", "stop").size_bytes
    room = len("промпт".encode()) + 3 * size
    for number in range(8):
        turn = IdleTurn()
        changed = await store.begin(session.id, turn)
        changed.commit(pair(number), 0, room)
        await store.commit(changed, turn)
    found, _ = await store.read(session.id)
    assert (found.pairs, found.forgotten_pairs) == ([pair(5), pair(6), pair(7)], 5)
    turn = IdleTurn()
    changed = await store.begin(session.id, turn)
    huge = Pair.of("в" * room, "о", "stop")
    changed.commit(huge, 0, room)
    await store.commit(changed, turn)
    found, _ = await store.read(session.id)
    assert (found.pairs, found.forgotten_pairs) == ([], 9)
    await take_turn(store, session.id, pair(9))
    assert await pairs_of(store, session.id) == [pair(9)]


async def test_changes(store: SessionStore) -> None:
    session = await new_session(store, pairs=3)
    undone, expires_in = await store.change(session.id, Session.undo)
    assert (undone, expires_in) == (pair(2), 600)
    assert await pairs_of(store, session.id) == [pair(0), pair(1)]
    await take_turn(store, session.id, pair(5), dropped_pairs=1)
    await store.change(session.id, lambda session: session.set_system_prompt("", MAX_BYTES))
    found, _ = await store.read(session.id)
    assert (found.system_prompt, found.pairs) == ("", [pair(0), pair(1), pair(5)])
    await store.change(session.id, lambda session: session.set_system_prompt("другой", 60))
    found, _ = await store.read(session.id)
    assert (found.system_prompt, found.pairs, found.forgotten_pairs) == ("другой", [pair(5)], 2)
    await store.change(session.id, Session.reset)
    found, _ = await store.read(session.id)
    assert (found.system_prompt, found.pairs, found.forgotten_pairs) == ("другой", [], 0)
    with pytest.raises(NothingToUndo):
        await store.change(session.id, Session.undo)
    await take_turn(store, session.id, pair(6))
    assert await pairs_of(store, session.id) == [pair(6)]


async def test_a_key_is_replaced_also_while_a_turn_is_in_flight(store: SessionStore) -> None:
    session, turn = await new_session(store), IdleTurn()
    changed = await store.begin(session.id, turn)
    assert await store.replace_key(session.id, SecretStr("other")) == 600
    changed.commit(pair(0), 0, MAX_BYTES)
    await store.commit(changed, turn)
    found, _ = await store.read(session.id)
    assert (found.vllm_api_key.get_secret_value(), found.pairs) == ("other", [pair(0)])


async def test_nothing_to_cancel(store: SessionStore) -> None:
    session = await new_session(store)
    assert await store.cancel(session.id) == (False, 600)


@pytest.mark.parametrize("was_cancelled", [True, False])
async def test_cancelling_waits_for_the_turns_end(store: SessionStore, *, was_cancelled: bool) -> None:
    session, turn = await new_session(store), IdleTurn()
    changed = await store.begin(session.id, turn)
    cancelling = asyncio.create_task(store.cancel(session.id))
    await asyncio.wait_for(turn.stopped.wait(), 10)
    assert not cancelling.done()
    turn.cancelled = was_cancelled
    changed.commit(pair(0), 0, MAX_BYTES)
    await store.commit(changed, turn)
    assert await asyncio.wait_for(cancelling, 10) == (was_cancelled, 600)
    assert await pairs_of(store, session.id) == [pair(0)]


async def test_stopping_ends_the_session_at_once_and_waits_for_its_turn(store: SessionStore) -> None:
    session, turn = await new_session(store), IdleTurn()
    changed = await store.begin(session.id, turn)
    stopping = asyncio.create_task(store.stop(session.id))
    await asyncio.wait_for(turn.stopped.wait(), 10)
    with pytest.raises(SessionNotFound):
        await store.read(session.id)
    assert not stopping.done()
    changed.commit(pair(0), 0, MAX_BYTES)
    with pytest.raises(SessionNotFound):
        await store.commit(changed, turn)
    assert await store.release(changed, turn) == 0
    await asyncio.wait_for(stopping, 10)
    with pytest.raises(SessionNotFound):
        await store.stop(session.id)
    assert await store.count() == 0


async def test_nobody_is_evicted_for_a_newcomer(store: SessionStore) -> None:
    sessions = [await new_session(store) for _ in range(MAX_SESSIONS)]
    for refused in (store.require_room, lambda: store.add(Session(SecretStr("key"), ""))):
        with pytest.raises(Overloaded, match="overloaded") as caught:
            await refused()
        assert 590 <= int(caught.value.helpful["retry_after"]) <= 600
    for session in sessions:
        await store.require(session.id)
    await store.stop(sessions[0].id)
    await store.require_room()
    await new_session(store)
    assert await store.count() == MAX_SESSIONS


async def test_sessions_end_by_themselves(open_store: OpenStore) -> None:
    store = await open_store(ttl_seconds=0.9)
    renewed, old = Session(SecretStr("key"), ""), Session(SecretStr("key"), "")
    assert await store.add(renewed) == 0, "whole seconds"
    await store.add(old)
    for _ in range(4):
        await asyncio.sleep(0.25)
        await store.read(renewed.id)
    with pytest.raises(SessionNotFound):
        await store.read(old.id)
    await store.require(renewed.id)
    await asyncio.sleep(1)
    with pytest.raises(SessionNotFound):
        await store.begin(renewed.id, IdleTurn())
    await store.sweep()
    assert await store.count() == 0


async def test_a_session_with_a_turn_in_flight_does_not_end(open_store: OpenStore) -> None:
    store = await open_store(ttl_seconds=0.5)
    session, turn = Session(SecretStr("key"), ""), IdleTurn()
    await store.add(session)
    changed = await store.begin(session.id, turn)
    await asyncio.sleep(0.7)
    await store.sweep()
    changed.commit(pair(0), 0, MAX_BYTES)
    await store.commit(changed, turn)
    assert await pairs_of(store, session.id) == [pair(0)]
    await asyncio.sleep(0.6)
    with pytest.raises(SessionNotFound):
        await store.require(session.id)


async def test_a_store_in_order_says_so(store: SessionStore) -> None:
    assert await store.ailment() is None
