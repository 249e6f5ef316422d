"""Each failure of vLLM has the kind that the table says; what the gateway finds on its own has none."""

from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr

from app import vllm
from app.config import Settings
from app.connection import TransportError
from app.errors import GatewayError, InvalidKey
from app.prompt import Prompts
from app.sessions import Session
from app.tokenizer import ChatTokenizer
from app.turn import Question, Turn
from app.vllm import Message, VLLMClient
from tests.faults.table import Failure, Form, Way, played
from tests.faults.world import World
from tests.scripted_vllm import KEY

pytestmark = pytest.mark.anyio

SHORT = {"vllm_connect_timeout_seconds": 0.2, "vllm_idle_timeout_seconds": 0.2, "vllm_total_timeout_seconds": 0.6}


class Nowhere:
    """Takes a stream and shows it to nobody."""

    async def open(self) -> None:
        pass

    async def write(self, messages: list[Message]) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> ChatTokenizer:
    return ChatTokenizer.load(str(model_folder))


def turn_on(client: VLLMClient, settings: Settings, tokenizer: ChatTokenizer) -> Turn:
    client.max_model_len = 8192  # as a session's key check has it learn
    session = Session(SecretStr(KEY), "")
    question = Question("раз", 5, None, {}, "id")
    return Turn(session, question, client, Prompts(settings, tokenizer, client), settings.max_session_bytes)


@pytest.mark.parametrize(("form", "way", "stream"), played(Failure))
async def test_the_kind_of_a_failure(
    patient: World, tokenizer: ChatTokenizer, form: Form, way: Way, *, stream: bool
) -> None:
    sees = form.sees
    assert isinstance(sees, Failure)
    short = SHORT if sees.after else {}
    settings = patient.settings.model_copy(update={"vllm_base_url": f"{patient.network.url}/v1", **short})
    patient.script.scripts.clear()
    patient.network.answers.clear()
    with closing(VLLMClient(settings)) as client, way.play(patient):
        turn = turn_on(client, settings, tokenizer)
        with pytest.raises(GatewayError) as raised:
            await (turn.stream(Nowhere()) if stream else turn.reply())
    assert (raised.value.status, raised.value.code, raised.value.kind) == (sees.status, sees.code, sees.kind)
    assert "kind" not in raised.value.problem()


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
