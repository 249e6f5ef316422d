"""What a bare Debian or Ubuntu lacks, from its own packages, unpacked beside the environments.

Needs no root and leaves the system as it is: even the lists of packages are fetched into a folder of ours.
"""

import ctypes
import shutil
from pathlib import Path

from demo.progress import StepFailed, run_step

_FETCH = """\
set -e
mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
cd "$1"
rm -f "$2"_*.deb
apt-get -qq -o Dir::State::Lists="$1/lists" -o Dir::Cache="$1/cache" update
apt-get -qq -o Dir::State::Lists="$1/lists" -o Dir::Cache="$1/cache" download "$2"
dpkg-deb -x "$2"_*.deb "$1/root"
"""


def unpack(package: str, work: Path) -> Path:
    """Fetch a package and unpack it under `work`; returns the root of its files.

    Raises:
        StepFailed: this is no Debian, or its packages cannot be reached.
    """
    if shutil.which("apt-get") is None:
        raise StepFailed(f"Этой системе не хватает того, что в Debian есть в пакете {package}: установите его аналог.")
    folder = work / "debian"
    try:
        run_step(f"пакет {package}", [["sh", "-c", _FETCH, "sh", str(folder), package]], work / "logs" / "debian.log")
    except StepFailed as exc:
        raise StepFailed(f"{exc}\nУстановите его сами: sudo apt-get install {package}") from exc
    return folder / "root"


def has_library(name: str) -> bool:
    """Whether the system can load a shared library."""
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
