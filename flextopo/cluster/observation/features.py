"""What a learned selector sees of a decision: scale-free numbers, each within its stated range.

None of them grows with the number of servers, so a policy trained on 16 serves 1,000. The tables
below are the one place of names and order: kernels write by name, and an artifact lists the names
it reads.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.servers import parse_servers

PREEMPTOR_FEATURES: dict[str, str] = {
    "gpus": "GPUs asked for / 16",
    "cores": "cores asked for / 256",
    "requires_nothing": "1 if it states no requirement",
    "best_effort": "1 if its requirement is best-effort",
    "guaranteed": "1 if its requirement is guaranteed",
    "waited": "time pending, log scale, 1 = a day",
    "deadline_left": "time until it should have its place, log scale, 1 = a day; 0 = it is late",
    "missed": "how much its service misses it: 1 / (1 + replicas that serve), about",
    "sensitivity": "share of its speed that it loses across sockets",
}

CLUSTER_FEATURES: dict[str, str] = {
    "day_sin": "sine of the time of day, -1 to 1",
    "day_cos": "cosine of the time of day, -1 to 1",
    "free": "share of GPUs that are free",
    "online": "share of GPUs held by online pods",
    "batch": "share of GPUs held by running batch pods",
    "online_waiting": "GPUs asked for by pending online pods / GPUs, at most 1",
    "batch_waiting": "GPUs asked for by pending batch pods / GPUs, at most 1",
    "misaligned": "share of GPUs that serve below their best alignment",
    "free_nodes": "share of nodes with no GPU in use",
    "fragmented_nodes": "share of nodes with some GPUs in use and some free",
    "largest_free": "largest number of free GPUs on a node / 16",
    "candidates": "share of the K candidate places that are filled",
    "waiting_1": "GPUs asked for by pending batch pods of 1 GPU at most / GPUs, at most 1",
    "waiting_2": "the same of 2 GPUs",
    "waiting_4": "the same of 3 or 4 GPUs",
    "waiting_groups": "the same of PodGroup members of any size",
}

CANDIDATE_FEATURES: dict[str, str] = {
    "server_gpus": "GPUs of the server / 16",
    "server_numa_nodes": "NUMA nodes of the server / 32",
    "level_numa": "1 if the pod would sit on one NUMA node",
    "level_socket": "1 if it would sit on one socket",
    "level_cross_socket": "1 if it would sit across sockets",
    "deficit": "0 at the best level that the server can give, else how bad the level is: 0.25 on one "
    "NUMA node, 0.5 on one socket, 1 across sockets",
    "level_before": "level among the free resources: 0 up to a NUMA node, 1/3 a socket, 2/3 across "
    "sockets, 1 = does not fit",
    "victims": "pods evicted / 8",
    "evicted_gpus": "GPUs of victims and of PodGroup members stopped with them / 32",
    "largest_victim": "GPUs of the largest victim / 16",
    "surplus_gpus": "victims' GPUs on the node beyond the need / 16",
    "surplus_cores": "victims' cores on the node beyond the need / 256",
    "priority_gap": "preemptor's priority less the highest victim's / 1000, at most 1",
    "middle_class": "share of the victims' GPUs of priority class middle or above",
    "discarded": "GPU-hours thrown away, log scale, 1 = 400",
    "cost": "the decision's own loss in weighted GPU-hours, log scale, 1 = 400",
    "cost_gap": "the same beyond the cheapest candidate's",
    "oldest_victim": "longest present run of a victim, log scale, 1 = a day",
    "youngest_victim": "shortest present run of a victim, log scale, 1 = a day",
    "expected_remaining": "GPU-hours that victims may still need, log scale, 1 = 400; the "
    "estimate is the work done so far, as for heavy-tailed run times",
    "since_checkpoint": "victims' mean share of the checkpoint interval gone by",
    "no_checkpoint": "share of the victims' GPUs that never checkpoint",
    "earlier_evictions": "most evictions that a victim has suffered before / 4",
    "group_members": "PodGroup members stopped beside the victims / 8",
    "budgeted": "share of the victims under a disruption budget",
    "free_after": "GPUs free on the node afterwards / GPUs of the server",
    "largest_block_after": "largest number of them on one socket / GPUs of the server",
    "socket_imbalance_after": "most less fewest free GPUs of a socket / GPUs of the server",
    "online_after": "share of the server's GPUs held by online pods afterwards",
    "evictable_after": "share of the server's GPUs held by evictable pods afterwards",
    "refill": "GPUs of those free afterwards that pending batch pods would fill / GPUs of the server",
    "victims_fit": "share of the victims' GPUs whose pods fit on another node at once",
    "wait": "time until the pod has its place, log scale, 1 = a day",
}

ISLAND_FEATURES: dict[str, str] = {
    "level_island": "1 if it would sit on one PCIe switch or NVLink island; only where servers tell "
    "islands apart",
}
"""Further features of a candidate, where servers tell islands apart; they follow the others."""

GANG_FEATURES: dict[str, str] = {
    "members": "members of the gang / 16; a single pod is one of 1",
    "gang_gpus": "GPUs asked for by all of them / 128",
    "gang_servers": "servers that they would be on / 16",
    "tier": "level of the network that holds all: 0 one server, 1/3 a leaf, 2/3 a block, 1 the cluster",
    "tier_lost": "share of its speed that the gang loses by that",
    "leaf_free_after": "share of the GPUs of their leaves that are free afterwards",
    "leaf_empty": "share of the servers of these leaves with no GPU in use now",
}
"""Further features of a candidate, where servers have a network; they follow the others."""

HELD = {
    "online_1": "GPUs held by online pods of 1 GPU",
    "online_2": "the same of 2 GPUs",
    "online_4": "the same of 3 or 4 GPUs",
    "online_8": "the same of more GPUs",
    "batch_1": "GPUs held by batch pods of 1 GPU",
    "batch_2": "the same of 2 GPUs",
    "batch_4": "the same of 3 or 4 GPUs",
    "batch_8": "the same of more GPUs",
    "nominated": "GPUs promised to online pods that wait for others to end",
    "terminating": "GPUs held by pods that are ending and promised to nobody",
}
"""Who holds the GPUs of a server, or of all, now."""

SERVER_FEATURES = {f"server_{name}": f"{text} / GPUs of the server" for name, text in HELD.items()}
"""Further features of a candidate for policies that read them; they follow all others. Of a gang the mean
over its servers."""

HELD_FEATURES = {f"held_{name}": f"{text} / GPUs of all servers" for name, text in HELD.items()}
"""Further features of the cluster, the same over all servers; they follow the others. A service has the pods
of the nodes that a decision is about, and tells of these."""

FEATURES: dict[str, dict[str, str]] = {
    "preemptor": PREEMPTOR_FEATURES,
    "cluster": {**CLUSTER_FEATURES, **HELD_FEATURES},
    "candidates": {
        **CANDIDATE_FEATURES,
        **ISLAND_FEATURES,
        **GANG_FEATURES,
        **SERVER_FEATURES,
    },
}
"""Everything that can be observed, by part of the observation."""

NUM_PREEMPTOR = len(PREEMPTOR_FEATURES)
NUM_CLUSTER = len(CLUSTER_FEATURES)
NUM_CANDIDATE = len(CANDIDATE_FEATURES)
NUM_WITH_GANGS = len({**CANDIDATE_FEATURES, **ISLAND_FEATURES, **GANG_FEATURES})
"""Features of a candidate that there is room for where gangs are told of."""

NUM_OBSERVED = len(FEATURES["candidates"])
"""All features of a candidate. Who asks for so many is told who holds the GPUs of the cluster, too."""


def candidate_features(fleet: Fleet) -> tuple[str, ...]:
    """Return the names of a candidate's features on some servers."""
    if fleet.network is not None:
        return (*CANDIDATE_FEATURES, *ISLAND_FEATURES, *GANG_FEATURES)
    return (*CANDIDATE_FEATURES, *(ISLAND_FEATURES if fleet.has_islands else ()))


