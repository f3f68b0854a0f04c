"""The domain: servers, pods, alignment, candidates, simulation, workloads."""
