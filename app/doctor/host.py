"""The host half: the checks of the machine and of the stand, one after another.

No check stops another: what cannot be known is said to be unchecked.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from app.doctor import cards, completeness, containers, dotenv, facts, machine, settings
from app.doctor.findings import Finding, failure, ok, or_else, unchecked
from app.doctor.gathered import Gathered
from app.doctor.report import from_json
from app.doctor.stand import MODEL_TARGET

_FROM_INSIDE_SECONDS = 120.0
_GIB = 2**30
_BUILT_VLLM_BYTES, _OTHER_IMAGE_BYTES = 20 * _GIB, 3 * _GIB
_NO_ENGINE = "Docker не отвечает"
_NO_STAND = "стенд не собирается, причина выше"


def examine(folder: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Look at the machine and at the stand in a folder, from a shell with these variables."""
    seen = Gathered(folder, environ)
    for check in _CHECKS:
        try:
            yield from check(seen)
        except Exception as exc:  # noqa: BLE001, PERF203 - the outermost: a mistake of ours must hide no other check
            yield unchecked("broken", f"Проверка {check.__name__.strip('_')}", f"сломалась сама ({type(exc).__name__})")


def _machine(seen: Gathered) -> Iterator[Finding]:
    yield from machine.system(seen.machine)
    yield from machine.clock(seen.machine)


def _docker(seen: Gathered) -> Iterator[Finding]:
    yield from machine.docker(seen.docker)


def _files(seen: Gathered) -> Iterator[Finding]:
    if not (seen.compose_files or seen.named_compose_files):
        has_example = (seen.folder / "docker-compose.example.yaml").exists()
        yield failure(
            "compose_file_missing",
            "Нет docker-compose.yaml",
            "Это файл стенда; его копируют из примера.",
            "cp docker-compose.example.yaml docker-compose.yaml"
            if has_example
            else "запустите проверку в папке репозитория",
        )


def _env(seen: Gathered) -> Iterator[Finding]:
    suspicions = dotenv.suspicions(seen.dotenv, seen.known_names, seen.environ)
    yield from or_else(suspicions, ok("env", "Файл .env читается"))


def _stand(seen: Gathered) -> Iterator[Finding]:
    yield from seen.resolved.refusals
    if seen.stand.is_guessed:
        why = "Docker Compose не собирает его (выше сказано почему); дальше — по .env и примеру"
        yield unchecked("stand", "Стенд целиком", why)


def _settings(seen: Gathered) -> Iterator[Finding]:
    if seen.key or (seen.dotenv.exists and not seen.dotenv.problem):
        yield from settings.key(seen.key)
    yield from settings.numbers(seen.stand)
    yield from settings.budget(seen.stand, seen.defaults)
    yield from settings.together(seen.stand, seen.defaults)


def _model(seen: Gathered) -> Iterator[Finding]:
    if not seen.model.folder:
        yield unchecked("model", "Модель", "к /app/model подключена не папка этой машины")
        return
    options = facts.sequence(seen.docker.info.get("SecurityOptions"))
    gateway = seen.stand.gateway
    tokenizer = gateway.environment.get("TOKENIZER_PATH") or MODEL_TARGET
    yield from completeness.folder(
        seen.model,
        has_tokenizer=gateway.mount_of(tokenizer) in {"", MODEL_TARGET},
        reads_gguf=any(".gguf" in word for vllm in seen.vllms for word in vllm.command),
        selinux=any("selinux" in facts.text(option) for option in options),
    )
    for vllm in seen.vllms[:1]:
        yield from settings.length(vllm, seen.model)


def _cards(seen: Gathered) -> Iterator[Finding]:
    wanting = [vllm for vllm in seen.vllms if vllm.wants_cards]
    if not wanting:
        why = "стенд без видеокарты" if seen.vllms else "vLLM не здесь"
        yield unchecked("card", "Видеокарта", f"не нужна, {why}")
        return
    smi, found = seen.cards
    yield from cards.driver(smi, found, wanting[0].base_image)
    capabilities = [one for vllm in wanting for one in cards.capability(found, vllm.base_image, seen.model, vllm)]
    yield from dict.fromkeys(capabilities)
    if seen.docker.runs:
        yield from cards.way(seen.docker.info, seen.toolkit_hook, has_cdi=seen.has_cdi)
    else:
        yield unchecked("toolkit", "NVIDIA Container Toolkit", _NO_ENGINE)