def observed_width(servers: Iterable[str]) -> int:
    """Return how many features a candidate has on some clusters, the same on all of them."""
    return max(len(candidate_features(parse_servers(text))) for text in servers)


def width_of(columns: Mapping[str, Sequence[int]]) -> int:
    """Return how many features of a candidate must be observed for some columns to be among them.

    Those of gangs are observed all at once, and so are those that tell who holds GPUs.
    """
    most = max([NUM_CANDIDATE, *(at + 1 for at in columns["candidates"])])
    if any(at >= NUM_CLUSTER for at in columns["cluster"]) or most > NUM_WITH_GANGS:
        return NUM_OBSERVED
    return most if most <= NUM_CANDIDATE + len(ISLAND_FEATURES) else NUM_WITH_GANGS


def cluster_width(width: int) -> int:
    """Return how many features of the cluster are observed where a candidate has `width`."""
    return NUM_CLUSTER + (len(HELD_FEATURES) if width >= NUM_OBSERVED else 0)


def feature_names(width: int = NUM_CANDIDATE) -> dict[str, list[str]]:
    """Return the names of all features by part where a candidate has `width`."""
    names = {part: list(table) for part, table in FEATURES.items()}
    cluster = names["cluster"][: cluster_width(width)]
    return {**names, "cluster": cluster, "candidates": names["candidates"][:width]}


def columns_of(names: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Return the columns of features by part, whatever else there is and in whatever order.

    Raises:
        UnknownNameError: a feature is not observed here.
    """
    found = {}
    for part, table in FEATURES.items():
        legal = list(table)
        for name in names.get(part, ()):
            if name not in table:
                raise UnknownNameError(f"feature of {part}", name, legal)
        found[part] = [legal.index(name) for name in names.get(part, ())]
    return found


def _positions(part: str) -> Any:
    """Return the position of each feature by its name, which kernels take for constants."""
    return namedtuple(f"{part}_features", FEATURES[part])(*range(len(FEATURES[part])))


P, C, F = _positions("preemptor"), _positions("cluster"), _positions("candidates")
"""Positions of the features of a preemptor, of the cluster and of a candidate: `f[F.deficit]`."""


class Observation(NamedTuple):
    """One decision in numbers; K candidates.

    Fields: `preemptor` (9,), `cluster` (16,), `candidates` (K, 33), with islands (K, 34), with a
    network (K, 41), all float32; where everything is asked for, `cluster` (26,) and `candidates`
    (K, 51); `mask` (K + 1,) int8, 1 = legal; the last action is "do not preempt now".
    """

    preemptor: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.float32]
    candidates: npt.NDArray[np.float32]
    mask: npt.NDArray[np.int8]


def empty_observation(k: int, width: int = NUM_CANDIDATE) -> Observation:
    """Return memory for the observation of a decision.

    Args:
        k: candidates at most.
        width: features of a candidate, the first of `FEATURES["candidates"]`.
    """
    return Observation(
        preemptor=np.zeros(NUM_PREEMPTOR, np.float32),
        cluster=np.zeros(cluster_width(width), np.float32),
        candidates=np.zeros((k, width), np.float32),
        mask=np.zeros(k + 1, np.int8),
    )
