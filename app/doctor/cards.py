"""NVIDIA's cards: the driver, Docker's way to them, and whether the model fits."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.doctor import facts
from app.doctor.findings import Finding, failure, gib, ok, or_else, unchecked, warning
from app.doctor.model import Model
from app.doctor.needs import Needs, cards_of_this_machine, needs_of
from app.doctor.programs import Ran
from app.doctor.stand import Service

QUERY = ("index", "uuid", "name", "driver_version", "memory.total", "memory.free", "compute_cap")
DEFAULT_UTILIZATION = 0.9

# NVIDIA's release notes of CUDA: the driver for Linux that came with a toolkit, and the oldest one that still runs what
# was built with any toolkit of that generation.
_DRIVERS = {
    (12, 4): "550.54.14",
    (12, 5): "555.42.02",
    (12, 6): "560.28.03",
    (12, 8): "570.26",
    (12, 9): "575.51.03",
    (13, 0): "580.65.06",
}
_OLDEST_DRIVERS = {12: "525.60.13", 13: "580.65.06"}
# What PyTorch's builds for a generation of CUDA run on.
_CAPABILITIES = {12: (7, 0), 13: (7, 5)}
_BFLOAT16 = (8, 0)
# vLLM's own buffers and CUDA's graphs: it measures them itself, a gibibyte and more.
_SPARE_BYTES = 2**30
_WITHOUT = "нет видеокарты — строка в .env: COMPOSE_FILE=docker-compose.yaml:deploy/docker-compose.cpu.yaml"
_DRIVER_GUIDE = "https://docs.nvidia.com/datacenter/tesla/driver-installation-guide/"
_TOOLKIT = "https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/install-guide.html"


@dataclass(frozen=True)
class Card:
    """One GPU; memory and capability may be unknown."""

    index: str
    uuid: str
    name: str
    driver: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, ...]


def cards_in(listed: str) -> list[Card]:
    """What nvidia-smi tells of QUERY, or of all of it but the last, as CSV without header and units."""
    rows = [[value.strip() for value in line.split(",")] for line in listed.splitlines()]
    return [
        Card(row[0], row[1], row[2], row[3], _mebibytes(row[4]), _mebibytes(row[5]), facts.version("".join(row[6:])))
        for row in rows
        if len(QUERY) - 1 <= len(row) <= len(QUERY)
    ]


def _mebibytes(given: str) -> int:
    return (facts.whole(given) or 0) * 2**20


def driver(smi: Ran, found: Sequence[Card], base_image: str) -> Iterator[Finding]:
    """Whether there is a driver, new enough for the CUDA of the image."""
    if smi.end == "absent":
        yield failure(
            "driver_missing",
            "Нет драйвера NVIDIA (программы nvidia-smi)",
            "Без него нет и видеокарты.",
            f"sudo ubuntu-drivers install (Ubuntu) или по {_DRIVER_GUIDE}, затем перезагрузите машину\n{_WITHOUT}",
        )
    elif not found:
        yield failure(
            "driver_broken",
            f"nvidia-smi не видит видеокарт: {smi.words}",
            "Драйвер не загружен, обновлён без перезагрузки или карты нет.",
            f"sudo reboot; если не помогло — sudo dmesg | grep -i nvidia | tail\n{_WITHOUT}",
        )
    else:
        named = ", ".join(f"{card.name} {gib(card.total_bytes)}" for card in found)
        fine = ok("driver", f"Видеокарта: {named}, драйвер {found[0].driver}")
        yield from or_else(_too_old(found[0].driver, base_image), fine)


def cuda_of(image: str) -> facts.Version:
    """The CUDA in an image's name; empty where it does not say."""
    named = re.search(r"cuda(\d+)\.(\d+)", image)
    return (int(named[1]), int(named[2])) if named else ()


def _too_old(installed: str, image: str) -> Iterator[Finding]:
    cuda = cuda_of(image)
    if not cuda:
        if image:
            yield unchecked("driver_cuda", "Драйвер и CUDA", f"в имени образа {image} не сказано, какая в нём CUDA")
        return
    own, oldest = _DRIVERS.get((cuda[0], cuda[1])), _OLDEST_DRIVERS.get(cuda[0])
    needed = f"CUDA {cuda[0]}.{cuda[1]} в BASE_IMAGE"
    command = (
        f"обновите драйвер ({_DRIVER_GUIDE}) и перезагрузите машину\n"
        "или возьмите другую версию: docs/operations.md, «Версии»"
    )
    if oldest and facts.version(installed) < facts.version(oldest):
        yield failure(
            "driver_old",
            f"Драйвер NVIDIA {installed} слишком стар для {needed}",
            f"Нужен {own or oldest} или новее: vLLM не увидит видеокарту.",
            command,
        )
    elif own and facts.version(installed) < facts.version(own):
        yield warning(
            "driver_older",
            f"Драйвер NVIDIA {installed} старше, чем {needed} ({own})",
            "Чаще всего работает и так, но не всё, что vLLM компилирует на месте.",
            command,
        )


