"""What vLLM does wrong while a session is opened."""

import pytest

from tests.conftest import Gateway, StartGateway
from tests.scripted_vllm import KEY, Script, ScriptedVLLM
from tests.servers import unused_url


def test_an_unreachable_vllm_is_no_wrong_key(start_gateway: StartGateway) -> None:
    url = f"{unused_url()}/v1"
    with start_gateway(vllm_base_url=url) as gateway:
        body = gateway.refused(503, "upstream_unavailable", "/init_session", vllm_api_key=KEY)
        assert "docker compose logs vllm" in body["detail"]
        assert url in body["detail"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Script([b"<html>"]), "VLLM_BASE_URL"),
        (Script([b'{"data": []}']), "VLLM_MODEL_NAME"),
        (Script([b'{"data": [{"id": "other", "max_model_len": 5}]}']), "other"),
        (Script([b'{"data": [{"id": "/app/model"}]}']), "/app/model"),
        (Script([b'{"data": [{"id": "/app/model", "max_model_len": -1}]}']), "VLLM_BASE_URL"),
        (Script([b"no"], status=500), "500"),
        (Script([b"no"], status=404), "VLLM_BASE_URL"),
    ],
)
def test_a_server_that_is_not_the_vllm_we_expect(
    gateway: Gateway, vllm: ScriptedVLLM, answer: Script, says: str
) -> None:
    vllm.models_script = answer
    assert says in gateway.refused(502, "upstream_error", "/init_session", vllm_api_key=KEY)["detail"]


def test_an_adapter_is_as_long_as_its_model(gateway: Gateway, vllm: ScriptedVLLM) -> None:
    vllm.models_script = Script([b'{"data": [{"id": "base", "max_model_len": 600}, {"id": "/app/model"}]}'])
    assert gateway.open().ok("/chat", message="а", max_tokens=100)["context"]["limit"] == 500
