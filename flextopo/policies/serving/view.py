"""Some nodes of the cache as a cluster of their own, private to one decision."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.state.arrays import (
    MAX_PODS_PER_NODE,
    PENDING,
    SCRATCH_ROWS,
    TERMINATING,
    Cluster,
    cluster_sizes,
)
from flextopo.cluster.state.candidates import freed
from flextopo.cluster.state.cluster_state import ClusterState, link_groups
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.gang_seats import gang_seats
from flextopo.cluster.state.loss import compile_costs
from flextopo.cluster.state.placement import alignment_level, best_level, is_aligned
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import (
    LIVE_DTYPE,
    NEVER_PLACED_S,
    NEVER_S,
    NODE_DTYPE,
    POD_DTYPE,
    TOTALS_DTYPE,
)
from flextopo.cluster.state.storage import Kind, allocate_arrays, names_of
from flextopo.cluster.topology.levels import NO_FIT, NetworkLevel
from flextopo.cluster.topology.model import MODEL_DTYPE, ServerModel
from flextopo.policies.serving.node_rows import WHOLE_NODE, joined, pack_live, pack_pod
from flextopo.policies.serving.node_state import OVERDUE_S, Group, NodeResources, NodeState
from flextopo.policies.serving.records import PodRecord

Bytes = npt.NDArray[np.uint8]

NODE_SIZE, POD_SIZE, LIVE_SIZE = NODE_DTYPE.itemsize, POD_DTYPE.itemsize, LIVE_DTYPE.itemsize

COSTS = compile_costs(LossWeights(), grace_s=30, restart_s=60)


class Beside(NamedTuple):
    """Which pods are in the rows of a view; told here as well, since a selector may write to its arrays.

    Fields: `asking`, the preemptors, which come first; `last`, members elsewhere of PodGroups; `begins`, (n + 1,) the
    row at which each node's pods begin, and that of `last`.
    """

    asking: Sequence[PodRecord]
    last: Sequence[PodRecord]
    begins: Sequence[int]


class Elsewhere(NamedTuple):
    """The nodes of the cluster beyond those of a view.

    Fields: `rows`, (N,) NODE_DTYPE, all nodes; `inside`, which of these are the view's; `network`, (N, 3) int32,
    see `Cluster.network`, the view's first.
    """

    rows: npt.NDArray[Any]
    inside: Sequence[int]
    network: npt.NDArray[np.int32]


class ClusterView(ClusterState):
    """Nodes of a decision as selectors see them; row 0 of the pods is the preemptor.

    The other members of a gang are in the rows behind that of its leader.

    Nothing is shared with the cache but the rows behind `whole`, which do not change within a selector's time, so
    that one that is given up on may go on reading. Nothing is started here either: `arrays.by_free` is empty.

    Attributes:
        node_names: (n,) names of the nodes.
        states: (n,) where each came from.
        num_preemptors: members of the gang, 1 for a pod alone.
        out_of_range: a policy that left the decision to its rule says here why; see `InRange`.
    """

    def __init__(
        self,
        arrays: Cluster,
        models: Sequence[ServerModel],
        node_names: Sequence[str],
        states: Sequence[NodeState],
        beside: Beside,
        worst_case: bool,
        elsewhere: Elsewhere,
    ) -> None:
        super().__init__(arrays, tuple(models), COSTS)
        self.node_names = node_names
        self.states = states
        self._elsewhere = elsewhere
        self.num_preemptors = len(beside.asking)
        self.out_of_range: list[str] = []
        self._beside, self._worst_case = beside, worst_case
        self._records: dict[int, PodRecord] = {}

    @cached_property
    def whole(self) -> Cluster:
        """Return the arrays with all nodes of the cluster behind those of the view.

        Features that tell of the whole cluster need them, and rules do not.
        """
        rows, inside, network = self._elsewhere
        c, others = self.arrays, np.ones(len(rows), np.bool_)
        others[inside] = False
        nodes = np.concatenate([c.nodes.view(WHOLE_NODE), rows.view(WHOLE_NODE)[others]])
        return c._replace(nodes=nodes.view(NODE_DTYPE), network=network)

    @cached_property
    def records(self) -> list[PodRecord]:
        """Return the (P,) pods by row; the first is the preemptor."""
        here = (state.resources(self._worst_case).records for state in self.states)
        return list(chain(self._beside.asking, *here, self._beside.last))

    def record(self, pod: int) -> PodRecord:
        """Return a pod without reading all the others, which `records` does."""
        found = self._records.get(pod)
        if found is None:
            found = self._records[pod] = self._find_record(pod)
        return found

    def _find_record(self, pod: int) -> PodRecord:
        asking, last, begins = self._beside
        if pod < len(asking):
            return asking[pod]
        node = bisect_right(begins, pod) - 1
        if node == len(self.states):
            return last[pod - begins[-1]]
        return self.states[node].resources(self._worst_case).records[pod - begins[node]]

    def name(self, pod: int) -> str:
        """Return a pod's `namespace/name`."""
        return self.record(pod).key

    @cached_property
    def preemptor(self) -> Pod:
        """Return the pending pod."""
        return self.pod(0)

    def fits(self, node: int, gone: Collection[int], aligned: bool) -> bool:
        """Say whether the preemptor fits on a node without some of its pods.

        Args:
            node: index of the node.
            gone: rows of the pods.
            aligned: behind the guaranteed filter.

        Returns:
            False also where one of the pods is not on the node.
        """
        begin, end = self._beside.begins[node : node + 2]
        end = min(end, begin + MAX_PODS_PER_NODE - 1)  # as bits; nodes with more are left out
        slots = 0
        for row in gone:
            if not begin <= row < end:
                return False
            slots |= 1 << row - begin
        c, asked = self.arrays, self.preemptor
        return bool(_fits_without(c, node, begin, slots, asked.gpus, asked.cores, aligned))

    def seat(self, candidate: Candidate, victims: Sequence[int], aligned: bool) -> Candidate | None:
        """Seat a gang on the nodes of a candidate without some pods.

        Args:
            candidate: says which member sits on which node.
            victims: rows of pods on these nodes.
            aligned: behind the guaranteed filter.

        Returns:
            None if a member does not fit, or they lie further apart than they may.

        Raises:
            PodError: a member has no seat, or one of the pods is on none of the nodes.
        """
        nodes = {seat.pod: seat.node for seat in candidate.seats}
        found = self.gang_candidate(self.preemptor, nodes, victims, aligned)
        return found if found and (not aligned or self.is_aligned(found, self.preemptor)) else None

    def leaving(self, candidate: Candidate) -> list[int]:
        """Return the rows of the terminating pods whose resources a candidate counts on."""
        if candidate.seats:
            return self._leaving_gang(candidate)
        if not self.states[candidate.node].going:
            return []
        wait_s = int(self.costs.grace_s) if candidate.victims else candidate.wait_s
        slots = self.leaving_slots(candidate.node, wait_s) if candidate.wait_s else 0
        if not slots:
            return []
        rows = self.arrays.node_pods[candidate.node]
        return [int(rows[slot]) for slot in range(len(rows)) if slots >> slot & 1]

    def _leaving_gang(self, candidate: Candidate) -> list[int]:
        members = [seat.pod for seat in candidate.seats]
        nodes = {seat.pod: seat.node for seat in candidate.seats}
        aligned = self.is_aligned(candidate, self.preemptor)
        placed = gang_seats(self, members, nodes, candidate.victims, aligned)
        rows = self.arrays.node_pods
        gone = [
            int(rows[node, slot])
            for node, slots in (placed.slots.items() if placed else ())
            for slot in range(rows.shape[1])
            if slots >> slot & 1
        ]
        return [row for row in gone if row not in candidate.victims]

    def victims_of(self, candidate: Candidate) -> list[PodRecord]:
        """Return a candidate's victims by descending importance."""
        found = [self.record(row) for row in candidate.victims]
        return sorted(found, key=lambda record: record.importance)


