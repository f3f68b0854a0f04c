"""The exogenous event tape: everything that happens to a cluster whoever chooses the victims."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.state.schema import ALL_MEMBERS, MAX_MEMBERS, POD_DTYPE, POD_FIELDS

ONLINE_PRIORITY = 1000
BATCH_PRIORITIES = (100, 500)
"""Priorities of online pods and of the batch classes low (0) and middle (1)."""

MAX_BACKOFF_S = 360
"""The longest back-off after an eviction, as Kubernetes' job controller has it."""


SHARED_BY_GROUPS = ("online", "arrive_s", "priority", "min_members")
"""What all members of a PodGroup have in common."""

SHARED_BY_GANGS = (
    "depart_s", "start_s", "requirement", "deadline_s", "service", "sensitivity", "required_tier",
    "preferred_tier",
)  # fmt: skip
"""What all members of a gang, an online PodGroup, have in common beside that."""


@dataclass(frozen=True)
class Tape:
    """Pods that arrive in one episode, sorted by arrival; all times in whole seconds.

    The account runs from 0 to `end_s`; arrivals before 0 warm the cluster up.

    Attributes:
        end_s: end of the episode.
        warmup_s: the tape starts at -warmup_s.
        grace_s: seconds between the decision to evict a pod and its resources being free.
        restart_s: work that a batch job repeats after each eviction, beside what it lost.
        backoff_s: how long an evicted batch job stays out of the queue after its first eviction;
            twice as long after each further one, `MAX_BACKOFF_S` at most.
        pods: (P,) POD_DTYPE, read-only; pods of both kinds, as `schema.pod_table` makes it. Members
            of a PodGroup stand next to each other.
        pdb_allowed: (B,) int64, pods of each budget that may be disrupted at a time; read-only.
        notes: what was cut to make it, "" = nothing.
    """

    end_s: int
    warmup_s: int
    grace_s: int
    restart_s: int
    pods: npt.NDArray[Any]
    pdb_allowed: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    backoff_s: int = 0
    notes: str = ""

    def __post_init__(self) -> None:
        for name, dtype in (("pods", POD_DTYPE), ("pdb_allowed", np.dtype(np.int64))):
            value = np.asarray(getattr(self, name))
            if value.ndim != 1 or (name == "pods" and value.dtype != dtype):
                raise WorkloadError(
                    f"tape: {name} is an array {value.shape} of {value.dtype.name}; "
                    "legal: what schema.pod_table makes, and a list of whole numbers"
                )
            array: npt.NDArray[Any] = np.array(value, dtype)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        self._check("end_s", self.end_s > 0, self.end_s, "above 0")
        for name in ("warmup_s", "grace_s", "restart_s", "backoff_s"):
            self._check(name, getattr(self, name) >= 0, getattr(self, name), "0 or more")
        pods = self.pods
        for name, spec in POD_FIELDS.items():
            low, high = spec.legal
            wrong = (pods[name] < low) | (pods[name] > high)
            self._check_pods(
                name, wrong, f"{low} to {high}" if high < 2**31 - 1 else f"{low} or more"
            )
        arrivals = np.diff(pods["arrive_s"], prepend=-self.warmup_s)
        self._check_pods("arrive_s", arrivals < 0, "ascending")
        self._check_pods("depart_s", pods["depart_s"] < pods["arrive_s"], "not before arrive_s")
        endless = (pods["online"] == 0) & (pods["duration_s"] <= 0)
        self._check_pods("duration_s", endless, "above 0 for batch pods")
        empty = (pods["gpus"] == 0) & (pods["cores"] == 0)
        self._check_pods("gpus", empty, "a GPU or a core at least")
        self._check_groups()
        budgets = len(self.pdb_allowed)
        self._check_pods("pdb", pods["pdb"] >= budgets, f"below {budgets}")

    def _check_groups(self) -> None:
        """Check that members of a PodGroup stand together, and that online ones are one gang."""
        pods = self.pods
        at = np.flatnonzero(pods["group"] >= 0)
        if not len(at):
            return
        group = pods["group"][at]
        begins = np.append(True, (np.diff(at) > 1) | (np.diff(group) != 0))
        twice = np.zeros(len(pods), np.bool_)
        starts = at[begins]
        _, first = np.unique(pods["group"][starts], return_index=True)
        twice[np.delete(starts, first)] = True
        self._check_pods("group", twice, "members of a PodGroup next to each other")
        leader, gang = starts[np.cumsum(begins) - 1], pods["online"][at] == 1
        for name in SHARED_BY_GROUPS + SHARED_BY_GANGS:
            wrong = np.zeros(len(pods), np.bool_)
            wrong[at] = pods[name][at] != pods[name][leader]
            if name in SHARED_BY_GROUPS:
                self._check_pods(name, wrong, "the same for all members of a PodGroup")
            else:
                wrong[at] &= gang
                self._check_pods(name, wrong, "the same for all members of a gang")
        some = pods["online"] & (pods["group"] >= 0) & (pods["min_members"] < ALL_MEMBERS)
        self._check_pods("min_members", some, f"{ALL_MEMBERS} for a gang, which starts as a whole")
        self._check_sizes(starts, np.diff(np.append(np.flatnonzero(begins), len(at))))

    def _check_sizes(self, starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        """Check members and sizes of the gangs among PodGroups that start there."""
        for start, members in zip(starts, counts, strict=True):
            ring = self.pods[start : start + members]
            sizes = len(set(ring[["gpus", "cores"]].tolist())) if ring["online"][0] else 0
            if sizes > 2 or (sizes and members > MAX_MEMBERS):
                raise WorkloadError(
                    f"tape: pod {start}: a gang of {members} members of {sizes} sizes; "
                    f"legal: up to {MAX_MEMBERS} of two sizes"
                )

    def _check(self, name: str, ok: bool, value: object, legal: str) -> None:
        if not ok:
            raise WorkloadError(f"tape: {name} = {value}; legal: {legal}")

    def _check_pods(self, name: str, wrong: npt.NDArray[np.bool_], legal: str) -> None:
        if wrong.any():
            pod = int(np.argmax(wrong))
            raise WorkloadError(f"tape: pod {pod}: {name} = {self.pods[name][pod]}; legal: {legal}")

    @property
    def num_pods(self) -> int:
        return len(self.pods)

    def demanded_gpu_s(self) -> int:
        """Return the GPU-seconds asked for between 0 and the end: the loss account's denominator.

        An online pod asks for its GPUs from arrival to departure, a batch pod for its run time from
        arrival on, both cut to the account's window.
        """
        pods = self.pods
        begin = np.maximum(pods["arrive_s"], 0)
        done = pods["arrive_s"] + pods["duration_s"]
        wanted = np.where(pods["online"] == 1, pods["depart_s"], done)
        span = np.clip(np.minimum(wanted, self.end_s) - begin, 0, None)
        return int((span * pods["gpus"]).sum())