def _memory(seen: Gathered) -> Iterator[Finding]:
    for vllm in seen.vllms:
        if not seen.stand.is_guessed:
            yield from settings.shared_memory(vllm)
        if not vllm.wants_cards:
            yield from settings.processor(seen.machine, vllm, seen.model)
        elif found := seen.cards[1]:
            yield from cards.memory(found, vllm, seen.model, settings.length_of(vllm), may_run=seen.may_run(vllm.name))


def _ports(seen: Gathered) -> Iterator[Finding]:
    wanted = [port for service in seen.stand.services.values() for port in service.ports]
    own = {number for container in seen.containers for number in container.ports} if seen.knows_what_runs else None
    taken = machine.listening(seen.text("/proc/net/tcp") + seen.text("/proc/net/tcp6"))
    yield from machine.ports(wanted, taken, own, seen.ports_of_others)


def _images(seen: Gathered) -> Iterator[Finding]:
    if reason := _no_stand(seen):
        yield unchecked("images", "Образы и место под них", reason)
        return
    built = {service.image: service for service in seen.stand.services.values() if service.is_built}
    yield from machine.images(seen.images, set(built))
    missing = {
        image: _BUILT_VLLM_BYTES if image in built and built[image].base_image else _OTHER_IMAGE_BYTES
        for image, is_there in seen.images.items()
        if not is_there
    }
    folder = seen.images_folder
    try:
        free = shutil.disk_usage(folder).free if folder else 0
    except OSError:
        folder = ""
    if not folder:
        yield unchecked("disk", "Место на диске", "папки, в которой Docker хранит образы, отсюда не видно")
        return
    yield from machine.disk(machine.Disk(folder, free), missing)


def _containers(seen: Gathered) -> Iterator[Finding]:
    if reason := _no_stand(seen):
        yield unchecked("containers", "Контейнеры", reason)
        return
    of_the_stand = [container for container in seen.containers if container.service in seen.stand.services]
    yield from containers.states(of_the_stand, seen.log_of, seen.secrets)


def _no_stand(seen: Gathered) -> str:
    """Why nothing is known of the stand's images and containers; empty where it is."""
    if not seen.docker.runs:
        return _NO_ENGINE
    return _NO_STAND if seen.stand.is_guessed else ""


def _from_inside(seen: Gathered) -> Iterator[Finding]:
    """What the gateway sees of vLLM and of Redis; only it can reach them."""
    title = "Связь шлюза с vLLM"
    if not seen.runs("gateway"):
        yield unchecked("inside", title, "шлюз не запущен", "make up, затем make doctor")
        return
    # The key goes by the environment: a command line can be read by all.
    command = ["exec", "-T", "-e", "VLLM_API_KEY", "gateway", "python", "-m", "app.doctor", "--json"]
    ran = seen.compose(*command, environ={"VLLM_API_KEY": seen.key}, seconds=_FROM_INSIDE_SECONDS)
    try:
        yield from from_json(ran.out)
    except ValueError:
        if "No module named" in ran.err:
            yield unchecked("inside", title, "образ шлюза собран раньше этой проверки", "docker compose up -d --build")
        else:
            why = containers.hidden(ran.words, seen.secrets)
            yield unchecked("inside", title, f"проверка внутри шлюза не удалась: {why}", "docker compose logs gateway")


_CHECKS: Sequence[Callable[[Gathered], Iterator[Finding]]] = (
    _machine,
    _docker,
    _files,
    _env,
    _stand,
    _settings,
    _model,
    _cards,
    _memory,
    _ports,
    _images,
    _containers,
    _from_inside,
)
"""In the order in which a person would put things right."""
