"""The HTTP walk and the program of `client/README.md` against the real vLLM."""

from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.readme import type_the_walk
from tests.scripted_vllm import KEY
from tests.test_client_readme import PAGE, WALK, run

pytestmark = pytest.mark.vllm


def test_every_command_gives_the_documented_answer(gateway: Gateway, tmp_path: Path) -> None:
    type_the_walk(gateway.url, KEY, tmp_path, WALK, PAGE)


def test_the_program_talks(gateway: Gateway, tmp_path: Path) -> None:
    result = run(gateway.url, tmp_path, "Здравствуй\nПрощай\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Ошибка" not in result.stdout
    assert len(result.stdout) > len("\n\n")
    assert gateway.http.get("/health").json()["sessions"] == 0
