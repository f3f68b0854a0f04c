"""Who holds which GPUs and cores of a node: what is told, what follows from it, what can only be guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import add as add_up
from operator import gt, sub
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import NOMINATED, RUNNING, STARTING, TERMINATING
from flextopo.cluster.state.placement import best_level, is_aligned, place
from flextopo.cluster.topology.levels import NO_FIT
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.policies.serving.hardware import NO_MARKS, Hardware, Marks, held_by
from flextopo.policies.serving.records import PodRecord


@dataclass(slots=True, eq=False)
class Holder:
    """A pod with what it is known to hold; None = not known.

    `own_cores` is what a nominated pod gets of what is free: the rest is handed over. `handed` says whether
    others have to go before it gets its place.
    """

    record: PodRecord
    gpu_mask: int | None
    cores: tuple[int, ...] | None
    status: int
    own_cores: tuple[int, ...] = ()
    handed: bool = False


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
        kept: the same, of GPUs that the node does not offer either.
        asking: a pod that the nominated ones leave room for among what is free, if they find places as good.
    """

    hardware: Hardware
    allocatable: dict[str, int]
    records: Sequence[PodRecord]
    marks: Mapping[str, Marks]
    doomed: Collection[str] = ()
    numbers: Mapping[str, int] = field(default_factory=dict)
    blocked: Collection[int] = ()
    kept: Collection[int] = ()
    asking: PodRecord | None = None


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
class Free:
    """What nobody holds so far: a bit mask of GPUs, and cores by NUMA node."""

    gpus: int
    cores: list[int]


def hold(records: Sequence[PodRecord], facts: NodeFacts, width: int) -> tuple[Free, list[Holder]]:
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
    free, holders = Free((1 << server.num_gpus) - 1, cores_free), []
    for number in (*facts.blocked, *facts.kept):
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


def by_knowledge(
    holders: Sequence[Holder], hardware_known: bool
) -> tuple[list[Holder], list[Holder]]:
    """Return the pods of known placement, and the others."""
    known: list[Holder] = []
    guessed: list[Holder] = []
    for holder in holders:
        sure = hardware_known and holder.gpu_mask is not None and holder.cores is not None
        (known if sure else guessed).append(holder)
    return known, guessed


def _marks_of(record: PodRecord, facts: NodeFacts, names: Mapping[str, int]) -> tuple[Marks, bool]:
    """Return what is said of a pod: by annotation or claim, else by FlexTopo under its name.

    Returns:
        The numbers, and whether those of cores are CPUs, as kubelet numbers them; with none of them,
        whether it is told that it has none.
    """
    found = facts.marks.get(record.key)
    # A bare name is the pod's only where no other pod of the node is called so.
    if found is None and names[record.name] == 1:
        found = facts.marks.get(record.name)
    cores, gpus, in_shared_pool = found or NO_MARKS
    said = record.held
    if said.cores is not None:
        cores = said.cores
    if said.gpus is not None:
        gpus = said.gpus
    elif said.ids is not None:
        gpus = tuple(facts.numbers.get(one, -1) for one in said.ids)
    return Marks(cores, gpus), said.cores is not None or in_shared_pool


def _holder(record: PodRecord, facts: NodeFacts, names: Mapping[str, int], width: int) -> Holder:
    """Find out what a pod holds."""
    marks, are_cpus = _marks_of(record, facts, names)
    cores, gpus = marks.cores, marks.gpus
    status = RUNNING if record.running else STARTING
    if record.terminating or record.uid in facts.doomed:
        status = TERMINATING
    mask, held = held_by(facts.hardware, marks, width, are_cpus)
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
    return Holder(record, mask, held, status)


def by_zones(holders: Sequence[Holder], free: Free, hardware: Hardware) -> None:
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


def by_elimination(holders: Sequence[Holder], free: Free, lost: int) -> None:
    """Give the one pod whose GPUs are not known the only ones it can have."""
    missing = [holder for holder in holders if holder.gpu_mask is None]
    if len(missing) == 1 and not lost:
        (holder,) = missing
        if holder.record.gpus == free.gpus.bit_count():
            holder.gpu_mask, free.gpus = free.gpus, 0


