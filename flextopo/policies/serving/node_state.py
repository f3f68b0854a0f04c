"""One node as arrays: who holds which GPUs and cores, what is not known, what is free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import (
    LIVE_DTYPE,
    MAX_PODS_PER_NODE,
    NOMINATED,
    POD_DTYPE,
    RUNNING,
    STARTING,
    TERMINATING,
)
from flextopo.cluster.placement import NO_FIT, place
from flextopo.policies.serving.hardware import Hardware, Marks
from flextopo.policies.serving.objects import GPU
from flextopo.policies.serving.records import PodRecord

Cores = npt.NDArray[np.int16]


@dataclass(slots=True, eq=False)
class NodeState:
    """What a decision needs of a node; R pods hold resources, the known ones first.

    Attributes:
        hardware: the kind of server.
        allocatable: what the node offers by resource, in thousandths.
        requested: what all its pods ask for, in thousandths.
        records: (R,) the pods.
        pods: (R,) POD_DTYPE.
        live: (R,) LIVE_DTYPE; `node` is left to the view.
        cores: (R, U) int16 cores held in each NUMA node.
        gpu_free: bit mask of free GPUs; where placements are unknown, only its size is true.
        cores_free: (U,) int16 free cores of each NUMA node; the same holds.
        num_known: how many of the first pods have known placements.
        unknown_gpus: GPUs held by pods or faults nobody knows where.
        unknown_cores: cores held nobody knows where.
        guessed_cores: (U,) int16 where they were put so that counts are true.
        online_gpus: GPUs held by online pods.
        batch_gpus: GPUs held by other pods.
        broken: why the node is left out of decisions, empty = it is not.
    """

    hardware: Hardware
    allocatable: dict[str, int]
    requested: dict[str, int]
    records: list[PodRecord]
    pods: npt.NDArray[Any]
    live: npt.NDArray[Any]
    cores: Cores
    gpu_free: int
    cores_free: Cores
    num_known: int
    unknown_gpus: int
    unknown_cores: int
    guessed_cores: Cores
    online_gpus: int = 0
    batch_gpus: int = 0
    broken: str = ""

    @property
    def known(self) -> bool:
        """Say whether every placement on the node is known."""
        return self.hardware.known and not self.unknown_gpus and not self.unknown_cores

    def worst_case(self) -> tuple[int, Cores]:
        """Return the GPUs and cores that are free wherever the unknown pods are."""
        if self.known:
            return self.gpu_free, self.cores_free
        without = self.cores_free + self.guessed_cores - self.unknown_cores
        return 0 if self.unknown_gpus else self.gpu_free, np.maximum(without, 0).astype(np.int16)


@dataclass(slots=True)
class _Holder:
    """A pod with what it is known to hold; None = not known."""

    record: PodRecord
    gpu_mask: int | None
    cores: Cores | None
    status: int


def derive(
    hardware: Hardware,
    models: npt.NDArray[Any],
    width: int,
    allocatable: dict[str, int],
    records: Sequence[PodRecord],
    marks: Mapping[str, Marks],
    budget_of: Callable[[PodRecord], int],
    now_s: int,
) -> NodeState:
    """Work out a node from its hardware, its pods and what is known of their placements.

    Args:
        hardware: the kind of server.
        models: the compiled server models.
        width: NUMA nodes of the largest model, U.
        allocatable: what the node offers, in thousandths.
        records: pods bound to the node or nominated for it.
        marks: what FlexTopo says pods hold, by name.
        budget_of: index of a pod's disruption budget, -1 = none.
        now_s: Unix time.

    Returns:
        The state. Pods whose GPUs nobody knows get places where kubelet might have put them, so
        that counts are true; `num_known` and `unknown_gpus` say so.
    """
    names = Counter(record.name for record in records)
    gpu_free = (1 << hardware.server.num_gpus) - 1
    cores_free = np.zeros(width, np.int16)
    cores_free[: hardware.server.num_numa_nodes] = hardware.server.numa_cores
    requested: Counter[str] = Counter()
    holders: list[_Holder] = []
    for record in sorted(records, key=lambda pod: pod.importance):
        if record.finished:
            continue
        if record.node:
            requested.update(record.requests)
            requested["pods"] += 1000
        holder = _holder(record, marks, names, hardware, width)
        if holder.gpu_mask and holder.gpu_mask & ~gpu_free:
            holder.gpu_mask = None
        if holder.cores is not None and (holder.cores > cores_free).any():
            holder.cores = None
        gpu_free &= ~(holder.gpu_mask or 0)
        if holder.cores is not None:
            cores_free -= holder.cores
        if record.gpus or holder.cores is None or holder.cores.any():
            holders.append(holder)
    lost = max(hardware.server.num_gpus - allocatable.get(GPU, 0) // 1000, 0)
    lost = min(lost, gpu_free.bit_count())
    gpu_free = _by_elimination(holders, gpu_free, lost)
    known = [holder for holder in holders if _is_known(holder) and hardware.known]
    guessed = [holder for holder in holders if not (_is_known(holder) and hardware.known)]
    unknown_gpus = lost + sum(h.record.gpus for h in guessed if h.gpu_mask is None)
    unknown_cores = sum(h.record.cores for h in guessed if h.cores is None)
    broken, before = "", cores_free.copy()
    # Those that are nominated come last: they hold what nobody else does.
    for holder in sorted(guessed, key=lambda h: h.status == NOMINATED):
        gpu_free, fits = _guess(holder, models, hardware.model, gpu_free, cores_free)
        if not fits and holder.status == NOMINATED:
            unknown_gpus -= holder.record.gpus
            unknown_cores -= holder.record.cores
            guessed.remove(holder)
        elif not fits:
            broken = f"pods ask for more than its {hardware.server.num_gpus} GPUs"
    for _ in range(lost):
        gpu_free &= gpu_free - 1
    if len(holders) >= MAX_PODS_PER_NODE:
        broken = f"{len(holders)} pods hold GPUs or cores; legal: below {MAX_PODS_PER_NODE}"
    if not hardware.known:
        known, guessed = [], known + guessed
    everyone = [*known, *guessed]
    pods, live, cores = _as_arrays(everyone, width, budget_of, now_s)
    online = sum(h.record.gpus for h in everyone if h.record.online)
    return NodeState(
        hardware=hardware,
        allocatable=allocatable,
        requested=dict(requested),
        records=[holder.record for holder in everyone],
        pods=pods,
        live=live,
        cores=cores,
        gpu_free=gpu_free,
        cores_free=cores_free,
        num_known=len(known),
        unknown_gpus=unknown_gpus,
        unknown_cores=unknown_cores,
        guessed_cores=before - cores_free,
        online_gpus=online,
        batch_gpus=sum(h.record.gpus for h in everyone) - online,
        broken=broken,
    )


def _is_known(holder: _Holder) -> bool:
    return holder.gpu_mask is not None and holder.cores is not None


def _holder(
    record: PodRecord,
    marks: Mapping[str, Marks],
    names: Mapping[str, int],
    hardware: Hardware,
    width: int,
) -> _Holder:
    """Find out what a pod holds: by annotation, else by FlexTopo's marks under its name."""
    found = marks.get(record.key)
    # A bare name is the pod's only where no other pod of the node is called so.
    if found is None and names[record.name] == 1:
        found = marks.get(record.name)
    gpus = record.gpus_held if record.gpus_held is not None else (found.gpus if found else ())
    cores = record.cores_held if record.cores_held is not None else (found.cores if found else ())
    status = RUNNING if record.running else STARTING
    if record.terminating:
        status = TERMINATING
    if not record.node:
        status = NOMINATED
    mask: int | None = 0
    if record.gpus:
        indices = {hardware.gpu_index.get(number, -1) for number in gpus}
        whole = len(indices) == len(gpus) == record.gpus and -1 not in indices
        mask = sum(1 << index for index in indices) if whole else None
    held: Cores | None = np.zeros(width, np.int16)
    if cores:
        numa_nodes = [hardware.core_numa.get(number, -1) for number in cores]
        held = None
        if -1 not in numa_nodes:
            held = np.bincount(numa_nodes, minlength=width).astype(np.int16)
    elif record.gpus and record.cores:
        # A pod without GPUs and pinned cores runs in the shared pool and blocks no NUMA node.
        held = None
    return _Holder(record, mask, held, status)


