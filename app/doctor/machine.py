"""The machine and its Docker, before any look at the stand."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from ipaddress import IPv6Address, ip_address
from typing import Any

from app.doctor import facts
from app.doctor.findings import Finding, failure, gib, ok, unchecked, warning
from app.doctor.programs import Ran
from app.doctor.stand import Port

_ENGINE = (23,)
_COMPOSE = (2, 24, 4)
_GIB = 2**30
# This was written after that.
_NOT_BEFORE = datetime(2026, 11, 1, tzinfo=timezone.utc)
_INSTALL = "https://docs.docker.com/engine/install/"
_LISTENS = "0A"


@dataclass(frozen=True)
class Machine:
    """What the machine says of itself.

    Attributes:
        system: `Linux`, as uname has it.
        architecture: `x86_64`, as uname has it.
        flags: of its processor.
        memory_bytes: all it has; 0 where that is not known.
        now: its clock, seconds since 1970.
        synchronised: `yes` or `no` where timedatectl says so.
    """

    system: str
    architecture: str
    flags: frozenset[str] = frozenset()
    memory_bytes: int = 0
    now: float = 0.0
    synchronised: str = ""


@dataclass(frozen=True)
class Docker:
    """What Docker says of itself.

    Attributes:
        version: `docker version` as JSON, its complaint beside it.
        compose: `docker compose version --short`.
        info: `docker info`; empty where the engine does not answer.
    """

    version: Ran
    compose: Ran
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether there is an engine to talk to."""
        return bool(self.info)

    @property
    def composes(self) -> bool:
        """Whether there is a Compose that can be asked."""
        return self.compose.ok and facts.version(self.compose.out)[:1] >= (2,)

    @property
    def is_podman(self) -> bool:
        """Whether it is Podman that answers by this name."""
        said = facts.mapping(facts.parsed(self.version.out))
        components = facts.sequence(facts.mapping(said.get("Server")).get("Components"))
        names = {facts.text(facts.mapping(component).get("Name")) for component in components}
        return "Podman Engine" in names or "OsArch" in facts.mapping(said.get("Client"))

    @property
    def server(self) -> str:
        """The engine's version; empty where it does not answer."""
        return facts.text(facts.mapping(facts.mapping(facts.parsed(self.version.out)).get("Server")).get("Version"))


def system(machine: Machine) -> Iterator[Finding]:
    """Whether this is a machine that the images are made for."""
    if (machine.system, machine.architecture) == ("Linux", "x86_64"):
        yield ok("system", "Linux, x86-64")
    else:
        yield failure(
            "system",
            f"Эта машина — {machine.system}, {machine.architecture}",
            "Образы стенда — для Linux на x86-64.",
            "запустите стенд на машине с Linux и процессором Intel или AMD",
        )


def docker(found: Docker) -> Iterator[Finding]:
    """Whether there is a Docker that is new enough and answers."""
    if found.version.end == "absent":
        yield failure(
            "docker_missing", "Docker не установлен", "Стенд — это контейнеры Docker.", f"поставьте Docker: {_INSTALL}"
        )
        return
    if found.is_podman:
        yield failure(
            "docker_podman",
            "Вместо Docker — Podman",
            "Видеокарты, сети и порты он подключает по-своему; стенд сделан для Docker.",
            f"поставьте Docker: {_INSTALL}",
        )
        return
    troubles = [*_engine(found), *_compose(found)]
    yield from troubles
    if not troubles:
        yield ok("docker", f"Docker {_short(found.server)}, Compose {_short(found.compose.out)}")


def _short(version: str) -> str:
    return re.split(r"[-+\s]", version.strip().lstrip("v"), maxsplit=1)[0]


def _engine(found: Docker) -> Iterator[Finding]:
    complaint = found.version.err
    if "permission denied" in complaint.lower():
        yield failure(
            "docker_denied",
            "У вас нет прав обращаться к Docker",
            "Это можно root и группе docker.",
            "sudo usermod -aG docker $USER\nвыйдите и войдите снова (или: newgrp docker)",
        )
    elif not found.server:
        service = "systemctl --user" if "/run/user/" in complaint else "sudo systemctl"
        yield failure(
            "docker_down",
            f"Docker установлен, но не отвечает: {found.version.words}",
            "Без его службы контейнеров нет.",
            f"{service} enable --now docker\nесли не помогло: "
            + ("journalctl --user -u docker" if "--user" in service else "sudo journalctl -u docker")
            + " --no-pager | tail -20",
        )
    elif facts.version(found.server) < _ENGINE:
        yield failure(
            "docker_old", f"Docker {_short(found.server)}, а нужен 23 или новее", "Стенд рассчитан на новый.", _UPGRADE
        )


_UPGRADE = f"обновите Docker: {_INSTALL}"


def _compose(found: Docker) -> Iterator[Finding]:
    if not found.composes:
        yield failure(
            "compose_missing",
            "У Docker нет Compose 2",
            "Команда docker compose запускает весь стенд; старая docker-compose не годится.",
            f"sudo apt install docker-compose-plugin (или docker-compose-v2); подробно: {_INSTALL}",
        )
    elif facts.version(found.compose.out) < _COMPOSE:
        yield failure(
            "compose_old",
            f"Docker Compose {_short(found.compose.out)}, а нужен 2.24.4 или новее",
            "Старый не понимает файлов из deploy/ (!reset).",
            _UPGRADE,
        )


