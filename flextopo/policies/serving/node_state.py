"""One node as arrays: who holds which GPUs and cores, what is not known, what is free."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, gt, sub
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    NODE_DTYPE,
    NOMINATED,
    RUNNING,
    STARTING,
    TERMINATING,
)
from flextopo.cluster.state.placement import NO_FIT, place
from flextopo.policies.serving.hardware import NO_MARKS, Hardware, Marks, held_by
from flextopo.policies.serving.node_rows import pack_live, pack_node, pack_pod
from flextopo.policies.serving.objects import GPU
from flextopo.policies.serving.records import PodRecord, add

Cores = npt.NDArray[np.int16]


@dataclass(slots=True, eq=False)
class NodeResources:
    """A node as a view shows it, with R pods.

    Attributes:
        records: (R,) the pods.
        packed: all that the arrays of a view say of it, in bytes: the row of NODE_DTYPE, (U,) int16
            free cores, R rows of POD_DTYPE, R of LIVE_DTYPE (`node` is left to the view), and (R, U)
            int16 cores held in each NUMA node.
        gpu_free: bit mask of free GPUs.
        cores_free: (U,) int16 free cores of each NUMA node.
        num_gpus: free GPUs.
        num_cores: free cores.
    """

    records: list[PodRecord]
    packed: bytes
    gpu_free: int
    cores_free: Cores
    num_gpus: int
    num_cores: int

    @property
    def node(self) -> bytes:
        """Return the row of NODE_DTYPE."""
        return self.packed[: NODE_DTYPE.itemsize]


@dataclass(slots=True, eq=False)
class NodeState:
    """What a decision needs of a node.

    Attributes:
        hardware: the kind of server.
        allocatable: what the node offers by resource, in thousandths.
        requested: what all its pods ask for, in thousandths.
        counted: all pods that hold resources, the known ones first. Those of unknown placement are
            where kubelet might have put them: what is free is true in number alone.
        sure: the pods of known placement, and what is free wherever the others are; the same object
            where every placement is known.
        unknown_gpus: GPUs held by pods or faults nobody knows where.
        unknown_cores: cores held nobody knows where.
        online_gpus: GPUs held by online pods.
        batch_gpus: GPUs held by other pods.
        broken: why the node is left out of decisions, empty = it is not.
    """

    hardware: Hardware
    allocatable: dict[str, int]
    requested: dict[str, int]
    counted: NodeResources
    sure: NodeResources
    unknown_gpus: int
    unknown_cores: int
    online_gpus: int
    batch_gpus: int
    broken: str

    @property
    def known(self) -> bool:
        """Say whether every placement on the node is known."""
        return self.hardware.known and not self.unknown_gpus and not self.unknown_cores

    def resources(self, sure: bool) -> NodeResources:
        """Return what a view shows: what holds for sure, or what is true in number."""
        return self.sure if sure else self.counted


@dataclass(slots=True)
class _Holder:
    """A pod with what it is known to hold; None = not known."""

    record: PodRecord
    gpu_mask: int | None
    cores: tuple[int, ...] | None
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
        that counts are true.
    """
    names = Counter([record.name for record in records])
    server = hardware.server
    gpu_free = (1 << server.num_gpus) - 1
    cores_free = [*server.numa_cores, *[0] * (width - server.num_numa_nodes)]
    requested: dict[str, int] = {}
    holders: list[_Holder] = []
    for record in sorted(records, key=attrgetter("importance")):
        if record.finished:
            continue
        if record.node:
            add(requested, record.requests)
            requested["pods"] = requested.get("pods", 0) + 1000
        holder = _holder(record, marks, names, hardware, width)
        if holder.gpu_mask and holder.gpu_mask & ~gpu_free:
            holder.gpu_mask = None
        if holder.cores is not None and any(map(gt, holder.cores, cores_free)):
            holder.cores = None
        gpu_free &= ~(holder.gpu_mask or 0)
        if holder.cores is not None:
            cores_free = list(map(sub, cores_free, holder.cores))
        if record.gpus or holder.cores is None or any(holder.cores):
            holders.append(holder)
    offered = min(allocatable.get(GPU, 0) // 1000, server.num_gpus)
    in_use = sum(h.record.gpus for h in holders if h.status != NOMINATED)
    lost = min(server.num_gpus - offered, gpu_free.bit_count())
    gpu_free = _by_elimination(holders, gpu_free, lost)
    known = [h for h in holders if h.gpu_mask is not None and h.cores is not None]
    guessed = [h for h in holders if h.gpu_mask is None or h.cores is None]
    if not hardware.known:
        known, guessed = [], holders
    unknown_gpus = lost + sum(h.record.gpus for h in guessed if h.gpu_mask is None)
    unknown_cores = sum(h.record.cores for h in guessed if h.cores is None)
    # With a fault under a running pod, nobody knows what an eviction gives back.
    broken = f"pods hold {in_use} GPUs of {offered} that it offers" if in_use > offered else ""
    before = cores_free
    # Those that are nominated come last: they hold what nobody else does.
    for holder in sorted(guessed, key=lambda h: h.status == NOMINATED):
        gpu_free, cores_free, fits = _guess(holder, models, hardware.model, gpu_free, cores_free)
        if not fits and holder.status == NOMINATED:
            unknown_gpus -= holder.record.gpus
            unknown_cores -= holder.record.cores
            guessed = [other for other in guessed if other is not holder]
    for _ in range(lost):
        gpu_free &= gpu_free - 1
    if len(holders) >= MAX_PODS_PER_NODE:
        broken = f"{len(holders)} pods hold GPUs or cores; legal: below {MAX_PODS_PER_NODE}"
    everyone = [*known, *guessed]
    pack_cores = struct.Struct(f"{width}h").pack
    rows = [_rows_of(holder, pack_cores, budget_of, now_s) for holder in everyone]
    counted = sure = _resources(everyone, rows, hardware.model, gpu_free, pack_cores, cores_free)
    if guessed or unknown_gpus or unknown_cores or not hardware.known:
        # No NUMA node has fewer free cores than if all that nobody knows of were there.
        least = [max(cores - unknown_cores, 0) for cores in before]
        sure_gpus = 0 if unknown_gpus else gpu_free
        rows = rows[: len(known)]
        sure = _resources(known, rows, hardware.model, sure_gpus, pack_cores, least)
    online = sum([h.record.gpus for h in everyone if h.record.online])
    return NodeState(
        hardware=hardware,
        allocatable=allocatable,
        requested=requested,
        counted=counted,
        sure=sure,
        unknown_gpus=unknown_gpus,
        unknown_cores=unknown_cores,
        online_gpus=online,
        batch_gpus=sum([h.record.gpus for h in everyone]) - online,
        broken=broken,
    )


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
    cores, gpus = found or NO_MARKS
    if record.cores_held is not None:
        cores = record.cores_held
    if record.gpus_held is not None:
        gpus = record.gpus_held
    status = RUNNING if record.running else STARTING
    if record.terminating:
        status = TERMINATING
    if not record.node:
        status = NOMINATED
    mask, held = held_by(hardware, Marks(cores, gpus), width)
    if not record.gpus:
        mask = 0
    elif len(gpus) != record.gpus:
        mask = None
    if not cores and record.gpus and record.cores:
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
    holder: _Holder, models: npt.NDArray[Any], model: int, gpu_free: int, cores_free: list[int]
) -> tuple[int, list[int], bool]:
    """Give a pod GPUs and cores where kubelet might have.

    Returns:
        The free GPUs and cores that are left, and whether it fits.
    """
    record = holder.record
    if holder.gpu_mask is None and holder.cores is None:
        free, taken = np.array(cores_free, np.int16), np.zeros(len(cores_free), np.int16)
        level, mask = place(models, model, gpu_free, free, record.gpus, record.cores, taken)
        if level != NO_FIT:
            holder.gpu_mask, holder.cores = int(mask), tuple(taken.tolist())
            return gpu_free & ~int(mask), (free - taken).tolist(), True
    if holder.status == NOMINATED or (gpu_free.bit_count() < record.gpus and not holder.gpu_mask):
        holder.gpu_mask = holder.gpu_mask or 0
        holder.cores = (0,) * len(cores_free)
        return gpu_free, cores_free, False
    if holder.gpu_mask is None:
        holder.gpu_mask = 0
        for _ in range(record.gpus):
            holder.gpu_mask |= gpu_free & -gpu_free
            gpu_free &= gpu_free - 1
    if holder.cores is None:
        left, cores = record.cores, []
        for free_here in cores_free:
            cores.append(min(left, free_here))
            left -= cores[-1]
        cores_free, holder.cores = list(map(sub, cores_free, cores)), tuple(cores)
    return gpu_free, cores_free, True


