"""What the checks know and compute, without a machine around them."""

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import Settings
from app.doctor import cards, completeness, dotenv, facts, machine, reservations
from app.doctor.cards import Card
from app.doctor.containers import telling_line
from app.doctor.dotenv import DotEnv
from app.doctor.machine import Disk, Docker, Machine
from app.doctor.model import CONTAINERS_USER, Entry, Model, Tensors, look_into
from app.doctor.needs import Needs, cards_of_this_machine, longest_context, needs_of
from app.doctor.programs import Ran, run
from app.doctor.settings import DEFAULT_MAX_TOKENS, INTEGERS, shared_memory
from app.doctor.stand import Port, Service, guessed
from app.turn import DEFAULT_MAX_TOKENS as THE_GATEWAYS_MAX_TOKENS
from tests.readme import OPERATIONS, ROOT, section
from tests.test_deploy import arguments, env_example

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLAIN = {
    "model_type": "llama",
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "hidden_size": 256,
    "head_dim": 32,
}


# --- one truth ---


def test_what_it_knows_of_the_gateways_settings_is_true() -> None:
    whole = [name.upper() for name, field in Settings.model_fields.items() if field.annotation is int]
    assert sorted(INTEGERS) == sorted(whole)
    assert THE_GATEWAYS_MAX_TOKENS == DEFAULT_MAX_TOKENS
    for dockerfile in ("Dockerfile", "Dockerfile.vllm"):
        assert f"\nUSER {CONTAINERS_USER}:" in (ROOT / dockerfile).read_text(encoding="utf-8")
    assert env_example()["VLLM_API_KEY"] == (dotenv.EXAMPLE_KEY, True)


def test_it_asks_for_the_versions_that_the_readme_asks_for() -> None:
    versions = section("Версии", OPERATIONS)
    both = [arguments("Dockerfile.vllm")["BASE_IMAGE"], env_example()["BASE_IMAGE"][0]]
    drivers = [f"{driver} или новее" for driver in ("570.26", "580.65.06")]
    for image, driver, generation in zip(both, drivers, ("Volta (7.0)", "Turing (7.5)"), strict=True):
        assert driver in versions
        assert generation in versions
        cuda = cards.cuda_of(image)
        assert f"CUDA {cuda[0]}.{cuda[1]}" in versions
        too_old = list(cards.driver(run(["true"], ".", os.environ, 9), [card(driver="400.1")], image))
        assert driver.removesuffix(" или новее") in too_old[0].why
    assert "Docker Engine 23 или новее, Docker Compose 2.24.4 или новее" in section("Что нужно")


HOST_HALF = [path for path in (ROOT / "app" / "doctor").glob("*.py") if path.name != "gateway.py"]


@pytest.mark.parametrize(
    "path", [*HOST_HALF, ROOT / "app" / "__init__.py", ROOT / "app" / "model_folder.py"], ids=lambda path: path.stem
)
def test_the_host_half_needs_nothing_but_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in outer if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in outer if isinstance(node, ast.ImportFrom)}
    foreign = {name for name in names if name.partition(".")[0] not in {*sys.stdlib_module_names, "app"}}
    assert not foreign
    ours = {name for name in names if name.startswith("app")}
    assert all(name in {"app", "app.model_folder"} or name.startswith("app.doctor") for name in ours)
    new = {"tomllib", "StrEnum", "Self", "UTC", "assert_never", "ExceptionGroup", "TaskGroup", "batched", "chdir"}
    assert not new & {node.name for node in ast.walk(tree) if isinstance(node, ast.alias)}


# --- memory and context ---


def served(config: dict[str, Any], *command: str, weights: dict[str, int] | None = None) -> Needs:
    tensors = {"model.safetensors": Tensors(promised_bytes=1, bytes_by_type=weights or {"BF16": 1000})}
    model = Model(
        "model",
        documents={"config.json": config},
        tensors=tensors,
        entries={"model.safetensors": Entry("model.safetensors")},
    )
    return needs_of(model, Service("vllm", command=command))


def test_the_cache_is_as_large_as_vllm_makes_it() -> None:
    """vLLM 0.32 makes 174 720 tokens of a gibibyte for such a model, in blocks of 128."""
    per_token = served(PLAIN).cache_bytes_per_token or 0
    assert 2**30 // per_token // 128 * 128 == 174_720