def clock(machine: Machine) -> Iterator[Finding]:
    """Whether the clock can be right."""
    now = datetime.fromtimestamp(machine.now, timezone.utc)
    why = "С неверным временем не проходит TLS, путаются журналы и измерения, раньше времени кончаются сессии."
    if now < _NOT_BEFORE:
        yield failure(
            "clock", f"Часы этой машины показывают {now:%Y-%m-%d}: это прошлое", why, "sudo timedatectl set-ntp true"
        )
    elif machine.synchronised == "no":
        yield warning(
            "clock_unsynchronised",
            f"Часы ни с чем не сверяются (сейчас {now:%Y-%m-%d %H:%M} UTC)",
            why,
            "sudo timedatectl set-ntp true\nбез интернета: sudo timedatectl set-time 'ГГГГ-ММ-ДД ЧЧ:ММ:СС'",
        )
    else:
        yield ok("clock", f"Часы: {now:%Y-%m-%d %H:%M} UTC")


@dataclass(frozen=True)
class Disk:
    """Where Docker keeps images and containers."""

    folder: str
    free_bytes: int


def disk(found: Disk, missing: Mapping[str, int]) -> Iterator[Finding]:
    """Whether the images fit.

    Args:
        found: the disk.
        missing: images that are still to be built or pulled, and the bytes that takes.
    """
    needed = sum(missing.values()) + 2 * _GIB
    if found.free_bytes >= needed:
        yield ok("disk", f"Диск: {gib(found.free_bytes)} свободно в {found.folder}")
        return
    what = f"В {found.folder} свободно {gib(found.free_bytes)}"
    command = f"docker system df; docker system prune\ndf -h {found.folder}"
    if missing:
        why = f"На образы, которых ещё нет ({', '.join(missing)}), нужно около {gib(needed)}."
        yield failure("disk", what, why, command)
    else:
        yield warning("disk", what, "Журналы, измерения и временные файлы контейнеров скоро его займут.", command)


def listening(table: str) -> set[tuple[str, int]]:
    """Addresses and ports that something listens on, from /proc/net/tcp or /proc/net/tcp6."""
    found = set()
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == _LISTENS:
            address, port = fields[1].split(":")
            found.add((_address(address), int(port, 16)))
    return found


def _address(words: str) -> str:
    """An address as the kernel writes it: words of 32 bits, each in the machine's own order."""
    octets = b"".join(bytes.fromhex(words[at : at + 8])[::-1] for at in range(0, len(words), 8))
    address = ip_address(octets)
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)


def ports(
    wanted: Sequence[Port], taken: set[tuple[str, int]], own: set[int] | None, others: Mapping[int, str]
) -> Iterator[Finding]:
    """Whether the ports that the stand opens are free.

    Args:
        wanted: by the stand.
        taken: addresses and ports that something listens on.
        own: ports that the stand holds itself; None where that is not known.
        others: containers of other stands, by the port that they hold.
    """
    numbers = {number for _, number in taken} | others.keys() | {port.number for port in wanted}
    for port in wanted:
        what = f"Порт {port.number} ({port.service})"
        if own and port.number in own:
            yield ok("port", f"{what}: занят этим стендом")
        elif not (_clashes(port, taken) or port.number in others):
            yield ok("port", f"{what}: свободен")
        elif own is None:
            yield unchecked("port", what, "занят, а этим ли стендом, знает только Docker")
        else:
            free = next(number for number in range(port.number + 1, 2**17) if number not in numbers)
            yield _port_taken(port, free, others.get(port.number, ""))


def _clashes(port: Port, taken: set[tuple[str, int]]) -> bool:
    return any(
        number == port.number and (_is_any(address) or _is_any(port.address) or address == port.address)
        for address, number in taken
    )


def _port_taken(port: Port, free: int, holder: str) -> Finding:
    variable = {"grafana": "GRAFANA_PORT"}.get(port.service, "GATEWAY_PORT")
    prefix = f"{port.address}:" if port.address and variable == "GATEWAY_PORT" else ""
    return failure(
        "port_taken",
        f"Порт {port.number} ({port.service}) уже занят{f' контейнером {holder}' if holder else ''}",
        "Контейнер не сможет его открыть, и стенд не запустится.",
        f"кем: sudo ss -ltnp 'sport = :{port.number}'\nили другой порт, строкой в .env: {variable}={prefix}{free}",
    )


def _is_any(address: str) -> bool:
    return address in {"", "0.0.0.0", "::"}  # noqa: S104 - compared with, not listened on


def images(states: Mapping[str, bool], built: set[str]) -> Iterator[Finding]:
    """Whether images are there; those that are not will come with the first start.

    Args:
        states: image: whether it is there.
        built: those that are built on this machine.
    """
    missing = [image for image, is_there in states.items() if not is_there]
    if not missing:
        yield ok("images", "Образы на месте")
        return
    ways = [
        f"{verb}: {', '.join(chosen)}"
        for verb, chosen in (
            ("соберутся", [image for image in missing if image in built]),
            ("скачаются", [image for image in missing if image not in built]),
        )
        if chosen
    ]
    yield unchecked(
        "images",
        "Образы",
        f"ещё не на месте, при первом запуске {'; '.join(ways)}. Нужен интернет; без него — docs/operations.md, "
        "«Без интернета»",
    )
