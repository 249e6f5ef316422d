"""Make model folders for any tokenizers: the same tokenizer, template and `config.json`, and random weights.

For tests of counting on the real vLLM. Runs in vLLM's environment, whose libraries take longer to load than the models
to make: `python demo/random_model.py TOKENIZER FOLDER [TOKENIZER FOLDER …]`.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Copy each folder to the one named after it, and add weights."""
    given = list(map(Path, sys.argv[1:]))
    for source, folder in zip(given[::2], given[1::2], strict=True):
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.bfloat16).save_pretrained(
            folder
        )


if __name__ == "__main__":
    main()
