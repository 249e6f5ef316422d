"""The host half: each fault is named with what to type, alone and among many, and good health is not complained of."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from app.doctor.dotenv import setting_command
from tests.doctor.faults import FAULTS, Fault
from tests.doctor.ordinary import ORDINARY
from tests.doctor.strange import JUNK, KEY_LINES, replaced_key
from tests.doctor.world import KEY, World, begins, troubles
from tests.readme import ROOT
from tests.screen import Screen
from tests.servers import lasting_port

pytestmark = pytest.mark.docker

Findings = list[dict[str, str]]
Looked = Mapping[str, "Future[Findings]"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, lasting_port())
    with made.kept:
        yield made


def test_good_health_is_not_complained_of(world: World) -> None:
    ran = world.doctor()
    assert ran.returncode == 0, ran.stdout
    assert ran.stdout.endswith("Всё в порядке.\n"), ran.stdout
    assert not {"✗", "!"} & {line[:1] for line in ran.stdout.splitlines()}
    assert ran.stderr == ""


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    """What is found of each stand of the tables.

    The doctor waits for Docker most of its time, so several look at once.
    """

    def look(seed: Callable[[World], object]) -> Findings:
        world = World(tmp_path_factory.mktemp("world"), lasting_port())
        with world.kept:
            seed(world)
            return world.findings()

    faults = {fault.title: fault.seed for fault in FAULTS}
    lines = {line: replaced_key(line) for line in KEY_LINES}
    with ThreadPoolExecutor(4) as several:
        yield {name: several.submit(look, seed) for name, seed in {**faults, **ORDINARY, **JUNK, **lines}.items()}
        several.shutdown(wait=False, cancel_futures=True)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.code)
def test_a_fault_is_named_and_nothing_else(looked: Looked, fault: Fault) -> None:
    found = troubles(looked[fault.title].result())
    assert {finding["code"] for finding in found} == {fault.code} | fault.also, found
    finding = next(finding for finding in found if finding["code"] == fault.code)
    assert finding["status"] == fault.status
    assert begins(finding["what"], fault.says), finding["what"]
    assert fault.types in finding["command"]
    assert finding["why"]


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_stand_is_not_complained_of(looked: Looked, name: str) -> None:
    assert not troubles(looked[name].result())


MANY = """
docker_old compose_old clock_unsynchronised
env_readable env_unknown env_dollar extra_args_quote key_example not_a_number budget length_over_model drain
workers_without_redis tokenizer_path shm
model_closed weights_cut tokenizer_missing template_missing
driver_old card_old toolkit_missing card_busy
port_taken disk container_fallen
""".split()


def seed_many(world: World) -> None:
    """As many at once as can be."""
    for fault in FAULTS:
        if fault.code in set(MANY) - {"model_closed", "container_fallen", "budget"}:
            fault.seed(world)
    world.set(MAX_CONTEXT_TOKENS="70000")
    (world.model / "model-00001-of-00002.safetensors").chmod(0o600)
    log = "ValueError: No available memory for the cache blocks\n"
    world.containers({"Service": "vllm", "State": "restarting", "ExitCode": 1}, vllm=log)
    (world.folder / ".env").chmod(0o644)


def test_each_of_many_faults_is_named_in_one_run(world: World) -> None:
    seed_many(world)
    found = troubles(world.findings())
    assert sorted(finding["code"] for finding in found) == sorted(MANY)
    shown = world.doctor()
    assert shown.returncode == 1
    for finding in found:
        assert finding["what"] in shown.stdout
        for line in finding["command"].splitlines():
            assert f"    → {line}\n" in shown.stdout
    assert shown.stdout.splitlines()[-1].startswith("Найдено ошибок: ")


def test_without_docker_everything_else_is_still_looked_at(world: World) -> None:
    world.without("docker", "nvidia-smi")
    world.set(VLLM_API_KEY="INTERNAL_VLLM_KEY", VLLM_MAX_MODEL_LEN="65536", SESSION_TTL_SECONDS="abc")
    world.shard.unlink()
    codes = {finding["code"] for finding in troubles(world.findings())}
    assert codes == {
        "docker_missing",
        "key_example",
        "length_over_model",
        "not_a_number",
        "shards_missing",
        "driver_missing",
    }


def test_what_only_docker_knows_is_not_guessed(world: World) -> None:
    """The port and the card may be taken by this very stand."""
    port = world.listen()
    world.set(GATEWAY_PORT=f"127.0.0.1:{port}")
    world.card(free="1000")
    denied = "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock"
    world.say("version", {"Client": {"Version": "28.2.2"}, "Server": None}, complaint=denied, code=1)
    found = world.findings()
    assert [finding["code"] for finding in troubles(found)] == ["docker_denied"]
    [finding] = [finding for finding in found if finding["code"] == "port"]
    assert finding["status"] == "unchecked"


def test_a_file_of_the_owners_is_never_to_be_replaced(world: World) -> None:
    """It is there, and COMPOSE_FILE names another."""
    world.set(COMPOSE_FILE="compose-of-the-stand.yaml")
    assert {finding["code"] for finding in troubles(world.findings())} == {"compose_file_absent"}


@pytest.mark.parametrize("line", KEY_LINES)
def test_a_key_is_not_shown_however_it_is_written(looked: Looked, line: str) -> None:
    found = str(looked[line].result())
    assert "sesam" not in found
    assert "oeffne" not in found


def test_the_commands_that_make_a_secret_leave_one_line_of_it(world: World) -> None:
    """Whether .env ends with a newline or not, and has had one already or not."""
    world.set(SESSION_STORE_URL="redis://redis:6379/0")
    world.write_env((world.folder / ".env").read_text().replace("VLLM_API_KEY=", " export  VLLM_API_KEY = ").rstrip())
    for finding in world.findings():
        for line in finding["command"].splitlines():
            if "SESSION_SECRET" in line:
                subprocess.run(["bash", "-c", line], cwd=world.folder, check=True, capture_output=True)
    subprocess.run(["bash", "-c", setting_command("VLLM_API_KEY", 16)], cwd=world.folder, check=True)
    content = (world.folder / ".env").read_text()
    assert content.count("VLLM_API_KEY") == content.count("SESSION_SECRET") == 1
    assert KEY not in content
    assert not troubles(world.findings())


def test_in_a_folder_of_something_else_it_says_where_to_go(world: World) -> None:
    for path in (world.folder / "docker-compose.yaml", world.folder / "docker-compose.example.yaml"):
        path.unlink()
    finding = next(finding for finding in world.findings() if finding["code"] == "compose_file_missing")
    assert finding["command"] == "запустите проверку в папке репозитория"


def test_a_stand_at_work_is_looked_at_from_inside_with_the_key_by_the_environment(world: World) -> None:
    """Its ports and its share of the card are its own, and no fault."""
    port = world.listen()
    world.set(GATEWAY_PORT=f"127.0.0.1:{port}")
    world.card(free="1000")
    world.containers(
        {"Service": "vllm", "State": "running", "Health": "healthy"},
        {"Service": "gateway", "State": "running", "Health": "healthy", "Publishers": [{"PublishedPort": port}]},
    )
    inner = {"status": "failure", "code": "key_refused", "what": "ключ не тот", "why": "потому", "command": "сделать"}
    world.say("exec", json.dumps({"findings": [inner]}), code=1)
    found = world.findings()
    assert troubles(found) == [inner]
    assert world.said("exec-key").strip() == KEY
    assert KEY not in world.said("exec-arguments")
    assert world.said("exec-arguments").strip() == "compose exec -T -e VLLM_API_KEY gateway python -m app.doctor --json"


@pytest.mark.parametrize(
    ("complaint", "says"),
    [
        ("No module named app.doctor", "образ шлюза собран раньше"),
        (f"boom {KEY}", "проверка внутри шлюза не удалась: boom ***"),
        ("", "проверка внутри шлюза не удалась"),
    ],
)
def test_a_gateway_that_cannot_look_is_told_of(world: World, complaint: str, says: str) -> None:
    world.containers({"Service": "gateway", "State": "running", "Health": "healthy"})
    odd = {"status": "of another version", "code": "x", "what": "x"}
    world.say("exec", json.dumps({"findings": [odd]}) if not complaint else "", complaint=complaint, code=1)
    found = world.findings()
    [finding] = [finding for finding in found if finding["code"] == "inside"]
    assert finding["status"] == "unchecked"
    assert says in finding["why"]
    assert not troubles(found)


def test_another_container_on_the_port_is_named(world: World) -> None:
    world.set(GATEWAY_PORT="9123")
    world.say("ps", json.dumps({"Names": "other-web-1", "Ports": "0.0.0.0:9123->80/tcp"}) + "\n")
    [finding] = troubles(world.findings())
    assert "занят контейнером other-web-1" in finding["what"]


@pytest.mark.parametrize("name", JUNK)
def test_whatever_is_found_there_is_no_traceback(looked: Looked, name: str) -> None:
    assert looked[name].result()


def test_colours_are_for_terminals(world: World) -> None:
    world.set(VLLM_API_KEY="INTERNAL_VLLM_KEY")
    assert "\033" not in world.doctor().stdout
    environ = {"PATH": str(world.programs), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    command = [sys.executable, "-S", "-m", "app.doctor", "--stand"]
    for more, signs in (({}, "\033[33m!\033[0m VLLM_API_KEY"), ({"NO_COLOR": "1"}, "\n! VLLM_API_KEY")):
        with Screen(command, world.folder, {**environ, **more}, columns=100) as screen:
            screen.wait_for("Ошибок нет, предупреждений: 1.", 30)
            assert signs in screen.received
