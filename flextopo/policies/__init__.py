"""Learned victim selectors: network, runtime, artifacts."""
