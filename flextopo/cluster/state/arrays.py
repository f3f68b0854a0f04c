"""The cluster's state as a few arrays, and the steps that hand out and take back resources.

Kernels read and write these arrays; `ClusterState` gives them names and checks. Everything here
also runs as plain Python under `NUMBA_DISABLE_JIT=1`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.generated import define
from flextopo.cluster.jit.kernels import copying_kernel, inlined, popcount, stage
from flextopo.cluster.state.schema import (
    LIVE_DTYPE,
    MAX_MEMBERS,
    NODE_DTYPE,
    NUM_REPLICAS,
    POD_DTYPE,
    REPLICAS,
    TOTALS_DTYPE,
)
from flextopo.cluster.state.storage import Array, Kind, allocate_arrays, copy_lines
from flextopo.cluster.topology.model import MAX_GPUS, MODEL_DTYPE
from flextopo.cluster.topology.network import Network

MAX_PODS_PER_NODE = 64

STATES = (MAX_MEMBERS // 2 + 1) ** 2
"""How many members of each size have a place: so many cases at most."""

WAYS = 4
"""Ways to place so many members that are followed up, the cheapest."""

OPTIONS_A_NODE = STATES - 1
"""Ways to place members on one node that are followed up: one for each number of members of two sizes, two for
each of one size."""

MAX_FEATURES = 64
"""Features of a candidate at most, where there is a network."""

LEAST_NUMBERS = max(MAX_FEATURES, (MAX_PODS_PER_NODE + 1) * (MAX_GPUS + 1))
"""Places of `gang_numbers`: for features, and for what pods of a server lose by the GPUs that they free."""

MOST_VICTIMS = MAX_MEMBERS * MAX_PODS_PER_NODE
"""Victims of a gang at most: of as many servers as it has members."""

MARKS = 2 * MOST_VICTIMS + 1280
"""Scratch numbers of the search for a gang, see `gang_scratch`."""

OPTION_DTYPE = np.dtype(
    [
        ("cost", "f8"),  # of victims and of misalignment inside the server
        ("misaligned", "f8"),  # the latter alone
        ("slots", "i8"),  # as in `CandidateArrays`
        ("wait_s", "i8"),
        ("rank", "i4"),  # of the node, see `Cluster.network`
        ("first", "i2"),  # members of each size that are placed there
        ("second", "i2"),
        ("level", "i2"),  # worst of the members
        ("deficit", "i2"),
        ("used", "i4"),  # 1 = among those that the cheapest ways can use
    ]
)
"""One way to place some members of a gang on one node."""

GANG_NODE_DTYPE = np.dtype(
    [
        ("begin", "i4"),  # its options
        ("end", "i4"),
        ("kept_begin", "i4"),  # the same while others are tried
        ("kept_end", "i4"),
        ("first", "i4"),  # members of each size that are placed there
        ("second", "i4"),
        ("chosen", "i4"),  # where those of its options that the cheapest ways can use begin
        ("chosen_end", "i4"),
        ("holds", "i4"),  # pods of the groups that are tried as paid for, as bits
        ("part", "i4"),  # by node, not by rank: where the part of the network in hand begins
    ]
)
TRAIL = 1 << 17
"""Steps of ways that are noted for one part of the network: enough for the 64 servers of two sizes that a
full search takes."""

KEPT_NODES = MAX_MEMBERS + WAYS
"""Servers of a large part that are looked at for each number of members, the cheapest."""

MOST_NODES = STATES * KEPT_NODES
"""Servers of a part that are put together at most."""

MOST_OPTIONS = max(2 * MOST_NODES, KEPT_NODES * OPTIONS_A_NODE)
"""Options of a part that are put together at most: two victim sets for each number of members, or all."""

TOP_DTYPE = np.dtype([("cost", "f8"), ("wait_s", "i4"), ("option", "i4")])
WAY_DTYPE = np.dtype([("cost", "f8"), ("wait_s", "i4"), ("trail", "i4")])
TRAIL_DTYPE = np.dtype([("option", "i4"), ("before", "i4")])
"""How a way came about: its last option, and the entry before it; -1 = none."""

GROUP_PLACES = 4096
"""PodGroups whose losses are kept during a search for a gang; a power of two."""

GROUP_DTYPE = np.dtype(
    [
        ("group", "i8"),  # -1 = none
        ("whole", "f8"),  # what all its members lose
        ("spare", "i8"),  # see `spare_members`
        ("part", "i4"),  # of the network, by a number of its own, for which the next is known
        ("first", "i4"),  # lowest member there that may be evicted
    ]
)
"""What is known of a PodGroup during a search, see `gang_losses`."""

FUTURE, PENDING, NOMINATED, STARTING, RUNNING, TERMINATING, DONE, BACKING_OFF = range(8)
"""Pod status. NOMINATED holds resources and waits for others' grace period to end, STARTING holds
them and does not serve yet, TERMINATING is leaving and holds what nobody was nominated for,
BACKING_OFF was evicted and is not yet back in the queue."""

Records = npt.NDArray[Any]


class Cluster(NamedTuple):
    """Arrays of one cluster; N nodes, P pods, U NUMA nodes, B disruption budgets.

    Fields: `models` (M,) MODEL_DTYPE; `pods` (P,) POD_DTYPE; `live` (P,) LIVE_DTYPE;
    `pod_cores` (P, U) int16 cores held in each NUMA node; `nodes` (N,) NODE_DTYPE; `cores_free`
    (N, U) int16; `node_pods` (N, 64) int32 pods holding resources, the first `num_pods` count;
    `by_free` (17, W + 1) int64, row f: bit n % 32 of entry n // 32 = node n has f free GPUs; the
    last entry counts them; `network` (N, 3) int32, empty where no network is known: the node that
    comes r-th by block and leaf, and leaf and block of node r; `pdb_left` (B,) int64 disruptions allowed; `serving` (S,) int32 replicas
    of each service that serve; `totals` (1,) TOTALS_DTYPE;
    `scratch` (2, U) int16, scratch memory of the kernels: free cores of the node in hand, and cores
    taken; what begins with `gang_` is scratch memory of `gangs`, empty without a network.
    """

    models: Annotated[Records, Array(MODEL_DTYPE, ("models",), Kind.HARDWARE)]
    pods: Annotated[Records, Array(POD_DTYPE, ("pods",), Kind.GIVEN)]
    live: Annotated[Records, Array(LIVE_DTYPE, ("pods",))]
    pod_cores: Annotated[npt.NDArray[np.int16], Array(np.int16, ("pods", "numa_nodes"))]
    nodes: Annotated[Records, Array(NODE_DTYPE, ("nodes",))]
    cores_free: Annotated[npt.NDArray[np.int16], Array(np.int16, ("nodes", "numa_nodes"))]
    node_pods: Annotated[npt.NDArray[np.int32], Array(np.int32, ("nodes", "slots"), blank=-1)]
    by_free: Annotated[npt.NDArray[np.int64], Array(np.int64, ("free_gpus", "words"))]
    network: Annotated[npt.NDArray[np.int32], Array(np.int32, ("hosts", "columns"), Kind.HARDWARE)]
    pdb_left: Annotated[npt.NDArray[np.int64], Array(np.int64, ("budgets",))]
    serving: Annotated[npt.NDArray[np.int32], Array(np.int32, ("services",))]
    totals: Annotated[Records, Array(TOTALS_DTYPE, ("one",))]
    scratch: Annotated[
        npt.NDArray[np.int16], Array(np.int16, ("scratch_rows", "numa_nodes"), Kind.SCRATCH)
    ]
    gang_options: Annotated[Records, Array(OPTION_DTYPE, ("options",), Kind.SCRATCH)]
    gang_nodes: Annotated[Records, Array(GANG_NODE_DTYPE, ("hosts",), Kind.SCRATCH)]
    gang_top: Annotated[Records, Array(TOP_DTYPE, ("top",), Kind.SCRATCH)]
    gang_chosen: Annotated[npt.NDArray[np.int32], Array(np.int32, ("chosen",), Kind.SCRATCH)]
    gang_ways: Annotated[Records, Array(WAY_DTYPE, ("ways",), Kind.SCRATCH)]
    gang_trail: Annotated[Records, Array(TRAIL_DTYPE, ("trail",), Kind.SCRATCH)]
    gang_numbers: Annotated[npt.NDArray[np.float64], Array(np.float64, ("numbers",), Kind.SCRATCH)]
    gang_groups: Annotated[Records, Array(GROUP_DTYPE, ("group_places",), Kind.SCRATCH)]
    gang_marks: Annotated[npt.NDArray[np.int64], Array(np.int64, ("marks",), Kind.SCRATCH)]


SCRATCH_ROWS = 2

NO_NETWORK = np.zeros((0, 3), np.int8)
"""`Cluster.network` where none is known; its type tells kernels so, see `with_network`."""


def cluster_sizes(
    models: Records,
    nodes: int,
    pods: int,
    budgets: int,
    services: int = 0,
    hosts: int = 0,
    numa_nodes: int = 0,
) -> dict[str, int]:
    """Return the length of every axis of a cluster's arrays.

    Args:
        models: server models.
        nodes: nodes.
        pods: pods.
        budgets: disruption budgets.
        services: online services.
        hosts: nodes in a network, 0 = none is known.
        numa_nodes: of the model that has the most; 0 = look there.
    """
    return {
        "hosts": hosts,
        "columns": 3,
        "options": (2 * hosts + 1) * OPTIONS_A_NODE if hosts else 0,
        "ways": STATES * WAYS if hosts else 0,
        "top": STATES * KEPT_NODES if hosts else 0,
        "chosen": MOST_OPTIONS if hosts else 0,
        "trail": TRAIL if hosts else 0,
        "group_places": GROUP_PLACES if hosts else 0,
        "marks": MARKS if hosts else 0,
        "numbers": max(LEAST_NUMBERS, (min(hosts, MOST_NODES) + 1) * STATES) if hosts else 0,
        "models": len(models),
        "pods": pods,
        "numa_nodes": numa_nodes or int(models["num_numa"].max()),
        "nodes": nodes,
        "slots": MAX_PODS_PER_NODE,
        "free_gpus": MAX_GPUS + 1,
        "words": -(-nodes // 32) + 1,
        "budgets": budgets,
        "services": services,
        "one": 1,
        "scratch_rows": SCRATCH_ROWS,
    }


def empty_cluster(
    models: Records,
    node_model: npt.NDArray[np.int64],
    num_pods: int,
    num_pdbs: int,
    num_services: int = 0,
    network: Network | None = None,
) -> Cluster:
    """Return a cluster with all resources free and `num_pods` blank pods."""
    hosts = 0 if network is None else len(node_model)
    sizes = cluster_sizes(models, len(node_model), num_pods, num_pdbs, num_services, hosts)
    gpus = models["num_gpus"][node_model].astype(np.int64)
    cores = models["numa_cores"][node_model, : sizes["numa_nodes"]]
    c = allocate_arrays(
        Cluster,
        sizes,
        models=models,
        by_free=index_by_free(gpus),
        network=NO_NETWORK if network is None else network_table(network),
    )
    c.nodes["model"] = node_model
    c.nodes["gpu_free"] = (1 << gpus) - 1
    c.nodes["cores_free"] = cores.sum(1)
    c.cores_free[:] = cores
    c.totals["gpus"] = c.totals["free_gpus"] = gpus.sum()
    c.totals["free_counts"] = free_counts(c.by_free)
    return c


def network_table(network: Network) -> npt.NDArray[np.int32]:
    """Return `Cluster.network`, (N, 3) int32."""
    leaf, block = np.array(network.leaf, np.int32), np.array(network.block, np.int32)
    order = np.lexsort((np.arange(len(leaf)), leaf, block)).astype(np.int32)
    return np.stack([order, leaf, block], axis=1)


def index_by_free(free: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Return `Cluster.by_free` for nodes with these numbers of free GPUs, (N,) integers.

    An entry holds 32 nodes, so that no mask is negative where kernels run as plain Python.
    """
    words = -(-len(free) // 32)
    here = np.zeros((MAX_GPUS + 1, 32 * words), np.bool_)
    here[:, : len(free)] = free == np.arange(MAX_GPUS + 1)[:, None]
    index = np.empty((MAX_GPUS + 1, words + 1), np.int64)
    index[:, :words] = np.packbits(here, axis=1, bitorder="little").view(np.uint32)
    index[:, words] = here.sum(1)
    return index


def free_counts(by_free: npt.NDArray[np.int64]) -> int:
    """Return the field `free_counts` of the totals for an index of nodes by free GPUs."""
    return sum(1 << free for free, nodes in enumerate(by_free[:, -1]) if nodes)


@inlined
def as_index(number: int) -> int:
    """Widen a stored index. Kernels take indices of this one type, or numba makes one for each.

    For the same reason masks begin with as_index(0): a literal 0 is of a type of its own.
    """
    return int(np.int64(number))


copy_cluster: Callable[[Cluster, Cluster], None] = copying_kernel(
    define("copy_cluster", "source, target", copy_lines(Cluster, {}), __file__)
)
"""Copy everything that changes from the first to the second; what never changes is shared."""


@stage
def add_to_node(c: Cluster, pod: int, node: int) -> None:
    """List the pod on the node; the caller sees to the resources and to a free place."""
    count = c.nodes[node]["num_pods"]
    c.node_pods[node, count] = pod
    c.nodes[node]["num_pods"] = count + 1
    c.live[pod]["node"] = node


@inlined
def set_free_gpus(c: Cluster, node: int, gpu_free: int) -> None:
    """Set which GPUs of a node are free, and keep count of it."""
    before, after = popcount(c.nodes[node]["gpu_free"]), popcount(gpu_free)
    c.nodes[node]["gpu_free"] = gpu_free
    c.totals[0]["free_gpus"] += after - before
    word, last = node >> 5, c.by_free.shape[1] - 1
    bit = 1 << (node & 31)
    c.by_free[before, word] ^= bit
    c.by_free[before, last] -= 1
    if c.by_free[before, last] == 0:
        c.totals[0]["free_counts"] ^= 1 << before
    c.by_free[after, word] ^= bit
    c.by_free[after, last] += 1
    c.totals[0]["free_counts"] |= 1 << after


@inlined
def allocate(c: Cluster, pod: int, node: int, gpu_mask: int, cores: npt.NDArray[np.int16]) -> None:
    """Give free GPUs and cores of a node to a pod; the caller sets the pod's status."""
    add_to_node(c, pod, node)
    c.live[pod]["gpu_mask"] = gpu_mask
    set_free_gpus(c, node, c.nodes[node]["gpu_free"] & ~gpu_mask)
    taken = 0
    for u in range(cores.shape[0]):
        c.pod_cores[pod, u] = cores[u]
        c.cores_free[node, u] -= cores[u]
        taken += cores[u]
    c.nodes[node]["cores_free"] -= taken


@inlined
def release(c: Cluster, pod: int) -> None:
    """Take back all that a pod holds; the caller sets the pod's status."""
    node = as_index(c.live[pod]["node"])
    mask = c.live[pod]["gpu_mask"]
    set_free_gpus(c, node, c.nodes[node]["gpu_free"] | mask)
    freed = 0
    for u in range(c.pod_cores.shape[1]):
        freed += c.pod_cores[pod, u]
        c.cores_free[node, u] += c.pod_cores[pod, u]
        c.pod_cores[pod, u] = 0
    c.nodes[node]["cores_free"] += freed
    count = c.nodes[node]["num_pods"]
    for slot in range(count):
        if c.node_pods[node, slot] == pod:
            c.node_pods[node, slot] = c.node_pods[node, count - 1]
            c.node_pods[node, count - 1] = -1
            break
    c.nodes[node]["num_pods"] = count - 1
    c.live[pod]["node"] = -1
    c.live[pod]["gpu_mask"] = 0
    c.totals[0]["releases"] += 1


@inlined
def replicas_row(c: Cluster, pod: int) -> int:
    """Return the place in `REPLICAS` of a pod's service; a pod of no service is one of its own."""
    service, row = c.pods[pod]["service"], as_index(0)
    if 0 <= service < c.serving.shape[0]:
        while row + 1 < NUM_REPLICAS and c.serving[service] >= REPLICAS[row + 1]:
            row += 1
    return row


@inlined
def spare_members(c: Cluster, pod: int) -> int:
    """Return how many running members of a PodGroup may stop by themselves while the others go on.

    Members that are done count as if they ran. 0: with any of them, all stop; less: so many are missing.
    """
    running, size, other, done = as_index(0), as_index(0), pod, as_index(0)
    while True:
        status = c.live[other]["status"]
        running += status == RUNNING or status == STARTING
        done += status == DONE
        size += 1
        other = as_index(c.pods[other]["next_member"])
        if other == pod:
            break
    return int(running - max(0, min(size, as_index(c.pods[pod]["min_members"])) - done))


@inlined
def lost_work_s(c: Cluster, pod: int) -> int:
    """Return the run time that evicting a batch pod now would throw away, in seconds.

    That is the time since its last checkpoint; restart work done so far is not counted, since the
    eviction that caused it was already charged for it.
    """
    live = c.live[pod]
    if c.pods[pod]["online"] or live["status"] != RUNNING:
        return 0
    progress = c.totals[0]["now_s"] - live["since_s"] - live["overhead_s"]
    if progress <= 0:
        return 0
    interval = c.pods[pod]["checkpoint_s"]
    return int(progress % interval if interval > 0 else progress)


@stage
def may_evict(c: Cluster, pod: int, priority: int) -> bool:
    """Say whether a preemptor of that priority may evict a pod, disruption budgets aside.

    The pod is preemptible, past its protection, and of strictly lower priority. Pods that are
    nominated or terminating are out; what the latter hold is offered without an eviction.
    """
    spec = c.pods[pod]
    live = c.live[pod]
    if spec["preemptible"] == 0 or spec["priority"] >= priority:
        return False
    if live["status"] != RUNNING and live["status"] != STARTING:
        return False
    return bool(c.totals[0]["now_s"] - live["since_s"] >= spec["protection_s"])


@inlined
def is_eligible(c: Cluster, pod: int, priority: int) -> bool:
    """Say whether a pod may be a victim: `may_evict`, and its budget has a disruption left.

    References:
        Goedel scheduler, preemption eligibility (can-be-preempted, newly started, priority, PDB).
    """
    pdb = c.pods[pod]["pdb"]
    return may_evict(c, pod, priority) and (pdb < 0 or c.pdb_left[pdb] > 0)
