"""The exogenous event tape: everything that happens to a cluster whoever chooses the victims."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError

NEVER_S = 2**61
"""A time that no tape reaches: departure of a pod that leaves only when its work is done."""

ONLINE_PRIORITY = 1000
BATCH_PRIORITIES = (100, 500)
"""Priorities of online pods and of the batch classes low (0) and middle (1)."""


@dataclass(frozen=True)
class Tape:
    """Pods that arrive in one episode, sorted by arrival; all times in whole seconds.

    The account runs from 0 to `end_s`; arrivals before 0 warm the cluster up. Arrays are (P,) and
    read-only; P pods of both kinds in one table.

    Attributes:
        end_s: end of the episode.
        warmup_s: the tape starts at -warmup_s.
        grace_s: seconds between the decision to evict a pod and its resources being free.
        restart_s: work that a batch job repeats after each eviction, beside what it lost.
        arrive_s: int64, ascending.
        depart_s: int64, when an online pod is scaled down; NEVER_S for batch pods.
        duration_s: int64, run time a batch pod needs; 0 for online pods.
        start_s: int64, start-up time of an online replica before it serves; 0 for batch pods.
        gpus: int64, GPUs asked for; 0 = CPU-only.
        cores: int64, whole cores asked for.
        priority: int64; greater is more important.
        online: bool.
        requirement: int64, a `TopologyRequirement`.
        preemptible: bool, False = never a victim.
        batch_class: int64, 0 low, 1 middle; lost work weighs 1 + batch_class. 0 for online pods.
        checkpoint_s: int64, interval between checkpoints; 0 = none, all work is lost.
        group: int64, PodGroup index, -1 = none; members arrive together, start together and stop
            together, and stand next to each other in the table.
        pdb: int64, PodDisruptionBudget index, -1 = none.
        pdb_allowed: (B,) int64, pods of each budget that may be disrupted at a time.
        service: int64, index of the online service, -1 for batch pods.
    """

    end_s: int
    warmup_s: int
    grace_s: int
    restart_s: int
    arrive_s: npt.NDArray[np.int64]
    depart_s: npt.NDArray[np.int64]
    duration_s: npt.NDArray[np.int64]
    start_s: npt.NDArray[np.int64]
    gpus: npt.NDArray[np.int64]
    cores: npt.NDArray[np.int64]
    priority: npt.NDArray[np.int64]
    online: npt.NDArray[np.bool_]
    requirement: npt.NDArray[np.int64]
    preemptible: npt.NDArray[np.bool_]
    batch_class: npt.NDArray[np.int64]
    checkpoint_s: npt.NDArray[np.int64]
    group: npt.NDArray[np.int64]
    pdb: npt.NDArray[np.int64]
    service: npt.NDArray[np.int64]
    pdb_allowed: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if isinstance(value, np.ndarray):
                dtype = np.bool_ if spec.name in ("online", "preemptible") else np.int64
                array: npt.NDArray[Any] = np.ascontiguousarray(value, dtype)
                if spec.name != "pdb_allowed" and array.shape != (self.num_pods,):
                    raise WorkloadError(
                        f"tape: {spec.name} has shape {array.shape}; legal: ({self.num_pods},)"
                    )
                array.setflags(write=False)
                object.__setattr__(self, spec.name, array)
        self._check("end_s", self.end_s > 0, self.end_s, "above 0")
        for name in ("warmup_s", "grace_s", "restart_s"):
            self._check(name, getattr(self, name) >= 0, getattr(self, name), "0 or more")
        self._check_pods(
            "arrive_s", np.diff(self.arrive_s, prepend=-self.warmup_s) < 0, "ascending"
        )
        self._check_pods("depart_s", self.depart_s < self.arrive_s, "not before arrive_s")
        batch = ~self.online
        self._check_pods("duration_s", batch & (self.duration_s <= 0), "above 0 for batch pods")
        for name in ("gpus", "cores", "checkpoint_s", "start_s"):
            self._check_pods(name, getattr(self, name) < 0, "0 or more")
        self._check_pods("gpus", (self.gpus == 0) & (self.cores == 0), "a GPU or a core at least")
        self._check_pods("pdb", self.pdb >= len(self.pdb_allowed), f"below {len(self.pdb_allowed)}")

    def _check(self, name: str, ok: bool, value: object, legal: str) -> None:
        if not ok:
            raise WorkloadError(f"tape: {name} = {value}; legal: {legal}")

    def _check_pods(self, name: str, wrong: npt.NDArray[np.bool_], legal: str) -> None:
        if wrong.any():
            pod = int(np.argmax(wrong))
            raise WorkloadError(
                f"tape: pod {pod}: {name} = {getattr(self, name)[pod]}; legal: {legal}"
            )

    @property
    def num_pods(self) -> int:
        return len(self.arrive_s)

    def demanded_gpu_s(self) -> int:
        """Return the GPU-seconds asked for between 0 and the end: the loss account's denominator.

        An online pod asks for its GPUs from arrival to departure, a batch pod for its run time from
        arrival on, both cut to the account's window.
        """
        begin = np.maximum(self.arrive_s, 0)
        wanted = np.where(self.online, self.depart_s, self.arrive_s + self.duration_s)
        span = np.clip(np.minimum(wanted, self.end_s) - begin, 0, None)
        return int((span * self.gpus).sum())
