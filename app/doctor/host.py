"""The host half: gathers what the machine, Docker and the files say, and runs the checks over it, one after another.

No check stops another: what cannot be known is said to be unchecked.
"""

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from app.doctor import cards, completeness, containers, dotenv, facts, machine, refusals, settings, stand
from app.doctor.dotenv import DotEnv
from app.doctor.findings import Finding, failure, ok, or_else, unchecked
from app.doctor.model import Model, look_into
from app.doctor.programs import Ran, run
from app.doctor.report import from_json

_COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_ATTEMPTS = 5
_FROM_INSIDE_SECONDS = 120.0
_LOG_LINES = "400"
_GIB = 2**30
_BUILT_VLLM_BYTES, _OTHER_IMAGE_BYTES = 23 * _GIB, 4 * _GIB
_NO_ENGINE = "Docker не отвечает"
_NO_STAND = "стенд не собирается, причина выше"


def examine(folder: Path) -> Iterator[Finding]:
    """Look at the machine and at the stand in a folder."""
    yield from _each_alone(_Look(folder).checks())


def _each_alone(checks: Iterator[Callable[[], Iterator[Finding]]]) -> Iterator[Finding]:
    """The findings of checks, none of which can take another down."""
    for check in checks:
        try:
            yield from check()
        except Exception as exc:  # noqa: BLE001, PERF203 - the outermost: a mistake of ours must hide no other check
            yield unchecked("broken", f"Проверка {check.__name__.strip('_')}", f"сломалась сама ({type(exc).__name__})")


@dataclass(frozen=True)
class _Resolved:
    """The stand, what kept Compose from resolving it, and how to ask Compose without that."""

    stand: stand.Stand
    refusals: Sequence[Finding] = ()
    options: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)


