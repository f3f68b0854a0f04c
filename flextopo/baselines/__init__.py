"""Deterministic victim selectors."""
