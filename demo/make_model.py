"""Make a tiny model folder that the real vLLM serves: random weights, a real tokenizer, a real chat template.

Its replies are random syllables; it is there to try the gateway, not to talk. Runs in vLLM's environment, which has
torch and transformers: `python demo/make_model.py [--layers N] [--hidden N] FOLDER`.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY_TOKENS = 1024
CONTEXT_TOKENS = 32768
TRAINING_TEXT = Path(__file__).resolve().with_name("tales.txt")

# ChatML, the form of Qwen and many others.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a tokenizer on a text that stays as it is, and so do token counts; mostly Russian tales."""
    return new_tokenizer(TRAINING_TEXT.read_text(encoding="utf-8").splitlines(keepends=True), VOCABULARY_TOKENS)


def new_tokenizer(texts: Iterable[str], vocabulary_tokens: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ChatML's template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_tokens,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int) -> LlamaForCausalLM:
    """Build a Llama of so many layers and dimensions with random weights, the same ones every time.

    The first dimension of every hidden state is made to stand out, so that the output layer can prefer the end of the
    reply a little (replies have some dozens of tokens) and shun tokens that are only a part of a letter.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 0.25
        model.lm_head.weight[unreadable_token_ids(tokenizer), 0] = -2.0
    return model.to(torch.bfloat16)


def unreadable_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that are no text of their own: special ones but the last, control characters, parts of a letter."""
    texts = tokenizer.batch_decode([[token_id] for token_id in range(len(tokenizer))])
    readable = {token_id for token_id, text in enumerate(texts) if text.isprintable() and "\ufffd" not in text}
    return [token_id for token_id in range(len(tokenizer)) if token_id < 2 or token_id not in readable]


def name_tokenizer_class(config: Path) -> None:
    """Name the tokenizer's class as transformers 4 knows it too: 5 writes a name of its own for the same class."""
    content = json.loads(config.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    config.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128, help="a multiple of 32")
    asked = parser.parse_args()
    folder = asked.folder
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    name_tokenizer_class(folder / "tokenizer_config.json")
    make_model(tokenizer, asked.layers, asked.hidden).save_pretrained(folder)


if __name__ == "__main__":
    main()