@dataclass(frozen=True, slots=True, eq=False)
class Surroundings:
    """What a view says beyond its nodes.

    Attributes:
        models: the server models.
        table: the same, compiled.
        pdb_left: disruptions that each budget still allows.
        now_s: Unix time.
        totals: a row of TOTALS_DTYPE for the whole cluster, in bytes.
        rows: (N,) NODE_DTYPE, all nodes of the cluster, and which of these are the view's.
        groups: says which of some PodGroups stop when they lose too many members; None = there are none.
    """

    models: Sequence[ServerModel]
    table: npt.NDArray[Any]
    pdb_left: Sequence[int]
    now_s: int
    totals: bytes
    rows: tuple[npt.NDArray[Any], Sequence[int]]
    groups: Callable[[Iterable[str]], Mapping[str, Group]] | None


@dataclass(frozen=True, slots=True, eq=False)
class Together:
    """What a view says of a gang beyond its leader.

    Attributes:
        others: its other members.
        network: (n, 3) int32, where the nodes of the view hang; see `Cluster.network`.
        whole: (n + m, 3) the same with all other nodes of the cluster behind them.
        required: level of the network within one part of which all members must lie.
        preferred: within one part of which they lose no speed.
    """

    others: Sequence[PodRecord]
    network: npt.NDArray[np.int32]
    whole: npt.NDArray[np.int32]
    required: NetworkLevel
    preferred: NetworkLevel


