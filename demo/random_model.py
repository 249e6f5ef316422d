"""Make a model folder for any tokenizer: the same tokenizer, template and `config.json`, and random weights.

For tests of counting on the real vLLM. Runs in vLLM's environment: `python demo/random_model.py TOKENIZER FOLDER`.
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main() -> None:
    """Copy the folder named by the first argument to the second, and add weights."""
    source, folder = map(Path, sys.argv[1:])
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=torch.bfloat16).save_pretrained(folder)


if __name__ == "__main__":
    main()
