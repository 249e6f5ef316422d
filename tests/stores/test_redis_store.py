"""The store in Redis: what it keeps there, what it does when Redis does not do its part, and several of it together."""

import asyncio
import gc
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from types import NoneType

import pytest
from pydantic import SecretStr
from redis import exceptions as redis_errors

from app.context import Pair
from app.errors import SessionBusy, SessionNotFound, StoreUnavailable
from app.redis_server import RedisServer, translated
from app.redis_store import LEASE_SECONDS, RedisStore
from app.sessions import Session
from tests.proxy import Network, network_to
from tests.readme import ROOT
from tests.redis_process import RedisProcess, documented_rights
from tests.servers import wait_until
from tests.stores.conftest import redis_store
from tests.stores.turns import IdleTurn

pytestmark = pytest.mark.anyio

MAX_BYTES = 10**9


def pair(number: int) -> Pair:
    return Pair.of(f"вопрос {number}", f"ответ {number}", "stop")


async def new_session(store: RedisStore, pairs: int = 0) -> str:
    session = Session(SecretStr("the-vllm-key"), "промпт")
    session.extend([pair(number) for number in range(pairs)], MAX_BYTES)
    await store.add(session)
    return session.id


async def take_turn(store: RedisStore, session_id: str, number: int) -> None:
    turn = IdleTurn()
    session = await store.begin(session_id, turn)
    session.commit(pair(number), 0, MAX_BYTES)
    await store.commit(session, turn)


async def numbers(store: RedisStore, session_id: str) -> list[int]:
    """Which turns are in a session, by the numbers in their texts."""
    return [int(said.user.split()[1]) for said in (await store.read(session_id))[0].pairs]


@asynccontextmanager
async def stores(redis: RedisProcess, count: int = 2, ttl_seconds: float = 600) -> AsyncIterator[list[RedisStore]]:
    """Those of several gateways."""
    async with AsyncExitStack() as opened:
        yield [await opened.enter_async_context(redis_store(redis, ttl_seconds=ttl_seconds)) for _ in range(count)]


# --- what lies in Redis ---


async def test_neither_keys_nor_session_ids_lie_in_redis(redis: RedisProcess) -> None:
    async with redis_store(redis) as store:
        session_id = await new_session(store, pairs=2)
        await take_turn(store, session_id, 2)
        await store.replace_key(session_id, SecretStr("another-vllm-key"))
        found = await everything_in(redis)
    assert "вопрос 1".encode() in found, "texts do"
    for secret in (b"the-vllm-key", b"another-vllm-key", session_id.encode()):
        assert secret not in found


async def everything_in(redis: RedisProcess) -> bytes:
    """All names and values, not packed as in a DUMP."""
    held = []
    for name in redis.client.keys("*"):
        held.append(name)
        match redis.client.type(name):
            case b"hash":
                held += [part for field in redis.client.hgetall(name).items() for part in field]
            case b"list":
                held += redis.client.lrange(name, 0, -1)
            case b"zset":
                held += redis.client.zrange(name, 0, -1)
            case b"string":
                held.append(redis.client.get(name))
    return b"\n".join(held)


async def test_everything_in_redis_ends_by_itself(redis: RedisProcess) -> None:
    async with redis_store(redis, ttl_seconds=100) as store:
        session_id = await new_session(store, pairs=1)
        await store.begin(session_id, IdleTurn())
        left = {name.split(b":")[-1]: redis.client.ttl(name) for name in redis.client.keys("*:session:*")}
        assert sorted(left.values())[1:] == [100, 100]
        assert 0 < left[b"turn"] <= LEASE_SECONDS
        redis.client.delete(*redis.client.keys("*:session:*"))
        redis.client.zadd("chat-gateway:1:sessions", {"one that ended": 1})
        assert await store.sweep() == 1


