"""The stand on a real Docker engine, from the shipped files, as the README says to use them.

`.ci/run` makes base images on the machine itself, under the names that the Dockerfiles build on, with the real vLLM for
the CPU in place of the one for CUDA.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import Gateway, SessionOf
from tests.readme import OPERATIONS, ROOT, commands, type_the_walk
from tests.screen import Screen
from tests.servers import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

PROJECT = "simple-chat-gateway-tests"
KEY = "kljuch-kotoryj-nikto-ne-ugadaet"
SECRET_TEXT = "тайна, которой не место в журнале"
URL = "http://127.0.0.1:8080"
CPU_IMAGE = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0"
FOR_THE_CPU = "docker-compose.yaml:deploy/docker-compose.cpu.yaml"
FIRST_NETWORKS = {"default", "backend"}
SESSION_SECRET = "0123456789abcdef" * 2
LONG = {"max_tokens": 6000, "extra": {"ignore_eos": True}}


class Stand:
    """A copy of what is shipped, in a folder of its own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        shipped = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
        for name in shipped.decode().strip("\0").split("\0"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(model, folder / "model")
        # As transformers 5 saves it; the gateway of the default pair has transformers 4.
        config = folder / "model" / "tokenizer_config.json"
        content = json.loads(config.read_text()) | {"tokenizer_class": "TokenizersBackend"}
        config.write_text(json.dumps(content))

    def set_up(self) -> None:
        """The files that a person copies and fills in."""
        self.type("cp docker-compose.example.yaml docker-compose.yaml && cp .env.example .env")

    def type(self, command: str, **environ: str) -> str:
        """Type a command; returns what it printed. It must succeed."""
        result = self.try_to(command, **environ)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def try_to(self, command: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """Type a command that may fail."""
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def begin(self, command: str, **environ: str) -> "subprocess.Popen[bytes]":
        """Type a command and go on."""
        return subprocess.Popen(
            ["bash", "-c", command],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **environ},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def inspect(self, service: str) -> Any:
        """What Docker knows of a service's container."""
        container = self.type(f"docker compose ps --all --quiet {service}").strip()
        [details] = json.loads(self.type(f"docker inspect {container}"))
        return details

    def set(self, **values: str) -> None:
        """Change lines of .env."""
        path = self.folder / ".env"
        lines = [line for line in path.read_text().splitlines() if line.partition("=")[0] not in values]
        path.write_text("\n".join([*lines, *(f"{name}={value}" for name, value in values.items())]) + "\n")


def answers(url: str, path: str = "/ready") -> bool:
    try:
        return httpx2.get(url + path, timeout=5).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Stand]:
    """Prepared as the README says, built, started, and ready."""
    prepared = Stand(tmp_path_factory.mktemp("stand"), model_folder)
    download, *steps, start, _check = commands("Подготовка")
    assert "hf download" in download  # the model lies there already
    for step in steps:
        prepared.type(step)
    prepared.set(VLLM_API_KEY=KEY, COMPOSE_PROJECT_NAME=PROJECT)
    prepared.type("docker compose down --timeout 5")  # of an earlier run that was cut short
    try:
        prepared.type("docker compose build")  # `up` would be content with the images of an earlier run
        prepared.type(start)
        # In place of a GPU the processor works, and the gateway must not wait for it: as the override for the CPU says.
        prepared.type("docker update --cpu-shares 64 $(docker compose ps --quiet vllm)")
        with prepared.begin("docker compose build gateway", COMPOSE_FILE=FOR_THE_CPU):  # while vLLM starts
            wait_until(lambda: answers(URL), 240)
        yield prepared
    finally:
        prepared.type("docker compose down --timeout 5")
        # They are not what these names stand for elsewhere.
        prepared.try_to(f"docker image rm {CPU_IMAGE} $(docker image ls --quiet 'simple-chat-gateway*')")


@pytest.fixture
def gateway(stand: Stand) -> Iterator[Gateway]:  # noqa: ARG001 - it only has to run
    with httpx2.Client(base_url=URL, timeout=60) as http:
        wait_until(lambda: answers(URL), 240)
        yield Gateway(URL, http)


@pytest.fixture
def session(gateway: Gateway) -> SessionOf:
    return gateway.open(vllm_api_key=KEY)


def process_of(stand: Stand, service: str, name: str) -> int:
    """The id, on this machine, of a service's process; not of the `init` above it."""
    processes = stand.type(f"docker top {stand.inspect(service)['Id']} -o pid,args").splitlines()
    [pid] = [line.split()[0] for line in processes if name in line and "docker-init" not in line]
    return int(pid)


def logs(stand: Stand, service: str = "") -> str:
    return stand.type(f"docker compose logs --no-color {service} 2>&1")


def transformers_of(stand: Stand) -> str:
    """The release in the gateway's image."""
    show = "from importlib.metadata import version; print(version('transformers'))"
    return stand.type(f'docker compose exec -T gateway python -c "{show}"').strip()


# --- the files ---


@pytest.mark.parametrize("overlays", [[], ["cpu"], ["scale"], ["scale", "cpu"]], ids="+".join)
@pytest.mark.parametrize("env", ["as shipped", "with all that is commented out", "with the newer pair"])
def test_compose_accepts_every_combination(tmp_path: Path, model_folder: Path, env: str, overlays: list[str]) -> None:
    stand = Stand(tmp_path, model_folder)
    stand.set_up()
    lines = (tmp_path / ".env").read_text()
    newer = ("#BASE_IMAGE=", "#VLLM_VERSION=")
    for line in lines.splitlines():
        wanted = env == "with all that is commented out" or (env == "with the newer pair" and line.startswith(newer))
        if wanted and line.startswith("#") and line[1:].partition("=")[0].isidentifier() and line[1:2].isupper():
            lines = lines.replace(line, line[1:])
    (tmp_path / ".env").write_text(lines)
    cpu, scale = "cpu" in overlays, "scale" in overlays
    if scale:
        stand.set(SESSION_SECRET=SESSION_SECRET)
    files = ":".join(["docker-compose.yaml", *(f"deploy/docker-compose.{name}.yaml" for name in overlays)])
    stand.type("docker compose config --quiet", COMPOSE_FILE=files)
    services = json.loads(stand.type("docker compose config --format json", COMPOSE_FILE=files))["services"]
    monitoring = {"prometheus", "grafana"} if env == "with all that is commented out" else set()
    vllms = ["vllm", "vllm-2"] if scale and not cpu else ["vllm"]
    several = {"proxy", "balancer", "redis"} if scale else set()
    assert services.keys() == {"gateway", *vllms} | several | monitoring
    version = "0.16.0" if env == "as shipped" and not cpu else "0.32.0"
    assert services["gateway"]["build"]["args"]["VLLM_VERSION"] == version
    assert services["gateway"]["image"].endswith(version)
    assert bool(services["gateway"].get("ports")) is not scale
    assert set(services["gateway"]["networks"]) == ({"gateways", "backend", "sessions"} if scale else FIRST_NETWORKS)
    for number, name in enumerate(vllms):
        reservations = services[name].get("deploy", {}).get("resources", {}).get("reservations", {})
        devices = reservations.get("devices", [])
        assert bool(devices) is not cpu
        assert not scale or [device["device_ids"] for device in devices] == ([] if cpu else [[str(number)]])
        assert services[name]["image"].endswith(version)
        assert services[name]["command"] == services["vllm"]["command"]


def test_several_gateways_need_a_secret(tmp_path: Path, model_folder: Path) -> None:
    stand = Stand(tmp_path, model_folder)
    stand.set_up()
    files = "docker-compose.yaml:deploy/docker-compose.scale.yaml"
    result = stand.try_to("docker compose config --quiet", COMPOSE_FILE=files)
    assert result.returncode != 0
    assert "Задайте в .env SESSION_SECRET" in result.stderr


def test_without_a_key_compose_says_what_to_do(tmp_path: Path, model_folder: Path) -> None:
    stand = Stand(tmp_path, model_folder)
    stand.type("cp docker-compose.example.yaml docker-compose.yaml")
    for key in ("", "VLLM_API_KEY=\n"):
        (tmp_path / ".env").write_text(key)
        result = stand.try_to("docker compose config --quiet")
        assert result.returncode != 0
        assert "Скопируйте .env.example в .env" in result.stderr


def test_make_says_what_is_missing(tmp_path: Path, model_folder: Path) -> None:
    stand = Stand(tmp_path, model_folder)
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    for missing, remedy in (
        ("docker-compose.yaml", "cp docker-compose.example.yaml docker-compose.yaml"),
        (".env", "cp .env.example .env"),
        ("model", "mv elsewhere model"),
    ):
        result = stand.try_to("make up")
        assert result.returncode != 0
        assert f"Нет {missing}" in result.stderr or f"Нет папки {missing}" in result.stderr
        stand.type(remedy)
    assert stand.try_to("make --dry-run up").returncode == 0


def test_extra_arguments_are_split_as_in_a_shell(tmp_path: Path, model_folder: Path) -> None:
    stand = Stand(tmp_path, model_folder)
    stand.set_up()
    stand.set(VLLM_EXTRA_ARGS="""--seed 7 --override-generation-config '{"top_p": 0.9}'""")
    shown = stand.type("docker compose config --format json")
    command = json.loads(shown)["services"]["vllm"]["command"]
    assert command[-4:] == ["--seed", "7", "--override-generation-config", '{"top_p": 0.9}']
    assert command[:3] == ["/app/model", "--served-model-name", "/app/model"]


# --- at work ---


def test_the_readmes_check_and_its_walk_through_the_api(stand: Stand, gateway: Gateway, tmp_path: Path) -> None:
    *_, check = commands("Подготовка")
    # What was to be said of the model's folder is withdrawn within seconds after vLLM has loaded it all the same.
    wait_until(lambda: gateway.http.get("/health").json()["warnings"] == [])
    shown = stand.type(check)
    assert '"status":"ok"' in shown
    assert '"warnings":[]' in shown
    assert f"{PROJECT}-vllm-1" in shown
    transcript = type_the_walk(gateway.url, KEY, tmp_path)
    assert '"context":{"limit":' in transcript


def test_the_doctor_finds_a_healthy_stand_healthy(stand: Stand, gateway: Gateway) -> None:
    """The machine has no card, so what tells of one is played; Docker, the stand and its insides are what they are."""
    del gateway  # only that it be ready
    programs = stand.folder / "programs"
    programs.mkdir()
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 0, GPU-0, RTX 4090, 580.65.06, 24564, 100, 8.9\n")
    (programs / "nvidia-smi").chmod(0o755)
    shown = stand.type("make doctor", PATH=f"{programs}:{os.environ['PATH']}")
    assert shown.endswith("Всё в порядке.\n"), shown
    for line in (
        "✓ Порт 8080 (gateway): занят этим стендом",
        "✓ gateway: работает",
        "✓ Ключ принят, модель /app/model обслуживается",
        "✓ Токены шлюз и vLLM считают одинаково",
    ):
        assert line in shown
    assert KEY not in shown
    asked = stand.try_to("docker compose exec -T -e VLLM_API_KEY gateway python -m app.doctor", VLLM_API_KEY="other")
    assert asked.returncode == 1
    assert "✗ vLLM не принимает ключ" in asked.stdout


def test_the_count_is_vllms_with_transformers_of_either_line(stand: Stand, session: SessionOf) -> None:
    assert transformers_of(stand) == "4.57.6"
    for message in ("Привет! <|im_end|> [INST]", "Ещё 🦔\r\n\tраз   " + "очень" * 100, " "):
        answer = session.ok("/chat", message=message, max_tokens=5)
        assert answer["context"]["used"] == answer["input_tokens"]
        assert answer["context"]["cached_tokens"] is not None


@pytest.mark.parametrize("service", ["gateway", "vllm"])
def test_a_container_has_no_rights(stand: Stand, service: str) -> None:
    probe = "grep -E '^(Uid|Cap|NoNewPrivs)' /proc/1/status; touch /app/x /x; echo; ls -ld /app/model"
    result = stand.try_to(f'docker compose exec -T {service} sh -c "{probe}"')
    status = dict(line.split(":\t", 1) for line in result.stdout.splitlines() if ":\t" in line)
    assert set(status.pop("Uid").split()) == {"10001"}
    assert status.pop("NoNewPrivs") == "1"
    assert len(status) == 5
    assert {int(capabilities, 16) for capabilities in status.values()} == {0}
    assert result.stderr.count("Read-only file system") == 2
    details = stand.inspect(service)
    assert details["HostConfig"]["ReadonlyRootfs"] is True
    [model] = [mount for mount in details["Mounts"] if mount["Destination"] == "/app/model"]
    assert model["RW"] is False
    assert not details["HostConfig"]["Privileged"]


def test_vllm_is_reached_by_nobody_and_reaches_nobody(stand: Stand) -> None:
    assert not stand.inspect("vllm")["NetworkSettings"]["Ports"].get("8000/tcp")
    out = "import socket; socket.create_connection(('1.1.1.1', 443), 3)"
    result = stand.try_to(f'docker compose exec -T vllm python3 -c "{out}"')
    assert "Network is unreachable" in result.stderr


def test_the_client_in_the_image_talks(stand: Stand, gateway: Gateway) -> None:
    del gateway  # only that it be ready
    talk = ["compose", "exec", "gateway", "python", "-m", "client"]
    with Screen(["docker", *talk], stand.folder, os.environ) as client:
        client.wait_for("Ключ vLLM:", 60)
        client.type(KEY)
        client.press("enter")
        client.say("Привет")
        client.wait_for("контекст", 60)
        client.wait_for_prompt()
        client.press("up")
        client.wait_for_prompt("Привет")
        client.press("ctrl-c", "ctrl-d")
        client.wait_for("Сессия закрыта.")
        assert client.wait_for_end() == 0


def test_neither_key_nor_messages_are_left_anywhere(stand: Stand, gateway: Gateway, session: SessionOf) -> None:
    session.ok("/chat", message=SECRET_TEXT, max_tokens=5)
    gateway.refused(401, "invalid_key", "/init_session", vllm_api_key=KEY + "?")
    gateway.post("/chat", session_id=session.id, message=SECRET_TEXT, max_tokens="много")
    written = logs(stand)
    assert "POST /chat" in written
    for service in ("gateway", "vllm"):
        details = stand.inspect(service)
        image = details["Image"]
        written += json.dumps([details["Path"], details["Args"], details["Config"]["Cmd"]], ensure_ascii=False)
        written += stand.type(f"docker history --no-trunc {image}; docker image inspect {image}")
        assert KEY not in stand.type(f"docker top {details['Id']} -o pid,args")
    for secret in (KEY, SECRET_TEXT, session.id):
        assert secret not in written
    assert KEY not in json.dumps(stand.inspect("gateway")), "the gateway has no key of its own"
    stand.type(f"docker export --output files.tar {stand.inspect('gateway')['Id']}")
    stand.type("grep --quiet 'def create_app' files.tar")
    assert stand.try_to(f"grep --quiet {KEY} files.tar").returncode == 1


def test_a_killed_gateway_comes_back(stand: Stand, session: SessionOf) -> None:
    before = stand.inspect("gateway")
    os.kill(process_of(stand, "gateway", "python -m app"), signal.SIGKILL)
    wait_until(lambda: stand.inspect("gateway")["RestartCount"] == before["RestartCount"] + 1, 30)
    wait_until(lambda: answers(URL), 60)
    session.gateway.refused(404, "session_not_found", "/history", session_id=session.id)


@pytest.mark.parametrize("process", ["vllm serve", "VLLM::EngineCore"])
def test_a_killed_vllm_comes_back_and_the_sessions_have_waited(stand: Stand, session: SessionOf, process: str) -> None:
    session.ok("/chat", message="до", max_tokens=3)
    gateway, vllm = stand.inspect("gateway"), stand.inspect("vllm")
    doomed = process_of(stand, "vllm", process)  # beforehand: a fast machine may be done while Docker is asked
    with session.stream("во время", **LONG) as source:
        events = iter(source)
        next(events)
        os.kill(doomed, signal.SIGKILL)
        last = list(events)[-1]
    assert last.event == "error", last
    error: Any = last.json()
    assert error["code"] == "upstream_error"
    response = session.gateway.post("/chat", session_id=session.id, message="пока его нет")
    assert response.json()["code"] in {"upstream_error", "upstream_unavailable"}
    wait_until(lambda: stand.inspect("vllm")["RestartCount"] == vllm["RestartCount"] + 1, 60)
    assert stand.inspect("gateway")["State"]["StartedAt"] == gateway["State"]["StartedAt"]
    wait_until(lambda: answers(URL), 240)
    session.ok("/chat", message="после", max_tokens=3)
    assert [text for text in session.contents() if text in {"до", "во время", "пока его нет", "после"}] == [
        "до",
        "после",
    ]


def test_make_up_says_whether_the_gateway_has_started(stand: Stand) -> None:
    stand.set(SESSION_TTL_SECONDS="abc")
    result = stand.try_to("make up")
    assert result.returncode != 0
    assert "Ошибка: SESSION_TTL_SECONDS='abc': нужно целое число" in result.stderr
    assert "Шлюз: http" not in result.stdout
    stand.set(SESSION_TTL_SECONDS="600")
    assert f"Шлюз: {URL}. " in stand.type("make up")
    container = stand.type("docker compose ps --quiet gateway")
    assert f"Шлюз: {URL}. " in stand.type("make up")
    assert stand.type("docker compose ps --quiet gateway") == container, "sessions are lost with it"


def test_stopping_is_quick_and_clean(stand: Stand, session: SessionOf) -> None:
    engine = process_of(stand, "vllm", "VLLM::EngineCore")
    # However fast it is, and however slow Docker, the answer is not done before the gateway has been told to stop.
    os.kill(engine, signal.SIGSTOP)
    with session.stream("?", max_tokens=50, extra={"ignore_eos": True}) as source:
        started = time.monotonic()
        with stand.begin("docker compose stop") as stop:
            wait_until(lambda: not answers(URL), 20)
            assert answers(URL, "/health"), "it lives, but takes nobody new"
            session.gateway.refused(503, "overloaded", "/init_session", vllm_api_key=KEY)
            os.kill(engine, signal.SIGCONT)
            last = list(source)[-1]
            assert stop.wait(60) == 0
    assert last.event == "done", "a turn in flight is given time to end"
    assert time.monotonic() - started < 30
    for service in ("gateway", "vllm"):
        state = stand.inspect(service)["State"]
        assert (state["ExitCode"], state["OOMKilled"]) == (0, False)
    written = logs(stand, "gateway")
    assert "Traceback" not in written
    assert "Шлюз останавливают: начатым ответам даётся 30 с." in written, "it was still going on"
    assert "Application shutdown complete" in written


def test_images_can_be_carried_to_another_machine(stand: Stand) -> None:
    save, load = commands("Без интернета", OPERATIONS)
    assert "$(docker compose config --images)" in save
    stand.type("docker compose down --timeout 5")
    images = stand.type("docker compose config --images").split()
    assert sorted(images) == ["simple-chat-gateway-vllm:0.16.0", "simple-chat-gateway:vllm-0.16.0"]
    # Only the small one: the way is the same, and gigabytes take minutes.
    image = "simple-chat-gateway:vllm-0.16.0"
    stand.type(f"docker save {image} | gzip -1 > images.tar.gz && docker image rm --force {image}")
    unpack, start = load.strip().splitlines()
    stand.type(unpack)
    stand.type(start)
    wait_until(lambda: answers(URL, "/health"), 30)


def test_without_a_gpu_and_without_a_way_out(stand: Stand, tmp_path: Path) -> None:
    """The override for the CPU, on networks that lead nowhere; the walk comes from the machine itself."""
    stand.type("docker compose down --timeout 5")
    (stand.folder / "internal.yaml").write_text("networks: {default: {internal: true}}\n")
    stand.type(f"docker tag vllm/vllm-openai:latest {CPU_IMAGE}")  # the machine's own in place of the published one
    stand.set(COMPOSE_FILE=f"{FOR_THE_CPU}:internal.yaml")
    stand.type("docker compose up --detach --build")
    details = stand.inspect("gateway")
    url = f"http://{details['NetworkSettings']['Networks'][f'{PROJECT}_default']['IPAddress']}:8080"
    try:
        wait_until(lambda: answers(url), 240)
        type_the_walk(url, KEY, tmp_path)
        assert httpx2.get(f"{url}/docs").status_code == 200
        vllm = stand.inspect("vllm")
        assert (vllm["Config"]["Image"], vllm["Config"]["User"]) == (CPU_IMAGE, "10001:10001")
        assert (vllm["HostConfig"]["ReadonlyRootfs"], vllm["HostConfig"]["CapDrop"]) == (True, ["ALL"])
        assert transformers_of(stand) == "5.19.0"
        assert KEY not in logs(stand)
    finally:
        stand.type("docker compose down --timeout 5")
