"""Findings as a person reads them, and as a program does."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from app.doctor.findings import Finding, Status

_SIGNS: dict[Status, str] = {"ok": "✓", "warning": "!", "failure": "✗", "unchecked": "–"}
_COLOURS: dict[Status, str] = {"ok": "32", "warning": "33", "failure": "31", "unchecked": "90"}
_INDENT = "    "


def shown(finding: Finding, *, coloured: bool) -> str:
    """A finding: one line where all is fine, else why it matters and what to type below it."""
    sign = _SIGNS[finding.status]
    if coloured:
        sign = f"\033[{_COLOURS[finding.status]}m{sign}\033[0m"
    if finding.status == "unchecked":
        lines = [f"{sign} {finding.what}: {finding.why}"]
    else:
        lines = [f"{sign} {finding.what}"] + ([_INDENT + finding.why] if finding.why else [])
    lines += [f"{_INDENT}→ {line}" for line in finding.command.splitlines()]
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """The last line."""
    failures = sum(finding.status == "failure" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    if failures:
        more = f", предупреждений: {warnings}" if warnings else ""
        return f"Найдено ошибок: {failures}{more}. Начните с первой, потом запустите проверку снова."
    if warnings:
        return f"Ошибок нет, предупреждений: {warnings}."
    return "Всё в порядке."


def as_json(findings: Sequence[Finding]) -> str:
    """All of it for a program."""
    return json.dumps({"findings": [asdict(finding) for finding in findings]}, ensure_ascii=False, indent=2)


def from_json(text: str) -> list[Finding]:
    """The findings that `as_json` wrote. Raises ValueError where these are none."""
    try:
        findings = [Finding(**finding) for finding in json.loads(text)["findings"]]
    except (LookupError, TypeError) as exc:
        raise ValueError from exc
    if any(finding.status not in _SIGNS for finding in findings):
        raise ValueError  # of another version's
    return findings


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where nothing keeps the stand from working."""
    return int(any(finding.status == "failure" for finding in findings))