def _by_elimination(holders: Sequence[_Holder], gpu_free: int, lost: int) -> int:
    """Give the one pod whose GPUs are not known the only ones it can have; return what is free."""
    missing = [holder for holder in holders if holder.gpu_mask is None]
    if len(missing) == 1 and not lost and missing[0].status != NOMINATED:
        (holder,) = missing
        if holder.record.gpus == gpu_free.bit_count():
            holder.gpu_mask, gpu_free = gpu_free, 0
    return gpu_free


def _guess(
    holder: _Holder, models: npt.NDArray[Any], model: int, gpu_free: int, cores_free: Cores
) -> tuple[int, bool]:
    """Give a pod GPUs and cores where kubelet might have; return the free GPUs and whether it fits."""
    record = holder.record
    taken = np.zeros_like(cores_free)
    if holder.gpu_mask is None and holder.cores is None:
        level, mask = place(models, model, gpu_free, cores_free, record.gpus, record.cores, taken)
        if level != NO_FIT:
            holder.gpu_mask, holder.cores = int(mask), taken
            cores_free -= taken
            return gpu_free & ~int(mask), True
    if holder.status == NOMINATED or (gpu_free.bit_count() < record.gpus and not holder.gpu_mask):
        holder.gpu_mask = holder.gpu_mask or 0
        holder.cores = taken
        return gpu_free, False
    if holder.gpu_mask is None:
        holder.gpu_mask = 0
        for _ in range(record.gpus):
            holder.gpu_mask |= gpu_free & -gpu_free
            gpu_free &= gpu_free - 1
    if holder.cores is None:
        left = record.cores
        for u in range(len(cores_free)):
            taken[u] = min(left, cores_free[u])
            left -= int(taken[u])
        cores_free -= taken
        holder.cores = taken
    return gpu_free, True


def _as_arrays(
    holders: Sequence[_Holder], width: int, budget_of: Callable[[PodRecord], int], now_s: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], Cores]:
    records = [holder.record for holder in holders]
    pods = np.zeros(len(records), POD_DTYPE)
    live = np.zeros(len(records), LIVE_DTYPE)
    cores = np.zeros((len(records), width), np.int16)
    if not records:
        return pods, live, cores
    starts = [now_s - record.age_s(now_s) for record in records]
    pods["depart_s"], pods["duration_s"], pods["start_s"] = 2**61, 2**40, starts
    for name in ("gpus", "priority", "checkpoint_s", "protection_s", "online"):
        pods[name] = [getattr(record, name) for record in records]
    pods["requirement"] = [int(record.requirement) for record in records]
    pods["preemptible"] = [
        record.preemptible and not record.daemon and not record.static for record in records
    ]
    pods["group"] = -1
    pods["pdb"] = [budget_of(record) for record in records]
    live["since_s"] = starts
    live["heap_at"] = live["tried"] = -1
    live["gpu_mask"] = [holder.gpu_mask for holder in holders]
    live["status"] = [holder.status for holder in holders]
    cores[:] = [holder.cores if holder.cores is not None else 0 for holder in holders]
    pods["cores"] = cores.sum(1)
    return pods, live, cores