def kept_back_of(facts: NodeFacts, num_cores: int) -> int:
    """Return the cores that the node does not offer to pods: kept for the system."""
    offered = facts.allocatable.get("cpu")
    return 0 if offered is None else max(num_cores - offered // 1000, 0)


def without_first(cores: list[int], count: int) -> list[int]:
    """Take cores from the first NUMA nodes, as kubelet's static policy reserves them."""
    left = []
    for here in cores:
        taken = min(here, count)
        left.append(here - taken)
        count -= taken
    return left


def nominate(
    records: Sequence[PodRecord],
    holders: Sequence[Holder],
    free: Free,
    facts: NodeFacts,
    cluster: ClusterFacts,
) -> list[Holder]:
    """Give pods that are nominated their places: what is free, or what others are about to give up.

    What a terminating pod hands over it holds no more. A pod that fits nowhere so far, because its
    victims have not been evicted yet, holds nothing and is left out.
    """
    ending = [holder for holder in holders if holder.status == TERMINATING]
    pending = [one for one in records if not one.node and (one.gpus or one.cores)]
    if facts.asking is None or not pending:
        return _plan_all(pending, free, ending, facts, cluster)
    usual = _plan_all(pending, *_copies(free, ending), facts, cluster)
    first, (rest, going) = Holder(facts.asking, None, None, NOMINATED), _copies(free, ending)
    makes_room = _plan(first, rest, [], facts, cluster)
    found = _plan_all(pending, rest, going, facts, cluster)
    if not makes_room or not _as_good(found, usual):
        return _plan_all(pending, free, ending, facts, cluster)
    _plan(first, free, [], facts, cluster)
    found = _plan_all(pending, free, ending, facts, cluster)
    free.gpus |= first.gpu_mask or 0
    free.cores = list(map(add_up, free.cores, first.own_cores))
    return found


def _copies(free: Free, ending: Sequence[Holder]) -> tuple[Free, list[Holder]]:
    """Return what a plan changes, to try one."""
    return replace(free, cores=list(free.cores)), [replace(one) for one in ending]


def _as_good(found: Sequence[Holder], usual: Sequence[Holder]) -> bool:
    """Say whether pods have places in one plan where they have them in another, and no later."""
    places = {holder.record.uid: holder for holder in found}
    return all(
        (mine := places.get(one.record.uid)) is not None and mine.handed <= one.handed
        for one in usual
    )


def _plan_all(
    pending: Sequence[PodRecord],
    free: Free,
    ending: Sequence[Holder],
    facts: NodeFacts,
    cluster: ClusterFacts,
) -> list[Holder]:
    """Give each pod a place in turn, of what is free if there is one."""
    found = []
    for record in pending:
        holder = Holder(record, None, None, NOMINATED)
        if _plan(holder, free, [], facts, cluster) or _plan(holder, free, ending, facts, cluster):
            found.append(holder)
    return found


def _plan(
    holder: Holder,
    free: Free,
    ending: Sequence[Holder],
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
    if level == NO_FIT or (not ending and not suits(models, model, record, level)):
        return False
    holder.gpu_mask, holder.cores = int(mask), tuple(taken.tolist())
    holder.own_cores, holder.handed = _take(holder, free, ending), bool(ending)
    return True


def suits(models: npt.NDArray[Any], model: int, pod: PodRecord, level: int) -> bool:
    """Say whether a level will do for a pod."""
    if level == NO_FIT or not pod.guaranteed:
        return level != NO_FIT
    return bool(is_aligned(level, best_level(models, model, pod.gpus, pod.cores)))


def _take(holder: Holder, free: Free, ending: Sequence[Holder]) -> tuple[int, ...]:
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


def guess(holder: Holder, free: Free, models: npt.NDArray[Any], model: int) -> None:
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
