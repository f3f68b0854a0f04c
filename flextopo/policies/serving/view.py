"""Some nodes of the cache as a cluster of their own, private to one decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    index_by_free,
)
from flextopo.cluster.loss import LossWeights, compile_costs, eviction_cost, misalignment_cost
from flextopo.cluster.placement import best_level, level_deficit
from flextopo.cluster.pods import Pod
from flextopo.cluster.selector import Candidate
from flextopo.cluster.server_model import ServerModel
from flextopo.cluster.state import ClusterState, link_groups
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.records import PodRecord

Groups = Mapping[str, Sequence[tuple[NodeState, int]]]
"""PodGroup to its members, each a node's state and the pod's row there."""

COSTS = compile_costs(LossWeights(), grace_s=30, restart_s=60)


class ClusterView(ClusterState):
    """Nodes of a decision as selectors see them; row 0 of the pods is the preemptor.

    Nothing is shared with the cache, so a selector that is given up on may go on reading.

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
        super().__init__(arrays, tuple(models), COSTS, [record.key for record in records])
        self.node_names = node_names
        self.states = states
        self.records = records
        self.whole = whole

    def victims_of(self, candidate: Candidate) -> list[PodRecord]:
        """Return a candidate's victims by descending importance."""
        found = [self.records[row] for row in candidate.victims]
        return sorted(found, key=lambda record: record.importance)

    def cost_of(self, candidate: Candidate, preemptor: Pod) -> float:
        """Return the decision's own loss in weighted GPU-seconds."""
        model = self.arrays.nodes[candidate.node]["model"]
        best = best_level(self.arrays.models, model, preemptor.gpus, preemptor.cores)
        deficit = level_deficit(int(candidate.level), best)
        lost, groups = 0.0, set()
        for row in candidate.victims:
            group = int(self.arrays.pods[row]["group"])
            if group < 0 or group not in groups:
                lost += float(eviction_cost(self.arrays, row, self.costs))
            groups.add(group)
        return lost + float(misalignment_cost(preemptor.gpus, deficit, self.costs))


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
    counts = [state.num_known if worst_case else len(state.records) for state in states]
    records = [preemptor]
    for state, count in zip(states, counts, strict=True):
        records += state.records[:count]
    members = _members_elsewhere(records, states, groups)
    records += [state.records[row] for state, row in members]
    c = _arrays(states, len(records), table, pdb_left)
    here = sum(counts)
    _fill_pods(c, states, counts, members, here)
    _fill_preemptor(c, preemptor, totals["now_s"])
    _fill_groups(c, records, groups)
    c = _with_nodes(c, states, worst_case)
    for name, value in totals.items():
        c.totals[0][name] = value
    whole = c._replace(nodes=np.concatenate((c.nodes, others)))
    return ClusterView(c, models, list(nodes), states, records, whole)


def node_rows(states: Sequence[NodeState]) -> npt.NDArray[Any]:
    """Return nodes as the features see them, (N,) NODE_DTYPE."""
    rows = np.zeros(len(states), NODE_DTYPE)
    rows["gpu_free"] = [state.gpu_free for state in states]
    rows["model"] = [state.hardware.model for state in states]
    return rows


def _fill_pods(
    c: Cluster,
    states: Sequence[NodeState],
    counts: Sequence[int],
    members: Sequence[tuple[NodeState, int]],
    here: int,
) -> None:
    pairs = [(state, slice(0, n)) for state, n in zip(states, counts, strict=True)]
    pairs += [(state, slice(row, row + 1)) for state, row in members]
    if pairs:
        # numpy's concatenate would compare all fields of all pieces, which takes milliseconds.
        joins: tuple[tuple[npt.NDArray[Any], list[Any]], ...] = (
            (c.pods, [state.pods[rows] for state, rows in pairs]),
            (c.live, [state.live[rows] for state, rows in pairs]),
            (c.pod_cores, [state.cores[rows] for state, rows in pairs]),
        )
        for target, pieces in joins:
            joined = np.frombuffer(b"".join(pieces), target.dtype)
            target[1:] = joined.reshape(target[1:].shape)
    node_of = np.repeat(np.arange(len(states)), counts)
    c.live["node"][1 : here + 1] = node_of
    # Members elsewhere are charged for, and are on no node of the view.
    c.live["node"][here + 1 :] = -1
    starts = np.concatenate(([0], np.cumsum(counts)))[:-1].astype(np.int64)
    slots = np.arange(here) - np.repeat(starts, counts)
    c.node_pods[node_of, slots] = np.arange(1, here + 1)
    c.nodes["num_pods"] = counts


def _fill_preemptor(c: Cluster, preemptor: PodRecord, now_s: int) -> None:
    row = c.pods[0]
    for name in ("gpus", "cores", "priority"):
        row[name] = getattr(preemptor, name)
    row["requirement"] = int(preemptor.requirement)
    row["online"] = row["preemptible"] = 1
    row["group"] = row["pdb"] = -1
    row["depart_s"], row["duration_s"] = 2**61, 2**40
    live = c.live[0]
    live["node"] = live["heap_at"] = live["tried"] = -1
    live["since_s"] = NEVER_PLACED_S
    live["status"] = PENDING
    live["queued_s"] = preemptor.created_s or now_s


def _arrays(
    states: Sequence[NodeState],
    num_pods: int,
    table: npt.NDArray[Any],
    pdb_left: Sequence[int],
) -> Cluster:
    """Return arrays of the right sizes; unlike `empty_cluster` it works nothing out."""
    n, u = len(states), len(states[0].cores_free)
    nodes = np.zeros(n, NODE_DTYPE)
    nodes["model"] = [state.hardware.model for state in states]
    return Cluster(
        models=table,
        pods=np.zeros(num_pods, POD_DTYPE),
        live=np.zeros(num_pods, LIVE_DTYPE),
        pod_cores=np.zeros((num_pods, u), np.int16),
        nodes=nodes,
        cores_free=np.zeros((n, u), np.int16),
        node_pods=np.full((n, MAX_PODS_PER_NODE), -1, np.int32),
        by_free=np.zeros((0, 0), np.int64),
        pdb_left=np.array(pdb_left, np.int64),
        totals=np.zeros(1, TOTALS_DTYPE),
        scratch=np.zeros((2, u), np.int16),
    )


def _with_nodes(c: Cluster, states: Sequence[NodeState], worst_case: bool) -> Cluster:
    """Fill in what is free on the nodes."""
    free = [
        state.worst_case() if worst_case else (state.gpu_free, state.cores_free) for state in states
    ]
    c.nodes["gpu_free"] = [gpus for gpus, _ in free]
    c.cores_free[:] = [cores for _, cores in free]
    c.nodes["cores_free"] = c.cores_free.sum(1)
    counts = np.array([gpus.bit_count() for gpus, _ in free])
    return c._replace(by_free=index_by_free(counts))


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
    """Number the PodGroups and make each a ring; a pod without one is its own ring."""
    c.pods["next_member"] = np.arange(len(records))
    if not groups:
        return
    numbers: dict[str, int] = {}
    for row, record in enumerate(records):
        if row and record.group in groups:
            c.pods[row]["group"] = numbers.setdefault(record.group, len(numbers))
    if numbers:
        link_groups(c)
