"""docs/doctor.md has a row for each fault that is seeded, and says what the doctor says."""

import re

from tests.doctor.faults import FAULTS
from tests.doctor.faults_inside import INNER_FAULTS
from tests.readme import ROOT, section

PAGE = (ROOT / "docs" / "doctor.md").read_text(encoding="utf-8")


def rows(title: str) -> list[tuple[str, str]]:
    """The rows of the table in a section."""
    [_, _, *found] = re.findall(r"^\| (.+?) \| (.+?) \|$|^\|(-+)\|", section(title, PAGE), re.MULTILINE)
    return [(fault, says) for fault, says, _ in found]


def test_every_seeded_fault_is_in_the_tables_with_what_is_said_of_it() -> None:
    for title, faults in (("Машина и стенд", FAULTS), ("Шлюз изнутри", INNER_FAULTS)):
        expected = [
            (fault.title, f"{'✗' if fault.status == 'failure' else '!'} {fault.says.strip()}") for fault in faults
        ]
        assert rows(title) == expected
