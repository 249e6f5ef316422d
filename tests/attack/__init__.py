"""What the gateway does under attack."""
