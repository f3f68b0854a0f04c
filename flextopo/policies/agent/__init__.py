"""The agent of a node: it reads who holds which GPUs and cores, and writes that where the service reads."""
