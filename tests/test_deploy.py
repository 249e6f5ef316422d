"""One truth in the code, .env.example, the README and the files of the stand; and what those files promise."""

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from app.config import Settings, load_settings
from app.errors import MEDIA_TYPE, GatewayError, InternalError
from app.headers import SECURITY
from tests.readme import README, ROOT, SETTINGS, commands, section

EXAMPLE = ROOT / "docker-compose.example.yaml"
CPU = ROOT / "deploy" / "docker-compose.cpu.yaml"
SCALE = ROOT / "deploy" / "docker-compose.scale.yaml"
HAPROXY = ROOT / "deploy" / "haproxy"

# Lines of .env.example that are no defaults but something else to choose.
CHOICES = {
    "COMPOSE_FILE": "docker-compose.yaml:deploy/docker-compose.cpu.yaml",
    "COMPOSE_PROFILES": "monitoring",
    "BASE_IMAGE": "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime",
    "VLLM_VERSION": "0.32.0",
}


def defaults_of_the_gateway() -> dict[str, str]:
    """Variable: default, as it would be written into .env."""
    return {name.upper(): as_text(field.default) for name, field in Settings.model_fields.items()}


def as_text(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def defaults_of_the_stand() -> dict[str, str]:
    """Variable: default, of all that the compose files put in by `${NAME:-default}`."""
    text = "".join(path.read_text(encoding="utf-8") for path in (EXAMPLE, CPU, SCALE))
    found = re.findall(r"\$\{(\w+):-([^}]*)\}", text)
    for name, default in found:
        assert dict(found)[name] == default, f"two defaults of {name}"
    return dict(found)


def env_example() -> dict[str, tuple[str, bool]]:
    """Variable: (value, whether it is active)."""
    lines = (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
    return {
        match[2]: (match[3], not match[1]) for line in lines if (match := re.fullmatch(r"(#?)([A-Z_]+)=(.*)", line))
    }


def settings_table(title: str, page: str = SETTINGS) -> dict[str, str]:
    """Variable: default, from the table in a section of the page of settings, or of another page."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.+?) \|", section(title, page), re.MULTILINE)
    return {name: "" if default == "пусто" else default.strip("`") for name, default in rows}


class Overlay(yaml.SafeLoader):
    """Reads `!reset` and `!override` as what they stand before."""


Overlay.add_multi_constructor("!", lambda loader, _, node: read_plainly(loader, node))


def read_plainly(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


def definitions(path: Path = EXAMPLE) -> Any:
    """All services in a file of the stand, nothing put in for variables."""
    return yaml.load(path.read_text(encoding="utf-8"), Overlay)["services"]


def service(name: str, path: Path = EXAMPLE) -> Any:
    """A service of the stand, nothing put in for variables."""
    return definitions(path)[name]


def arguments(dockerfile: str) -> dict[str, str]:
    """ARG lines of a Dockerfile."""
    return dict(re.findall(r"^ARG (\w+)=(.*)$", (ROOT / dockerfile).read_text(encoding="utf-8"), re.MULTILINE))


# --- one truth ---


def test_env_example_holds_every_variable_with_its_default() -> None:
    example = env_example()
    defaults = {**defaults_of_the_stand(), **defaults_of_the_gateway(), **CHOICES}
    assert set(example) == set(defaults) | {"VLLM_API_KEY"}
    assert {name: value for name, (value, _) in example.items() if name != "VLLM_API_KEY"} == defaults
    assert {name: value for name, (value, is_active) in example.items() if is_active} == {
        "VLLM_API_KEY": "INTERNAL_VLLM_KEY",
        "MAX_CONTEXT_TOKENS": "8000",
        "SESSION_TTL_SECONDS": "600",
        "VLLM_MAX_MODEL_LEN": "8192",
    }


def test_the_block_of_the_readme_is_the_active_part_of_env_example() -> None:
    [block] = [command for command in commands("Подготовка") if command.startswith("cat > .env")]
    written = dict(re.findall(r"^([A-Z_]+)=(.*)$", block, re.MULTILINE))
    assert written == {name: value for name, (value, is_active) in env_example().items() if is_active}


def test_the_tables_of_settings_hold_every_variable_with_its_default() -> None:
    assert settings_table("Настройки шлюза") == defaults_of_the_gateway()
    stand = {name: value for name, value in defaults_of_the_stand().items() if name not in defaults_of_the_gateway()}
    choices = {"COMPOSE_FILE": "docker-compose.yaml", "COMPOSE_PROFILES": ""}
    key = {"VLLM_API_KEY": "нет, нужен свой"}
    assert settings_table("Настройки vLLM и стенда") == {**stand, **choices, **key}


def test_the_readmes_table_of_the_main_settings_says_the_same() -> None:
    every = {**settings_table("Настройки шлюза"), **settings_table("Настройки vLLM и стенда")}
    main = settings_table("Главные настройки", README)
    assert {name for name, (_, is_active) in env_example().items() if is_active} <= main.keys()
    assert main.items() <= every.items()


def test_the_gateway_is_given_its_settings_and_no_key() -> None:
    environment = service("gateway")["environment"]
    assert set(environment) == set(defaults_of_the_gateway()) | {"HF_HUB_OFFLINE"}
    passed_through = {name for name, value in environment.items() if value is None}
    assert set(environment) - passed_through == {"TOKENIZER_PATH", "HF_HUB_OFFLINE"}


def test_images_are_built_as_the_stand_says() -> None:
    stand = defaults_of_the_stand()
    assert arguments("Dockerfile.vllm") == {name: stand[name] for name in ("BASE_IMAGE", "VLLM_VERSION")}
    assert arguments("Dockerfile") == {name: stand[name] for name in ("VLLM_VERSION", "TRANSFORMERS_VERSION")}
    cpu = CPU.read_text(encoding="utf-8")
    for line in (f"VLLM_VERSION: {CHOICES['VLLM_VERSION']}", f"}}:v{CHOICES['VLLM_VERSION']}"):
        assert line in cpu


def test_every_value_of_the_example_is_a_possible_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (value, _) in env_example().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == Settings()


# --- what the files promise ---


@pytest.mark.parametrize("name", ["gateway", "vllm", "prometheus", "grafana", "proxy", "balancer", "redis"])
def test_a_service_has_no_more_rights_than_it_needs(name: str) -> None:
    definition = service(name) if name in definitions() else service(name, SCALE)
    assert definition["read_only"] is True
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert definition["logging"]["options"].keys() == {"max-size", "max-file"}


@pytest.mark.parametrize("name", ["gateway", "vllm"])
def test_a_service_has_the_model_and_cannot_change_it(name: str) -> None:
    [model] = service(name)["volumes"]
    assert (model["source"], model["target"], model["read_only"]) == ("./model", "/app/model", True)


def test_docker_waits_longer_than_the_gateway() -> None:
    grace = int(service("gateway")["stop_grace_period"].removesuffix("s"))
    assert grace >= Settings().drain_seconds + 10


def test_only_the_gateway_can_be_reached() -> None:
    assert service("gateway")["ports"] == ["${GATEWAY_PORT:-8080}:8080"]
    assert "ports" not in service("vllm")
    assert service("vllm")["networks"] == ["backend"]


def test_of_several_gateways_only_the_proxy_can_be_reached() -> None:
    scale = definitions(SCALE)
    assert scale["proxy"]["ports"] == ["${GATEWAY_PORT:-8080}:8080"]
    assert [name for name, definition in scale.items() if definition.get("ports")] == ["proxy"]
    assert "ports: !reset []" in SCALE.read_text(encoding="utf-8")
    networks = {name: definition.get("networks") for name, definition in scale.items()}
    assert networks == {
        "proxy": ["default", "gateways"],
        "gateway": ["gateways", "backend", "sessions"],
        "redis": ["sessions"],
        "balancer": ["backend"],
        "vllm": None,
        "vllm-2": None,
    }
    within = yaml.load(SCALE.read_text(encoding="utf-8"), Overlay)["networks"]
    assert within == {"gateways": {"internal": True}, "sessions": {"internal": True}}


def test_every_vllm_behind_the_balancer_is_a_service_with_a_card_of_its_own() -> None:
    configured = (HAPROXY / "vllm.cfg").read_text(encoding="utf-8")
    servers = re.findall(r'^    server (\S+) "\1:', configured, re.MULTILINE)
    scale = definitions(SCALE)
    assert servers == [name for name in scale if name.startswith("vllm")]
    devices = [scale[name]["deploy"]["resources"]["reservations"]["devices"] for name in servers]
    assert [device["device_ids"] for [device] in devices] == [[str(number)] for number in range(len(servers))]
    for name in servers[1:]:
        assert scale[name].keys() == {"extends", "deploy"}
        assert scale[name]["extends"] == {"file": "docker-compose.yaml", "service": "vllm"}


def test_redis_keeps_sessions() -> None:
    command = service("redis", SCALE)["command"]
    for option in ("--appendonly yes", "--maxmemory-policy noeviction"):
        assert option in command
    assert service("redis", SCALE)["volumes"] == ["redis:/data"]
    assert service("gateway", SCALE)["environment"]["SESSION_SECRET"].startswith("${SESSION_SECRET:?")


def test_the_proxies_wait_longer_than_anybody_behind_them() -> None:
    configured = (HAPROXY / "haproxy.cfg").read_text(encoding="utf-8")
    limits = {name: int(number) for name, number in re.findall(r"(hard-stop-after|timeout server) (\d+)", configured)}
    assert limits["timeout server"] * 60 > Settings().vllm_total_timeout_seconds
    assert limits["hard-stop-after"] > Settings().drain_seconds
    for name in ("proxy", "balancer"):
        assert int(service(name, SCALE)["stop_grace_period"].removesuffix("s")) > limits["hard-stop-after"]


def test_errors_of_the_proxy_have_the_form_of_the_gateways() -> None:
    configured = (HAPROXY / "gateways.cfg").read_text(encoding="utf-8")
    found = re.findall(
        r"http-error status (\d+) content-type (\S+) (?:hdr Retry-After (\d+) )?string '(.*)'", configured
    )
    assert [status for status, *_ in found] == ["400", "408", "500", "502", "503", "504"]
    kinds: dict[str, type[GatewayError]] = {kind.code: kind for kind in subclasses(GatewayError)}
    for status, media_type, retry_after, body in found:
        shown = json.loads(body)
        kind = kinds[shown["code"]]
        more = {"retry_after": int(retry_after)} if retry_after else {}
        assert shown == kind(shown["detail"], **more).problem() | {"status": int(status)}
        assert media_type == MEDIA_TYPE
        assert status == str(kind.status) or (status, kind) == ("502", InternalError)
    for name, value in SECURITY:
        lines = [line for line in configured.splitlines() if "http-after-response set-header " in line.lower()]
        assert any(f"set-header {name.decode()} " in line.lower() and value.decode() in line for line in lines), name


def subclasses(kind: type[GatewayError]) -> list[type[GatewayError]]:
    """All that have a code of their own."""
    children = [child for child in kind.__subclasses__() if child.__module__ == "app.errors"]
    return [*(child for child in children if "code" in vars(child)), *itertools.chain(*map(subclasses, children))]


@pytest.mark.parametrize("path", [EXAMPLE, SCALE], ids=["example", "scale"])
def test_published_images_are_of_an_exact_version(path: Path) -> None:
    images = [definition.get("image", "") for definition in definitions(path).values()]
    published = [image for image in images if image and not image.startswith("simple-chat-gateway")]
    assert published
    for image in published:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-alpine)?", image), image


def test_the_key_is_on_no_command_line() -> None:
    assert "KEY" not in json.dumps([service("vllm")["command"], service("gateway").get("command", "")])
    assert service("vllm")["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")


@pytest.mark.parametrize("dockerfile", ["Dockerfile", "Dockerfile.vllm"])
def test_an_image_runs_as_nobody_special_and_gets_signals(dockerfile: str) -> None:
    lines = (ROOT / dockerfile).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    programs = [line.split(" ", 1)[1] for line in lines if line.startswith(("CMD ", "ENTRYPOINT "))]
    for program in programs:
        assert isinstance(json.loads(program), list), "a shell in between would not pass SIGTERM on"


def test_nothing_private_gets_into_an_image() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [rule for rule in rules if rule.startswith("!")]
    assert next(rule for rule in rules if not rule.startswith("#")) == "*"
    assert let_in == ["!requirements.txt", "!app", "!client"]


def test_no_torch_in_the_gateway() -> None:
    for requirements in (ROOT / "requirements.txt", ROOT / "client" / "requirements.txt"):
        assert not re.search(r"^torch\b", requirements.read_text(encoding="utf-8"), re.MULTILINE)


def test_all_at_the_root_of_the_repository_is_described() -> None:
    described = set(
        re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.+?) \|", section("Что в репозитории"), re.MULTILINE)))
    )
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    roots = {name.partition("/")[0] + ("/" if "/" in name else "") for name in tracked.splitlines()}
    assert described == roots - {"README.md"}
