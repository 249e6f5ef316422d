"""Counting on the real vLLM with the tokenizers and templates of real models, weights at random."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.refusals import MAX_CONTEXT_TOKENS, MAX_MODEL_LEN, VLLM_ARGUMENTS, Seeker, defects
from client.api import GatewayClient
from demo.environments import WORK
from demo.stand import Server, random_models, start_vllm
from tests.conftest import Gateway, gateways_before
from tests.scripted_vllm import KEY
from tests.servers import wait_until
from tests.test_template import TRIMS_TEXT_ONLY
from tests.tokenizers_at_hand import REAL, folder_of

pytestmark = [pytest.mark.vllm, pytest.mark.shared_tokenizers, pytest.mark.timeout(600)]

TURNS = 80
IN_PARTS = "tinyllama-in-parts"
NAMES = [*REAL, IN_PARTS]


def in_parts() -> Path:
    """A tokenizer's folder whose template, as those of models that see pictures, takes contents in parts."""
    folder = WORK / "tokenizers" / IN_PARTS
    if not folder.exists():
        shutil.copytree(folder_of("tinyllama"), folder, copy_function=shutil.copyfile)
        template = TRIMS_TEXT_ONLY.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<|")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[str], tuple[Path, Server]]]:
    """Starts a vLLM with a tokenizer, and the next one already: it takes most of a minute and one core each."""
    folders = random_models(*(in_parts() if name == IN_PARTS else folder_of(name) for name in NAMES))
    models = dict(zip(NAMES, folders, strict=True))
    started: dict[str, tuple[Path, Server]] = {}
    with ExitStack() as stack:

        def start(name: str) -> tuple[Path, Server]:
            for wanted in NAMES[NAMES.index(name) :][:2]:
                if wanted not in started:
                    server = start_vllm(models[wanted], KEY, MAX_MODEL_LEN, *VLLM_ARGUMENTS, "--enforce-eager")
                    started[wanted] = models[wanted], stack.enter_context(server)
            return started[name]

        yield start


@pytest.fixture(scope="module", params=NAMES)
def gateway(request: pytest.FixtureRequest, start: Callable[[str], tuple[Path, Server]]) -> Iterator[Gateway]:
    """A gateway before a vLLM with this tokenizer, both with little room."""
    model, server = start(request.param)
    server.wait_until_ready()
    with gateways_before(server.url, model, timeout_seconds=60)(max_context_tokens=MAX_CONTEXT_TOKENS) as started:
        yield started
    server.stop()


def test_the_probes_agree(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    wait_until(lambda: gateway.http.get("/health").json()["vllm"] == "ok")
    assert gateway.http.get("/health").json()["count_mismatches"] == 0
    assert "Шлюз насчитал" not in caplog.text


def test_every_turn_is_counted_as_vllm_counts_it_and_none_is_refused(gateway: Gateway) -> None:
    with GatewayClient(gateway.url) as client:
        seeker = Seeker(client, KEY, random.Random(5))
        while seeker.seen["answered"] < TURNS:
            seeker.lead_session()
    assert defects(seeker.seen) == {}
    assert seeker.seen["trimmed"] > TURNS // 4
    assert seeker.seen["at the edge"] > TURNS // 20
    health = gateway.http.get("/health").json()
    assert (health["count_mismatches"], health["warnings"], health["sessions"]) == (0, [], 0)


def test_the_system_prompt_reaches_the_model(gateway: Gateway) -> None:
    """Folded or not, it is in what vLLM counts."""
    long, short = (gateway.open(system_prompt=prompt) for prompt in ("слово " * 50, "слово"))
    used = [session.ok("/chat", message="а", max_tokens=1)["input_tokens"] for session in (long, short)]
    assert used[0] > used[1] + 49