async def test_a_key_outlives_the_change_of_the_secret(redis: RedisProcess) -> None:
    old, new = "an old secret" * 3, "a new secret" * 3
    async with redis_store(redis, secrets=(old,)) as store:
        session_id = await new_session(store)
    async with redis_store(redis, secrets=(new, old)) as store:
        session, _ = await store.read(session_id)
        assert session.vllm_api_key.get_secret_value() == "the-vllm-key"
    async with redis_store(redis, secrets=(new,)) as store:
        session, _ = await store.read(session_id)
        assert session.vllm_api_key.get_secret_value() == "the-vllm-key", "it was sealed anew meanwhile"
    async with redis_store(redis, secrets=(old,)) as store:
        with pytest.raises(SessionNotFound):
            await store.read(session_id)


async def test_what_cannot_be_read_is_no_session(redis: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    async with redis_store(redis) as store:
        session_id = await new_session(store, pairs=1)
    [name] = redis.sessions()
    redis.client.rpush(name + b":pairs", b"no pair at all")
    async with redis_store(redis) as store:
        with pytest.raises(SessionNotFound):
            await store.begin(session_id, IdleTurn())
    assert "не читается" in caplog.text
    assert session_id not in caplog.text


@pytest.mark.parametrize(
    "damage", [{"prompt": b"\xff"}, {"counts": b"\x93\x00\x00\x92\x00\x00"}, {"counts": b""}, {"forgotten": b"many"}]
)
async def test_what_is_damaged_is_no_session(redis: RedisProcess, damage: dict[str, bytes]) -> None:
    async with redis_store(redis) as store:
        session_id = await new_session(store, pairs=1)
    redis.client.hset(redis.sessions()[0], mapping=damage)
    async with redis_store(redis) as store:
        with pytest.raises((SessionNotFound, StoreUnavailable)):
            await store.read(session_id)


async def test_a_gateway_with_another_secret_does_not_keep_a_session_from_the_others(redis: RedisProcess) -> None:
    async with redis_store(redis) as store, redis_store(redis, secrets=("another secret" * 3,)) as stranger:
        session_id = await new_session(store)
        with pytest.raises(SessionNotFound):
            await stranger.begin(session_id, IdleTurn())
        await take_turn(store, session_id, 0)


async def test_a_key_that_could_not_be_sealed_anew_is_the_next_time(redis: RedisProcess) -> None:
    old, new = "an old secret" * 3, "a new secret" * 3
    async with redis_store(redis, secrets=(old,)) as store:
        session_id = await new_session(store)
    async with redis_store(redis, secrets=(new, old)) as store:
        redis.client.config_set("maxmemory", 1)
        try:
            await store.read(session_id)
        finally:
            redis.client.config_set("maxmemory", 0)
        await store.read(session_id)
    async with redis_store(redis, secrets=(new,)) as store:
        await store.read(session_id)


async def test_a_key_that_was_replaced_meanwhile_is_not_sealed_anew(redis: RedisProcess) -> None:
    async with redis_store(redis) as store, server_of(redis) as server:
        session_id = await new_session(store)
        [keys] = keys_of_sessions(redis)
        await server.run(keys, ["replace_key", name_in(keys), 600_000, "what it was", "what it would be"])
        assert (await store.read(session_id))[0].vllm_api_key.get_secret_value() == "the-vllm-key"


async def test_copies_are_not_kept_longer_than_sessions(redis: RedisProcess) -> None:
    async with redis_store(redis, ttl_seconds=0.2) as store:
        for _ in range(10):
            session_id = await new_session(store)
            await take_turn(store, session_id, 0)
        assert len(sessions_in_memory()) >= 10
        await asyncio.sleep(0.3)
        await store.sweep()
        assert len(sessions_in_memory()) == 0


def sessions_in_memory() -> list[Session]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, Session)]


# --- several gateways ---


