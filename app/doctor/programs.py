"""Programs of the machine, which may be absent, fail, or hang."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal


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


def run(command: Sequence[str], folder: str, environ: Mapping[str, str], seconds: float) -> Ran:
    """Run a program in a folder, for so long at most."""
    try:
        # A session of its own: what it has started itself holds our pipes too, and must end with it.
        with subprocess.Popen(  # noqa: S603 - no shell, and no word of it is anybody else's
            command,
            cwd=folder,
            env={**environ, "LC_ALL": "C"},  # its messages are read, so they must be English
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            finally:
                if process.returncode is None:
                    os.killpg(process.pid, signal.SIGKILL)
    except subprocess.TimeoutExpired:
        return Ran("timeout")
    except (OSError, ValueError):  # not there, not executable, or a NUL in the environment
        return Ran("absent")
    return Ran("finished", process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))
