"""The cluster's state as a few arrays, and the steps that hand out and take back resources.

Kernels read and write these arrays; `ClusterState` gives them names and checks. Everything here
also runs as plain Python under `NUMBA_DISABLE_JIT=1`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import copying_kernel, inlined, popcount, stage
from flextopo.cluster.topology.model import MAX_GPUS

MAX_PODS_PER_NODE = 64

FUTURE, PENDING, NOMINATED, STARTING, RUNNING, TERMINATING, DONE = range(7)
"""Pod status. NOMINATED holds resources and waits for its victims' grace period, STARTING holds
them and does not serve yet, TERMINATING was evicted and holds what its preemptor did not take."""

NEVER_PLACED_S = -(2**61)
"""Start of a pod that has not held resources yet."""

POD_DTYPE = np.dtype(
    [
        ("arrive_s", "i8"),
        ("depart_s", "i8"),
        ("duration_s", "i8"),
        ("start_s", "i8"),
        ("gpus", "i4"),
        ("cores", "i4"),
        ("priority", "i4"),
        ("checkpoint_s", "i4"),
        ("protection_s", "i4"),  # not a victim for this long after its start
        ("group", "i4"),
        ("next_member", "i4"),  # ring of the PodGroup's members; itself when it has none
        ("pdb", "i4"),
        ("batch_class", "i1"),
        ("online", "i1"),
        ("requirement", "i1"),
        ("preemptible", "i1"),
    ],
    align=True,
)
"""What a pod asks for; never changes after it is written."""

LIVE_DTYPE = np.dtype(
    [
        ("since_s", "i8"),  # when it got its resources
        ("done_s", "i8"),  # batch work saved by checkpoints
        ("overhead_s", "i8"),  # restart work at the head of this run
        ("next_s", "i8"),  # time of its next event, when it is in the event heap
        ("wait_s", "i8"),  # time spent pending so far, without the present spell
        ("queued_s", "i8"),  # since when it has been pending
        ("node", "i4"),
        ("gpu_mask", "i4"),
        ("heap_at", "i4"),  # position in the event heap, -1 = none
        ("tried", "i4"),  # release count at its last failed placement
        ("evictions", "i4"),
        ("status", "i1"),
        ("level", "i1"),
        ("deficit", "i1"),  # 0 best level for that server, 1 one worse, 2 across sockets
        ("disrupted", "i1"),  # counts against its disruption budget
        ("preemptor", "i1"),  # once fitted nowhere
        ("by_preemption", "i1"),  # holds resources that victims gave up
    ],
    align=True,
)
"""What has become of a pod."""

NODE_DTYPE = np.dtype(
    [("gpu_free", "i8"), ("cores_free", "i8"), ("model", "i4"), ("num_pods", "i4")], align=True
)

TOTALS_DTYPE = np.dtype(
    [
        ("now_s", "i8"),
        ("gpus", "i8"),
        ("free_gpus", "i8"),
        ("online_gpus", "i8"),  # held by online pods, nominated ones included
        ("batch_gpus", "i8"),  # held by running batch pods
        ("wait_gpus", "i8"),  # asked for by online pods that are pending or nominated
        ("batch_wait_gpus", "i8"),
        ("batch_wait_1", "i8"),  # the part of pods that ask for 1 GPU at most
        ("batch_wait_2", "i8"),  # for 2
        ("batch_wait_4", "i8"),  # for 3 or 4; the rest is larger
        ("batch_wait_group", "i8"),  # the part of PodGroup members, of any size
        ("late_gpus", "i8"),  # serving online GPUs one level worse than possible
        ("cross_gpus", "i8"),  # serving online GPUs across sockets where one would do
        ("releases", "i8"),  # counts releases of resources
        ("free_counts", "i8"),  # bit f = a node has f free GPUs
    ],
    align=True,
)


class Cluster(NamedTuple):
    """Arrays of one cluster; N nodes, P pods, U NUMA nodes, B disruption budgets.

    Fields: `models` (M,) MODEL_DTYPE; `pods` (P,) POD_DTYPE; `live` (P,) LIVE_DTYPE;
    `pod_cores` (P, U) int16 cores held in each NUMA node; `nodes` (N,) NODE_DTYPE; `cores_free`
    (N, U) int16; `node_pods` (N, 64) int32 pods holding resources, the first `num_pods` count;
    `by_free` (17, W + 1) int64, row f: bit n % 32 of entry n // 32 = node n has f free GPUs; the
    last entry counts them; `pdb_left` (B,) int64 disruptions allowed; `totals` (1,) TOTALS_DTYPE;
    `scratch` (2, U) int16, room for the kernels: free cores of the node in hand, and cores taken.
    """

    models: npt.NDArray[Any]
    pods: npt.NDArray[Any]
    live: npt.NDArray[Any]
    pod_cores: npt.NDArray[np.int16]
    nodes: npt.NDArray[Any]
    cores_free: npt.NDArray[np.int16]
    node_pods: npt.NDArray[np.int32]
    by_free: npt.NDArray[np.int64]
    pdb_left: npt.NDArray[np.int64]
    totals: npt.NDArray[Any]
    scratch: npt.NDArray[np.int16]


def empty_cluster(
    models: npt.NDArray[Any], node_model: npt.NDArray[np.int64], num_pods: int, num_pdbs: int
) -> Cluster:
    """Return a cluster with all resources free and `num_pods` blank pods."""
    n, u = len(node_model), int(models["num_numa"].max())
    gpus = models["num_gpus"][node_model].astype(np.int64)
    cores = models["numa_cores"][node_model, :u]
    nodes = np.zeros(n, NODE_DTYPE)
    nodes["model"] = node_model
    nodes["gpu_free"] = (1 << gpus) - 1
    nodes["cores_free"] = cores.sum(1)
    live = np.zeros(num_pods, LIVE_DTYPE)
    live["node"] = live["heap_at"] = live["tried"] = -1
    live["since_s"] = NEVER_PLACED_S
    totals = np.zeros(1, TOTALS_DTYPE)
    totals["gpus"] = totals["free_gpus"] = gpus.sum()
    by_free = index_by_free(gpus)
    totals["free_counts"] = free_counts(by_free)
    return Cluster(
        models=models,
        pods=np.zeros(num_pods, POD_DTYPE),
        live=live,
        pod_cores=np.zeros((num_pods, u), np.int16),
        nodes=nodes,
        cores_free=cores.copy(),
        node_pods=np.full((n, MAX_PODS_PER_NODE), -1, np.int32),
        by_free=by_free,
        pdb_left=np.zeros(num_pdbs, np.int64),
        totals=totals,
        scratch=np.zeros((2, u), np.int16),
    )


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


@copying_kernel
def copy_cluster(source: Cluster, target: Cluster) -> None:
    """Copy everything that changes from `source` to `target`; what never changes is shared."""
    target.live[:] = source.live
    target.pod_cores[:] = source.pod_cores
    target.nodes[:] = source.nodes
    target.cores_free[:] = source.cores_free
    target.node_pods[:] = source.node_pods
    target.by_free[:] = source.by_free
    target.pdb_left[:] = source.pdb_left
    target.totals[:] = source.totals


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
    nominated or terminating are out.
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