@pytest.mark.parametrize(
    ("command", "size"),
    [
        ((), 6144),
        (("--kv-cache-dtype", "fp8"), 3072),
        (("--kv-cache-dtype=fp8_e5m2",), 3072),
        (("--tensor-parallel-size", "2"), 3072),
        (("-tp", "16"), 768),
        (("--kv-cache-dtype", "of the future"), None),
        (("--dtype", "float32"), None),
    ],
)
def test_the_cache_depends_on_how_the_model_is_served(command: tuple[str, ...], size: int | None) -> None:
    assert served(PLAIN, *command).cache_bytes_per_token == size


@pytest.mark.parametrize(
    "special",
    [
        {"model_type": "deepseek_v3", "kv_lora_rank": 512},
        {"model_type": "gemma3_text"},
        {"sliding_window": 4096},
        {"layer_types": ["full_attention", "sliding_attention"]},
        {"num_hidden_layers": None},
        {"model_type": 7},
    ],
)
def test_a_cache_that_it_cannot_compute_is_not_guessed(special: dict[str, Any]) -> None:
    needs = served({**PLAIN, **special})
    assert needs.cache_bytes_per_token is None
    assert needs.why


def test_windows_that_are_not_used_are_none() -> None:
    for unused in (
        {"sliding_window": 131072, "use_sliding_window": False, "model_type": "qwen2"},
        {"sliding_window": None},
        {"layer_types": ["full_attention"] * 6, "sliding_window": 4096},
    ):
        assert served({**PLAIN, **unused}).cache_bytes_per_token == 6144


def test_weights_are_counted_as_vllm_holds_them() -> None:
    assert served(PLAIN, weights={"F32": 4000, "BF16": 100}).weights_bytes == 2100
    assert served(PLAIN, "--tensor-parallel-size", "4", weights={"BF16": 4000}).weights_bytes == 1000
    assert served(PLAIN, "--quantization", "fp8").weights_bytes is None
    assert served(PLAIN, "--dtype", "float32").weights_bytes is None


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 2048, "seq_length": 1024}, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 131072, "model_type": "gemma3_text", "rope_scaling": {"factor": 8.0}}, 131072),
        ({}, None),
        ({"max_position_embeddings": "?"}, None),
    ],
)
def test_the_models_context_is_what_vllm_derives(config: dict[str, Any], length: int | None) -> None:
    assert longest_context(config) == length


def test_lengths_are_read_as_vllm_reads_them() -> None:
    given = {"8192": 8192, "8k": 8000, "8K": 8192, "1.5k": 1500, "1M": 1024**2, "8192 ": 8192}
    assert {text: facts.tokens(text) for text in given} == given
    for wrong in ("", "8192x", "1.5", "-1", "auto", "٨"):
        assert facts.tokens(wrong) is None, wrong


@given(
    config=st.dictionaries(st.sampled_from([*PLAIN, "rope_scaling", "layer_types", "max_position_embeddings"]), JSON)
)
@settings(max_examples=50, deadline=None)
def test_no_config_is_too_strange(config: dict[str, Any]) -> None:
    longest_context(config)
    served({**PLAIN, **config})


def test_selinux_is_spoken_of_where_docker_minds_it() -> None:
    entries = {
        name: Entry(name, 1) for name in ("config.json", "tokenizer.json", "chat_template.jinja", "x.safetensors")
    }
    for label, minds in (
        ("unconfined_u:object_r:user_home_t:s0", True),
        ("system_u:object_r:container_file_t:s0", False),
    ):
        model = Model("model", entries=entries, label=label)
        assert [one.code for one in completeness.folder(model, selinux=True)] == ["model_selinux" if minds else "model"]
        assert [one.code for one in completeness.folder(model)] == ["model"]


@pytest.mark.parametrize(
    "entry", [Entry("x.safetensors", 1, leads_nowhere=True), Entry("x.safetensors", is_pointer=True)]
)
def test_a_folder_with_a_space_in_its_name_is_typed_as_one(entry: Entry) -> None:
    entries = {entry.name: entry, "config.json": Entry("config.json", 1, is_readable=False)}
    model = Model("/my models/qwen", entries=entries, documents={"config.json": None})
    commands = "\n".join(finding.command for finding in completeness.folder(model))
    assert "rm '/my models/qwen/config.json'" in commands
    assert "chmod -R a+rX '/my models/qwen'/" in commands
    assert not re.search(r"(?<!')/my models", commands)


# --- .env ---


@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@settings(max_examples=100, deadline=None)
def test_no_env_is_too_strange(content: bytes) -> None:
    list(dotenv.suspicions(dotenv.read(content, 0o644), ["VLLM_API_KEY"], {}))


