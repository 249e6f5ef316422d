"""What vLLM and the way to it can do wrong, played fault by fault, and what becomes of a turn then."""
