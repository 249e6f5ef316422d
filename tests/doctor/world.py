"""A folder with the stand's files and a small model, and a machine in perfect health: faults are seeded into both.

The machine's programs are scripts on PATH that say what a test has written down. What Docker Compose makes of the
stand's files it says itself: `docker compose config` is the real one.
"""

import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from app.doctor.host import examine
from app.doctor.report import as_json, exit_code
from tests.readme import ROOT

KEY = "kljuch-kotoryj-nikto-ne-ugadaet"
GIB = 2**30
MIB = 2**20
LAYERS, HEADS, WIDTH = 32, 8, 128
CARD = {
    "index": "0",
    "uuid": "GPU-0",
    "name": "NVIDIA H100",
    "driver": "580.65.06",
    "total": str(80 * 1024),
    "free": str(80 * 1024),
    "capability": "9.0",
}
_FIRST_SHARD, _SECOND_SHARD = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))

_PLAYED_DOCKER = """\
#!/bin/sh
here=${0%/*}
PATH=/usr/bin:/bin
case "$*" in
  version*) name=version ;;
  "compose version"*) name=compose-version ;;
  compose*config*) shift; exec "$here/real-compose" "$@" ;;
  compose*logs*) for name; do :; done; name=logs-$name ;;
  compose*exec*) echo "$*" > "$here/exec-arguments"; echo "$VLLM_API_KEY" > "$here/exec-key"; name=exec ;;
  compose*ps*) name=compose-ps ;;
  info*) name=info ;;
  "image inspect"*) name=image-inspect ;;
  inspect*) name=inspect ;;
  ps*) name=ps ;;
esac
"""
_ANSWER = """\
[ -e "$here/$name.code" ] || exec cat "$here/$name.out" 2>&-
cat "$here/$name.out"
cat "$here/$name.err" >&2
exit "$(cat "$here/$name.code")"
"""