def capability(found: Sequence[Card], base_image: str, model: Model, vllm: Service) -> Iterator[Finding]:
    """Whether vLLM's cards are of a generation that the image's torch and the model's numbers ask for."""
    cuda, used = cuda_of(base_image), (_given(vllm, found) or [])[: cards_of_this_machine(vllm)]
    least = _CAPABILITIES.get(cuda[0]) if cuda else None
    kind = vllm.option("--dtype") or "auto"
    saved = model.config.get("torch_dtype") or model.config.get("dtype")
    is_bfloat16 = "bfloat16" in (kind, saved if kind == "auto" else "")
    for card in used:
        shown = ".".join(map(str, card.capability))
        if least and card.capability and card.capability < least:
            yield failure(
                "card_old",
                f"{card.name} ({shown}) слишком стара для этой версии vLLM",
                f"Нужна {least[0]}.{least[1]} или новее.",
                "возьмите версию постарше, уберите из .env BASE_IMAGE и VLLM_VERSION (docs/operations.md, «Версии»)"
                if least == _CAPABILITIES[13]
                else f"нужна другая видеокарта\n{_WITHOUT}",
            )
        elif card.capability and card.capability < _BFLOAT16 and is_bfloat16:
            yield warning(
                "card_bfloat16",
                f"{card.name} ({shown}) не умеет bfloat16, а модель сохранена в нём",
                "vLLM откажется или перейдёт на float16 сам, смотря по версии.",
                "в .env, к VLLM_EXTRA_ARGS добавьте: --dtype half",
            )


def way(info: Mapping[str, Any], hook: str | None, *, has_cdi: bool = False) -> Iterator[Finding]:
    """Whether Docker can give a container the cards.

    Args:
        info: `docker info`.
        hook: where NVIDIA Container Toolkit's program is, which Docker calls.
        has_cdi: Docker finds the cards described as CDI has it.
    """
    connect = "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
    if has_cdi or any("nvidia" in name for name in facts.mapping(info.get("Runtimes"))):
        yield ok("toolkit", "NVIDIA Container Toolkit подключён к Docker")
    elif hook:
        yield warning(
            "toolkit_unknown",
            "NVIDIA Container Toolkit установлен, но к Docker не подключён",
            'Работает и так, если Docker потом перезапускали; иначе — could not select device driver "nvidia".',
            connect,
        )
    else:
        yield failure(
            "toolkit_missing",
            "Нет NVIDIA Container Toolkit",
            'Без него контейнер не получит видеокарту (could not select device driver "nvidia").',
            f"поставьте nvidia-container-toolkit: {_TOOLKIT}\n{connect}",
        )


def memory(
    found: Sequence[Card], vllm: Service, model: Model, length: int | None, *, may_run: bool
) -> Iterator[Finding]:
    """Whether weights and one whole conversation fit.

    Args:
        found: all cards.
        vllm: the service.
        model: its folder.
        length: VLLM_MAX_MODEL_LEN.
        may_run: vLLM runs, for all that is known, and holds its memory.
    """
    given, used = _given(vllm, found), cards_of_this_machine(vllm)
    wanted = max(used, vllm.wants_cards)
    if given is None:
        yield unchecked("card_memory", "Память видеокарт", f"какие из них получит {vllm.name}, отсюда не понять")
        return
    if len(given) < wanted:
        yield failure(
            "cards_few",
            f"vLLM ({vllm.name}) нужно видеокарт: {wanted}, а доступно ему {len(given)}",
            "Он не запустится.",
            "в .env, VLLM_EXTRA_ARGS: --tensor-parallel-size не больше, чем карт у этого vLLM в docker-compose.yaml",
        )
        return
    needs, share = needs_of(model, vllm), utilization(vllm)
    for card in given[:used]:
        if not card.total_bytes:
            yield unchecked("card_memory", f"Память {card.name}", "nvidia-smi её не называет")
            continue
        fine = ok("card_memory", _fits(card, needs, share, length))
        if not needs.weights_bytes:
            fine = unchecked("card_memory", f"Поместится ли модель в {card.name}", needs.why or "модель не прочитана")
        if not may_run:
            yield from _busy(card, share)
        yield from or_else(_room(card, needs, share, length), fine)


