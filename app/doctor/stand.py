"""The stand as Docker Compose resolves it, or, where it cannot be asked, as .env lets one guess."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from app.doctor import facts, reservations

MODEL_TARGET = "/app/model"


@dataclass(frozen=True)
class Port:
    """A port of this machine that a service takes; `address` empty: of all its addresses."""

    service: str
    address: str
    number: int


@dataclass(frozen=True)
class Service:
    """A service of the stand.

    Attributes:
        base_image: what an image of vLLM is built on; empty where it is not built here.
        cards: the ids of its GPUs; None: all of them.
        wants_cards: how many GPUs it asks for; 0: none, -1: all.
        shm_bytes: None where Docker's own 64 MiB hold.
        model_folder: the folder of this machine that it sees as /app/model; empty where it sees none.
        mounts: folders that it sees, by where.
        user: the number of whom it runs as; None: as the image has it.
    """

    name: str
    image: str = ""
    is_built: bool = False
    base_image: str = ""
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Sequence[Port] = ()
    wants_cards: int = 0
    cards: Sequence[str] | None = None
    shm_bytes: int | None = None
    shares_memory: bool = False
    model_folder: str = ""
    mounts: Sequence[str] = ()
    user: int | None = None
    grace_seconds: float = 10.0

    def mount_of(self, path: str) -> str:
        """Where the folder is connected that holds a path of the container; empty where none does."""
        return max((place for place in self.mounts if f"{path}/".startswith(f"{place}/")), key=len, default="")

    def option(self, *names: str) -> str | None:
        """The value of an option on its command line, by any of its names; the last one counts, as for vLLM."""
        found = None
        words = list(self.command)
        for word, after in zip(words, [*words[1:], ""], strict=False):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") in names:
                found = value if equals else after
        return found

    def number(self, *names: str) -> int | None:
        """The same of an option that is a whole number above 0."""
        number = facts.whole(self.option(*names))
        return number if number and number > 0 else None

    def has(self, *names: str) -> bool:
        """Whether an option is there at all, or one of its members: `--hf-overrides.rope_theta`."""
        given = {re.split(r"[=.]", word, maxsplit=1)[0].replace("_", "-") for word in self.command}
        return not given.isdisjoint(names)


@dataclass(frozen=True)
class Stand:
    """All services."""

    services: Mapping[str, Service]
    is_guessed: bool = False

    @property
    def vllms(self) -> list[Service]:
        """Those that serve the model."""
        return [service for name, service in self.services.items() if re.fullmatch(r"vllm(-\d+)?", name)]

    @property
    def gateway(self) -> Service:
        """The gateway."""
        return self.services.get("gateway", Service("gateway"))

    @property
    def api_key(self) -> str:
        """The key that vLLM asks for; empty where it is not known."""
        return next((key for service in self.vllms if (key := service.environment.get("VLLM_API_KEY"))), "")

    @property
    def uses_its_vllm(self) -> bool:
        """Whether the gateway asks a vLLM of this stand, and not one elsewhere."""
        try:
            host = urlsplit(self.gateway.environment.get("VLLM_BASE_URL") or "http://vllm").hostname
        except ValueError:
            return True
        return host in self.services or host == "vllm"

    @property
    def secrets(self) -> list[str]:
        """What must be shown nowhere."""
        named = [item for service in self.services.values() for item in service.environment.items()]
        return parts_of([value for name, value in named if re.search(r"KEY|SECRET|PASSWORD|STORE_URL", name)])


def parts_of(secrets: Iterable[str]) -> list[str]:
    """Secrets, and those that they consist of: several with commas between them, a password in an address."""
    parts = {part for secret in secrets for part in (secret, *secret.split(","), *re.findall(r":([^:@/]+)@", secret))}
    return sorted((part for part in parts if len(part) > 3 and part != "memory://"), key=len, reverse=True)


def resolved(config: Any) -> Stand:
    """From `docker compose config --format json`."""
    services = facts.mapping(facts.mapping(config).get("services"))
    return Stand({name: _service(name, facts.mapping(given)) for name, given in services.items()})


def _service(name: str, given: Mapping[str, Any]) -> Service:
    build = facts.mapping(given.get("build"))
    wants, cards = reservations.asked(given)
    volumes = [facts.mapping(volume) for volume in facts.sequence(given.get("volumes"))]
    sources = {facts.text(volume.get("target")): volume for volume in volumes}
    model = facts.mapping(sources.get(MODEL_TARGET))
    environment = facts.mapping(given.get("environment"))
    return Service(
        name,
        image=facts.text(given.get("image")),
        is_built=bool(build),
        base_image=facts.text(facts.mapping(build.get("args")).get("BASE_IMAGE")),
        command=[_plain(facts.text(word)) for word in facts.sequence(given.get("command"))],
        environment={key: _plain(facts.text(value)) for key, value in environment.items() if value is not None},
        ports=_ports(name, facts.sequence(given.get("ports"))),
        wants_cards=wants,
        cards=cards,
        shm_bytes=facts.whole(given.get("shm_size")),
        shares_memory=facts.text(given.get("ipc")) == "host",
        model_folder=facts.text(model.get("source")) if model.get("type") == "bind" else "",
        user=facts.whole(facts.text(given.get("user")).partition(":")[0]),
        mounts=list(sources),
        grace_seconds=facts.seconds(facts.text(given.get("stop_grace_period") or "10s")),
    )


def _plain(word: str) -> str:
    """Compose doubles every dollar of what it prints."""
    return word.replace("$$", "$")


def _ports(service: str, given: Sequence[Any]) -> list[Port]:
    ports = [facts.mapping(port) for port in given]
    numbered = [(facts.text(port.get("host_ip")), facts.whole(port.get("published"))) for port in ports]
    return [Port(service, address, number) for address, number in numbered if number]


def guessed(env: Mapping[str, str], compose_file: str, folder: str) -> Stand:
    """Without Compose: what the example's services are like with these variables.

    Args:
        env: what .env says.
        compose_file: the text of the stand's file, which holds the defaults.
        folder: where the model's folder lies.
    """
    values = {**dict(re.findall(r"\$\{(\w+):-([^}]*)\}", compose_file)), **{k: v for k, v in env.items() if v}}
    try:
        more = shlex.split(values.get("VLLM_EXTRA_ARGS", ""))
    except ValueError:
        more = []
    on_cpu = "cpu" in values.get("COMPOSE_FILE", "")
    options = {"--max-model-len": "VLLM_MAX_MODEL_LEN", "--gpu-memory-utilization": "VLLM_GPU_MEMORY_UTILIZATION"}
    command = [word for option, name in options.items() if name in values for word in (option, values[name])]
    vllm = Service(
        "vllm",
        base_image="" if on_cpu else values.get("BASE_IMAGE", ""),
        command=[*command, *more],
        environment={name: values[name] for name in ("VLLM_API_KEY", "VLLM_CPU_KVCACHE_SPACE") if name in values},
        wants_cards=0 if on_cpu else reservations.ALL,
        model_folder=f"{folder}/model",
    )
    address, _, port = values.get("GATEWAY_PORT", "8080").rpartition(":")
    number = facts.whole(port)
    gateway = Service(
        "gateway",
        environment=values,
        ports=[Port("gateway", address, number)] if number else [],
        model_folder=f"{folder}/model",
        grace_seconds=45.0,
    )
    return Stand({"gateway": gateway, "vllm": vllm}, is_guessed=True)
