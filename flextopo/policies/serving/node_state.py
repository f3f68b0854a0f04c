"""One node as arrays: its pods with what they hold, and what is free, for sure and in number."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, sub
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    TERMINATING,
)
from flextopo.cluster.state.schema import LIVE_DTYPE, NEVER_S, NODE_DTYPE, POD_DTYPE
from flextopo.policies.serving.hardware import Hardware
from flextopo.policies.serving.holders import (
    ClusterFacts,
    Free,
    Holder,
    NodeFacts,
    by_elimination,
    by_knowledge,
    by_zones,
    guess,
    hold,
    kept_back_of,
    nominate,
    without_first,
)
from flextopo.policies.serving.node_rows import pack_live, pack_node, pack_pod
from flextopo.policies.serving.objects import GPU
from flextopo.policies.serving.records import PodRecord, add, together

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
        grouped: the pods that are in a PodGroup: the row of each, and which.
    """

    records: list[PodRecord]
    packed: bytes
    gpu_free: int
    cores_free: Cores
    num_gpus: int
    num_cores: int
    grouped: list[tuple[int, str]]

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
        requested: what all its pods ask for, in thousandths; those that are nominated for what they ask for
            beyond `handed`.
        handed: what of that others leave them who are about to go.
        going: uids of these.
        counted: all pods that hold resources, the known ones first. Those of unknown placement are
            where kubelet might have put them: what is free is true in number alone.
        sure: the pods of known placement, and what is free wherever the others are; the same object
            where every placement is known.
        unknown_gpus: GPUs held by pods or faults nobody knows where.
        unknown_cores: cores held nobody knows where.
        online_gpus: GPUs held by online pods.
        batch_gpus: GPUs held by other pods.
        broken: why the node is left out of decisions, empty = it is not.
        row: of the node in `NodeTable`, -1 where it is not in there as it stands here.
        alignments: what was worked out for pods by their GPUs and cores, see `Room.alignment`.
    """

    hardware: Hardware
    allocatable: dict[str, int]
    requested: dict[str, int]
    handed: dict[str, int]
    going: frozenset[str]
    counted: NodeResources
    sure: NodeResources
    unknown_gpus: int
    unknown_cores: int
    online_gpus: int
    batch_gpus: int
    broken: str
    row: int = -1
    alignments: dict[tuple[int, int], tuple[bool, int, int]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Say whether every placement on the node is known."""
        return self.hardware.known and not self.unknown_gpus and not self.unknown_cores

    def holding(self, uid: str) -> tuple[int, tuple[int, ...]] | None:
        """Return the bit mask of GPUs, and the cores by NUMA node, of a pod there; None = it is not."""
        for record, (gpus, cores, _) in zip(self.counted.records, self.holdings(), strict=True):
            if record.uid == uid:
                return gpus, cores
        return None

    def holdings(self) -> Iterator[tuple[int, tuple[int, ...], int]]:
        """Yield the bit mask of GPUs, the cores by NUMA node and the status of each pod, in order."""
        packed, count = self.counted.packed, len(self.counted.records)
        width = len(self.counted.cores_free)
        live_at = NODE_DTYPE.itemsize + 2 * width + count * POD_DTYPE.itemsize
        cores_at = live_at + count * LIVE_DTYPE.itemsize
        lives = np.frombuffer(packed, LIVE_DTYPE, count, live_at)
        cores = np.frombuffer(packed, np.int16, count * width, cores_at).reshape(count, width)
        for live, here in zip(lives, cores.tolist(), strict=True):
            yield int(live["gpu_mask"]), tuple(here), int(live["status"])

    @property
    def guessed(self) -> list[PodRecord]:
        """Return the pods of unknown placement."""
        return self.counted.records[len(self.sure.records) :]

    def resources(self, sure: bool) -> NodeResources:
        """Return what a view shows: what holds for sure, or what is true in number."""
        return self.sure if sure else self.counted