class _Look:
    """One look at a folder and its machine; each fact is gathered once, when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def checks(self) -> Iterator[Callable[[], Iterator[Finding]]]:
        """All checks, in the order in which a person would put things right."""
        yield self._machine
        yield self._docker
        yield self._files
        yield self._env
        yield self._stand
        yield self._settings
        yield self._model
        yield self._gpu
        yield self._memory
        yield self._ports
        yield self._images
        yield self._containers
        yield self._from_inside

    # --- facts ---

    def _run(self, *command: str, environ: Mapping[str, str] | None = None, seconds: float = 20.0) -> Ran:
        return run(command, str(self._folder), environ, seconds)

    def _text(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    @cached_property
    def _of_the_machine(self) -> machine.Machine:
        meminfo = re.search(r"MemTotal:\s+(\d+) kB", self._text("/proc/meminfo"))
        flags = re.search(r"^flags\s*:(.*)$", self._text("/proc/cpuinfo"), re.MULTILINE)
        clock = self._run("timedatectl", "show", "--property=NTPSynchronized", "--value", seconds=5)
        return machine.Machine(
            platform.system(),
            platform.machine(),
            frozenset(flags[1].split()) if flags else frozenset(),
            int(meminfo[1]) * 1024 if meminfo else 0,
            time.time(),
            clock.out.strip() if clock.ok else "",
        )

    @cached_property
    def _of_docker(self) -> machine.Docker:
        version = self._run("docker", "version", "--format", "{{json .}}")
        compose = self._run("docker", "compose", "version", "--short")
        if not version.ok:
            return machine.Docker(version, compose)
        info = self._run("docker", "info", "--format", "{{json .}}")
        return machine.Docker(version, compose, facts.mapping(facts.parsed(info.out)))

    @cached_property
    def _dotenv(self) -> DotEnv:
        path = self._folder / ".env"
        try:
            mode = path.stat().st_mode
            return dotenv.read(path.read_bytes(), mode)
        except FileNotFoundError:
            return DotEnv(exists=False)
        except OSError as exc:
            return DotEnv(problem=exc.strerror or type(exc).__name__)

    @cached_property
    def _defaults(self) -> dict[str, str]:
        """What the gateway takes for a variable that is not set, by .env.example."""
        named = dotenv.named_defaults(self._text(".env.example"))
        return {name: value for name, value in named.items() if name not in dotenv.SECRET_NAMES}

    @cached_property
    def _compose_files(self) -> list[str]:
        named = os.environ.get("COMPOSE_FILE") or self._dotenv.values.get("COMPOSE_FILE", "")
        names = named.split(":") if named else [name for name in _COMPOSE_FILES if (self._folder / name).exists()]
        return [name for name in names if (self._folder / name).is_file()]

    @cached_property
    def _resolved(self) -> _Resolved:
        """The stand as Compose sees it; where something keeps Compose from that, once more without it."""
        environ: dict[str, str] = {}
        options: list[str] = []
        found: list[Finding] = []
        secrets = [value for name in dotenv.SECRET_NAMES if (value := self._dotenv.values.get(name))]
        for _ in range(_ATTEMPTS if self._of_docker.composes and self._compose_files else 0):
            ran = self._run("docker", "compose", *options, "config", "--format", "json", environ=environ)
            config = facts.parsed(ran.out)
            if ran.ok and config:
                return _Resolved(stand.resolved(config), found, options, environ)
            refusal = refusals.explained(ran.err or ran.words, self._dotenv, secrets)
            found += refusal.findings
            if refusal.environ.items() <= environ.items() and not (refusal.skips_env and not options):
                break
            environ |= refusal.environ
            options = ["--env-file", "/dev/null"] if refusal.skips_env else options
        return _Resolved(self._guessed, found)

    @property
    def _guessed(self) -> stand.Stand:
        compose_file = self._text("docker-compose.yaml") or self._text("docker-compose.example.yaml")
        return stand.guessed(self._dotenv.values, compose_file, str(self._folder))

    @property
    def _seen(self) -> stand.Stand:
        return self._resolved.stand

    @property
    def _secrets(self) -> list[str]:
        return [*self._seen.secrets, *filter(None, (self._dotenv.values.get(name) for name in dotenv.SECRET_NAMES))]

    @cached_property
    def _running(self) -> list[containers.Container]:
        if not self._of_docker.runs or self._seen.is_guessed:
            return []
        ps = self._compose("ps", "--all", "--format", "json")
        names = [facts.text(one.get("Name")) for one in facts.objects(ps.out)]
        inspected = self._run("docker", "inspect", *names) if names else Ran("absent")
        return containers.listed(ps.out, facts.parsed(inspected.out))

    def _compose(self, *command: str, environ: Mapping[str, str] | None = None, seconds: float = 20.0) -> Ran:
        seen = self._resolved
        environ = {**seen.environ, **(environ or {})}
        return self._run("docker", "compose", *seen.options, *command, environ=environ, seconds=seconds)

    def _runs(self, service: str) -> bool:
        return any(one.service == service and one.state == "running" for one in self._running)

    @cached_property
    def _of_the_model(self) -> Model:
        sources = [service.model_folder for service in (*self._seen.vllms, self._seen.gateway) if service.model_folder]
        return look_into(sources[0] if sources else str(self._folder / "model"))

    @cached_property
    def _missing_images(self) -> dict[str, bool]:
        """Image: whether it is missing."""
        images = {service.image for service in self._seen.services.values() if service.image}
        return {image: not self._run("docker", "image", "inspect", image).ok for image in sorted(images)}

    # --- checks ---

    def _machine(self) -> Iterator[Finding]:
        yield from machine.system(self._of_the_machine)
        yield from machine.clock(self._of_the_machine)

    def _docker(self) -> Iterator[Finding]:
        yield from machine.docker(self._of_docker)

    def _files(self) -> Iterator[Finding]:
        if self._compose_files:
            return
        yield failure(
            "compose_file_missing",
            "Нет docker-compose.yaml",
            "Это файл стенда; его копируют из примера.",
            "cp docker-compose.example.yaml docker-compose.yaml"
            if (self._folder / "docker-compose.example.yaml").exists()
            else "запустите проверку в папке репозитория",
        )

    def _env(self) -> Iterator[Finding]:
        texts = "".join(self._text(name) for name in (*self._compose_files, "docker-compose.example.yaml"))
        known = sorted({*dotenv.named_defaults(self._text(".env.example")), *re.findall(r"\b[A-Z][A-Z0-9_]+\b", texts)})
        yield from or_else(dotenv.suspicions(self._dotenv, known, os.environ), ok("env", "Файл .env читается"))

    def _stand(self) -> Iterator[Finding]:
        yield from self._resolved.refusals
        if self._seen.is_guessed:
            why = "Docker Compose не собирает его (выше сказано почему); дальше — по .env и примеру"
            yield unchecked("stand", "Стенд целиком", why)

    def _settings(self) -> Iterator[Finding]:
        if self._dotenv.exists:
            yield from settings.key(self._seen_with_its_own_key)
        yield from settings.numbers(self._seen)
        yield from settings.budget(self._seen, self._defaults)
        yield from settings.together(self._seen, self._defaults)

    @property
    def _seen_with_its_own_key(self) -> stand.Stand:
        """Compose may have been given one in its place."""
        key = os.environ.get("VLLM_API_KEY") or self._dotenv.values.get("VLLM_API_KEY", "")
        if key and not self._seen.is_guessed and self._dotenv.is_sound:
            return self._seen
        return stand.Stand({"vllm": stand.Service("vllm", environment={"VLLM_API_KEY": key})})

    def _model(self) -> Iterator[Finding]:
        selinux = any(
            "selinux" in facts.text(one) for one in facts.sequence(self._of_docker.info.get("SecurityOptions"))
        )
        yield from completeness.folder(self._of_the_model, selinux=selinux)
        if self._seen.uses_its_vllm:
            for vllm in self._seen.vllms[:1]:
                yield from settings.length(vllm, self._of_the_model)

    def _gpu(self) -> Iterator[Finding]:
        wanting = [service for service in self._seen.vllms if service.wants_cards]
        if not wanting or not self._seen.uses_its_vllm:
            why = "стенд без видеокарты" if not wanting else "vLLM не здесь"
            yield unchecked("card", "Видеокарта", f"не нужна, {why}")
            return
        smi, found = self._cards
        base_image = wanting[0].base_image
        yield from cards.driver(smi, found, base_image)
        yield from cards.capability(found, base_image, self._of_the_model, wanting[0])
        if self._of_docker.runs:
            yield from cards.way(self._of_docker.info, shutil.which("nvidia-container-runtime-hook"))
        else:
            yield unchecked("toolkit", "Видит ли Docker видеокарты", _NO_ENGINE)

    @cached_property
    def _cards(self) -> tuple[Ran, list[cards.Card]]:
        smi = self._run("nvidia-smi", f"--query-gpu={','.join(cards.QUERY)}", "--format=csv,noheader,nounits")
        return smi, cards.cards_in(smi.out) if smi.ok else []

    def _memory(self) -> Iterator[Finding]:
        for vllm in self._seen.vllms if self._seen.uses_its_vllm else ():
            if not self._seen.is_guessed:
                yield from settings.shared_memory(vllm)
            if not vllm.wants_cards:
                yield from settings.processor(self._of_the_machine, vllm, self._of_the_model)
            elif self._cards[1]:
                length, runs = settings.length_of(vllm), self._runs(vllm.name)
                yield from cards.memory(self._cards[1], vllm, self._of_the_model, length, runs=runs)

    def _ports(self) -> Iterator[Finding]:
        wanted = [port for service in self._seen.services.values() for port in service.ports]
        own = {number for container in self._running for number in container.ports}
        taken = machine.listening(self._text("/proc/net/tcp"))
        yield from machine.ports(wanted, taken, own, self._ports_of_others)

    @property
    def _ports_of_others(self) -> dict[int, str]:
        own = {container.name for container in self._running}
        ps = self._run("docker", "ps", "--format", "{{json .}}") if self._of_docker.runs else Ran("absent")
        return {
            int(number): facts.text(one.get("Names"))
            for one in facts.objects(ps.out)
            for number in re.findall(r":(\d+)->", facts.text(one.get("Ports")))
            if facts.text(one.get("Names")) not in own
        }

    def _images(self) -> Iterator[Finding]:
        if not self._of_docker.runs or self._seen.is_guessed:
            yield unchecked("images", "Образы и место под них", _NO_STAND if self._of_docker.runs else _NO_ENGINE)
            return
        built = {service.image: service for service in self._seen.services.values() if service.is_built}
        missing = {
            image: _BUILT_VLLM_BYTES if image in built and built[image].base_image else _OTHER_IMAGE_BYTES
            for image, is_missing in self._missing_images.items()
            if is_missing
        }
        there = {image: not is_missing for image, is_missing in self._missing_images.items()}
        yield from machine.images(there, set(built))
        folder = facts.text(self._of_docker.info.get("DockerRootDir")) or "/"
        try:
            yield from machine.disk(machine.Disk(folder, shutil.disk_usage(folder).free), missing)
        except OSError:
            yield unchecked("disk", "Место на диске", f"папки {folder} отсюда не видно")

    def _containers(self) -> Iterator[Finding]:
        if not self._of_docker.runs or self._seen.is_guessed:
            yield unchecked("containers", "Контейнеры", _NO_STAND if self._of_docker.runs else _NO_ENGINE)
            return
        yield from containers.states(self._running, self._log_of, self._secrets)

    def _log_of(self, service: str) -> str:
        ran = self._compose("logs", "--no-color", "--no-log-prefix", "--tail", _LOG_LINES, service)
        return ran.out + ran.err

    def _from_inside(self) -> Iterator[Finding]:
        """What the gateway sees of vLLM and of Redis; only it can reach them."""
        title = "Связь шлюза с vLLM"
        if not any(one.service == "gateway" and one.state == "running" for one in self._running):
            yield unchecked("inside", title, "шлюз не запущен", "make up, затем make doctor")
            return
        # The key goes by the environment: a command line can be read by all.
        command = ["exec", "-T", "-e", "VLLM_API_KEY", "gateway", "python", "-m", "app.doctor", "--json"]
        environ = {"VLLM_API_KEY": self._seen_with_its_own_key.api_key}
        ran = self._compose(*command, environ=environ, seconds=_FROM_INSIDE_SECONDS)
        try:
            yield from from_json(ran.out)
        except ValueError:
            if "No module named" in ran.err:
                yield unchecked(
                    "inside", title, "образ шлюза собран раньше этой проверки", "docker compose up -d --build"
                )
            else:
                why = containers.hidden(ran.words, self._secrets)
                yield unchecked(
                    "inside", title, f"проверка внутри шлюза не удалась: {why}", "docker compose logs gateway"
                )
