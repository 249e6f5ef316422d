"""The pages: the table of contents, the links between them and the list of them."""

import re
from pathlib import Path

import pytest

from tests.readme import README, ROOT, anchor, headings, prose, section

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "client" / "README.md", *DOCS]
CONTENTS = "Содержание"


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


def test_every_page_is_in_the_list_and_in_the_table_of_the_repository() -> None:
    names = {f"docs/{page.name}" for page in DOCS}
    assert names
    for title in ("Подробные страницы", "Что в репозитории"):
        assert names <= set(re.findall(r"\]\((docs/\w+\.md)\)", section(title))), title
