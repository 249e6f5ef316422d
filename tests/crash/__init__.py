"""Gateways and Redis are killed at any moment while clients talk: nothing that was acknowledged is lost."""
