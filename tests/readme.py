"""A README as a person uses it: its sections, and its walk through the API typed as written."""

import itertools
import json
import re
import subprocess
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")

_WALK = "API по шагам"
_BLOCK = re.compile(r"^ *```(bash|json|text)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_EVENT = re.compile(r"^event: (\w+)\ndata: (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\b\d+(\.\d+)?\b")
_MARK = "\n--- конец шага ---\n"

Step = tuple[str, str, str]
"""Command, form of the answer, answer; the answer may be absent."""


def section(title: str, page: str = README) -> str:
    """The text of a section, up to the next one of its level or above."""
    [heading] = re.findall(rf"^(#+) {re.escape(title)}$", page, re.MULTILINE)
    text = page.split(f"\n{heading} {title}\n")[1]
    return re.split(rf"^#{{1,{len(heading)}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", page)


def headings(page: str) -> list[tuple[int, str]]:
    """Level and title of every heading."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.*)$", prose(page), re.MULTILINE)]


def anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def commands(title: str, page: str = README) -> list[str]:
    """The blocks of commands in a section."""
    return [textwrap.dedent(content) for form, content in _BLOCK.findall(section(title, page)) if form == "bash"]


def walk(title: str = _WALK, page: str = README) -> list[Step]:
    """The steps through the API in a section."""
    steps: list[Step] = []
    for form, content in _BLOCK.findall(section(title, page)):
        if form == "bash":
            steps.append((content, "", ""))
        else:
            steps[-1] = (steps[-1][0], form, content)
    return steps


def type_the_walk(gateway_url: str, key: str, folder: Path, title: str = _WALK, page: str = README) -> str:
    """Type every command of the walk and compare the form of each answer; returns all that was shown."""
    steps = walk(title, page)
    assert len(steps) >= 13
    outputs = type_commands([command for command, _, _ in steps], gateway_url, key, folder)
    for (command, form, documented), output in zip(steps, outputs, strict=True):
        if form == "json":
            assert _shape(json.loads(output)) == _shape(json.loads(documented)), command
        elif _EVENT.search(documented):
            assert _event_shapes(output) == _event_shapes(documented), command
        elif form == "text":
            assert _NUMBER.sub("N", output) == _NUMBER.sub("N", documented), command
        else:
            assert output == "", command
    return "".join(outputs)


def type_commands(typed: list[str], gateway_url: str, key: str, folder: Path) -> list[str]:
    """Type commands one after another into one shell, as a page about the API asks for; returns what each showed."""
    result = subprocess.run(
        ["bash", "-c", "set -e\n" + "".join(f"{command}printf '%s' '{_MARK}'\n" for command in typed)],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GATEWAY": gateway_url, "KEY": key, "LANG": "C.UTF-8"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *outputs, rest = result.stdout.split(_MARK)
    assert not rest
    return outputs


def _shape(value: Any) -> Any:
    """What stays of an answer without its particular words and numbers."""
    match value:
        case dict():
            return {name: _shape(member) for name, member in value.items()}
        case list():
            return [_shape(member) for member in value]
        case _:
            return type(value).__name__


def _event_shapes(text: str) -> list[tuple[str, Any]]:
    """The shapes of a stream's events; how many pieces come is the model's affair."""
    shapes = [(name, _shape(json.loads(data))) for name, data in _EVENT.findall(text)]
    return [shape for shape, _ in itertools.groupby(shapes)]
