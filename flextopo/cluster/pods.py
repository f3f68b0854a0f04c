"""Pods and what they ask of the hardware."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from flextopo.cluster.errors import PodError


class TopologyRequirement(IntEnum):
    """A pod's `godel.bytedance.com/flextopo-requirement` annotation."""

    NONE = 0
    BEST_EFFORT = 1
    GUARANTEED = 2


@dataclass(frozen=True)
class PodDisruptionBudget:
    """How many of its pods may be disrupted at a time (`status.disruptionsAllowed`)."""

    name: str
    disruptions_allowed: int


@dataclass(frozen=True)
class Pod:
    """A pod as a selector sees it.

    Attributes:
        index: row of the pod in its cluster's table.
        name: `namespace/name`, unique in a cluster.
        gpus: whole GPUs asked for.
        cores: whole CPU cores asked for (a request is rounded up).
        priority: greater is more important; may be negative.
        requirement: what the pod asks of the topology.
        start_s: when it started to hold resources, None while it holds none.
        preemptible: False if its annotation or PriorityClass forbids preemption.
        never_preempts: True for `preemptionPolicy: Never`.
        terminating: True once it is being deleted; it can no longer be a victim.
        group: PodGroup index, -1 = none.
        pdb: PodDisruptionBudget index, -1 = none.
    """

    index: int
    name: str
    gpus: int
    cores: int
    priority: int
    requirement: TopologyRequirement = TopologyRequirement.NONE
    start_s: int | None = None
    preemptible: bool = True
    never_preempts: bool = False
    terminating: bool = False
    group: int = -1
    pdb: int = -1

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.cores < 0 or self.gpus + self.cores == 0:
            raise PodError(
                f"pod {self.name!r} asks for {self.gpus} GPUs and {self.cores} cores; "
                "legal: 0 or more of each, and one at least"
            )