def test_env_is_read_as_compose_reads_it() -> None:
    content = '\ufeffA=1\r\n# B=2\nexport C = x y\nD: d\nE=\'$x # y\'\nF="q\\"r" # s\n'
    content += 'G=a#b\nH=a #b\nI=\nJUST\nkljuch\n A-B C=1\nL="1\n# 2" # s\nK=\'x\n'
    env = dotenv.read(content.encode(), 0o600)
    assert env.values == {
        "A": "1",
        "C": "x y",
        "D": "d",
        "E": "$x # y",
        "F": 'q\\"r',
        "G": "a#b",
        "H": "a",
        "I": "",
        "L": "1\n# 2",
    }
    assert (list(env.broken), list(env.unclosed)) == ([11, 12], [15])


def test_no_line_of_env_is_shown() -> None:
    """Whatever stands there may be the key."""
    env = dotenv.read(b"VLLM_API_KEY sesam-oeffne-dich\nVLLM_API_KEY='sesam-oeffne-dich\nX=$sesam\n", 0o644)
    assert "oeffne" not in str(list(dotenv.suspicions(env, [], {"VLLM_API_KEY": "sesam-oeffne-dich"})))


def test_a_dollar_that_compose_can_put_in_is_no_fault() -> None:
    env = dotenv.read(b"HERE=/data\nCOMPOSE_FILE=${HERE}/a.yaml:$PWD/b.yaml\nX='$no'\nY=\\$no\nZ=$$no\n", 0o600)
    codes = {finding.code for finding in dotenv.suspicions(env, ["HERE", "X", "Y", "Z"], {"PWD": "/"})}
    assert not codes


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MAX_CONTEXT_TOKEN", "MAX_CONTEXT_TOKENS"),
        ("VLLM_KEY", "VLLM_API_KEY"),
        ("vllm_api_key", "VLLM_API_KEY"),
        ("GRAFANA_PASSWORD", ""),
        ("HF_TOKEN", ""),
        ("TZ", ""),
    ],
)
def test_a_name_is_taken_for_another_only_where_it_is_much_alike(name: str, meant: str) -> None:
    env = dotenv.read(f"{name}=1\n".encode(), 0o600)
    [finding] = dotenv.suspicions(env, [*env_example(), "GATEWAY_PORT"], {})
    assert finding.command.startswith(f"sed -i '1s/{name}/{meant}/' .env" if meant else "nano +1 .env")


def test_without_compose_the_stand_is_guessed_from_its_defaults() -> None:
    example = (ROOT / "docker-compose.example.yaml").read_text(encoding="utf-8")
    env = {"VLLM_EXTRA_ARGS": "--max-model-len 4096 --seed '1 2'", "GATEWAY_PORT": "127.0.0.1:9000"}
    seen = guessed(env, example, "/here")
    [vllm] = seen.vllms
    assert vllm.option("--max-model-len") == "4096", "the last one counts"
    assert vllm.base_image == arguments("Dockerfile.vllm")["BASE_IMAGE"]
    assert seen.gateway.ports == [Port("gateway", "127.0.0.1", 9000)]
    assert guessed({"VLLM_EXTRA_ARGS": "'"}, example, "/here").vllms


# --- the machine ---


def test_a_clock_of_the_past_is_noticed() -> None:
    [finding] = machine.clock(Machine("Linux", "x86_64", now=0.0))
    assert (finding.status, finding.what) == ("failure", "Часы этой машины показывают 1970-01-01: это прошлое")


def test_a_docker_of_the_users_own_is_started_without_root() -> None:
    complaint = (
        "Cannot connect to the Docker daemon at unix:///run/user/1000/docker.sock. Is the docker daemon running?"
    )
    [finding] = machine.docker(Docker(Ran("finished", 1, "", complaint), Ran("finished", 0, "2.29.0")))
    assert finding.command.startswith("systemctl --user enable --now docker\n")
    assert "sudo" not in finding.command


