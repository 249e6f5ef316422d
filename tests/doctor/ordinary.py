"""Stands that are well, each in a way of its own: nothing may be complained of."""

import json
import os
import shutil
from collections.abc import Callable, Mapping

from tests.doctor.faults import POINTER
from tests.doctor.world import CARD, GIB, KEY, MIB, World, write_tensors

_DEVICES = """\
    deploy:
      resources:
        reservations:
          devices:
            - {driver: nvidia, count: all, capabilities: [gpu]}
"""


def _env(content: str, **shell: str) -> Callable[[World], None]:
    """Instead of .env; its port stays."""

    def write(world: World) -> None:
        port = (world.folder / ".env").read_text().split("GATEWAY_PORT=")[1]
        world.write_env(f"{content}\nGATEWAY_PORT={port}")
        world.environ |= shell

    return write


def _override(world: World) -> None:
    content = "services: {gateway: {labels: {owner: '${TEAM}'}}}\n"
    (world.folder / "docker-compose.override.yaml").write_text(content)
    world.set(TEAM="nlp")


def _asks_for(devices: str) -> Callable[[World], None]:
    """vLLM asks for its cards otherwise; for a machine without one, its memory would be too small."""

    def edit(world: World) -> None:
        world.edit("docker-compose.yaml", _DEVICES, devices)
        world.write_model(weights_bytes=4000 * GIB)
        world.card(total=str(6000 * 1024), free=str(6000 * 1024))

    return edit


def _cdi(world: World) -> None:
    _asks_for(_DEVICES.replace("nvidia, count: all", "cdi, device_ids: ['nvidia.com/gpu=all']"))(world)
    folder = world.folder / "cdi"
    folder.mkdir()
    (folder / "nvidia.yaml").touch()
    world.info(Runtimes={"runc": {}}, CDISpecDirs=["/nowhere", str(folder)])


def _cdi_of_new_docker(world: World) -> None:
    _asks_for("    devices: ['nvidia.com/gpu=0']\n")(world)
    world.info(Runtimes={"runc": {}}, DiscoveredDevices=[{"Source": "cdi", "ID": "nvidia.com/gpu=0"}])


def _cards(world: World, *cards: Mapping[str, str]) -> None:
    rows = [{**CARD, "index": str(number), "uuid": f"GPU-{number}", **card} for number, card in enumerate(cards)]
    world.say("smi", "".join(", ".join(row.values()) + "\n" for row in rows))


def _two_cards(devices: str = _DEVICES, first: Mapping[str, str] | None = None, **env: str) -> Callable[[World], None]:
    """The first one is of no use: somebody works on it."""

    def seed(world: World) -> None:
        _cards(world, {"free": "100"} if first is None else first, {})
        world.edit("docker-compose.yaml", _DEVICES, devices)
        world.set(**env)

    return seed


def _second_by_cuda(world: World) -> None:
    _two_cards()(world)
    world.edit(
        "docker-compose.yaml", "      VLLM_NO_USAGE_STATS", '      CUDA_VISIBLE_DEVICES: "1"\n      VLLM_NO_USAGE_STATS'
    )


def _on_another_disk(world: World) -> None:
    world.model.rename(world.folder.parent / "disk")
    world.model.symlink_to(world.folder.parent / "disk")


def _forget_shards(world: World) -> None:
    for path in world.model.glob("model-*"):
        path.unlink()
    (world.model / "model.safetensors.index.json").unlink()


def _old_weights(world: World) -> None:
    _forget_shards(world)
    (world.model / "pytorch_model.bin").write_bytes(b"PK")


def _without_an_index(world: World) -> None:
    (world.model / "model.safetensors.index.json").unlink()


