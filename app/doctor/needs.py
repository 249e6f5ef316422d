"""What the model needs of memory and of context. Exact, or None with the reason: a guess would send people astray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.doctor import facts
from app.doctor.model import Model
from app.doctor.stand import Service

# Plain attention in every layer: so many bytes per token, whatever the length. Others have windows, latent or linear
# attention, or layers that share their cache.
_PLAIN = frozenset(
    """llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe phi3 granite olmo olmo2 gemma starcoder2 stablelm cohere
    internlm2 smollm3 glm glm4 baichuan deepseek exaone nemotron""".split()
)
_LENGTHS = (
    "max_position_embeddings n_positions max_seq_len seq_length model_max_length max_target_positions "
    "max_sequence_length max_seq_length seq_len"
).split()
# Their factor is in max_position_embeddings already.
_SCALED_ALREADY = frozenset({"default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"})
_CHANGES_LENGTH = ("--hf-overrides", "--rope-scaling", "--rope-theta", "--hf-config-path")
_CHANGES_WEIGHTS = ("--quantization", "-q", "--cpu-offload-gb", "--load-format", "--hf-overrides")
_CACHE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "half": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}


@dataclass(frozen=True)
class Needs:
    """What vLLM needs at least, on each card.

    Attributes:
        weights_bytes: None where that is not known.
        cache_bytes_per_token: the same.
        why: not known, in Russian.
    """

    weights_bytes: int | None
    cache_bytes_per_token: int | None
    why: str = ""

    def bytes(self, length: int) -> int:
        """For the weights and one conversation of so many tokens."""
        return (self.weights_bytes or 0) + (self.cache_bytes_per_token or 0) * length

    def longest(self, budget_bytes: float) -> int:
        """How many tokens of one conversation fit beside the weights, in thousands."""
        if not self.cache_bytes_per_token:
            return 0
        return max(0, int(budget_bytes - (self.weights_bytes or 0)) // self.cache_bytes_per_token // 1024 * 1024)


def needs_of(model: Model, vllm: Service) -> Needs:
    """What the model needs, served so."""
    split = tensor_parallel(vllm) * pipeline_parallel(vllm)
    weights, why = model.weights_bytes, "" if model.weights_bytes is not None else "размер весов неизвестен"
    if changed := [name for name in _CHANGES_WEIGHTS if vllm.has(name)]:
        weights, why = None, f"{changed[0]} меняет размер весов"
    elif vllm.option("--dtype") in {"float", "float32"}:
        weights, why = None, "--dtype меняет размер весов"
    cache, reason = _cache_bytes_per_token(model.config, vllm)
    return Needs(None if weights is None else weights // split, cache, "; ".join(filter(None, (why, reason))))


def tensor_parallel(vllm: Service) -> int:
    """Over how many cards each layer is split."""
    return vllm.number("--tensor-parallel-size", "-tp") or 1


def pipeline_parallel(vllm: Service) -> int:
    """Over how many cards the layers are dealt out."""
    return vllm.number("--pipeline-parallel-size", "-pp") or 1


def cards_of_this_machine(vllm: Service) -> int:
    """How many cards of this machine it works on."""
    machines = vllm.number("--nnodes", "-n") or 1
    copies = vllm.number("--data-parallel-size-local", "-dpl") or vllm.number("--data-parallel-size", "-dp") or 1
    if vllm.has("--data-parallel-rank", "-dpn"):
        copies = 1  # the others are other services
    return max(1, tensor_parallel(vllm) * pipeline_parallel(vllm) // machines) * copies


def _cache_bytes_per_token(config: Mapping[str, Any], vllm: Service) -> tuple[int | None, str]:
    kind = facts.text(config.get("model_type"))
    if kind not in _PLAIN or _has_windows(config):
        return None, f"размер кэша у моделей вида {kind or '?'} зависит не только от длины"
    heads, layers = facts.whole(config.get("num_attention_heads")), facts.whole(config.get("num_hidden_layers"))
    hidden = facts.whole(config.get("hidden_size"))
    size = _CACHE_BYTES.get(vllm.option("--kv-cache-dtype") or "auto")
    if not (heads and layers and hidden and size) or vllm.option("--dtype") in {"float", "float32"}:
        return None, "размер кэша неизвестен"
    kv_heads = facts.whole(config.get("num_key_value_heads")) or heads
    width = facts.whole(config.get("head_dim")) or hidden // heads
    on_a_card = max(1, kv_heads // tensor_parallel(vllm))
    return 2 * layers * on_a_card * width * size // pipeline_parallel(vllm), ""


def _has_windows(config: Mapping[str, Any]) -> bool:
    kinds = facts.sequence(config.get("layer_types"))
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return bool(config.get("sliding_window")) and config.get("use_sliding_window") is not False


def allowed_context(model: Model, vllm: Service) -> int | None:
    """How many tokens the model takes, served so; None where that is not known."""
    lifted = facts.text(vllm.environment.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")).lower() in {"1", "true"}
    return None if lifted or vllm.has(*_CHANGES_LENGTH) else longest_context(model.config)


def longest_context(config: Mapping[str, Any]) -> int | None:
    """How many tokens the model takes, as vLLM derives it; None where the config does not say.

    Of what versions of vLLM see differently, the most that any of them allows.
    """
    lengths = [length for name in _LENGTHS if (length := facts.whole(config.get(name)))]
    if not lengths:
        return None
    length = facts.whole(config.get("model_max_length")) or min(lengths)
    rope = facts.mapping(config.get("rope_parameters")) or facts.mapping(config.get("rope_scaling"))
    factor = rope.get("factor")
    kind = facts.text(rope.get("rope_type") or rope.get("type") or "default")
    if not isinstance(factor, int | float) or "gemma3" in facts.text(config.get("model_type")):
        return length
    if kind not in _SCALED_ALREADY:
        return int(length * factor)
    original = facts.whole(rope.get("original_max_position_embeddings"))
    # vLLM 0.16 multiplies this one; later ones trust max_position_embeddings.
    return max(length, int(original * factor)) if kind == "yarn" and original else length
