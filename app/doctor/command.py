"""`python -m app.doctor`: its arguments, what it prints and how it ends."""

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from app.doctor.findings import Finding
from app.doctor.report import as_json, exit_code, shown, summary

_INTERRUPTED = 130
_NOT_INSTALLED = (
    "В этом Python шлюза нет. Машину и стенд проверяет make doctor, шлюз изнутри — "
    "docker compose exec gateway python -m app.doctor"
)


def main() -> int:
    """Look, print, and return the exit code: 0, 1 where something keeps the stand from working, 2 for bad arguments."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of a terminal that cannot show everything
    asked = _parser().parse_args()
    try:
        findings = list(_printed(_look(stand=asked.stand), quiet=asked.json))
        print(as_json(findings) if asked.json else summary(findings), flush=True)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # who reads has seen enough
        sys.stdout = None  # or Python would try once more, and complain
        return _INTERRUPTED
    except ModuleNotFoundError:
        print(_NOT_INSTALLED, file=sys.stderr)
        return 2
    return exit_code(findings)


def _look(*, stand: bool) -> Iterable[Finding]:
    if stand:
        from app.doctor.host import examine  # noqa: PLC0415

        return examine(Path.cwd(), os.environ)
    from app.doctor.gateway import examine_from_inside  # noqa: PLC0415 - needs what only the gateway has installed

    logging.disable(logging.CRITICAL)  # what the parts of the gateway would log is said in full by the findings
    return examine_from_inside()


def _printed(findings: Iterable[Finding], *, quiet: bool) -> Iterator[Finding]:
    """The same findings, each shown as soon as it is there."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for finding in findings:
        if not quiet:
            print(shown(finding, coloured=coloured), flush=True)
        yield finding


class _Parser(argparse.ArgumentParser):
    """In Russian, as far as argparse lets."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """End with code 2."""
        self.exit(2, f"Так не запускают: {message}\nСправка: python -m app.doctor --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m app.doctor",
        usage="python -m app.doctor [--stand] [--json]",
        description="Ищет, что мешает стенду работать: что не так, почему и что набрать. Подробно — docs/doctor.md.",
        epilog="Код возврата: 0 — ошибок нет, 1 — есть, 2 — неверные аргументы.",
        add_help=False,
        allow_abbrev=False,
    )
    options = parser.add_argument_group("параметры")
    options.add_argument(
        "--stand",
        action="store_true",
        help="проверить машину и стенд в этой папке (то же — make doctor); без него — шлюз изнутри: настройки из "
        "окружения, токенизатор, связь с vLLM и Redis",
    )
    options.add_argument("--json", action="store_true", help="находки объектом JSON, для программ")
    options.add_argument("-h", "--help", action="help", help="показать эту справку")
    return parser