def _quantized(kind: str, method: str) -> Callable[[World], None]:
    def write(world: World) -> None:
        world.write_model(quantization_config={"quant_method": method, "bits": 4}, torch_dtype="float16")
        header = {
            "q": {"dtype": kind, "shape": [MIB // 8], "data_offsets": [0, MIB // 2]},
            "s": {"dtype": "F16", "shape": [MIB // 4], "data_offsets": [MIB // 2, MIB]},
        }
        write_tensors(world.shard, header, MIB)

    return write


def _gguf(world: World) -> None:
    _forget_shards(world)
    (world.model / "config.json").unlink()
    (world.model / "qwen.Q4_K_M.gguf").write_bytes(b"GGUF")
    world.edit("docker-compose.yaml", "      /app/model\n", "      /app/model/qwen.Q4_K_M.gguf\n")


def _files_that_nobody_reads(world: World) -> None:
    (world.model / "pytorch_model-00001-of-00001.bin").write_text(POINTER)
    (world.model / "model.onnx").symlink_to("/nowhere")
    (world.model / "README.md").write_text("# Model")
    (world.model / "README.md").chmod(0o600)


def _of_text_and_pictures(world: World) -> None:
    text = json.loads((world.model / "config.json").read_text())
    world.write_json("config.json", {"model_type": "llava", "text_config": text})


def _longer_by_rope(world: World) -> None:
    world.set(VLLM_MAX_MODEL_LEN="131072")
    world.write_model(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768})


def _tokenizer_elsewhere(world: World) -> None:
    shutil.copytree(world.model, world.folder / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (world.model / name).unlink()
    world.edit("docker-compose.yaml", "    tmpfs: [/tmp]\n", "      - ./tokenizer:/tokenizer:ro\n    tmpfs: [/tmp]\n")
    world.set(TOKENIZER_PATH="/tokenizer")


def _in_a_volume(world: World) -> None:
    shutil.rmtree(world.model)
    for old, new in (
        ("        type: bind\n        source: ./model\n", "        type: volume\n        source: weights\n"),
        ("        bind: {create_host_path: false}\n    tmpfs: [/tmp]", "    tmpfs: [/tmp]"),
        ("\nvolumes:\n", "\nvolumes:\n  weights:\n"),
    ):
        world.edit("docker-compose.yaml", old, new)


def _for_its_owner(world: World) -> None:
    for service in ("  gateway:\n", "  vllm:\n"):
        world.edit("docker-compose.yaml", service, f'{service}    user: "{os.getuid()}:{os.getgid()}"\n')
    for path in world.model.iterdir():
        path.chmod(0o600)
    world.model.chmod(0o700)


def _by_another_name(world: World) -> None:
    for old, new in (("\n  vllm:\n", "\n  llm:\n"), ("depends_on: [vllm]", "depends_on: [llm]")):
        world.edit("docker-compose.yaml", old, new)
    world.set(VLLM_BASE_URL="http://llm:8000/v1")


def _elsewhere(world: World) -> None:
    world.set(VLLM_BASE_URL="http://10.0.0.5:8000/v1")
    world.without("nvidia-smi")


def _overlays(*names: str) -> Callable[[World], None]:
    def switch(world: World) -> None:
        files = ["docker-compose.yaml", *(f"deploy/docker-compose.{name}.yaml" for name in names)]
        world.set(COMPOSE_FILE=":".join(files))
        if "scale" in names:
            world.set(SESSION_SECRET="0123456789abcdef" * 2)
            _cards(world, {}, {})
        if "cpu" in names:
            world.without("nvidia-smi")

    return switch


def _long_ago(world: World) -> None:
    """It fell twice and works since; and what is not of the stand any more has been left lying."""
    details = {"RestartCount": 3, "State": {"OOMKilled": False}}
    world.containers(
        {"Service": "vllm", "State": "running", "Details": details},
        {"Service": "grafana", "State": "exited", "ExitCode": 1},
    )


ORDINARY: Mapping[str, Callable[[World], None]] = {
    # --- .env ---
    "env_of_windows": _env(f"VLLM_API_KEY={KEY}\r\nMAX_CONTEXT_TOKENS=4000 # for now\r\n"),
    "env_with_export_and_quotes": _env(f"export VLLM_API_KEY='{KEY}'\nMAX_CONTEXT_TOKENS: \"4000\" # for now"),
    "prompt_of_many_lines": _env(f'DEFAULT_SYSTEM_PROMPT="You are\nkind # and "\nVLLM_API_KEY={KEY}'),
    "name_alone": _env("VLLM_API_KEY", VLLM_API_KEY=KEY),
    "key_of_the_shell": _env("MAX_CONTEXT_TOKENS=4000", VLLM_API_KEY=KEY),
    "variable_with_a_default": _env(f"VLLM_API_KEY={KEY}\nDEFAULT_SYSTEM_PROMPT=${{MOOD:-Be kind}} for $5"),
    "own_file_of_compose": _override,
    "own_name": lambda world: world.set(COMPOSE_PROJECT_NAME="chat"),
    # --- cards ---
    "all_gpus": _asks_for("    gpus: all\n"),
    "runtime": _asks_for("    runtime: nvidia\n"),
    "cdi": _cdi,
    "cdi_of_new_docker": _cdi_of_new_docker,
    "slice_of_a_card": _asks_for(_DEVICES.replace("count: all", "device_ids: ['MIG-3eb87630-93d5']")),
    "second_card": _two_cards(_DEVICES.replace("count: all", "device_ids: ['1']")),
    "second_card_by_uuid": _two_cards(_DEVICES.replace("count: all", "device_ids: ['GPU-1']")),
    "second_card_by_cuda": _second_by_cuda,
    "card_for_the_screen": _two_cards(first={"name": "GT 710", "capability": "3.5", "total": "2048", "free": "10"}),
    "two_cards": _two_cards(first={}, VLLM_EXTRA_ARGS="-tp 2"),
    "two_copies": _two_cards(first={}, VLLM_EXTRA_ARGS="--data-parallel-size=2"),
    # --- the model ---
    "model_on_another_disk": _on_another_disk,
    "weights_of_pytorch": _old_weights,
    "shards_without_an_index": _without_an_index,
    "awq": _quantized("I32", "awq"),
    "fp8": _quantized("F8_E4M3", "fp8"),
    "gguf": _gguf,
    "files_that_nobody_reads": _files_that_nobody_reads,
    "text_and_pictures": _of_text_and_pictures,
    "longer_by_rope": lambda world: world.set(
        VLLM_MAX_MODEL_LEN="131072", VLLM_EXTRA_ARGS='--hf-overrides \'{"rope_parameters": {"factor": 4.0}}\''
    ),
    "longer_by_rope_in_the_config": _longer_by_rope,
    "tokenizer_elsewhere": _tokenizer_elsewhere,
    "model_in_a_volume": _in_a_volume,
    "model_for_its_owner": _for_its_owner,
    # --- Docker ---
    "desktop": lambda world: world.info(OperatingSystem="Docker Desktop", DockerRootDir="/nowhere"),
    "vllm_by_another_name": _by_another_name,
    "vllm_elsewhere": _elsewhere,
    "processor": _overlays("cpu"),
    "several": _overlays("scale"),
    "several_on_the_processor": _overlays("scale", "cpu"),
    "long_ago": _long_ago,
}
"""Name: what is otherwise than in a world in good health."""
