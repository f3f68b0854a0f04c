"""One node as arrays: who holds which GPUs and cores, what is not known, what is free."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import add as add_up
from operator import attrgetter, gt, sub
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    NOMINATED,
    RUNNING,
    STARTING,
    TERMINATING,
)
from flextopo.cluster.state.placement import best_level, is_aligned, place
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.state.schema import LIVE_DTYPE, NEVER_S, NODE_DTYPE, POD_DTYPE
from flextopo.cluster.topology.levels import NO_FIT
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.policies.serving.hardware import NO_MARKS, Hardware, Marks, held_by
from flextopo.policies.serving.node_rows import pack_live, pack_node, pack_pod
from flextopo.policies.serving.objects import GPU
from flextopo.policies.serving.records import PodRecord, add

Cores = npt.NDArray[np.int16]

GRACE_S = 30
"""Kubernetes' grace period, for a pod whose deletion the watch has not shown yet."""
SOON_S = 120
"""One that is gone later is not waited for."""
OVERDUE_S = 60
"""A terminating pod that is still there so long after its time is not counted on any more."""


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

    def holding(self, uid: str) -> tuple[int, tuple[int, ...]] | None:
        """Return the bit mask of GPUs, and the cores by NUMA node, of a pod there; None = it is not."""
        records, packed, width = (
            self.counted.records,
            self.counted.packed,
            len(self.counted.cores_free),
        )
        row = next((i for i, record in enumerate(records) if record.uid == uid), None)
        if row is None:
            return None
        live_at = NODE_DTYPE.itemsize + 2 * width + len(records) * POD_DTYPE.itemsize
        live = np.frombuffer(packed, LIVE_DTYPE, 1, live_at + row * LIVE_DTYPE.itemsize)[0]
        cores_at = live_at + len(records) * LIVE_DTYPE.itemsize
        cores = np.frombuffer(packed, np.int16, width, cores_at + row * 2 * width)
        return int(live["gpu_mask"]), tuple(cores.tolist())

    @property
    def guessed(self) -> list[PodRecord]:
        """Return the pods of unknown placement."""
        return self.counted.records[len(self.sure.records) :]

    def resources(self, sure: bool) -> NodeResources:
        """Return what a view shows: what holds for sure, or what is true in number."""
        return self.sure if sure else self.counted


@dataclass(slots=True, eq=False)
class _Holder:
    """A pod with what it is known to hold; None = not known.

    `own_cores` is what a nominated pod gets of what is free: the rest is handed over.
    """

    record: PodRecord
    gpu_mask: int | None
    cores: tuple[int, ...] | None
    status: int
    own_cores: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class NodeFacts:
    """What the service was told of a node.

    Attributes:
        hardware: the kind of server.
        allocatable: what the node offers, in thousandths.
        records: pods bound to the node or nominated for it.
        marks: what FlexTopo says pods hold, by name.
        doomed: uids of pods that were chosen as victims a moment ago.
        numbers: GPU numbers by UUID, and by driver, pool and device.
        blocked: numbers of GPUs that nobody can be given, and no eviction frees.
    """

    hardware: Hardware
    allocatable: dict[str, int]
    records: Sequence[PodRecord]
    marks: Mapping[str, Marks]
    doomed: Collection[str] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    blocked: Collection[int] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ClusterFacts:
    """What it takes to say of a node what arrays say.

    Attributes:
        models: the compiled server models.
        width: NUMA nodes of the largest model, U.
        budget_of: index of a pod's disruption budget, -1 = none.
        now_s: Unix time.
    """

    models: npt.NDArray[Any]
    width: int
    budget_of: Callable[[PodRecord], int]
    now_s: int


@dataclass(slots=True)
class _Free:
    """What nobody holds so far: a bit mask of GPUs, and cores by NUMA node."""

    gpus: int
    cores: list[int]