async def test_gateways_see_each_others_turns(redis: RedisProcess) -> None:
    async with stores(redis, 3) as (one, other, third):
        session_id = await new_session(one)
        for number in range(12):
            await take_turn((one, other)[number // 2 % 2], session_id, number)
        for store in (one, other, third):
            assert await numbers(store, session_id) == list(range(12))
        await one.change(session_id, Session.undo)
        await take_turn(one, session_id, 99)
        assert await numbers(other, session_id) == [*range(11), 99]
        await other.change(session_id, Session.reset)
        await take_turn(other, session_id, 5)
        assert await numbers(one, session_id) == [5]
        await third.stop(session_id)
        with pytest.raises(SessionNotFound):
            await one.read(session_id)


async def test_one_turn_at_a_time_over_all_gateways(redis: RedisProcess) -> None:
    async with stores(redis, 3) as gateways:
        session_id = await new_session(gateways[0])
        begun = await asyncio.gather(
            *(store.begin(session_id, IdleTurn()) for store in gateways for _ in range(10)), return_exceptions=True
        )
        assert sum(isinstance(one, Session) for one in begun) == 1
        assert sum(isinstance(one, SessionBusy) for one in begun) == 29


@pytest.mark.parametrize("is_stopped", [True, False])
async def test_a_turn_is_stopped_from_another_gateway_at_once(redis: RedisProcess, *, is_stopped: bool) -> None:
    async with stores(redis) as (one, other):
        session_id, turn = await new_session(one), IdleTurn()
        session = await one.begin(session_id, turn)
        await listening(redis, 2)
        stopping = asyncio.create_task(other.stop(session_id) if is_stopped else other.cancel(session_id))
        await asyncio.wait_for(turn.stopped.wait(), 2.5)  # sooner than the next renewal of its lease
        turn.cancelled = True
        await one.release(session, turn)
        assert await asyncio.wait_for(stopping, 10) == (None if is_stopped else (True, 600))


def keys_of_sessions(redis: RedisProcess) -> list[list[str]]:
    """As the script takes them."""
    names = [name.decode() for name in redis.sessions()]
    return [[name, f"{name}:pairs", f"{name}:turn", "chat-gateway:1:sessions"] for name in names]


def name_in(keys: list[str]) -> str:
    """A session's name."""
    return keys[0].rsplit(":", 1)[1]


@asynccontextmanager
async def server_of(redis: RedisProcess) -> AsyncIterator[RedisServer]:
    """To send single operations."""
    async with aclosing(RedisServer(SecretStr(redis.url), 5)) as server:
        yield server


async def listening(redis: RedisProcess, gateways: int) -> None:
    """Wait until so many gateways hear messages."""
    await asyncio.to_thread(wait_until, lambda: redis.client.pubsub_numsub("chat-gateway:1:stop")[0][1] >= gateways)


async def test_what_the_renewal_of_leases_finds(redis: RedisProcess) -> None:
    """All of it in one test, because it takes a while to come."""
    async with stores(redis, ttl_seconds=5) as (one, other):
        session_ids = [await new_session(one) for _ in range(5)]
        turns = [IdleTurn() for _ in session_ids]
        sessions = [await one.begin(session_id, turn) for session_id, turn in zip(session_ids, turns, strict=True)]
        names = [f"chat-gateway:1:session:{session.public_id}" for session in sessions]
        _, unheard, lapsed, taken, gone = range(5)
        redis.client.hset(names[unheard], "stop", redis.client.get(f"{names[unheard]}:turn"))
        redis.client.delete(f"{names[lapsed]}:turn", f"{names[taken]}:turn", names[gone])
        await take_turn(other, session_ids[taken], 7)
        await asyncio.sleep(3.5)
        assert [turn.stopped.is_set() for turn in turns] == [False, True, False, False, False]
        kinds = [type(turn.lost) for turn in turns]
        assert kinds == [NoneType, NoneType, NoneType, StoreUnavailable, SessionNotFound]
        with pytest.raises(SessionBusy):
            await other.begin(session_ids[lapsed], IdleTurn())
        assert redis.client.pttl(names[0]) > 8000, "it lives as long as its turn may"
        assert redis.client.pttl(f"{names[0]}:turn") > 8000
        for number in (0, unheard, lapsed):
            sessions[number].commit(pair(1), 0, MAX_BYTES)
            await one.commit(sessions[number], turns[number])
            assert await numbers(other, session_ids[number]) == [1]
        sessions[taken].commit(pair(1), 0, MAX_BYTES)
        with pytest.raises(StoreUnavailable) as caught:
            await one.commit(sessions[taken], turns[taken])
        assert "кто-то другой" in caught.value.detail
        await one.release(sessions[taken], turns[taken])
        assert await numbers(other, session_ids[taken]) == [7]
        with pytest.raises(SessionNotFound):
            await one.commit(sessions[gone], turns[gone])


@pytest.mark.parametrize("between", ["begin", "undo", "commit"])
async def test_who_has_lost_the_lease_commits_only_over_what_he_has_seen(redis: RedisProcess, between: str) -> None:
    async with stores(redis) as (one, other):
        session_id, turn = await new_session(one, pairs=2), IdleTurn()
        session = await one.begin(session_id, turn)
        redis.client.delete(*redis.client.keys("*:turn"))
        theirs = IdleTurn()
        if between == "undo":
            await other.change(session_id, Session.undo)
        elif between == "commit":
            await take_turn(other, session_id, 2)
        else:
            await other.begin(session_id, theirs)
        session.commit(pair(3), 0, MAX_BYTES)
        with pytest.raises(StoreUnavailable):
            await one.commit(session, turn)
        await one.release(session, turn)
        assert await numbers(other, session_id) == {"begin": [0, 1], "undo": [0], "commit": [0, 1, 2]}[between]
        if between == "begin":
            with pytest.raises(SessionBusy):
                await one.begin(session_id, IdleTurn())


async def test_a_renewal_that_comes_late_does_not_occupy_the_session_again(redis: RedisProcess) -> None:
    async with redis_store(redis) as store, server_of(redis) as server:
        session_id, turn = await new_session(store), IdleTurn()
        session = await store.begin(session_id, turn)
        [keys] = keys_of_sessions(redis)
        token = redis.client.get(keys[2])
        await store.release(session, turn)
        assert await server.run(keys, ["hold", name_in(keys), 600_000, token, 10_000]) == [b"lost"]
        await take_turn(store, session_id, 0)


async def test_a_change_that_comes_late_does_not_pass_a_turn(redis: RedisProcess) -> None:
    async with redis_store(redis) as store, server_of(redis) as server:
        session_id = await new_session(store, pairs=2)
        await store.begin(session_id, IdleTurn())
        [keys] = keys_of_sessions(redis)
        fence = redis.client.hget(keys[0], "fence")
        late = ["write", name_in(keys), 600_000, b"a token.", 10**15, fence, b"a fence.", 0, 0, 1, 0]
        assert await server.run(keys, late) == [b"busy"]
        assert await numbers(store, session_id) == [0, 1]


async def test_changes_at_once_are_all_made(redis: RedisProcess) -> None:
    async with stores(redis) as gateways:
        session_id = await new_session(gateways[0], pairs=12)
        undone = await asyncio.gather(*(store.change(session_id, Session.undo) for store in gateways for _ in range(5)))
        assert sorted(int(pair.user.split()[1]) for pair, _ in undone) == list(range(2, 12))
        assert await numbers(gateways[0], session_id) == [0, 1]


async def test_an_undo_that_is_sent_again_later_takes_nobody_elses_turn(redis: RedisProcess, network: Network) -> None:
    url = SecretStr(redis.url.replace(redis.address, network.url.removeprefix("http://")))
    async with redis_store(redis, url=url) as one, redis_store(redis) as other:
        session_id = await new_session(one, pairs=3)
        await one.change(session_id, Session.undo)
        [again] = [sent for sent in network.seen if b"\r\nwrite\r\n" in sent]
        await take_turn(other, session_id, 7)
        host, port = redis.address.split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(again)
            assert connection.recv(100) == b"*1\r\n$2\r\nok\r\n"
        assert await numbers(other, session_id) == [0, 1, 7]


async def test_of_two_turns_that_redis_lets_begin_the_one_that_it_remembers_is_kept(redis: RedisProcess) -> None:
    """As when a replica takes over that had not heard of the first yet."""
    async with stores(redis) as (one, other):
        session_id, turn, theirs = await new_session(one, pairs=1), IdleTurn(), IdleTurn()
        [name] = redis.sessions()
        saved = redis.client.dump(name)
        session = await one.begin(session_id, turn)
        redis.client.delete(name + b":turn")
        redis.client.restore(name, 60_000, saved, replace=True)
        their_session = await other.begin(session_id, theirs)
        session.commit(pair(1), 0, MAX_BYTES)
        with pytest.raises(StoreUnavailable):
            await one.commit(session, turn)
        await one.release(session, turn)
        their_session.commit(pair(2), 0, MAX_BYTES)
        await other.commit(their_session, theirs)
        assert await numbers(one, session_id) == [0, 2]


async def test_a_session_with_a_short_life_outlives_its_turn_whoever_looks_at_it(redis: RedisProcess) -> None:
    async with redis_store(redis, ttl_seconds=1) as store:
        session_id = await new_session(store)
        await store.begin(session_id, IdleTurn())
        await store.read(session_id)
        await store.replace_key(session_id, SecretStr("other"))
        assert redis.client.pttl(redis.sessions()[0]) > 8000


async def test_who_has_lost_the_lease_to_nobody_commits(redis: RedisProcess) -> None:
    async with redis_store(redis) as store:
        session_id, turn = await new_session(store), IdleTurn()
        session = await store.begin(session_id, turn)
        redis.client.delete(*redis.client.keys("*:turn"))
        session.commit(pair(0), 0, MAX_BYTES)
        await store.commit(session, turn)
        await take_turn(store, session_id, 1)
        assert await numbers(store, session_id) == [0, 1]


async def test_a_dead_gateways_session_is_free_when_its_lease_ends(redis: RedisProcess) -> None:
    async with redis_store(redis) as store:
        async with redis_store(redis) as dead:
            session_id = await new_session(dead)
            await dead.begin(session_id, IdleTurn())
        with pytest.raises(SessionBusy):
            await store.begin(session_id, IdleTurn())
        redis.client.pexpire(redis.client.keys("*:turn")[0], 100)
        cancelling = asyncio.create_task(store.cancel(session_id))
        assert await asyncio.wait_for(cancelling, 2) == (True, 600), "who waits for it is told"
        await take_turn(store, session_id, 0)


async def test_a_copy_that_redis_has_gone_back_behind_is_given_up(redis: RedisProcess) -> None:
    """As after a failure in which Redis lost what it had not written to its disk yet."""
    async with stores(redis) as (one, other):
        session_id = await new_session(one, pairs=3)
        [name] = redis.sessions()
        saved = {key: redis.client.dump(key) for key in (name, name + b":pairs")}
        for number in range(3, 6):
            await take_turn(one, session_id, number)
        for key, value in saved.items():
            redis.client.restore(key, 60_000, value, replace=True)
        for number in range(6, 10):
            await take_turn(other, session_id, number)
        assert await numbers(one, session_id) == [0, 1, 2, 6, 7, 8, 9]
        await take_turn(one, session_id, 10)
        assert await numbers(other, session_id) == [0, 1, 2, 6, 7, 8, 9, 10]


# --- what it costs ---


async def test_a_turn_costs_what_it_weighs_however_long_the_talk(redis: RedisProcess) -> None:
    async with stores(redis) as (one, other):
        session_id = await new_session(one)
        costs = {}
        for number in range(1000):
            before = traffic(redis)
            await take_turn(one, session_id, number)
            costs[number] = traffic(redis) - before
        assert costs[999] <= costs[10] + 60, "only numbers have grown"
        assert (await numbers(other, session_id))[-1] == 999
        await take_turn(one, session_id, 1000)
        before = traffic(redis)
        await take_turn(other, session_id, 1001)
        assert traffic(redis) - before < 2 * costs[10], "the other one asks for what it lacks"


def traffic(redis: RedisProcess) -> int:
    """Bytes that have gone in and out, these questions included."""
    about = redis.client.info("stats")
    return int(about["total_net_input_bytes"] + about["total_net_output_bytes"])


# --- Redis does not do its part ---


@pytest.fixture
def network(redis: RedisProcess) -> Iterator[Network]:
    """A network to Redis that can be cut."""
    with network_to(f"http://{redis.address}") as network:
        yield network


async def test_what_is_sent_twice_is_done_once(redis: RedisProcess, network: Network) -> None:
    url = SecretStr(redis.url.replace(redis.address, network.url.removeprefix("http://")))
    async with redis_store(redis, url=url) as store:
        session_id = await new_session(store)
        for number in range(5):
            turn = IdleTurn()
            network.drop_answer_to(b"*")
            session = await store.begin(session_id, turn)
            session.commit(pair(number), 0, MAX_BYTES)
            network.drop_answer_to(b"*")
            await store.commit(session, turn)
        network.drop_answer_to(b"*")
        await store.change(session_id, Session.undo)
        network.drop_answer_to(b"*")
        session_ids = [session_id, await new_session(store)]
        assert [await numbers(store, each) for each in session_ids] == [[0, 1, 2, 3], []]


async def test_redis_gone_and_back_again(own_redis: RedisProcess) -> None:
    async with redis_store(own_redis, timeout_seconds=20) as store:
        session_id, turn = await new_session(store), IdleTurn()
        session = await store.begin(session_id, turn)
        own_redis.kill()
        started = time.monotonic()
        for refused in (lambda: store.read(session_id), store.require_room, lambda: store.stop(session_id)):
            with pytest.raises(StoreUnavailable) as caught:
                await refused()
            assert "Redis не отвечает" in caught.value.detail
            assert int(caught.value.helpful["retry_after"]) > 0
        assert time.monotonic() - started < 20, "what refuses connections is not waited for"
        assert "Redis не отвечает" in str(await store.ailment())
        own_redis.start()
        session.commit(pair(0), 0, MAX_BYTES)
        await store.commit(session, turn)
        await take_turn(store, session_id, 1)
        assert await numbers(store, session_id) == [0, 1]


async def test_an_answer_waits_for_redis_to_come_back(own_redis: RedisProcess) -> None:
    async with redis_store(own_redis, timeout_seconds=20) as store:
        session_id, turn = await new_session(store), IdleTurn()
        session = await store.begin(session_id, turn)
        own_redis.kill()
        starting = threading.Timer(0.5, own_redis.start)
        starting.start()
        session.commit(pair(0), 0, MAX_BYTES)
        await store.commit(session, turn)
        await asyncio.to_thread(starting.join)
        assert await numbers(store, session_id) == [0]


async def test_what_redis_is_too_late_for_is_never_done(redis: RedisProcess) -> None:
    """What was sent lies in the connections, and Redis reads it when it goes on."""
    async with redis_store(redis, timeout_seconds=0.5) as store, redis_store(redis, timeout_seconds=0.5) as other:
        session_id, turn = await new_session(store), IdleTurn()
        idle_id = await new_session(other)
        session = await store.begin(session_id, turn)
        session.commit(pair(0), 0, MAX_BYTES)
        await other.read(idle_id)
        with redis.frozen():
            with pytest.raises(StoreUnavailable) as caught:
                await store.commit(session, turn)
            assert "/history" in caught.value.detail
            with pytest.raises(StoreUnavailable):
                await other.begin(idle_id, IdleTurn())
            assert await store.release(session, turn) == 600, "nobody knows better"
            assert turn.finished.is_set()
            assert "не ответил" in str(await store.ailment())
        await take_turn(other, idle_id, 1)
        redis.client.delete(*redis.client.keys("*:turn"))  # as ten seconds later
        assert await numbers(store, session_id) == []
        await take_turn(store, session_id, 1)
        assert await numbers(store, session_id) == [1]


async def test_a_full_redis(redis: RedisProcess) -> None:
    async with redis_store(redis, timeout_seconds=20) as store:
        session_id, turn = await new_session(store, pairs=1), IdleTurn()
        session = await store.begin(session_id, turn)
        try:
            redis.client.config_set("maxmemory", 1)
            session.commit(pair(1), 0, MAX_BYTES)
            started = time.monotonic()
            for refused in (
                lambda: store.commit(session, turn),
                lambda: new_session(store),
                lambda: store.replace_key(session_id, SecretStr("other")),
            ):
                with pytest.raises(StoreUnavailable) as caught:
                    await refused()
                assert "maxmemory" in caught.value.detail
            assert await store.release(session, turn) == 600, "what frees is not refused"
            with pytest.raises(StoreUnavailable):
                await store.begin(session_id, IdleTurn())
            with pytest.raises(StoreUnavailable):
                await store.change(session_id, Session.undo)
            assert await numbers(store, session_id) == [0], "to look is not refused"
            assert redis.client.keys("*:turn") == []
            assert time.monotonic() - started < 20, "it is not tried again and again"
        finally:
            redis.client.config_set("maxmemory", 0)
        await take_turn(store, session_id, 1)
        assert await numbers(store, session_id) == [0, 1]
        await store.stop(session_id)


async def test_a_replica(redis: RedisProcess) -> None:
    async with redis_store(redis) as store:
        session_id = await new_session(store)
        try:
            redis.client.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable) as caught:
                await store.begin(session_id, IdleTurn())
        finally:
            redis.client.replicaof("NO", "ONE")
        assert "реплика" in caught.value.detail
        await take_turn(store, session_id, 0)


def test_what_the_documentation_allows_the_gateway_is_what_it_uses(redis: RedisProcess) -> None:
    """All tests have no more rights; this one finds what would be too many."""
    script = (ROOT / "app/redis_store.lua").read_text(encoding="utf-8")
    of_the_script = {name.lower() for name in re.findall(r"call\('(\w+)'", script)}
    of_the_library = {"evalsha", "script|load", "script|exists", "ping", "info", "subscribe", "select"}
    allowed = {rule.removeprefix("+") for rule in documented_rights() if rule.startswith("+")}
    assert allowed == of_the_script | of_the_library
    assert redis.client.acl_whoami() == "default"


@pytest.mark.parametrize("user", ["gateway:wrong", "nobody:wrong"])
async def test_a_wrong_password_is_named_and_not_shown(redis: RedisProcess, user: str) -> None:
    async with redis_store(redis, url=SecretStr(f"redis://{user}@{redis.address}/0")) as store:
        with pytest.raises(StoreUnavailable) as caught:
            await store.count()
    assert "SESSION_STORE_URL" in caught.value.detail
    assert "wrong" not in caught.value.detail


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-MOVED 1 127.0.0.1:7001\r\n" * 9, b"*1000\r\n", b""]
)
async def test_what_answers_is_no_redis(said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1") as impostor:
        port = impostor.sockets[0].getsockname()[1]
        async with aclosing(RedisServer(SecretStr(f"redis://127.0.0.1:{port}/0"), 1)) as server:
            with pytest.raises(StoreUnavailable) as caught:
                await server.run(["", "", "", ""], ["count", "", 1])
    assert "Redis" in caught.value.detail


def test_every_error_of_the_library_has_words() -> None:
    kinds = [kind for kind in vars(redis_errors).values() if isinstance(kind, type)]
    errors = [kind("1 its:1") for kind in kinds if issubclass(kind, redis_errors.RedisError)]
    assert len(errors) > 20
    for error in errors:
        assert translated(error).detail
    for kind, passes in ((redis_errors.BusyLoadingError, True), (redis_errors.OutOfMemoryError, False)):
        assert translated(kind("its words")).passes is passes
    assert "its words" in translated(redis_errors.ResponseError("its words")).detail


async def test_what_redis_should_be_set_to_is_said(
    redis: RedisProcess, own_redis: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with redis_store(own_redis) as store:
        await told(caplog, "Redis отвечает")
        assert store.warnings == []
    redis.client.config_set("maxmemory", "1gb")
    redis.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        async with redis_store(redis) as store:
            await told(caplog, "вытеснять")
            assert [warning.split()[1] for warning in store.warnings] == ["настроен", "не"]
    finally:
        redis.client.config_set("maxmemory", 0)
        redis.client.config_set("maxmemory-policy", "noeviction")


async def told(caplog: pytest.LogCaptureFixture, words: str) -> None:
    """Wait for words in the log."""
    await asyncio.to_thread(wait_until, lambda: words in caplog.text)