def build_view(
    preemptor: PodRecord,
    nodes: Mapping[str, NodeState],
    around: Surroundings,
    *,
    worst_case: bool,
    gang: Together | None = None,
) -> ClusterView:
    """Build the view of a decision.

    Args:
        preemptor: the pending pod.
        nodes: the nodes it may go to, by name.
        around: the rest of the cluster.
        worst_case: take what is free wherever the pods of unknown placement are, and let none of
            them be a victim: for claims of alignment.
        gang: of which the preemptor is the leader, None for a pod alone.

    Returns:
        The view; the time of the copies grows with the pods on `nodes` alone.
    """
    states = list(nodes.values())
    parts = [state.sure if worst_case else state.counted for state in states]
    asking = [preemptor, *(gang.others if gang else ())]
    met = {group for part in parts for _, group in part.grouped} if around.groups else ()
    groups = around.groups(sorted(met)) if around.groups and met else {}
    members = [
        (group, row, state)
        for group in groups
        for name, row, state in groups[group].members
        if name not in nodes
    ]
    elsewhere = [state.counted.records[row] for _, row, state in members]
    width, n = len(parts[0].cores_free), len(states)
    # Whoever preempts counts as online, and is nobody's victim while it is pending.
    packed = [bytes([len(asking)])]
    packed += [pack_pod(pod, pod.cores, -1, 1, 1) for pod in asking]
    since_s = [pod.created_s or around.now_s for pod in asking]
    packed += [pack_live(NEVER_PLACED_S, at_s, 0, PENDING, NEVER_S) for at_s in since_s]
    packed.append(bytes(2 * width * len(asking)))
    packed += [resources.packed for resources in parts]
    packed += [piece for _, row, state in members for piece in _pod_rows(state.counted, row, width)]
    everything = joined(packed, np.uint8)
    of_pods = everything.size - 1 - n * (NODE_SIZE + 2 * width)
    num_pods = of_pods // (POD_SIZE + LIVE_SIZE + 2 * width)
    c = _no_cluster()._replace(
        models=around.table,
        nodes=np.empty(n, NODE_DTYPE),
        # The rest is filled in at once.
        node_pods=np.empty((n, MAX_PODS_PER_NODE), np.int32),
        cores_free=np.empty((n, width), np.int16),
        pod_cores=np.empty((num_pods, width), np.int16),
        pods=np.empty(num_pods, POD_DTYPE),
        live=np.empty(num_pods, LIVE_DTYPE),
        pdb_left=np.array(around.pdb_left, np.int64),
        totals=joined([around.totals], TOTALS_DTYPE),
        scratch=np.empty((SCRATCH_ROWS, width), np.int16),
    )
    if gang:
        sizes = cluster_sizes(around.table, n, num_pods, 0, hosts=n, numa_nodes=width)
        given = {name: getattr(c, name) for name in names_of(Cluster, Kind.GIVEN, Kind.STATE)}
        c = allocate_arrays(Cluster, sizes, models=around.table, network=gang.network, **given)
    filled = tuple(map(_as_bytes, (c.nodes, c.cores_free, c.pods, c.live, c.pod_cores)))
    begins = np.empty(n + 1, np.int64)
    _unpack(c, everything, filled, begins)
    if gang:
        c.pods[: len(asking)]["required_tier"] = gang.required
        c.pods[: len(asking)]["preferred_tier"] = gang.preferred
    beside = Beside(asking, elsewhere, begins.tolist())
    others = Elsewhere(*around.rows, gang.whole if gang else c.network)
    view = ClusterView(c, around.models, list(nodes), states, beside, worst_case, others)
    if groups or gang:
        last = enumerate((group for group, *_ in members), num_pods - len(members))
        _fill_groups(view, chain(_grouped(parts, len(asking)), last), groups)
    return view


def _pod_rows(resources: NodeResources, row: int, width: int) -> Iterator[bytes]:
    """Return what `packed` says of one pod."""
    at, num_pods = NODE_SIZE + 2 * width, len(resources.records)
    for size in (POD_SIZE, LIVE_SIZE, 2 * width):
        yield resources.packed[at + row * size : at + (row + 1) * size]
        at += num_pods * size


def _as_bytes(rows: npt.NDArray[Any]) -> Bytes:
    found: Bytes = rows.view(np.uint8).reshape(-1)
    return found


