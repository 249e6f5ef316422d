"""Guessing keys: a few wrong ones from an address, and no more within the minute, however they are sent."""

import asyncio
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from app.errors import GatewayError, InvalidKey
from app.guesses import KeyGuesses
from tests.conftest import Gateway, StartGateway, Upstream, gateway_process, problem
from tests.scripted_vllm import KEY, Script, ScriptedVLLM
from tests.stores.turns import Clock

LIMIT = 3


@pytest.fixture
def limited(start_gateway: StartGateway) -> StartGateway:
    return lambda **settings: start_gateway(max_key_failures_per_minute=LIMIT, **settings)


def guess(gateway: Gateway, key: str, address: str = "", **body: str) -> int:
    headers = {"X-Forwarded-For": address} if address else {}
    response = gateway.http.post("/init_session", json={"vllm_api_key": key, **body}, headers=headers)
    if response.status_code == 429:
        refusal = problem(response, 429, "too_many_requests")
        assert 0 < refusal["retry_after"] == int(response.headers["retry-after"]) <= 60
        assert "MAX_KEY_FAILURES_PER_MINUTE" in refusal["detail"]
    return response.status_code


def use_up(gateway: Gateway, address: str = "") -> None:
    assert [guess(gateway, f"wrong-{number}", address) for number in range(LIMIT)] == [401] * LIMIT


def test_after_some_wrong_keys_no_key_is_looked_at(limited: StartGateway, vllm: ScriptedVLLM) -> None:
    with limited() as gateway:
        session = gateway.open()
        use_up(gateway)
        vllm.models_script = Script([b""], status=500)
        assert guess(gateway, KEY) == guess(gateway, "wrong") == guess(gateway, "ключ") == 429, "vLLM is not asked"
        assert guess(gateway, KEY, session_id=session.id) == 429
        assert session.ok("/chat", message="?")["reply"] == "Ответ 1.", "who is in stays in"


def test_keys_that_vllm_is_not_asked_about_and_changed_keys_count(limited: StartGateway) -> None:
    with limited() as gateway:
        session = gateway.open()
        assert guess(gateway, "") == guess(gateway, "ключ") == guess(gateway, "wrong", session_id=session.id) == 401
        assert guess(gateway, "wrong") == 429


def test_what_is_no_wrong_key_does_not_count(limited: StartGateway, vllm: ScriptedVLLM) -> None:
    with limited() as gateway:
        vllm.models_script = Script([b""], status=500)
        assert {guess(gateway, KEY) for _ in range(2 * LIMIT)} == {502}
        vllm.models_script = None
        assert {guess(gateway, KEY) for _ in range(2 * LIMIT)} == {200}
        assert guess(gateway, "wrong", session_id="none") == 404
        use_up(gateway)


def test_every_address_has_its_own_limit(limited: StartGateway) -> None:
    with limited() as gateway:
        for address in ("203.0.113.1", "203.0.113.2", "2001:db8:0:1::1", "2001:db8:0:2::1", "unknown"):
            use_up(gateway, address)
            assert guess(gateway, KEY, address) == 429
        for same in ("203.0.113.1:4711", "::ffff:203.0.113.1", "2001:db8:0:1:ffff::2", "[2001:db8:0:1::7]:80"):
            assert guess(gateway, KEY, same) == 429, same
        assert guess(gateway, KEY, "2001:db8:0:3::1") == guess(gateway, KEY) == 200


def test_guesses_in_flight_at_once_tell_no_more(limited: StartGateway, vllm: ScriptedVLLM) -> None:
    vllm.models_delay = 1.0
    with limited() as gateway, ThreadPoolExecutor(40) as threads:
        keys = [f"wrong-{number}" for number in range(40)]
        statuses = Counter(threads.map(lambda key: guess(gateway, key), keys))
        assert statuses == {401: LIMIT, 429: 40 - LIMIT}
        assert gateway.session_count() == 0


def test_zero_is_no_limit(start_gateway: StartGateway) -> None:
    with start_gateway(max_key_failures_per_minute=0) as gateway:
        assert {guess(gateway, f"wrong-{number}") for number in range(100)} == {401}
        assert guess(gateway, KEY) == 200


def test_only_proxies_that_are_named_may_name_the_client(upstream: Upstream, model_folder: Path) -> None:
    settings = {"FORWARDED_ALLOW_IPS": "127.0.0.2", "MAX_KEY_FAILURES_PER_MINUTE": str(LIMIT)}
    with gateway_process(upstream.url, model_folder, **settings) as (gateway, _):
        use_up(gateway, "203.0.113.1")
        assert guess(gateway, KEY, "203.0.113.2") == 429, "the same client, whatever it says"
        transport = httpx2.HTTPTransport(local_address="127.0.0.2")
        with httpx2.Client(base_url=gateway.url, transport=transport, timeout=30) as http:
            proxy = Gateway(gateway.url, http)
            use_up(proxy, "203.0.113.1")
            assert guess(proxy, KEY, "203.0.113.1") == 429
            assert guess(proxy, KEY, "203.0.113.2") == 200
            assert guess(proxy, KEY, "203.0.113.2, 203.0.113.1") == 429, "what stands before the proxy's own is a claim"


# --- the counter itself ---


async def right() -> None:
    pass


async def wrong() -> None:
    raise InvalidKey


async def outcome(guesses: KeyGuesses, address: str = "203.0.113.1", *, key_is_right: bool = False) -> int:
    try:
        await guesses.prove(address, right if key_is_right else wrong)
    except GatewayError as exc:
        return exc.status
    return 200


@pytest.mark.anyio
async def test_the_minute_moves() -> None:
    clock = Clock()
    guesses = KeyGuesses(2, clock)
    assert await outcome(guesses) == 401
    clock.now += 30
    assert await outcome(guesses) == 401
    clock.now += 29.9
    assert await outcome(guesses) == await outcome(guesses, key_is_right=True) == 429
    clock.now += 0.2
    assert [await outcome(guesses) for _ in range(3)] == [401, 429, 429], "one is forgotten"
    clock.now += 60
    assert await outcome(guesses, key_is_right=True) == 200


@pytest.mark.anyio
async def test_even_the_right_key_tells_nothing_when_others_were_quicker() -> None:
    guesses = KeyGuesses(LIMIT)
    answered = asyncio.Event()

    async def late() -> None:
        await answered.wait()

    async def slow_guess() -> int:
        try:
            await guesses.prove("203.0.113.1", late)
        except GatewayError as exc:
            return exc.status
        return 200

    slow = asyncio.create_task(slow_guess())
    await asyncio.sleep(0)
    assert [await outcome(guesses) for _ in range(LIMIT)] == [401] * LIMIT
    answered.set()
    assert await slow == 429


@pytest.mark.anyio
async def test_what_is_remembered_is_bounded() -> None:
    guesses = KeyGuesses(30)

    async def many(first: int) -> None:
        for number in range(first, first + 12_000):
            await outcome(guesses, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")

    await many(0)
    tracemalloc.start()
    try:
        await many(12_000)
        grown, _ = tracemalloc.get_traced_memory()
        await many(24_000)
        assert tracemalloc.get_traced_memory()[0] < grown * 1.2
    finally:
        tracemalloc.stop()