@pytest.mark.parametrize("kind", [("Darwin", "arm64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_other_machines_are_told_of(kind: tuple[str, str]) -> None:
    [finding] = machine.system(Machine(*kind))
    assert finding.status == "failure"
    assert kind[0] in finding.what


def test_images_that_are_missing_need_room() -> None:
    disk = Disk("/var/lib/docker", 10 * 2**30)
    assert [finding.status for finding in machine.disk(disk, {})] == ["ok"]
    [finding] = machine.disk(disk, {"vllm": 23 * 2**30})
    assert finding.status == "failure"
    assert "25.0 ГиБ" in finding.why


@pytest.mark.parametrize(
    ("address", "taken", "clashes"),
    [
        ("", ("127.0.0.1", 8080), True),
        ("127.0.0.1", ("0.0.0.0", 8080), True),
        ("127.0.0.1", ("127.0.0.1", 8080), True),
        ("127.0.0.1", ("10.0.0.1", 8080), False),
        ("", ("::", 8080), True),
        ("", ("0.0.0.0", 8081), False),
    ],
)
def test_ports_clash_on_the_same_address_only(address: str, taken: tuple[str, int], *, clashes: bool) -> None:
    [finding] = machine.ports([Port("gateway", address, 8080)], {taken}, set(), {})
    assert (finding.status == "failure") is clashes
    assert not clashes or f"GATEWAY_PORT={address + ':' if address else ''}8081" in finding.command


def test_listening_sockets_are_read_as_the_kernel_writes_them() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n"
        "   1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n"
    )
    table6 = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 00000000000000000000000000000000:1F92 00000000000000000000000000000000:0000 0A 0\n"
        "   1: 00000000000000000000000001000000:1F93 00000000000000000000000000000000:0000 0A 0\n"
        "   2: 0000000000000000FFFF00000100007F:1F94 00000000000000000000000000000000:0000 0A 0\n"
    )
    assert machine.listening(table) == {("127.0.0.1", 8080)}
    assert machine.listening(table6) == {("::", 8082), ("::1", 8083), ("127.0.0.1", 8084)}
    assert machine.listening("") == set()


def card(total: int = 24, free: int = 24, **changes: Any) -> Card:
    defaults = {"index": "0", "uuid": "GPU-0", "name": "RTX", "driver": "580.65.06", "capability": (8, 9)}
    return Card(**{**defaults, "total_bytes": total * 2**30, "free_bytes": free * 2**30, **changes})


def test_a_driver_as_new_as_the_toolkit_is_fine_and_an_image_of_an_unknown_one_unchecked() -> None:
    smi = run(["true"], ".", os.environ, 9)
    for image, status in (
        ("pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime", "ok"),
        ("pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime", "ok"),
        ("my/own:latest", "unchecked"),
    ):
        assert [finding.status for finding in cards.driver(smi, [card()], image)] == [status]


def test_memory_that_the_card_does_not_tell_is_unchecked() -> None:
    assert cards.cards_in("0, GPU-0, GB10, 580.65.06, [N/A], [N/A], 12.1\njunk\n")[0].total_bytes == 0
    [finding] = cards.memory([card(total=0)], Service("vllm", wants_cards=-1), Model("model"), 8192, may_run=False)
    assert finding.status == "unchecked"


def test_a_share_of_the_cards_is_counted_as_the_stand_deals_them_out() -> None:
    second = card(index="1", uuid="GPU-1", free=1)
    vllm = Service("vllm-2", wants_cards=1, cards=["1"])
    [finding, *_] = cards.memory([card(), second], vllm, Model("model"), 8192, may_run=False)
    assert finding.code == "card_busy"
    assert [one.code for one in cards.memory([card()], vllm, Model("model"), 8192, may_run=False)] == ["cards_few"]
    first = Service("vllm", wants_cards=1)  # Docker counts as nvidia-smi does
    busy = [card(free=1, capability=(7, 5)), card(index="1", uuid="GPU-1")]
    assert next(one.code for one in cards.memory(busy, first, Model("model"), 8192, may_run=False)) == "card_busy"


def test_shared_memory_is_a_must_where_the_model_is_split() -> None:
    for command, status in (([], "warning"), (["-tp", "2"], "failure"), (["--data-parallel-size", "2"], "failure")):
        [finding] = shared_memory(Service("vllm", command=command))
        assert finding.status == status
    for enough in (Service("vllm", shares_memory=True), Service("vllm", shm_bytes=2**30)):
        assert [finding.status for finding in shared_memory(enough)] == ["ok"]


@pytest.mark.parametrize(
    ("command", "cards"),
    [
        ("", 1),
        ("-tp 2 --pipeline-parallel-size=3", 6),
        ("--tensor-parallel-size 2 --data-parallel-size 2", 4),
        ("-tp 8 -pp 2 --nnodes 2 --node-rank 0", 8),
        ("--data-parallel-size 4 --data-parallel-size-local 2", 2),
        ("--data-parallel-size 2 --data-parallel-rank 0", 1),
        ("-tp many", 1),
    ],
)
def test_cards_are_counted_as_vllm_takes_them(command: str, cards: int) -> None:
    assert cards_of_this_machine(Service("vllm", command=command.split())) == cards


@pytest.mark.parametrize(
    ("service", "asked"),
    [
        ({}, (0, None)),
        ({"gpus": [{"count": -1}]}, (-1, None)),
        ({"gpus": [{"count": 2}]}, (2, None)),
        ({"runtime": "nvidia"}, (-1, None)),
        ({"runtime": "nvidia", "environment": {"NVIDIA_VISIBLE_DEVICES": "1,2"}}, (2, ["1", "2"])),
        ({"runtime": "nvidia", "environment": {"NVIDIA_VISIBLE_DEVICES": "none"}}, (0, None)),
        ({"devices": [{"source": "nvidia.com/gpu=0"}, {"source": "/dev/kfd"}]}, (1, ["0"])),
        ({"devices": [{"source": "nvidia.com/gpu=all"}]}, (-1, None)),
        ({"gpus": [{"device_ids": ["0"]}, {"device_ids": ["1"]}]}, (2, ["0", "1"])),
    ],
)
def test_cards_are_asked_for_in_several_ways(service: dict[str, Any], asked: tuple[int, list[str] | None]) -> None:
    assert reservations.asked(service) == asked


def test_files_must_be_readable_for_all_whom_the_containers_run_as(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "config.json").chmod(0o600)
    assert not look_into(str(tmp_path)).entries["config.json"].is_readable
    owner = os.getuid()
    assert look_into(str(tmp_path), {owner}).entries["config.json"].is_readable
    assert not look_into(str(tmp_path), {owner, 10001}).entries["config.json"].is_readable


# --- logs and programs ---


def test_the_telling_line_of_a_log_has_no_secrets() -> None:
    log = "INFO a\nConnectionError: redis://u:parol@redis/0 and klyuch\nINFO b\n"
    line, why, command = telling_line(log, ["klyuch"])
    assert line == "ConnectionError: redis://u:***@redis/0 and ***"
    assert why
    assert command


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12020)", "обновите драйвер"),
        ("pydantic: User-specified max_model_len (9) is greater than the derived max_model_len", "VLLM_MAX_MODEL_LEN"),
        ("vllm serve: error: unrecognized arguments: --nope", "VLLM_EXTRA_ARGS"),
        ("safetensors_rust.SafetensorError: header too large", "скачайте модель заново"),
        ("nothing of use", "исправьте названное"),
    ],
)
def test_what_vllm_says_before_it_falls_is_explained(log: str, says: str) -> None:
    assert says in telling_line(log, [])[2]


