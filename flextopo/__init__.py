"""Topology-aware preemption: environment, baselines, learned victim selectors, serving."""

from importlib.util import find_spec

__version__ = "0.1.0"

# A served artifact needs no gymnasium; everyone else gets the environments by importing us.
if find_spec("gymnasium") is not None:
    from flextopo.envs.registration import register_environments

    register_environments()
