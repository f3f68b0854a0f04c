"""Some nodes of the cache as a cluster of their own, private to one decision."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import (
    LIVE_DTYPE,
    MAX_PODS_PER_NODE,
    NEVER_PLACED_S,
    NODE_DTYPE,
    PENDING,
    POD_DTYPE,
    TOTALS_DTYPE,
    Cluster,
)
from flextopo.cluster.kernels import kernel
from flextopo.cluster.loss import LossWeights, compile_costs
from flextopo.cluster.placement import (
    NO_FIT,
    alignment_level,
    best_level,
    is_aligned,
)
from flextopo.cluster.pods import Pod
from flextopo.cluster.selector import Candidate
from flextopo.cluster.server_model import ServerModel
from flextopo.cluster.state import ClusterState, link_groups
from flextopo.policies.serving.node_rows import joined, pack_live, pack_pod
from flextopo.policies.serving.node_state import NodeState, Outlook
from flextopo.policies.serving.records import PodRecord

Groups = Mapping[str, Sequence[tuple[NodeState, int]]]
"""PodGroup to its members, each a node's state and the pod's row there."""

COSTS = compile_costs(LossWeights(), grace_s=30, restart_s=60)


class ClusterView(ClusterState):
    """Nodes of a decision as selectors see them; row 0 of the pods is the preemptor.

    Nothing is shared with the cache, so a selector that is given up on may go on reading. Nothing is
    started here either: `arrays.by_free` is empty.

    Attributes:
        node_names: (n,) names of the nodes.
        states: (n,) where each came from.
        records: (P,) pods by row; the first is the preemptor.
        whole: the arrays with all nodes of the cluster behind those of the view, for features that
            tell of the whole cluster.
    """

    def __init__(
        self,
        arrays: Cluster,
        models: Sequence[ServerModel],
        node_names: Sequence[str],
        states: Sequence[NodeState],
        records: Sequence[PodRecord],
        whole: Cluster,
    ) -> None:
        super().__init__(arrays, tuple(models), COSTS)
        self.node_names = node_names
        self.states = states
        self.records = records
        self.whole = whole
        self._held: dict[int, dict[int, tuple[int, npt.NDArray[np.int16]]]] = {}

    def name(self, pod: int) -> str:
        """Return a pod's `namespace/name`."""
        return self.records[pod].key

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
        c, asked = self.arrays, (self.preemptor.gpus, self.preemptor.cores)
        held, model = self._held_on(node), int(c.nodes[node]["model"])
        gpu_free, cores_free = int(c.nodes[node]["gpu_free"]), c.cores_free[node]
        for row in set(gone):
            if row not in held:
                return False
            gpu_free |= held[row][0]
            cores_free = cores_free + held[row][1]
        level = alignment_level(c.models, model, gpu_free, cores_free, *asked)
        if level == NO_FIT or not aligned:
            return bool(level != NO_FIT)
        return bool(is_aligned(level, best_level(c.models, model, *asked)))

    def _held_on(self, node: int) -> dict[int, tuple[int, npt.NDArray[np.int16]]]:
        """Return the GPUs and cores that each pod on a node holds, by row."""
        found = self._held.get(node)
        if found is None:
            c = self.arrays
            rows = c.node_pods[node, : c.nodes[node]["num_pods"]]
            holdings = zip(c.live["gpu_mask"][rows].tolist(), c.pod_cores[rows], strict=True)
            found = self._held[node] = dict(zip(rows.tolist(), holdings, strict=True))
        return found

    def victims_of(self, candidate: Candidate) -> list[PodRecord]:
        """Return a candidate's victims by descending importance."""
        found = [self.records[row] for row in candidate.victims]
        return sorted(found, key=lambda record: record.importance)


