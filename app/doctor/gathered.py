"""All that the checks of the host half look at: asked of programs and read from files, once, when first needed."""

import os
import platform
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from app.doctor import cards, containers, dotenv, facts, refusals, stand
from app.doctor.cards import Card
from app.doctor.dotenv import DotEnv
from app.doctor.findings import Finding
from app.doctor.machine import Docker, Machine
from app.doctor.model import CONTAINERS_USER, Model, look_into
from app.doctor.programs import Ran, run
from app.doctor.stand import Service, Stand

_COMPOSE_FILES = [
    f"{name}{override}.{ending}"
    for name in ("compose", "docker-compose")
    for override in ("", ".override")
    for ending in ("yaml", "yml")
]
_CONTAINERD = Path("/var/lib/containerd")
_SECONDS = 20.0
_ATTEMPTS = 6
_LOG_LINES = "400"


@dataclass(frozen=True)
class Resolved:
    """The stand, what kept Compose from resolving it, and how to ask Compose without that."""

    stand: Stand
    refusals: Sequence[Finding] = ()
    options: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class Gathered:
    """The facts about a folder and its machine."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        """`environ` is the shell's."""
        self.folder = folder
        self.environ = environ

    def run(self, *command: str, environ: Mapping[str, str] | None = None, seconds: float = _SECONDS) -> Ran:
        """Run a program in the folder."""
        return run(command, str(self.folder), {**self.environ, **(environ or {})}, seconds)

    def compose(self, *command: str, environ: Mapping[str, str] | None = None, seconds: float = _SECONDS) -> Ran:
        """Run a command of Compose on the stand, without what keeps Compose from resolving it."""
        seen = self.resolved
        environ = {**seen.environ, **(environ or {})}
        return self.run("docker", "compose", *seen.options, *command, environ=environ, seconds=seconds)

    def text(self, name: str) -> str:
        """A file of the folder, or any by its absolute path; empty where it cannot be read."""
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    # --- the machine ---

    @cached_property
    def machine(self) -> Machine:
        """What the machine is like."""
        meminfo = re.search(r"MemTotal:\s+(\d+) kB", self.text("/proc/meminfo"))
        flags = re.search(r"^flags\s*:(.*)$", self.text("/proc/cpuinfo"), re.MULTILINE)
        clock = self.run("timedatectl", "show", "--property=NTPSynchronized", "--value", seconds=5)
        return Machine(
            platform.system(),
            platform.machine(),
            frozenset(flags[1].split()) if flags else frozenset(),
            int(meminfo[1]) * 1024 if meminfo else 0,
            time.time(),
            clock.out.strip() if clock.ok else "",
        )

    @cached_property
    def docker(self) -> Docker:
        """What Docker says of itself."""
        version = self.run("docker", "version", "--format", "{{json .}}")
        compose = self.run("docker", "compose", "version", "--short")
        if not version.ok or Docker(version, compose).is_podman:
            return Docker(version, compose)
        info = self.run("docker", "info", "--format", "{{json .}}")
        return Docker(version, compose, facts.mapping(facts.parsed(info.out)))

    @cached_property
    def cards(self) -> tuple[Ran, list[Card]]:
        """What nvidia-smi answered, and the cards that it listed."""
        smi = self._ask_for_cards(cards.QUERY)
        if "not a valid field" in smi.out + smi.err:  # old drivers do not know the last one
            smi = self._ask_for_cards(cards.QUERY[:-1])
        return smi, cards.cards_in(smi.out) if smi.ok else []

    def _ask_for_cards(self, query: Sequence[str]) -> Ran:
        return self.run("nvidia-smi", f"--query-gpu={','.join(query)}", "--format=csv,noheader,nounits")

    @cached_property
    def has_cdi(self) -> bool:
        """Whether Docker finds NVIDIA's cards described in a file of CDI (Container Device Interface)."""
        devices = map(facts.mapping, facts.sequence(self.docker.info.get("DiscoveredDevices")))
        if any(facts.text(device.get("ID")).startswith("nvidia.com/gpu") for device in devices):
            return True  # Docker 28.3 and newer say so
        folders = map(facts.text, facts.sequence(self.docker.info.get("CDISpecDirs")))
        return any(path.match("*nvidia*") for folder in folders for path in Path(folder).glob("*.*"))

    @cached_property
    def toolkit_hook(self) -> str | None:
        """Where the program of NVIDIA Container Toolkit is that Docker calls."""
        return shutil.which("nvidia-container-runtime-hook", path=self.environ.get("PATH"))

    # --- the files ---

    @cached_property
    def dotenv(self) -> DotEnv:
        """What .env says."""
        path = self.folder / ".env"
        try:
            return dotenv.read(path.read_bytes(), path.stat().st_mode)
        except FileNotFoundError:
            return DotEnv(exists=False)
        except OSError as exc:
            return DotEnv(problem=exc.strerror or type(exc).__name__)

    @cached_property
    def examples(self) -> dict[str, str]:
        """Variable: value of all lines of .env.example."""
        return dotenv.named_defaults(self.text(".env.example"))

    @cached_property
    def defaults(self) -> dict[str, str]:
        """What the gateway takes for a variable that is not set."""
        return {name: value for name, value in self.examples.items() if name not in dotenv.SECRET_NAMES}

    @cached_property
    def known_names(self) -> list[str]:
        """Variables that mean something to the stand."""
        texts = "".join(self.text(name) for name in (*self.compose_files, "docker-compose.example.yaml"))
        return sorted({*self.examples, *re.findall(r"\b[A-Z][A-Z0-9_]+\b", texts)})

    @property
    def named_compose_files(self) -> Sequence[str]:
        """Those that COMPOSE_FILE names."""
        given = {**self.dotenv.values, **self.environ}
        named = given.get("COMPOSE_FILE", "")
        return named.split(given.get("COMPOSE_PATH_SEPARATOR") or os.pathsep) if named else ()

    @cached_property
    def compose_files(self) -> list[str]:
        """Those of the stand's files that are there."""
        names = self.named_compose_files or _COMPOSE_FILES
        return [name for name in names if (self.folder / name).is_file()]

    # --- the stand ---

    @cached_property
    def resolved(self) -> Resolved:
        """The stand as Compose sees it; where something keeps Compose from that, once more without it."""
        environ: dict[str, str] = {}
        options: list[str] = []
        found: list[Finding] = []
        for _ in range(_ATTEMPTS if self.docker.composes and (self.compose_files or self.named_compose_files) else 0):
            ran = self.run("docker", "compose", *options, "config", "--format", "json", environ=environ)
            if ran.ok and (config := facts.parsed(ran.out)):
                return Resolved(stand.resolved(config), found, options, environ)
            refusal = refusals.explained(ran.err or ran.words, self.dotenv, stand.parts_of(self._secrets_of_env))
            found += refusal.findings
            if refusal.environ.items() <= environ.items() and not (refusal.skips_env and not options):
                break
            environ |= refusal.environ
            options = ["--env-file", "/dev/null"] if refusal.skips_env else options
        compose_file = self.text("docker-compose.yaml") or self.text("docker-compose.example.yaml")
        return Resolved(stand.guessed(self.dotenv.values, compose_file, str(self.folder)), found)

    @property
    def stand(self) -> Stand:
        """Its services."""
        return self.resolved.stand

    @property
    def vllms(self) -> list[Service]:
        """Those of its services that the gateway asks; none where it asks one elsewhere."""
        return self.stand.vllms if self.stand.uses_its_vllm else []

    @property
    def key(self) -> str:
        """The key that the owner has set, not one that Compose was given in its place."""
        own = self.environ.get("VLLM_API_KEY") or self.dotenv.values.get("VLLM_API_KEY", "")
        if not own or self.stand.is_guessed or not self.dotenv.is_sound:
            return own
        return self.stand.api_key or own

    @property
    def _secrets_of_env(self) -> list[str]:
        return [value for name in dotenv.SECRET_NAMES if (value := self.dotenv.values.get(name))]

    @property
    def secrets(self) -> list[str]:
        """What must be shown nowhere."""
        return stand.parts_of([*self.stand.secrets, *self._secrets_of_env])

    @cached_property
    def model(self) -> Model:
        """The model's folder; without a name where it is none of this machine's."""
        readers = [*self.stand.vllms, self.stand.gateway]
        sources = [service.model_folder for service in readers if service.model_folder]
        users = {CONTAINERS_USER if service.user is None else service.user for service in readers}
        if not sources and not self.stand.is_guessed:
            return Model("")
        return look_into(sources[0] if sources else str(self.folder / "model"), users)

    # --- what runs ---

    @cached_property
    def containers(self) -> list[containers.Container]:
        """The stand's."""
        if not self.docker.runs or self.stand.is_guessed:
            return []
        ps = self.compose("ps", "--all", "--format", "json")
        names = [facts.text(one.get("Name")) for one in facts.objects(ps.out)]
        inspected = self.run("docker", "inspect", *names) if names else Ran("absent")
        return containers.listed(ps.out, facts.parsed(inspected.out))

    @property
    def knows_what_runs(self) -> bool:
        """Whether Docker could be asked what of the stand runs; where there is no Docker, nothing does."""
        return self.docker.version.end == "absent" or (self.docker.runs and not self.stand.is_guessed)

    def may_run(self, service: str) -> bool:
        """Whether a service's container runs, for all that is known."""
        return self.runs(service) or not self.knows_what_runs

    def runs(self, service: str) -> bool:
        """Whether a service's container does."""
        return any(one.service == service and one.state == "running" for one in self.containers)

    def log_of(self, service: str) -> str:
        """The end of a service's log."""
        ran = self.compose("logs", "--no-color", "--no-log-prefix", "--tail", _LOG_LINES, service)
        return ran.out + ran.err

    @cached_property
    def images(self) -> dict[str, bool]:
        """Image of the stand: whether it is there."""
        names = {service.image for service in self.stand.services.values() if service.image}
        return {name: self.run("docker", "image", "inspect", name).ok for name in sorted(names)}

    @property
    def images_folder(self) -> str:
        """Where Docker keeps images; empty where that is none of this machine's: Docker Desktop has one of its own."""
        info = self.docker.info
        if info.get("OperatingSystem") == "Docker Desktop":
            return ""
        if "io.containerd.snapshotter" in facts.text(info.get("DriverStatus")) and _CONTAINERD.is_dir():
            return str(_CONTAINERD)
        return facts.text(info.get("DockerRootDir"))

    @property
    def ports_of_others(self) -> dict[int, str]:
        """Containers of other stands, by the ports that they hold."""
        own = {container.name for container in self.containers}
        ps = self.run("docker", "ps", "--format", "{{json .}}") if self.docker.runs else Ran("absent")
        return {
            int(number): facts.text(one.get("Names"))
            for one in facts.objects(ps.out)
            for number in re.findall(r":(\d+)->", facts.text(one.get("Ports")))
            if facts.text(one.get("Names")) not in own
        }
