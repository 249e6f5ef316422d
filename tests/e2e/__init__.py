"""The product as it is, with the real vLLM on the CPU."""
