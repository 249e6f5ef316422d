"""Files that are written whole or not at all."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put a file in place of what is there.

    Args:
        path: where; its folder exists.
        data: what it is to hold.
        mode: its rights; None keeps those of the file that is there.

    Raises:
        OSError, ValueError: it cannot be; what is there stays, and nothing is left beside it.
    """
    with TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        unfinished = Path(folder, "unfinished")
        if mode is not None:
            unfinished.touch(mode=mode)
        unfinished.write_bytes(data)
        if mode is None and path.exists():
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