def utilization(vllm: Service) -> float:
    """The share of a card's memory that vLLM takes."""
    return share_of(vllm.option("--gpu-memory-utilization") or "") or DEFAULT_UTILIZATION


def share_of(given: str) -> float | None:
    """A share, above 0 and up to 1; None where it is none."""
    number = float(given) if re.fullmatch(r"[0-9]{0,9}\.?[0-9]{1,9}", given) else 0.0
    return number if 0 < number <= 1 else None


def _given(vllm: Service, found: Sequence[Card]) -> list[Card] | None:
    """The machine's cards that vLLM sees, in the order in which it takes them; None where that is not known."""
    given = list(found) if vllm.cards is None else _named(vllm.cards, found)
    if given is None:
        return None
    if vllm.cards is None and vllm.wants_cards >= 0:
        given = given[: vllm.wants_cards]
    # CUDA counts from the fastest one on.
    given.sort(key=lambda card: (card.capability, card.total_bytes), reverse=True)
    if not (visible := vllm.environment.get("CUDA_VISIBLE_DEVICES")):
        return given
    return _named(visible.split(","), [replace(card, index=str(number)) for number, card in enumerate(given)])


def _named(ids: Sequence[str], found: Sequence[Card]) -> list[Card] | None:
    """The cards of these numbers or UUIDs; None where one is neither: a slice of a card (MIG), say."""
    if any(not re.fullmatch(r"\s*(\d+|GPU-\S+)\s*", one) for one in ids):
        return None
    return [card for card in found for one in map(str.strip, ids) if one == card.index or card.uuid.startswith(one)]


def _busy(card: Card, share: float) -> Iterator[Finding]:
    if card.free_bytes < card.total_bytes * share:
        fits = int(card.free_bytes / card.total_bytes * 100) / 100
        yield failure(
            "card_busy",
            f"На {card.name} свободно {gib(card.free_bytes)} из {gib(card.total_bytes)}",
            f"vLLM сразу займёт {share:.0%} и не запустится, если столько не свободно.",
            f"кто занял: nvidia-smi\nили строка в .env: VLLM_GPU_MEMORY_UTILIZATION={max(fits - 0.02, 0.05):.2f}",
        )


def _fits(card: Card, needs: Needs, share: float, length: int | None) -> str:
    budget = card.total_bytes * share
    known = needs.cache_bytes_per_token and length
    cache = f" и контекст в {length} токенов" if known else f" (кэш не проверен: {needs.why or 'длина неизвестна'})"
    return f"В {gib(budget)} памяти {card.name} помещаются веса{cache}: {gib(needs.bytes(length or 0))}"


def _room(card: Card, needs: Needs, share: float, length: int | None) -> Iterator[Finding]:
    budget = card.total_bytes * share
    weights, needed = needs.weights_bytes or 0, needs.bytes(length or 0)
    if weights > budget:
        yield failure(
            "weights_too_large",
            f"Веса модели ({gib(weights)} на карту) больше, чем vLLM займёт на {card.name} ({gib(budget)})",
            "vLLM остановится: CUDA out of memory.",
            "модель поменьше или квантованная (AWQ, GPTQ, FP8)\n"
            "или несколько карт; в .env, к VLLM_EXTRA_ARGS добавьте: --tensor-parallel-size 2",
        )
    elif needed > budget:
        fits = needs.longest(budget - _SPARE_BYTES)
        yield failure(
            "context_too_large",
            f"На {card.name} не помещается контекст VLLM_MAX_MODEL_LEN={length}: вместе с весами {gib(needed)}, а есть "
            f"{gib(budget)}",
            "vLLM остановится: кэша токенов не хватит и на один разговор такой длины.",
            f"строка в .env: VLLM_MAX_MODEL_LEN={fits}" if fits else "модель поменьше или квантованная",
        )
    elif weights and needed + _SPARE_BYTES > budget:
        yield warning(
            "card_tight",
            f"Память {card.name} впритык: весам и контексту нужно {gib(needed)} из {gib(budget)}",
            "Ещё около гибибайта займёт сам vLLM; может не запуститься.",
            f"строка в .env: VLLM_MAX_MODEL_LEN={needs.longest(budget - _SPARE_BYTES) or 2048}",
        )
