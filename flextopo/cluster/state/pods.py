"""Pods and what they ask of the hardware."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from flextopo.cluster.errors import PodError
from flextopo.cluster.state.schema import ALL_MEMBERS, DEADLINE_S


class TopologyRequirement(IntEnum):
    """A pod's `godel.bytedance.com/flextopo-requirement` annotation."""

    NONE = 0
    BEST_EFFORT = 1
    GUARANTEED = 2


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
        online: an online service's replica; batch pods never preempt.
        start_s: when it got its resources, None while it has none.
        preemptible: False if its annotation or PriorityClass forbids preemption.
        protection_s: not a victim for this long after its start.
        checkpoint_s: interval between checkpoints of a batch pod; 0 = none.
        batch_class: 0 low, 1 middle; lost work weighs 1 + batch_class.
        group: PodGroup index, -1 = none.
        min_members: how many members of it have to run; with fewer left, all stop.
        pdb: PodDisruptionBudget index, -1 = none.
        service: online service that it is a replica of, -1 = one of its own.
        deadline_s: an online pod should have its place this long after it began to wait.
        sensitivity: place of its kind in `scenario.SENSITIVITIES`.
    """

    index: int
    name: str
    gpus: int
    cores: int
    priority: int
    requirement: TopologyRequirement = TopologyRequirement.NONE
    online: bool = False
    start_s: int | None = None
    preemptible: bool = True
    protection_s: int = 0
    checkpoint_s: int = 0
    batch_class: int = 0
    group: int = -1
    min_members: int = ALL_MEMBERS
    pdb: int = -1
    service: int = -1
    deadline_s: int = DEADLINE_S
    sensitivity: int = 0

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.cores < 0 or self.gpus + self.cores == 0:
            raise PodError(
                f"pod {self.name!r} asks for {self.gpus} GPUs and {self.cores} cores; "
                "legal: 0 or more of each, and one at least"
            )
        for name in (
            "protection_s", "checkpoint_s", "batch_class", "min_members", "deadline_s", "sensitivity"
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise PodError(
                    f"pod {self.name!r}: {name} = {getattr(self, name)}; legal: 0 or more"
                )
