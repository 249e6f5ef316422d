"""What the gateway finds on its own is no failure of vLLM, and none of what a connection can do is forgotten."""

from contextlib import closing

import pytest
from pydantic import SecretStr

from app import vllm
from app.config import Settings
from app.connection import TransportError
from app.errors import InvalidKey
from app.vllm import VLLMClient
from tests.faults.world import World

pytestmark = pytest.mark.anyio


async def test_a_key_that_was_not_shown_to_vllm_has_no_kind(patient: World) -> None:
    with closing(VLLMClient(Settings(vllm_base_url=f"{patient.network.url}/v1"))) as client:
        for key, kind in (("", None), ("ключ", None), ("wrong", "unauthorized")):
            with pytest.raises(InvalidKey) as raised:
                await client.prove_key(SecretStr(key))
            assert raised.value.kind == kind


async def test_the_table_of_foreign_errors_is_complete() -> None:
    kinds = {*TransportError.__subclasses__(), TimeoutError}
    assert len(kinds) == 4
    assert vllm._TRANSPORT_ERRORS.keys() == kinds  # noqa: SLF001 - the table is the promise