Rows = tuple[bytes, bytes, bytes]
"""A pod's rows of POD_DTYPE and LIVE_DTYPE, and its (U,) int16 cores."""


def _rows_of(
    holder: _Holder,
    pack_cores: Callable[..., bytes],
    budget_of: Callable[[PodRecord], int],
    now_s: int,
) -> Rows:
    record, cores = holder.record, holder.cores
    assert cores is not None  # known or guessed by now
    start_s = now_s - record.age_s(now_s)
    may_go = record.preemptible and not record.daemon and not record.static
    spec = pack_pod(
        start_s,
        record.gpus,
        sum(cores),
        record.priority,
        record.checkpoint_s,
        record.protection_s,
        budget_of(record),
        record.batch_class,
        record.online,
        record.requirement,
        may_go,
    )
    live = pack_live(start_s, 0, holder.gpu_mask or 0, holder.status)
    return spec, live, pack_cores(*cores)


def _resources(
    holders: Sequence[_Holder],
    rows: Sequence[Rows],
    model: int,
    gpu_free: int,
    pack_cores: Callable[..., bytes],
    cores_free: Sequence[int],
) -> NodeResources:
    num_cores = sum(cores_free)
    pieces = [pack_node(gpu_free, num_cores, model, len(rows)), pack_cores(*cores_free)]
    for column in zip(*rows, strict=True):
        pieces += column
    return NodeResources(
        records=[holder.record for holder in holders],
        packed=b"".join(pieces),
        gpu_free=gpu_free,
        cores_free=np.array(cores_free, np.int16),
        num_gpus=gpu_free.bit_count(),
        num_cores=num_cores,
    )
