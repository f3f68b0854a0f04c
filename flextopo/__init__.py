"""Topology-aware preemption: environment, baselines, learned victim selectors, serving."""

__version__ = "0.1.0"