def test_a_program_that_hangs_or_is_absent_is_not_waited_for() -> None:
    begun = time.monotonic()
    assert run(["sleep", "30"], ".", os.environ, 0.1).end == "timeout"
    assert run(["sh", "-c", "sleep 30 & wait"], ".", os.environ, 0.1).end == "timeout", "with all that it has started"
    assert time.monotonic() - begun < 10
    assert run(["no-such-program"], ".", os.environ, 9).end == "absent"
    assert run(["true"], ".", {"X": "a\0b"}, 9).end == "absent"
    assert not DotEnv(exists=False).values


def test_the_page_is_linked_where_a_person_looks_for_it() -> None:
    assert re.search(r"make doctor", section("Отладка", OPERATIONS))
    assert re.search(r"docs/doctor\.md", section("Что в репозитории"))


def test_where_the_gateway_is_not_installed_it_says_what_to_type() -> None:
    ran = doctor_in_plain_python()
    assert ran.returncode == 2
    assert "make doctor" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("arguments", [["--nope"], ["extra"], ["--stand=x"]])
def test_bad_arguments_are_refused_in_russian(arguments: list[str]) -> None:
    ran = doctor_in_plain_python(*arguments)
    assert ran.returncode == 2
    assert "Справка: python -m app.doctor --help" in ran.stderr
    assert ran.stdout == ""


def test_help_is_in_russian_whatever_the_terminal_can_show() -> None:
    assert "Код возврата" in doctor_in_plain_python("--help").stdout
    assert doctor_in_plain_python("--help", PYTHONIOENCODING="ascii").returncode == 0


def doctor_in_plain_python(*arguments: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-S", "-m", "app.doctor", *arguments]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
