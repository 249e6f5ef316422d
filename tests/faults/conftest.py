"""Two gateways for all the faults: one whose timeouts a fault at once must not wait for, one whose timeouts end one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.world import World, world
from tests.servers import wait_until


def none_left_open(before: World) -> None:
    """Whatever has failed, no connection is left; the watch over vLLM has one for three seconds out of five."""
    wait_until(lambda: before.network.open_connections == 0, 15)


@pytest.fixture(scope="package")
def patient(model_folder: Path) -> Iterator[World]:
    with world(
        model_folder,
        vllm_connect_timeout_seconds=30,
        vllm_idle_timeout_seconds=30,
        vllm_total_timeout_seconds=60,
    ) as made:
        yield made
        none_left_open(made)


@pytest.fixture(scope="package")
def impatient(model_folder: Path) -> Iterator[World]:
    with world(
        model_folder,
        vllm_connect_timeout_seconds=1,
        vllm_idle_timeout_seconds=1,
        vllm_total_timeout_seconds=2,
    ) as made:
        yield made
        none_left_open(made)
