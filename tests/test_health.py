"""/health, /ready, and what the gateway notices about its vLLM while it runs."""

import time
from pathlib import Path

import anyio
import pytest
from pydantic import SecretStr

from app import __version__
from app.background import KEYLESS_WARNING, sweep_sessions
from app.memory_store import MemoryStore
from app.sessions import Session
from app.tasks import running
from tests.conftest import Gateway, StartGateway, Upstream, problem
from tests.scripted_vllm import ScriptedVLLM
from tests.servers import serve, unused_url, wait_until


def test_all_is_well(gateway: Gateway) -> None:
    gateway.open()
    assert gateway.http.get("/health").json() == {
        "status": "ok",
        "vllm": "ok",
        "store": "ok",
        "model": "/app/model",
        "version": __version__,
        "sessions": 1,
        "warnings": [],
        "count_mismatches": 0,
    }
    assert gateway.http.get("/ready").json() == {"status": "ready"}


def test_a_vllm_that_is_not_there_degrades_but_does_not_kill(start_gateway: StartGateway) -> None:
    with start_gateway(vllm_base_url=f"{unused_url()}/v1") as gateway:
        response = gateway.http.get("/health")
        assert response.status_code == 200
        assert response.json()["status"] == "degraded"
        assert "загружает модель" in response.json()["vllm"]
        assert "загружает модель" in problem(gateway.http.get("/ready"), 503, "upstream_unavailable")["detail"]


def test_a_vllm_that_never_answered_is_in_the_log(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{unused_url()}/v1"
    with start_gateway(vllm_base_url=url):
        wait_until(lambda: "vLLM не отвечает по адресу" in caplog.text)
    assert url in caplog.text


def test_a_model_that_vllm_will_not_load_is_warned_of_while_it_does_not_answer(
    start_gateway: StartGateway, linked_model: Path
) -> None:
    (linked_model / "model-00002.safetensors").symlink_to("../../blobs/4a5b")
    with start_gateway(vllm_base_url=f"{unused_url()}/v1", tokenizer_path=str(linked_model)) as gateway:
        [warning] = gateway.http.get("/health").json()["warnings"]
        assert "model-00002.safetensors" in warning
    with start_gateway(tokenizer_path=str(linked_model)) as gateway:
        wait_until(lambda: gateway.http.get("/health").json()["warnings"] == [])


def test_a_keyless_vllm_with_another_model_is_warned_of(upstream: Upstream, start_gateway: StartGateway) -> None:
    upstream.script.key = None
    with start_gateway(vllm_model_name="another") as gateway:
        wait_until(lambda: len(gateway.http.get("/health").json()["warnings"]) == 2)
        assert "another" in gateway.http.get("/health").json()["warnings"][1]


def test_an_unhealthy_vllm(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.healthy = False
    assert "503" in gateway.http.get("/health").json()["vllm"]
    problem(gateway.http.get("/ready"), 503, "upstream_unavailable")


def test_a_silent_vllm_costs_health_a_second_at_most(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.health_delay = 5.0
    started = time.monotonic()
    assert gateway.http.get("/health").json()["status"] == "degraded"
    assert 0.9 < time.monotonic() - started < 4


def test_a_vllm_without_a_key_is_warned_of_loudly(
    upstream: Upstream, start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    upstream.script.key = None
    with start_gateway() as gateway:
        wait_until(lambda: gateway.http.get("/health").json()["warnings"] == [KEYLESS_WARNING])
    assert [record.levelname for record in caplog.records if KEYLESS_WARNING in record.message] == ["WARNING"]


def test_a_vllm_that_comes_later_is_noticed(start_gateway: StartGateway) -> None:
    """The list of known fields, too, is learnt when vLLM comes."""
    port = int(unused_url().rpartition(":")[2])
    late = ScriptedVLLM()
    with start_gateway(vllm_base_url=f"http://127.0.0.1:{port}/v1") as gateway:
        problem(gateway.http.get("/ready"), 503, "upstream_unavailable")
        with serve(late.app, port):
            wait_until(lambda: gateway.http.get("/ready").status_code == 200)
            session = gateway.open()
            wait_until(
                lambda: (
                    gateway.post("/chat", session_id=session.id, message="а", extra={"nonsense": 1}).status_code == 422
                )
            )


def test_garbage_about_the_known_fields_is_asked_for_again(start_gateway: StartGateway, vllm: ScriptedVLLM) -> None:
    known = vllm.openapi
    vllm.openapi = b"[" * 100_000
    with start_gateway() as gateway:
        session = gateway.open()
        session.ok("/chat", message="а", extra={"nonsense": 1})
        vllm.openapi = known
        wait_until(
            lambda: gateway.post("/chat", session_id=session.id, message="а", extra={"nonsense": 1}).status_code == 422
        )


@pytest.mark.anyio
async def test_the_sweeper_runs_by_itself() -> None:
    store = MemoryStore(ttl_seconds=0.05, max_sessions=10)
    await store.add(Session(SecretStr("key"), ""))
    async with running(sweep_sessions(store, every_seconds=0.02)):
        await anyio.sleep(0.3)
    assert await store.count() == 0
