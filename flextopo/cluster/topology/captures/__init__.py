"""Readers of what tools print about a server's topology."""