def derive(facts: NodeFacts, cluster: ClusterFacts) -> NodeState:
    """Work out a node from its hardware, its pods and what is known of their placements.

    Returns:
        The state. Pods whose GPUs nobody knows get places where kubelet might have put them, so
        that counts are true.
    """
    hardware, server = facts.hardware, facts.hardware.server
    records = sorted(facts.records, key=attrgetter("importance"))
    records = [record for record in records if not record.finished]
    free, holders = hold([record for record in records if record.node], facts, cluster.width)
    by_zones(holders, free, hardware)
    offered = min(facts.allocatable.get(GPU, 0) // 1000, server.num_gpus)
    lost = max(server.num_gpus - offered - len(facts.kept), 0)
    lost = min(lost, free.gpus.bit_count())
    by_elimination(holders, free, lost)
    known, guessed = by_knowledge(holders, hardware.known)
    unknown_gpus = lost + sum(h.record.gpus for h in guessed if h.gpu_mask is None)
    unknown_cores = sum(h.record.cores for h in guessed if h.cores is None)
    before = free.cores
    for holder in guessed:
        guess(holder, free, cluster.models, hardware.model)
    for _ in range(lost):
        free.gpus &= free.gpus - 1
    kept_back = kept_back_of(facts, server.num_cores)
    free.cores = without_first(free.cores, kept_back)
    nominated = nominate(records, [*known, *guessed], free, facts, cluster)
    sure_of = [*known, *nominated]
    everyone = [*sure_of, *guessed]
    rows = [_rows_of(holder, cluster) for holder in everyone]
    counted = sure = _resources(everyone, rows, hardware.model, free)
    if guessed or unknown_gpus or unknown_cores or kept_back or not hardware.known:
        # No NUMA node has fewer free cores than if all that nobody knows of were there.
        for holder in nominated:
            before = list(map(sub, before, holder.own_cores))
        least = [max(cores - unknown_cores - kept_back, 0) for cores in before]
        left = Free(0 if unknown_gpus else free.gpus, least)
        sure = _resources(sure_of, rows[: len(sure_of)], hardware.model, left)
    asked = _requested(records, facts.doomed)
    online = sum([h.record.gpus for h in everyone if h.record.online])
    return NodeState(
        hardware=hardware,
        allocatable=facts.allocatable,
        requested=asked.total,
        handed=asked.handed,
        going=asked.going,
        counted=counted,
        sure=sure,
        unknown_gpus=unknown_gpus,
        unknown_cores=unknown_cores,
        online_gpus=online,
        batch_gpus=sum([h.record.gpus for h in everyone]) - online,
        broken=_what_is_broken(holders, len(everyone), offered),
    )


class _Requested(NamedTuple):
    """What pods ask for, see `NodeState`."""

    total: dict[str, int]
    handed: dict[str, int]
    going: frozenset[str]


def _requested(records: Sequence[PodRecord], doomed: Collection[str]) -> _Requested:
    """Return what the pods of a node ask for, those that are nominated among them; each is a pod, too."""
    total = together([record for record in records if record.node])
    to_come = together([record for record in records if not record.node])
    going = [one for one in records if one.node and (one.terminating or one.uid in doomed)]
    left = together(going)
    handed = {name: min(amount, left.get(name, 0)) for name, amount in to_come.items()}
    add(total, {name: amount - handed[name] for name, amount in to_come.items()})
    return _Requested(total, handed, frozenset(one.uid for one in going))


def _what_is_broken(holders: Sequence[Holder], rows: int, offered: int) -> str:
    """Say why a node is left out of decisions, empty = it is not."""
    if rows >= MAX_PODS_PER_NODE:
        return f"{rows} pods hold GPUs or cores, or are to; legal: below {MAX_PODS_PER_NODE}"
    in_use = sum(h.record.gpus for h in holders)
    # With a fault under a running pod, nobody knows what an eviction gives back.
    return f"pods hold {in_use} GPUs of {offered} that it offers" if in_use > offered else ""


Rows = tuple[bytes, bytes, bytes]
"""A pod's rows of POD_DTYPE and LIVE_DTYPE, and its (U,) int16 cores."""


def _rows_of(holder: Holder, cluster: ClusterFacts) -> Rows:
    record, cores = holder.record, holder.cores
    assert cores is not None  # known or guessed by now
    start_s = cluster.now_s - record.age_s(cluster.now_s)
    may_go = record.preemptible and not record.daemon and not record.static
    spec = pack_pod(record, sum(cores), cluster.budget_of(record), record.online, may_go)
    gone_s = _gone_s(holder, cluster.now_s)
    live = pack_live(start_s, 0, holder.gpu_mask or 0, holder.status, gone_s)
    return spec, live, _pack_cores(cores)


def _gone_s(holder: Holder, now_s: int) -> int:
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
    holders: Sequence[Holder],
    rows: Sequence[Rows],
    model: int,
    free: Free,
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
        grouped=[(row, h.record.group) for row, h in enumerate(holders) if h.record.group],
    )


class Group(NamedTuple):
    """A PodGroup that stops when it loses too many members.

    Fields: `members`, each a node, the pod's row there and the node's state; `least`, how many have to run, or all
    there are if that is fewer.
    """

    members: list[tuple[str, int, NodeState]]
    least: int
