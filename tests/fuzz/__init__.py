"""Fuzzing: random requests in any order, and what must hold of every answer."""
