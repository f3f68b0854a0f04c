"""The registered environment ids; gymnasium is imported when they are registered, and no sooner."""

from __future__ import annotations

ENVIRONMENTS: dict[str, tuple[str, str]] = {
    "flextopo/Preempt-RTX4090-v0": ("16*rtx4090", "16 servers of 8x RTX 4090, 8 NUMA nodes each"),
    "flextopo/Preempt-A100-v0": ("16*a100", "16 servers of 8x A100, 2 NUMA nodes each"),
    "flextopo/Preempt-Mixed-v0": ("8*rtx4090,8*a100", "8 servers of each kind"),
    "flextopo/Preempt-Paper-v0": (
        "100*rtx4090",
        "the paper's cluster: pods of 1 and 2 cards, 7 cores a card, priorities 1000 and 500",
    ),
    "flextopo/Preempt-Gang-v0": (
        "64*a100@leaf8",
        "64 servers of 8x A100 on 8 leaves: replicas of up to 16 servers beside single pods",
    ),
    "flextopo/Preempt-Gang1k-v0": (
        "1000*a100@leaf16",
        "1,000 servers of 8x A100 on 63 leaves, as above",
    ),
}
"""Environment id to (servers, what it is)."""

WORKLOADS: dict[str, dict[str, object]] = {
    "flextopo/Preempt-Paper-v0": {
        "replica_gpu_mix": (0.5, 0.5, 0.0, 0.0),
        "batch_gpu_mix": (0.5, 0.5, 0.0, 0.0),
        "low_class_share": 0.0,
        "group_share": 0.0,
    },
    "flextopo/Preempt-Gang-v0": {"gang_share": 0.25},
    "flextopo/Preempt-Gang1k-v0": {"gang_share": 0.25},
}
"""Environment id to the fields of its workload that are not `WorkloadConfig`'s defaults."""


def register_environments() -> None:
    """Register every id with gymnasium; the environment itself is imported when it is made."""
    from gymnasium.envs.registration import register

    for name, (servers, _) in ENVIRONMENTS.items():
        register(
            id=name,
            entry_point="flextopo.envs.preemption:PreemptionEnv",
            vector_entry_point="flextopo.envs.vector:PreemptionVectorEnv",
            kwargs={"servers": servers, "workload": WORKLOADS.get(name)},
        )