@kernel
def _fits_without(
    c: Cluster, node: int, begin: int, slots: int, gpus: int, cores: int, aligned: bool
) -> bool:
    """Say whether so many GPUs and cores fit on a node without the pods in some places."""
    model, cores_free = c.nodes[node]["model"], c.scratch[0]
    gpu_free = freed(c, node, 0, cores_free)
    while slots != 0:  # not by `node_pods`, which a selector may have written to
        pod = begin + lowest_bit(slots)
        slots &= slots - 1
        gpu_free |= c.live[pod]["gpu_mask"]
        for u in range(cores_free.shape[0]):
            cores_free[u] += c.pod_cores[pod, u]
    level = alignment_level(c.models, model, gpu_free, cores_free, gpus, cores)
    if level == NO_FIT or not aligned:
        return bool(level != NO_FIT)
    return bool(is_aligned(level, best_level(c.models, model, gpus, cores)))


@cache
def _no_cluster() -> Cluster:
    """Return a cluster of nothing, which lacks all that a pod alone does not need.

    Nobody asks which nodes of a view have how many free GPUs, either.
    """
    nobody = np.zeros(0, MODEL_DTYPE)
    sizes = cluster_sizes(nobody, 0, 0, 0, numa_nodes=1)
    return allocate_arrays(Cluster, sizes, models=nobody, by_free=np.zeros((0, 0), np.int64))


@inlined
def _copy(packed: Bytes, at: int, size: int, out: Bytes, to: int) -> int:
    """Copy `size` bytes, and return where the next ones are."""
    for i in range(size):
        out[to + i] = packed[at + i]
    return at + size


@kernel
def _unpack(
    c: Cluster,
    packed: Bytes,
    filled: tuple[Bytes, ...],
    begins: npt.NDArray[np.int64],
) -> None:
    """Fill in the arrays, given as bytes too: preemptors, nodes with their pods, members elsewhere.

    The first byte says how many preemptors there are. `begins` gets the row at which each node's pods begin, and
    behind the last that of what is elsewhere.

    Members elsewhere are charged for, and on no node. A pod that should be gone by now and is still there
    is gone in a second, or never if that was long ago: nodes are worked out when something happens there.
    """
    nodes, cores_free, pods, live, pod_cores = filled
    width, last, now_s = 2 * c.cores_free.shape[1], c.nodes.shape[0], c.totals[0]["now_s"]
    at, row, node = 1, 0, -1
    while node < last or row < c.pods.shape[0]:
        here = int(packed[0]) if node < 0 else 1
        if 0 <= node < last:
            at = _copy(packed, at, NODE_SIZE, nodes, node * NODE_SIZE)
            at = _copy(packed, at, width, cores_free, node * width)
            here = c.nodes[node]["num_pods"]
            for slot in range(c.node_pods.shape[1]):
                c.node_pods[node, slot] = row + slot if slot < here else -1
        at = _copy(packed, at, here * POD_SIZE, pods, row * POD_SIZE)
        at = _copy(packed, at, here * LIVE_SIZE, live, row * LIVE_SIZE)
        at = _copy(packed, at, here * width, pod_cores, row * width)
        for pod in range(row, row + here):
            c.pods[pod]["next_member"] = pod  # without a PodGroup it is its own ring
            if 0 <= node < last:
                c.live[pod]["node"] = node
            late_s = now_s - c.live[pod]["next_s"]
            if c.live[pod]["status"] == TERMINATING and late_s >= 0:
                c.live[pod]["next_s"] = now_s + 1 if late_s <= OVERDUE_S else NEVER_S
        row, node = row + here, node + 1
        if node <= last:
            begins[node] = row


def _grouped(parts: Sequence[NodeResources], first: int) -> Iterator[tuple[int, str]]:
    """Yield the rows of those pods on the nodes that are in a PodGroup, and which; `first` is a row, too."""
    for part in parts:
        for row, group in part.grouped:
            yield first + row, group
        first += len(part.records)


def _fill_groups(
    view: ClusterView, grouped: Iterable[tuple[int, str]], groups: Mapping[str, Group]
) -> None:
    """Number the PodGroups and make each a ring; the preemptors are one of their own."""
    c, asking = view.arrays, view.num_preemptors
    numbers = {group: number for number, group in enumerate(groups)}
    found = [
        (row, numbers[group], groups[group].least) for row, group in grouped if group in groups
    ]
    if found:
        rows, of, least = map(list, zip(*found, strict=True))
        c.pods["group"][rows], c.pods["min_members"][rows] = of, least
    if asking > 1:
        c.pods["group"][:asking] = len(numbers)
    if found or asking > 1:
        link_groups(c)
