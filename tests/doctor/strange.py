"""Stands of which no sense can be made: nothing of it may be shown that could be a key, and no check may break."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.doctor.world import World

KEY_LINES = (
    'VLLM_API_KEY="sesam"oeffne"',
    'VLLM_API_KEY="sesam\nX="oeffne"\n',
    "VLLM_API_KEY=sesam${oeffne",
    "VLLM_API_KEY=sesam${oeffne!}",
    "VLLM API KEY=sesam-oeffne",
    "VLLM_API_KEY 'sesam-oeffne'",
    "'VLLM_API_KEY=sesam-oeffne'",
    "VLLM_API_KEY=sesam-oeffne'\n'",
)
"""Lines of .env with a key in it, sesam or oeffne, as people write them."""


def replaced_key(line: str) -> Callable[[World], None]:
    """Put a line in the place of the key's."""

    def replace(world: World) -> None:
        world.set(VLLM_API_KEY="x")
        world.edit(".env", "VLLM_API_KEY=x", line)

    return replace


def _junk_everywhere(world: World) -> None:
    for name in ("version", "compose-version", "info", "smi", "time", "compose-ps", "inspect", "ps"):
        world.say(name, '{"Server": [], "Runtimes": 7, "Names": null}\n\0]')


def _junk_model(world: World) -> None:
    (world.model / "config.json").write_bytes(b"\x00\xff[1, 2]")
    (world.model / "tokenizer_config.json").write_text("[1]")
    (world.model / "model.safetensors.index.json").write_text('{"weight_map": {"a": 7, "b": "../../x"}}')
    world.shard.write_bytes(b"\x10\0\0\0\0\0\0\0" + b'{"a":{"data_off"')


def _junk_config(world: World) -> None:
    strange: dict[str, Any] = {
        "num_hidden_layers": "many",
        "num_attention_heads": 0,
        "max_position_embeddings": [],
        "rope_scaling": 3,
    }
    world.write_model(**strange, text_config=7, layer_types=5, torch_dtype={})


def _unreadable(world: World) -> None:
    (world.folder / ".env").unlink()
    (world.folder / ".env").mkdir()
    for path in world.model.iterdir():
        path.unlink()
    world.model.rmdir()
    world.model.write_text("a file")


JUNK: Mapping[str, Callable[[World], None]] = {
    "junk_everywhere": _junk_everywhere,
    "junk_model": _junk_model,
    "junk_config": _junk_config,
    "unreadable": _unreadable,
}
"""Name: what is strange about it."""
