"""The Simple Chat Gateway: chat sessions with an exact context in front of vLLM."""

import os

__version__ = "0.1.0"

# Nothing is ever downloaded: Hugging Face's libraries read this when they are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
