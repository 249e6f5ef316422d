"""Programs of the machine, which may be absent, fail, or hang."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

_SECONDS = 20.0


@dataclass(frozen=True)
class Ran:
    """What came of a program.

    Attributes:
        end: whether it ran to its end; `absent`: there is no such program.
        code: its exit code; of one that did not end, -1.
    """

    end: Literal["finished", "absent", "timeout"]
    code: int = -1
    out: str = ""
    err: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked to."""
        return self.code == 0

    @property
    def words(self) -> str:
        """The last line of what it complained of."""
        if self.end == "timeout":
            return "не ответил вовремя"
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip()[:300] if lines else f"код {self.code}"


def run(
    command: Sequence[str], folder: str, environ: Mapping[str, str] | None = None, seconds: float = _SECONDS
) -> Ran:
    """Run a program in a folder, for so long at most; `environ` is added to ours."""
    # Messages are read, so they must be English.
    environ = {**os.environ, "LC_ALL": "C", **(environ or {})}
    try:
        done = subprocess.run(  # noqa: S603 - no shell, and no word of it is anybody else's
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Ran("timeout")
    except (OSError, ValueError):  # not there, not executable, or a NUL in the environment
        return Ran("absent")
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Ran("finished", done.returncode, out, err)