class World:
    """The folder and the machine.

    Attributes:
        folder: where the doctor is started.
        model: the model's folder.
        environ: variables of the shell.
        programs: what is on PATH.
    """

    def __init__(self, folder: Path, port: int) -> None:
        """`port` is a free one, for the gateway."""
        self.folder = folder / "stand"
        self.model = self.folder / "model"
        self.environ: dict[str, str] = {}
        self.kept = ExitStack()
        self._info: dict[str, Any] = {}
        self._card = dict(CARD)
        self.programs = folder / "programs"
        self.programs.mkdir()
        self._set_up_folder(port)
        self._set_up_machine()

    def _set_up_folder(self, port: int) -> None:
        (self.folder / "deploy").mkdir(parents=True)
        for name in ("docker-compose.example.yaml", ".env.example", "Dockerfile", "Dockerfile.vllm"):
            shutil.copy(ROOT / name, self.folder / name)
        for path in (ROOT / "deploy").glob("*.yaml"):
            shutil.copy(path, self.folder / "deploy" / path.name)
        shutil.copy(ROOT / "docker-compose.example.yaml", self.folder / "docker-compose.yaml")
        self.write_env(f"VLLM_API_KEY={KEY}\nMAX_CONTEXT_TOKENS=7680\nVLLM_MAX_MODEL_LEN=8192\nGATEWAY_PORT={port}\n")
        self.model.mkdir(mode=0o755)
        self.write_model()

    def _set_up_machine(self) -> None:
        for name, choice in (
            ("docker", _PLAYED_DOCKER),
            ("nvidia-smi", _simple("smi")),
            ("timedatectl", _simple("time")),
        ):
            self.program(name, choice + _ANSWER)
        (self.programs / "real-compose").symlink_to(_compose())
        self.say("version", {"Client": {"Version": "28.2.2"}, "Server": {"Version": "28.2.2"}})
        self.say("compose-version", "2.29.0\n")
        self.info(Runtimes={"runc": {}, "nvidia": {}}, DockerRootDir=str(self.folder))
        self.say("time", "yes\n")
        for name in ("image-inspect", "compose-ps", "inspect", "ps"):
            self.say(name, "")
        self.card()

    def program(self, name: str, script: str) -> None:
        """Put a program on PATH."""
        path = self.programs / name
        path.write_text(script)
        path.chmod(0o755)

    def without(self, *names: str) -> None:
        """Take programs away."""
        for name in names:
            (self.programs / name).unlink()

    def say(self, name: str, answer: Any, *, complaint: str = "", code: int = 0) -> None:
        """What a program answers."""
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (self.programs / f"{name}.out").write_text(text)
        (self.programs / f"{name}.code").unlink(missing_ok=True)
        if code:
            (self.programs / f"{name}.err").write_text(complaint)
            (self.programs / f"{name}.code").write_text(str(code))

    def refuse_cards(self, word: str, complaint: str) -> None:
        """Have nvidia-smi complain of a word on its command line."""
        path = self.programs / "nvidia-smi"
        refusal = f"case \"$*\" in *{word}*) echo '{complaint}'; exit 2 ;; esac\n"
        path.write_text(path.read_text().replace("name=smi\n", f"name=smi\n{refusal}"))

    def said(self, name: str) -> str:
        """What a played program has written down."""
        return (self.programs / name).read_text()

    def info(self, **changes: Any) -> None:
        """Change what Docker says of itself."""
        self._info |= changes
        self.say("info", self._info)

    def card(self, **changes: str) -> None:
        """Change the machine's GPU; memory is in MiB."""
        self._card |= changes
        self.say("smi", ", ".join(filter(None, self._card.values())) + "\n")

    def containers(self, *containers: Mapping[str, Any], **logs: str) -> None:
        """The stand's containers, and the logs of its services."""
        rows = [
            {"Name": f"stand-{one['Service']}-1", "Health": "", "ExitCode": 0, "Publishers": [], **one}
            for one in containers
        ]
        self.say("compose-ps", "".join(json.dumps(row) + "\n" for row in rows))
        details = [{"Name": f"/{row['Name']}", "RestartCount": 0, "State": {"OOMKilled": False}} for row in rows]
        self.say("inspect", [{**one, **row.get("Details", {})} for one, row in zip(details, rows, strict=True)])
        for service, log in logs.items():
            self.say(f"logs-{service}", log)

    def write_env(self, content: str | bytes) -> None:
        """Replace .env."""
        path = self.folder / ".env"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)

    def set(self, **values: str) -> None:
        """Change lines of .env."""
        lines = (self.folder / ".env").read_text().splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in values]
        self.write_env("\n".join([*kept, *(f"{name}={value}" for name, value in values.items())]) + "\n")

    def edit(self, name: str, old: str, new: str) -> None:
        """Change a file of the folder."""
        path = self.folder / name
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))

    def write_model(self, weights_bytes: int = 2 * MIB, **config: Any) -> None:
        """A model of two files of weights, which take no room however large they say to be."""
        half = weights_bytes // 2
        for name in (_FIRST_SHARD, _SECOND_SHARD):
            header = {f"{name}.weight": {"dtype": "BF16", "shape": [half // 2], "data_offsets": [0, half]}}
            write_tensors(self.model / name, header, half)
        index = {"weight_map": {f"{name}.weight": name for name in (_FIRST_SHARD, _SECOND_SHARD)}}
        plain = {
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2 * HEADS,
            "num_key_value_heads": HEADS,
            "hidden_size": 2 * HEADS * WIDTH,
            "max_position_embeddings": 32768,
        }
        self.write_json("model.safetensors.index.json", index)
        self.write_json("config.json", {**plain, **config})
        self.write_json("tokenizer.json", {"model": {"type": "BPE"}})
        self.write_json("tokenizer_config.json", {"chat_template": "{{ messages }}"})

    def write_json(self, name: str, content: Any) -> None:
        """A file of the model."""
        (self.model / name).write_text(json.dumps(content))
        (self.model / name).chmod(0o644)

    @property
    def shard(self) -> Path:
        """The second file of weights."""
        return self.model / _SECOND_SHARD

    @property
    def shell(self) -> dict[str, str]:
        """All variables of the shell."""
        return {"PATH": str(self.programs), "HOME": os.environ.get("HOME", "/"), **self.environ}

    def doctor(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Start it as `make doctor` does, with nothing but the standard library."""
        # Without site-packages: a machine where nothing is installed.
        return subprocess.run(
            [sys.executable, "-S", "-m", "app.doctor", "--stand", *arguments],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), **self.shell},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def findings(self) -> list[dict[str, str]]:
        """All that it finds, as its own JSON has it; without starting it, which would take longer than looking."""
        findings = list(examine(self.folder, self.shell))
        printed = as_json(findings)
        found: list[dict[str, str]] = json.loads(printed)["findings"]
        assert KEY not in printed
        assert not [finding for finding in found if finding["code"] == "broken"]
        assert exit_code(findings) == any(finding["status"] == "failure" for finding in found)
        return found

    def listen(self) -> int:
        """Something of somebody else's listens on a port; returns it."""
        listener = self.kept.enter_context(socket.create_server(("127.0.0.1", 0)))
        return int(listener.getsockname()[1])


@cache
def _compose() -> str:
    """The program behind `docker compose`; by way of docker it takes four times as long."""
    ran = subprocess.run(["docker", "info", "--format", "{{json .ClientInfo}}"], capture_output=True, check=True)
    paths = [plugin["Path"] for plugin in json.loads(ran.stdout)["Plugins"] if plugin["Name"] == "compose"]
    return str(paths[0])


def _simple(name: str) -> str:
    return f"#!/bin/sh\nhere=${{0%/*}}\nPATH=/usr/bin:/bin\nname={name}\n"


def write_tensors(path: Path, header: Mapping[str, Any], data_bytes: int) -> None:
    """A file of weights with nothing in it."""
    described = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described)) + described)
    os.truncate(path, 8 + len(described) + data_bytes)
    path.chmod(0o644)


def begins(what: str, says: str) -> bool:
    """Whether something begins so; … is anything."""
    return re.match(".+".join(map(re.escape, says.split("…"))), what) is not None


def troubles(findings: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """What is wrong of all that was looked at."""
    return [finding for finding in findings if finding["status"] in {"warning", "failure"}]
