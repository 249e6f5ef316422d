"""The pages: the table of contents, the links between them, and the short English README, typed and checked."""

import ast
import json
import re
from pathlib import Path

import pytest

from tests.conftest import Gateway
from tests.readme import (
    README,
    ROOT,
    SETTINGS,
    anchor,
    commands,
    headings,
    prose,
    section,
    type_commands,
)
from tests.scripted_vllm import KEY, ScriptedVLLM, stream_of, whole

ENGLISH = (ROOT / "README.en.md").read_text(encoding="utf-8")
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "README.en.md", ROOT / "client" / "README.md", *DOCS]
CONTENTS = "Содержание"

# --- all pages ---


def test_the_table_of_contents_has_every_heading_in_order() -> None:
    entries = re.findall(r"^( *)- \[(.+)\]\(#(.+)\)$", section(CONTENTS), re.MULTILINE)
    told = [(len(indent) // 2 + 2, title, target) for indent, title, target in entries]
    assert told == [
        (level, title, anchor(title)) for level, title in headings(README) if level in {2, 3} and title != CONTENTS
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)]+)\)", prose(page.read_text(encoding="utf-8")))
    for target in targets:
        if target.startswith("https://"):
            continue
        path, _, wanted = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        if wanted:
            found = [anchor(title) for _, title in headings(other.read_text(encoding="utf-8"))]
            assert found.count(wanted) == 1, target


def test_the_sections_that_messages_name_are_there() -> None:
    """`docs/operations.md, «Версии»`, or with « и » another one of that page."""
    strings = [
        node.value
        for folder in ("app", "client", "demo")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = [found for text in strings for found in re.findall(r"(README|[\w/]+\.md), («[^»]+»(?: и «[^»]+»)*)", text)]
    assert named
    for page, titles in named:
        there = headings((ROOT / page.replace("README", "README.md")).read_text(encoding="utf-8"))
        assert set(re.findall("«(.+?)»", titles)) <= {title for _, title in there}, (page, titles)
    for text in strings:
        for page in re.findall(r"\b(?:docs|client)/\w+\.md", text):
            assert (ROOT / page).is_file(), page


def test_every_page_is_in_the_list_and_in_the_table_of_the_repository() -> None:
    names = {f"docs/{page.name}" for page in DOCS}
    assert names
    for title in ("Подробные страницы", "Что в репозитории"):
        assert names <= set(re.findall(r"\]\((docs/\w+\.md)\)", section(title))), title


def test_each_readme_begins_with_a_link_to_the_other() -> None:
    assert README.splitlines()[0] == "[English](README.en.md)"
    assert ENGLISH.splitlines()[0] == "[Русский](README.md)"


# --- the English one ---


def test_its_walk_is_a_talk(gateway: Gateway, vllm: ScriptedVLLM, tmp_path: Path) -> None:
    vllm.scripts += [whole("A door."), stream_of("A ", "door.")]
    opened, answer, stream, stopped = type_commands(commands("The API with curl", ENGLISH), gateway.url, KEY, tmp_path)
    assert json.loads(opened).keys() == {"session_id", "expires_in"}
    named = set(re.findall(r"`(\w+)`", section("The API with curl", ENGLISH).split("Ask. ")[1].split("```")[0]))
    assert named <= json.loads(answer).keys()
    assert "event: delta" in stream
    assert "event: done" in stream
    assert json.loads(stopped) == {"status": "stopped"}
    assert list(tmp_path.iterdir()) == [], "nothing is left lying about"


def test_the_addresses_it_names_are_the_gateways(gateway: Gateway) -> None:
    text = section("The API with curl", ENGLISH)
    named = set(re.findall(r"(?:\$GATEWAY|`)(/\w+)", text)) - {"/docs"}
    assert named == set(gateway.http.get("/openapi.json").json()["paths"])


def test_its_variables_and_their_defaults_are_the_russian_ones() -> None:
    russian = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", SETTINGS, re.MULTILINE))
    english = dict(re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", ENGLISH, re.MULTILINE))
    assert len(english) == 6
    words = {"пусто": "empty", "нет, нужен свой": "none, choose your own"}
    assert english == {name: words.get(russian[name], russian[name]) for name in english}
    assert set(re.findall(r"`([A-Z]+_[A-Z_]+)[`=]", ENGLISH)) <= russian.keys()


def test_its_commands_are_in_the_russian_one() -> None:
    steps = re.findall(r"`((?:cp|chmod|docker compose) [^`]+)`", section("The stack: Docker Compose", ENGLISH))
    assert len(steps) == 6
    for step in [*steps, *"".join(commands("Try it, without Docker", ENGLISH)).splitlines()]:
        assert step in README
    for line in re.findall(r"^COMPOSE_FILE=.*yaml$", README, re.MULTILINE):
        assert f"`{line}`" in ENGLISH
