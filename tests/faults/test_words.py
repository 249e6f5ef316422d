"""What vLLM says of a refusal is passed on, but not the user's text that it repeats."""

import pytest

from tests.conftest import SessionOf
from tests.scripted_vllm import ScriptedVLLM, refusal


@pytest.mark.parametrize("status", [400, 404, 500])
def test_vllms_words_come_without_the_values_that_it_echoes(
    session: SessionOf, vllm: ScriptedVLLM, status: int
) -> None:
    words = "1 validation error: not so [type=dict_type, input_value='тайна', input_type=str]"
    vllm.scripts.append(refusal(status, words))
    response = session.gateway.post("/chat", session_id=session.id, message="тайна")
    assert ("not so" in response.text) == (status < 500)
    assert "тайна" not in response.text


def test_vllms_words_come_without_the_values_that_it_echoes_elsewhere(session: SessionOf, vllm: ScriptedVLLM) -> None:
    words = (
        "1 validation error:\n  {'type': 'dict_type', 'loc': 'body', 'msg': 'not so', 'input': {'messages': 'тайна'}}"
    )
    vllm.scripts.append(refusal(400, words))
    body = session.refused(400, "upstream_rejected", "/chat", message="тайна")
    assert "not so" in body["detail"]
    assert "тайна" not in str(body)
