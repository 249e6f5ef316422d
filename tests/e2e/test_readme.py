"""The README's walk through the API, every command as written, against the real vLLM."""

from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.readme import README, type_the_walk, walk
from tests.scripted_vllm import KEY

pytestmark = pytest.mark.vllm


def test_every_command_gives_the_documented_answer(gateway: Gateway, tmp_path: Path) -> None:
    type_the_walk(gateway.url, KEY, tmp_path)


def test_every_endpoint_is_in_the_walk(gateway: Gateway) -> None:
    commands = "".join(command for command, _, _ in walk())
    for path in gateway.http.get("/openapi.json").json()["paths"]:
        assert f"$GATEWAY{path}" in commands, path


def test_every_error_code_is_in_the_readme() -> None:
    from tests.test_errors import all_errors  # noqa: PLC0415 - that module's tests are not this one's

    codes = {vars(error)["code"] for error in all_errors() if "code" in vars(error)}
    assert len(codes) > 8
    for code in codes:
        assert f"`{code}`" in README
