"""Which GPUs a service of Docker Compose asks for: there are several ways to say it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.doctor import facts

ALL = -1
_CDI = "nvidia.com/gpu="
_NONE = {"none", "void", ""}


def asked(service: Mapping[str, Any]) -> tuple[int, Sequence[str] | None]:
    """How many, ALL for as many as there are, and which; None for any."""
    counts, ids = list[int](), list[str]()
    for device in _devices(service):
        if named := [facts.text(one).removeprefix(_CDI) for one in facts.sequence(device.get("device_ids"))]:
            ids += named
        else:
            counts.append(facts.whole(device.get("count")) or ALL)
    if "all" in ids or ALL in counts:
        return ALL, None
    return sum(counts) + len(ids), None if counts or not ids else ids


def _devices(service: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All that is asked for, as `deploy.resources.reservations.devices` would have it."""
    reservations = facts.mapping(
        facts.mapping(facts.mapping(service.get("deploy")).get("resources")).get("reservations")
    )
    for device in map(facts.mapping, facts.sequence(reservations.get("devices"))):
        if "gpu" in facts.sequence(device.get("capabilities")) or device.get("driver") == "nvidia":
            yield device
    yield from map(facts.mapping, facts.sequence(service.get("gpus")))
    for device in map(facts.mapping, facts.sequence(service.get("devices"))):
        if (source := facts.text(device.get("source"))).startswith(_CDI):
            yield {"device_ids": [source]}
    if service.get("runtime") == "nvidia":
        visible = facts.text(facts.mapping(service.get("environment")).get("NVIDIA_VISIBLE_DEVICES", "all"))
        if visible not in _NONE:
            yield {"device_ids": visible.split(",")}
