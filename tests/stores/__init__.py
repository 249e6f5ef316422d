"""Stores of sessions: what each promises, and how the one in Redis keeps it whatever happens."""
