"""The terminal client, and the reference for talking to the gateway over plain HTTP."""
