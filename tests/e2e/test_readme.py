"""The README's walk through the API, every command as written, against the real vLLM."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Gateway
from tests.scripted_vllm import KEY

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(bash|json|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def walk() -> list[tuple[str, str, str]]:
    """(command, form of the answer, answer) of each step; the answer may be absent."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("\n## API по шагам\n")[1].split("\n## ")[0]
    steps: list[tuple[str, str, str]] = []
    for form, content in BLOCK.findall(section):
        if form == "bash":
            steps.append((content, "", ""))
        else:
            steps[-1] = (steps[-1][0], form, content)
    return steps


def shape(value: Any) -> Any:
    """What stays of an answer without its particular words and numbers."""
    match value:
        case dict():
            return {name: shape(member) for name, member in value.items()}
        case list():
            return [shape(member) for member in value]
        case _:
            return type(value).__name__


def event_names(text: str) -> list[str]:
    """Names of a stream's events; how many pieces come is the model's affair."""
    names = re.findall(r"^event: (\w+)$", text, re.MULTILINE)
    return sorted(set(names), key=names.index)


def test_every_command_gives_the_documented_answer(gateway: Gateway, tmp_path: Path) -> None:
    steps = walk()
    assert len(steps) >= 13
    mark = "\n--- конец шага ---\n"
    script = "set -e\n" + "".join(f"{command}printf '%s' '{mark}'\n" for command, _, _ in steps)
    result = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GATEWAY": gateway.url, "KEY": KEY, "LANG": "C.UTF-8"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    outputs = result.stdout.split(mark)
    for (command, form, documented), output in zip(steps, outputs, strict=False):
        if form == "json":
            assert shape(json.loads(output)) == shape(json.loads(documented)), command
        elif form == "text":
            assert event_names(output) == event_names(documented) == ["delta", "done"], command
        else:
            assert output == "", command


def test_every_endpoint_is_in_the_walk(gateway: Gateway) -> None:
    commands = "".join(command for command, _, _ in walk())
    for path in gateway.http.get("/openapi.json").json()["paths"]:
        assert f"$GATEWAY{path}" in commands, path


def test_every_error_code_is_in_the_readme() -> None:
    from tests.test_errors import all_errors  # noqa: PLC0415 - that module's tests are not this one's

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for error in all_errors():
        assert f"`{error.code}`" in readme