def derive(facts: NodeFacts, cluster: ClusterFacts) -> NodeState:
    """Work out a node from its hardware, its pods and what is known of their placements.

    Returns:
        The state. Pods whose GPUs nobody knows get places where kubelet might have put them, so
        that counts are true.
    """
    hardware, server = facts.hardware, facts.hardware.server
    records = sorted(facts.records, key=attrgetter("importance"))
    records = [record for record in records if not record.finished]
    free, holders = _hold([record for record in records if record.node], facts, cluster.width)
    _by_zones(holders, free, hardware)
    offered = min(facts.allocatable.get(GPU, 0) // 1000, server.num_gpus)
    lost = min(server.num_gpus - offered, free.gpus.bit_count())
    _by_elimination(holders, free, lost)
    known, guessed = _by_knowledge(holders, hardware.known)
    unknown_gpus = lost + sum(h.record.gpus for h in guessed if h.gpu_mask is None)
    unknown_cores = sum(h.record.cores for h in guessed if h.cores is None)
    before = free.cores
    for holder in guessed:
        _guess(holder, free, cluster.models, hardware.model)
    for _ in range(lost):
        free.gpus &= free.gpus - 1
    kept_back = _kept_back(facts, server.num_cores)
    free.cores = _without_first(free.cores, kept_back)
    nominated = _nominate(records, [*known, *guessed], free, facts, cluster)
    sure_of = [*known, *nominated]
    everyone = [*sure_of, *guessed]
    rows = [_rows_of(holder, cluster) for holder in everyone]
    counted = sure = _resources(everyone, rows, hardware.model, free)
    if guessed or unknown_gpus or unknown_cores or kept_back or not hardware.known:
        # No NUMA node has fewer free cores than if all that nobody knows of were there.
        for holder in nominated:
            before = list(map(sub, before, holder.own_cores))
        least = [max(cores - unknown_cores - kept_back, 0) for cores in before]
        left = _Free(0 if unknown_gpus else free.gpus, least)
        sure = _resources(sure_of, rows[: len(sure_of)], hardware.model, left)
    online = sum([h.record.gpus for h in everyone if h.record.online])
    return NodeState(
        hardware=hardware,
        allocatable=facts.allocatable,
        requested=_requested(records),
        counted=counted,
        sure=sure,
        unknown_gpus=unknown_gpus,
        unknown_cores=unknown_cores,
        online_gpus=online,
        batch_gpus=sum([h.record.gpus for h in everyone]) - online,
        broken=_what_is_broken(holders, offered),
    )


def _requested(records: Sequence[PodRecord]) -> dict[str, int]:
    """Return what the pods bound to a node ask for, in thousandths; each is a pod, too."""
    total: dict[str, int] = {}
    for record in records:
        if record.node:
            add(total, record.requests)
            total["pods"] = total.get("pods", 0) + 1000
    return total


def _hold(
    records: Sequence[PodRecord], facts: NodeFacts, width: int
) -> tuple[_Free, list[_Holder]]:
    """Give pods what they are known to hold, the first where two claim it.

    Args:
        records: pods that are not finished, by descending importance.
        facts: of the node; names are told apart among all its pods.
        width: NUMA nodes of the largest model.

    Returns:
        What is free, and the pods that hold GPUs or cores, in the same order.
    """
    names = Counter([record.name for record in facts.records])
    server = facts.hardware.server
    cores_free = [*server.numa_cores, *[0] * (width - server.num_numa_nodes)]
    free, holders = _Free((1 << server.num_gpus) - 1, cores_free), []
    for number in facts.blocked:
        free.gpus &= ~(1 << facts.hardware.gpu_index.get(number, MAX_GPUS))
    for record in records:
        holder = _holder(record, facts, names, width)
        if record.held.shared and holder.gpu_mask is not None:
            # It has part of them: whoever else has the rest, evicting this one frees none.
            free.gpus &= ~holder.gpu_mask
            holder.gpu_mask = 0
        if holder.gpu_mask and holder.gpu_mask & ~free.gpus:
            holder.gpu_mask = None
        if holder.cores is not None and any(map(gt, holder.cores, free.cores)):
            holder.cores = None
        free.gpus &= ~(holder.gpu_mask or 0)
        if holder.cores is not None:
            free.cores = list(map(sub, free.cores, holder.cores))
        if record.gpus or holder.cores is None or any(holder.cores):
            holders.append(holder)
    return free, holders


def _by_knowledge(
    holders: Sequence[_Holder], hardware_known: bool
) -> tuple[list[_Holder], list[_Holder]]:
    """Return the pods of known placement, and the others."""
    known: list[_Holder] = []
    guessed: list[_Holder] = []
    for holder in holders:
        sure = hardware_known and holder.gpu_mask is not None and holder.cores is not None
        (known if sure else guessed).append(holder)
    return known, guessed


def _what_is_broken(holders: Sequence[_Holder], offered: int) -> str:
    """Say why a node is left out of decisions, empty = it is not."""
    if len(holders) >= MAX_PODS_PER_NODE:
        return f"{len(holders)} pods hold GPUs or cores; legal: below {MAX_PODS_PER_NODE}"
    in_use = sum(h.record.gpus for h in holders)
    # With a fault under a running pod, nobody knows what an eviction gives back.
    return f"pods hold {in_use} GPUs of {offered} that it offers" if in_use > offered else ""


def _marks_of(record: PodRecord, facts: NodeFacts, names: Mapping[str, int]) -> tuple[Marks, bool]:
    """Return what is said of a pod: by annotation or claim, else by FlexTopo under its name.

    Returns:
        The numbers, and whether those of cores are CPUs, as kubelet numbers them.
    """
    found = facts.marks.get(record.key)
    # A bare name is the pod's only where no other pod of the node is called so.
    if found is None and names[record.name] == 1:
        found = facts.marks.get(record.name)
    cores, gpus = found or NO_MARKS
    said = record.held
    if said.cores is not None:
        cores = said.cores
    if said.gpus is not None:
        gpus = said.gpus
    elif said.ids is not None:
        gpus = tuple(facts.numbers.get(one, -1) for one in said.ids)
    return Marks(cores, gpus), said.cores is not None


def _holder(record: PodRecord, facts: NodeFacts, names: Mapping[str, int], width: int) -> _Holder:
    """Find out what a pod holds."""
    (cores, gpus), are_cpus = _marks_of(record, facts, names)
    status = RUNNING if record.running else STARTING
    if record.terminating or record.uid in facts.doomed:
        status = TERMINATING
    mask, held = held_by(facts.hardware, Marks(cores, gpus), width, are_cpus)
    if held is not None and sum(held) > _rounded_up(record.cores, facts.hardware.threads):
        held = None  # more than it can have been given: the mark is of another time, or wrong
    if not record.gpus:
        mask = 0
    elif len(gpus) != record.gpus:
        mask = None
    if not facts.hardware.cores_located:
        held = (0,) * width
    elif not cores and not are_cpus and record.gpus and record.cores:
        # A pod without GPUs and pinned cores runs in the shared pool and blocks no NUMA node.
        held = None
    return _Holder(record, mask, held, status)


def _by_zones(holders: Sequence[_Holder], free: _Free, hardware: Hardware) -> None:
    """Give pods of which only the NUMA nodes are known any GPUs there: one is as good as another."""
    server = hardware.server
    for holder in holders:
        zones, record = holder.record.held.zones, holder.record
        if zones is None or sum(zone.gpus for zone in zones) != record.gpus:
            continue
        if any(not 0 <= zone.numa < server.num_numa_nodes for zone in zones):
            continue
        if holder.gpu_mask is None:
            mask = 0
            for zone in zones:
                here = [i for i, u in enumerate(server.gpu_numa) if u == zone.numa]
                here = [i for i in here if free.gpus >> i & 1][: zone.gpus]
                mask |= sum(1 << i for i in here)
            if mask.bit_count() == holder.record.gpus:
                holder.gpu_mask, free.gpus = mask, free.gpus & ~mask
        if holder.cores is None and sum(zone.cpus for zone in zones) == record.cores:
            cores = [0] * len(free.cores)
            for zone in zones:
                cores[zone.numa] += zone.cpus
            if not any(map(gt, cores, free.cores)):
                holder.cores, free.cores = tuple(cores), list(map(sub, free.cores, cores))


def _rounded_up(cpus: int, threads: int) -> int:
    """Return the CPUs of the whole cores that hold so many."""
    return -(-cpus // threads) * threads


def _by_elimination(holders: Sequence[_Holder], free: _Free, lost: int) -> None:
    """Give the one pod whose GPUs are not known the only ones it can have."""
    missing = [holder for holder in holders if holder.gpu_mask is None]
    if len(missing) == 1 and not lost:
        (holder,) = missing
        if holder.record.gpus == free.gpus.bit_count():
            holder.gpu_mask, free.gpus = free.gpus, 0


def _kept_back(facts: NodeFacts, num_cores: int) -> int:
    """Return the cores that the node does not offer to pods: kept for the system."""
    offered = facts.allocatable.get("cpu")
    return 0 if offered is None else max(num_cores - offered // 1000, 0)


def _without_first(cores: list[int], count: int) -> list[int]:
    """Take cores from the first NUMA nodes, as kubelet's static policy reserves them."""
    left = []
    for here in cores:
        taken = min(here, count)
        left.append(here - taken)
        count -= taken
    return left


def _nominate(
    records: Sequence[PodRecord],
    holders: Sequence[_Holder],
    free: _Free,
    facts: NodeFacts,
    cluster: ClusterFacts,
) -> list[_Holder]:
    """Give pods that are nominated their places: what is free, or what others are about to give up.

    What a terminating pod hands over it holds no more. A pod that fits nowhere so far, because its
    victims have not been evicted yet, holds nothing and is left out.
    """
    found = []
    ending = [holder for holder in holders if holder.status == TERMINATING]
    for record in records:
        if record.node or not (record.gpus or record.cores):
            continue
        holder = _Holder(record, None, None, NOMINATED)
        if _plan(holder, free, [], facts, cluster) or _plan(holder, free, ending, facts, cluster):
            found.append(holder)
    return found


def _plan(
    holder: _Holder,
    free: _Free,
    ending: Sequence[_Holder],
    facts: NodeFacts,
    cluster: ClusterFacts,
) -> bool:
    """Give a nominated pod a place of what is free and what some pods hand over, if there is one."""
    record, models, model = holder.record, cluster.models, facts.hardware.model
    gpus, cores = free.gpus, list(free.cores)
    for other in ending:
        gpus |= other.gpu_mask or 0
        cores = list(map(add_up, cores, other.cores or ()))
    taken = np.zeros(len(cores), np.int16)
    asked = (record.gpus, record.cores)
    level, mask = place(models, model, gpus, np.array(cores, np.int16), *asked, taken)
    if level == NO_FIT:
        return False
    guaranteed = record.requirement == TopologyRequirement.GUARANTEED
    if guaranteed and not ending and not is_aligned(level, best_level(models, model, *asked)):
        return False
    holder.gpu_mask, holder.cores = int(mask), tuple(taken.tolist())
    holder.own_cores = _take(holder, free, ending)
    return True


def _take(holder: _Holder, free: _Free, ending: Sequence[_Holder]) -> tuple[int, ...]:
    """Take what a pod was given from what is free, then from who hands over; return the former."""
    mask = holder.gpu_mask or 0
    free.gpus &= ~mask
    assert holder.cores is not None
    own = tuple(map(min, holder.cores, free.cores))
    free.cores = list(map(sub, free.cores, own))
    missing = list(map(sub, holder.cores, own))
    for other in ending:
        assert other.cores is not None
        other.gpu_mask = (other.gpu_mask or 0) & ~mask
        given = tuple(map(min, missing, other.cores))
        missing = list(map(sub, missing, given))
        other.cores = tuple(map(sub, other.cores, given))
    return own


def _guess(holder: _Holder, free: _Free, models: npt.NDArray[Any], model: int) -> None:
    """Give a pod GPUs and cores where kubelet might have."""
    record = holder.record
    if holder.gpu_mask is None and holder.cores is None:
        cores_free, taken = np.array(free.cores, np.int16), np.zeros(len(free.cores), np.int16)
        level, mask = place(models, model, free.gpus, cores_free, record.gpus, record.cores, taken)
        if level != NO_FIT:
            holder.gpu_mask, holder.cores = int(mask), tuple(taken.tolist())
            free.gpus, free.cores = free.gpus & ~int(mask), (cores_free - taken).tolist()
            return
    if free.gpus.bit_count() < record.gpus and not holder.gpu_mask:
        holder.gpu_mask = holder.gpu_mask or 0
        holder.cores = (0,) * len(free.cores)
        return
    if holder.gpu_mask is None:
        holder.gpu_mask = 0
        for _ in range(record.gpus):
            holder.gpu_mask |= free.gpus & -free.gpus
            free.gpus &= free.gpus - 1
    if holder.cores is None:
        left, cores = record.cores, []
        for free_here in free.cores:
            cores.append(min(left, free_here))
            left -= cores[-1]
        free.cores, holder.cores = list(map(sub, free.cores, cores)), tuple(cores)


Rows = tuple[bytes, bytes, bytes]
"""A pod's rows of POD_DTYPE and LIVE_DTYPE, and its (U,) int16 cores."""


def _rows_of(holder: _Holder, cluster: ClusterFacts) -> Rows:
    record, cores = holder.record, holder.cores
    assert cores is not None  # known or guessed by now
    start_s = cluster.now_s - record.age_s(cluster.now_s)
    may_go = record.preemptible and not record.daemon and not record.static
    spec = pack_pod(record, sum(cores), cluster.budget_of(record), record.online, may_go)
    gone_s = _gone_s(holder, cluster.now_s)
    live = pack_live(start_s, 0, holder.gpu_mask or 0, holder.status, gone_s)
    return spec, live, _pack_cores(cores)


def _gone_s(holder: _Holder, now_s: int) -> int:
    """Return when a terminating pod is gone; one that is long overdue may never be."""
    if holder.status != TERMINATING:
        return NEVER_S
    gone_s = holder.record.gone_s
    if gone_s is None:
        return now_s + GRACE_S
    return gone_s if -OVERDUE_S <= gone_s - now_s <= SOON_S else NEVER_S


def _pack_cores(cores: Sequence[int]) -> bytes:
    return struct.pack(f"{len(cores)}h", *cores)


def _resources(
    holders: Sequence[_Holder],
    rows: Sequence[Rows],
    model: int,
    free: _Free,
) -> NodeResources:
    num_cores = sum(free.cores)
    pieces = [pack_node(free.gpus, num_cores, model, len(rows)), _pack_cores(free.cores)]
    for column in zip(*rows, strict=True):
        pieces += column
    return NodeResources(
        records=[holder.record for holder in holders],
        packed=b"".join(pieces),
        gpu_free=free.gpus,
        cores_free=np.array(free.cores, np.int16),
        num_gpus=free.gpus.bit_count(),
        num_cores=num_cores,
    )