def build_view(
    preemptor: PodRecord,
    nodes: Mapping[str, NodeState],
    *,
    models: Sequence[ServerModel],
    table: npt.NDArray[Any],
    worst_case: bool,
    pdb_left: Sequence[int],
    totals: Mapping[str, int],
    others: npt.NDArray[Any],
    groups: Groups,
) -> ClusterView:
    """Build the view of a decision.

    Args:
        preemptor: the pending pod.
        nodes: the nodes it may go to, by name.
        models: the server models.
        table: the same, compiled.
        worst_case: take what is free wherever the pods of unknown placement are, and let none of
            them be a victim: for claims of alignment.
        pdb_left: disruptions that each budget still allows.
        totals: fields of TOTALS_DTYPE for the whole cluster.
        others: (m,) NODE_DTYPE, all other nodes of the cluster.
        groups: PodGroups that stop when they lose a member.

    Returns:
        The view; the time of the copies grows with the pods on `nodes` alone.
    """
    states = list(nodes.values())
    outlooks = [state.outlook(worst_case) for state in states]
    records = [preemptor]
    for outlook in outlooks:
        records += outlook.records
    members = _members_elsewhere(records, states, groups)
    records += [state.counted.records[row] for state, row in members]
    rows = [outlook.node for outlook in outlooks]
    whole = joined([*rows, others.view(np.uint8)], NODE_DTYPE)
    c = Cluster(
        models=table,
        nodes=whole[: len(states)],
        node_pods=np.empty((len(states), MAX_PODS_PER_NODE), np.int32),
        by_free=np.zeros((0, 0), np.int64),
        pdb_left=np.array(pdb_left, np.int64),
        totals=np.zeros(1, TOTALS_DTYPE),
        scratch=np.zeros((2, len(outlooks[0].cores_free)), np.int16),
        **_pods(preemptor, totals["now_s"], outlooks, members),
    )
    _seat(c.nodes, c.node_pods, c.pods, c.live)
    if groups:
        _fill_groups(c, records, groups)
    for name, value in totals.items():
        c.totals[0][name] = value
    return ClusterView(c, models, list(nodes), states, records, c._replace(nodes=whole))


def _pods(
    preemptor: PodRecord,
    now_s: int,
    outlooks: Sequence[Outlook],
    members: Sequence[tuple[NodeState, int]],
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of the preemptor, the pods on the nodes, and group members elsewhere."""
    width = len(outlooks[0].cores_free)
    spec = pack_pod(
        0, preemptor.gpus, preemptor.cores, preemptor.priority, 0, 0, -1, 1,
        preemptor.requirement, 1,
    )  # fmt: skip
    live = pack_live(NEVER_PLACED_S, preemptor.created_s or now_s, 0, PENDING)
    elsewhere = [(state.counted, row) for state, row in members]
    pods = [spec, *[o.pods for o in outlooks]]
    pods += [_row(o.pods, row, POD_DTYPE.itemsize) for o, row in elsewhere]
    lives = [live, *[o.live for o in outlooks]]
    lives += [_row(o.live, row, LIVE_DTYPE.itemsize) for o, row in elsewhere]
    cores = [bytes(2 * width), *[o.cores for o in outlooks]]
    cores += [_row(o.cores, row, 2 * width) for o, row in elsewhere]
    return {
        "pods": joined(pods, POD_DTYPE),
        "live": joined(lives, LIVE_DTYPE),
        "pod_cores": joined(cores, np.int16).reshape(-1, width),
        "cores_free": joined([o.cores_free for o in outlooks], np.int16).reshape(-1, width),
    }


def _row(rows: bytes, row: int, size: int) -> bytes:
    return rows[row * size : (row + 1) * size]


@kernel
def _seat(
    nodes: npt.NDArray[Any],
    node_pods: npt.NDArray[np.int32],
    pods: npt.NDArray[Any],
    live: npt.NDArray[Any],
) -> None:
    """Say of each pod on a node where it is; members elsewhere are charged for, and on no node."""
    row = 1
    for node in range(nodes.shape[0]):
        here = nodes[node]["num_pods"]
        for slot in range(node_pods.shape[1]):
            node_pods[node, slot] = row + slot if slot < here else -1
        for at in range(row, row + here):
            live[at]["node"] = node
        row += here
    for pod in range(pods.shape[0]):
        pods[pod]["next_member"] = pod  # without a PodGroup it is its own ring


def _members_elsewhere(
    records: Sequence[PodRecord],
    states: Sequence[NodeState],
    groups: Groups,
) -> list[tuple[NodeState, int]]:
    if not groups:
        return []
    inside = {id(state) for state in states}
    met = {record.group for record in records[1:] if record.group in groups}
    return [
        (state, row)
        for group in sorted(met)
        for state, row in groups[group]
        if id(state) not in inside
    ]


def _fill_groups(c: Cluster, records: Sequence[PodRecord], groups: Groups) -> None:
    """Number the PodGroups and make each a ring."""
    numbers: dict[str, int] = {}
    for row, record in enumerate(records):
        if row and record.group in groups:
            c.pods[row]["group"] = numbers.setdefault(record.group, len(numbers))
    if numbers:
        link_groups(c)
