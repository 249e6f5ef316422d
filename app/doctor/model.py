"""The model's folder: what is in it, as far as matters before vLLM reads it."""

import os
import stat
import struct
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.doctor import facts
from app.model_folder import LFS_POINTER

WEIGHTS_INDEX = "model.safetensors.index.json"
# As both Dockerfiles have it.
CONTAINERS_USER = 10001
OLD_WEIGHTS = (".bin", ".pt", ".pth")
GGUF = ".gguf"
_READ_SUFFIXES = {".json", ".jinja", ".model", ".txt", ".tiktoken", ".py"}
_MOST_HEADER_BYTES = 100_000_000
_MOST_JSON_BYTES = 64 * 2**20
_READ_JSON = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json", WEIGHTS_INDEX)


@dataclass(frozen=True)
class Entry:
    """A file of the folder.

    Attributes:
        leads_nowhere: a link that has no target inside the container.
        is_readable: by the containers' user.
        is_pointer: Git LFS's note on where the file is.
    """

    name: str
    size: int = 0
    leads_nowhere: bool = False
    is_readable: bool = True
    is_pointer: bool = False


@dataclass(frozen=True)
class Tensors:
    """A file of weights, by its own header.

    Attributes:
        problem: why it is none, in Russian.
        promised_bytes: how long the file must be.
        bytes_by_type: of its tensors.
    """

    problem: str = ""
    promised_bytes: int = 0
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The folder.

    Attributes:
        problem: why it cannot be looked into, in Russian.
        is_open: whether the containers' user may.
        documents: what JSON files say; None for one that is no JSON.
        tensors: files of weights that could be opened.
        label: SELinux's, empty without.
    """

    folder: str
    exists: bool = True
    problem: str = ""
    is_open: bool = True
    entries: Mapping[str, Entry] = field(default_factory=dict)
    documents: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensors] = field(default_factory=dict)
    label: str = ""

    def document(self, name: str) -> Mapping[str, Any]:
        """What a JSON file says; empty where it says nothing."""
        return facts.mapping(self.documents.get(name))

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json, of the language model where there is more than one."""
        config = self.document("config.json")
        return facts.mapping(config.get("text_config")) or config

    @property
    def shards(self) -> Sequence[str]:
        """Files of weights that vLLM will read: by the index, else all there are."""
        if listed := set(facts.mapping(self.document(WEIGHTS_INDEX).get("weight_map")).values()):
            return sorted(map(str, listed))
        found = sorted(name for name in self.entries if name.endswith(".safetensors"))
        return [name for name in found if not name.startswith("consolidated")] or found

    def is_read(self, name: str) -> bool:
        """Whether the gateway or vLLM reads a file, and not only a person or another program."""
        path = Path(name)
        if path.suffix in {".safetensors", *OLD_WEIGHTS, GGUF}:
            return name in self.shards or (not self.shards and path.suffix != ".safetensors")
        return path.suffix in _READ_SUFFIXES

    @property
    def weights_bytes(self) -> int | None:
        """What the weights take in memory at least, in 16 bits where they are saved in more; None: unknown."""
        if not self.shards or any(name not in self.tensors or self.tensors[name].problem for name in self.shards):
            return None
        halves = {"F32": 2, "F64": 4}
        return sum(
            size // halves.get(kind, 1)
            for name in self.shards
            for kind, size in self.tensors[name].bytes_by_type.items()
        )


def look_into(folder: str, users: Collection[int] = (CONTAINERS_USER,)) -> Model:
    """Look at the folder and the beginnings of its files.

    Args:
        folder: of this machine.
        users: whom the containers run as.
    """
    path = Path(folder)
    try:
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
        is_open = _may(path, stat.S_IROTH | stat.S_IXOTH, users)
    except FileNotFoundError:
        return Model(folder, exists=False)
    except OSError as exc:
        return Model(folder, problem=exc.strerror or type(exc).__name__)
    files = {name: entry for name in names if (entry := _entry(path, name, users))}
    usable = [
        name for name, entry in files.items() if entry.size and not entry.is_pointer and os.access(path / name, os.R_OK)
    ]
    return Model(
        folder,
        is_open=is_open,
        entries=files,
        documents={
            name: _json(path / name) for name in _READ_JSON if name in usable and files[name].size <= _MOST_JSON_BYTES
        },
        tensors={name: _tensors(path / name) for name in usable if name.endswith(".safetensors")},
        label=_attribute(path, "security.selinux").decode(errors="replace").strip("\0"),
    )


def _may(path: Path, bits: int, users: Collection[int]) -> bool:
    """Whether the users have these rights; `bits` are others'."""
    status = path.stat()

    def suffices(user: int) -> bool:
        shift = 6 if status.st_uid == user else 3 if status.st_gid == user else 0
        return status.st_mode & bits << shift == bits << shift

    return all(map(suffices, users)) or bool(_attribute(path, "system.posix_acl_access"))


def _entry(folder: Path, name: str, users: Collection[int]) -> Entry | None:
    """What it is; None for a folder."""
    path = folder / name
    try:
        status = path.stat()
    except OSError:
        return Entry(name, leads_nowhere=True)
    if stat.S_ISDIR(status.st_mode):
        return None
    # The container sees this folder alone: a link is followed there.
    away = path.is_symlink() and (path.readlink().is_absolute() or not path.resolve().is_relative_to(folder.resolve()))
    beginning = _read(path, len(LFS_POINTER))
    return Entry(name, status.st_size, away, _may(path, stat.S_IROTH, users), beginning == LFS_POINTER)


def _read(path: Path, most: int) -> bytes:
    """The beginning of a file; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError:
        return b""


def _json(path: Path) -> Any:
    return facts.parsed(_read(path, _MOST_JSON_BYTES).decode(errors="replace"))


def _tensors(path: Path) -> Tensors:
    """The header of a file of weights: 8 bytes of its length, then JSON with the place of each tensor."""
    beginning = _read(path, 8)
    if not beginning:
        return Tensors(problem="не читается")
    length = struct.unpack("<Q", beginning)[0] if len(beginning) == 8 else 0
    if not 2 <= length <= _MOST_HEADER_BYTES:
        return Tensors(problem="это не safetensors")
    header = _read(path, 8 + length)[8:]
    if len(header) < length:
        return Tensors(promised_bytes=8 + length)
    described = facts.parsed(header.decode(errors="replace"))
    tensors = [facts.mapping(tensor) for name, tensor in facts.mapping(described).items() if name != "__metadata__"]
    ends, sizes = [0], dict[str, int]()
    for tensor in tensors:
        offsets = [
            number for number in map(facts.whole, facts.sequence(tensor.get("data_offsets"))) if number is not None
        ]
        if len(offsets) != 2:
            return Tensors(problem="это не safetensors")
        kind = facts.text(tensor.get("dtype"))
        sizes[kind] = sizes.get(kind, 0) + offsets[1] - offsets[0]
        ends.append(offsets[1])
    if not isinstance(described, dict):
        return Tensors(problem="это не safetensors")
    return Tensors(promised_bytes=8 + length + max(ends), bytes_by_type=sizes)


def _attribute(path: Path, name: str) -> bytes:
    if sys.platform != "linux":
        return b""
    try:
        return os.getxattr(path, name)
    except OSError:
        return b""
