"""Where a pod lands among free resources: what kubelet's TopologyManager would give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import inlined, kernel, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import MAX_PODS_PER_NODE, Cluster, as_index
from flextopo.cluster.topology import levels
from flextopo.cluster.topology.levels import CROSS_SOCKET, ISLAND, NO_FIT, NUMA, SOCKET


@kernel
def alignment_level(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    gpus: int,
    cores: int,
) -> int:
    """Return the best alignment level that `gpus` and `cores` get from these free resources.

    The ladder of `levels.level_of`, compiled: one island, else one NUMA node, else one socket, else
    the whole server, else NO_FIT.
    """
    if popcount(gpu_free) < gpus:
        return NO_FIT
    if gpus > 0:
        for i in range(models[model]["num_islands"]):
            if (
                cores_free[models[model]["island_numa"][i]] >= cores
                and popcount(gpu_free & models[model]["island_gpus"][i]) >= gpus
            ):
                return ISLAND
    all_cores, on_socket = 0, False
    for s in range(models[model]["num_sockets"]):
        socket_cores = 0
        numa_nodes = models[model]["socket_numa"][s]
        while numa_nodes != 0:
            u = lowest_bit(numa_nodes)
            numa_nodes &= numa_nodes - 1
            if (
                cores_free[u] >= cores
                and popcount(gpu_free & models[model]["numa_gpus"][u]) >= gpus
            ):
                return NUMA
            socket_cores += cores_free[u]
        if socket_cores >= cores and popcount(gpu_free & models[model]["socket_gpus"][s]) >= gpus:
            on_socket = True
        all_cores += socket_cores
    if on_socket:
        return SOCKET
    return CROSS_SOCKET if all_cores >= cores else NO_FIT


@kernel
def best_level(models: npt.NDArray[Any], model: int, gpus: int, cores: int) -> int:
    """Return the level an empty server of that model gives, NO_FIT if it never fits."""
    everything = (1 << models[model]["num_gpus"]) - 1
    return alignment_level(models, model, everything, models[model]["numa_cores"], gpus, cores)


level_deficit = inlined(levels.level_deficit)
is_aligned = inlined(levels.is_aligned)
"""The rules of the table of levels, compiled."""


@inlined
def _domain_gpus(models: npt.NDArray[Any], model: int, level: int, d: int) -> int:
    """Return the GPUs of domain d of a level below the whole server."""
    if level == ISLAND:
        return int(models[model]["island_gpus"][d])
    if level == NUMA:
        return int(models[model]["numa_gpus"][d])
    return int(models[model]["socket_gpus"][d])


@inlined
def _domain_cores(
    models: npt.NDArray[Any], model: int, cores_free: npt.NDArray[np.int16], level: int, d: int
) -> int:
    """Return the free cores of domain d of a level below the whole server."""
    if level == ISLAND:
        return int(cores_free[models[model]["island_numa"][d]])
    if level == NUMA:
        return int(cores_free[d])
    free, numa_nodes = 0, models[model]["socket_numa"][d]
    while numa_nodes != 0:
        free += int(cores_free[lowest_bit(numa_nodes)])
        numa_nodes &= numa_nodes - 1
    return free


@stage
def _tightest(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    gpus: int,
    cores: int,
    level: int,
) -> int:
    """Return the domain of that level with the fewest GPUs, then cores, to spare."""
    chosen, least_gpus, least_cores = -1, 0, 0
    count = models[model]["num_sockets"]
    if level != SOCKET:
        count = models[model]["num_islands"] if level == ISLAND else models[model]["num_numa"]
    for d in range(count):
        free_gpus = popcount(gpu_free & _domain_gpus(models, model, level, d))
        free_cores = _domain_cores(models, model, cores_free, level, d)
        if free_gpus < gpus or free_cores < cores:
            continue
        if (
            chosen < 0
            or free_gpus < least_gpus
            or (free_gpus == least_gpus and free_cores < least_cores)
        ):
            chosen, least_gpus, least_cores = d, free_gpus, free_cores
    return chosen


@inlined
def _freest_socket(models: npt.NDArray[Any], model: int, gpu_free: int, sockets: int) -> int:
    """Return the socket of a mask with the most free GPUs, the lowest of equals."""
    chosen, most = -1, -1
    while sockets != 0:
        s = lowest_bit(sockets)
        sockets &= sockets - 1
        free = popcount(gpu_free & models[model]["socket_gpus"][s])
        if free > most:
            chosen, most = s, free
    return chosen


@inlined
def _freest_numa_node(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    numa_nodes: int,
) -> int:
    """Return the NUMA node of a mask with the most free GPUs, then cores, the lowest of equals."""
    chosen, most = -1, -1
    while numa_nodes != 0:
        u = lowest_bit(numa_nodes)
        numa_nodes &= numa_nodes - 1
        key = popcount(gpu_free & models[model]["numa_gpus"][u]) * 65536 + int(cores_free[u])
        if key > most:
            chosen, most = u, key
    return chosen


@kernel
def take(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    gpus: int,
    cores: int,
    level: int,
    taken: npt.NDArray[np.int16],
) -> int:
    """Choose GPUs and cores at the level that these free resources give: see `place`.

    GPUs come from few sockets, then few NUMA nodes: the freest socket first, and on it the freest
    NUMA node.
    """
    for u in range(taken.shape[0]):
        taken[u] = 0
    mask = as_index(0)
    if level == NO_FIT:
        return mask
    domain, sockets = 0, (1 << models[model]["num_sockets"]) - 1
    if level != CROSS_SOCKET:
        domain = _tightest(models, model, gpu_free, cores_free, gpus, cores, level)
        sockets = 1 << domain
    gpus_left, cores_left = gpus, cores
    if level < SOCKET:
        free = gpu_free & _domain_gpus(models, model, level, domain)
        while gpus_left > 0:
            mask |= free & -free
            free &= free - 1
            gpus_left -= 1
        taken[models[model]["island_numa"][domain] if level == ISLAND else domain] = cores
        return mask
    for again in range(2):  # then what is short of cores comes from the rest of the domain
        todo = sockets
        while todo != 0:
            s = _freest_socket(models, model, gpu_free, todo)
            todo ^= 1 << s
            numa_nodes = models[model]["socket_numa"][s]
            while numa_nodes != 0:
                u = _freest_numa_node(models, model, gpu_free, cores_free, numa_nodes)
                numa_nodes ^= 1 << u
                free = gpu_free & models[model]["numa_gpus"][u]
                here = 0
                while free != 0 and gpus_left > 0:
                    mask |= free & -free
                    free &= free - 1
                    gpus_left -= 1
                    here += 1
                wanted = cores_left if again else -(-cores * here // max(gpus, 1))
                share = min(wanted, cores_left, cores_free[u] - taken[u])
                taken[u] += share
                cores_left -= share
                if gpus_left == 0 and cores_left == 0:
                    return mask
    return mask


@kernel
def place(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    gpus: int,
    cores: int,
    taken: npt.NDArray[np.int16],
) -> tuple[int, int]:
    """Choose GPUs and cores for a pod: best alignment, then tightest fit, then lowest number.

    Cores come from the NUMA nodes of the chosen GPUs, an equal share a GPU, and what is short
    there from the rest of the domain.

    Args:
        models: tables of the server models.
        model: index of the server's model.
        gpu_free: bit mask of free GPUs.
        cores_free: (U,) free cores a NUMA node.
        gpus: GPUs wanted.
        cores: cores wanted.
        taken: (U,) output, cores taken from each NUMA node.

    Returns:
        Alignment level and GPU mask; (NO_FIT, 0) when it does not fit.
    """
    level = alignment_level(models, model, gpu_free, cores_free, gpus, cores)
    return level, take(models, model, gpu_free, cores_free, gpus, cores, level, taken)


@kernel
def find_node(c: Cluster, pod: int, aligned: bool, by_alignment: bool) -> int:
    """Return the node that a pending pod starts on without preemption, -1 if none.

    Args:
        c: the cluster.
        pod: index of the pod.
        aligned: only aligned placements are legal.
        by_alignment: prefer nodes that align the pod better; else only the tightest fit counts.

    Returns:
        Node with the least (deficit if `by_alignment`, GPUs left free, index).
    """
    gpus, cores = c.pods[pod]["gpus"], c.pods[pod]["cores"]
    last_model, best = -1, NO_FIT
    chosen, least = -1, NO_FIT
    counts = c.totals[0]["free_counts"] >> gpus << gpus
    while counts != 0:
        free = lowest_bit(counts)
        counts &= counts - 1
        for word in range(c.by_free.shape[1] - 1):
            nodes = c.by_free[free, word]
            while nodes != 0:
                node = 32 * word + lowest_bit(nodes)
                nodes &= nodes - 1
                state = c.nodes[node]
                if state["cores_free"] < cores or state["num_pods"] >= MAX_PODS_PER_NODE:
                    continue
                if not aligned and not by_alignment:
                    return node
                model = state["model"]
                if model != last_model:
                    best = best_level(c.models, model, gpus, cores)
                    last_model = model
                level = alignment_level(
                    c.models, model, state["gpu_free"], c.cores_free[node], gpus, cores
                )
                if aligned and not is_aligned(level, best):
                    continue
                deficit = level_deficit(level, best) if by_alignment else 0
                if deficit == 0:
                    return node
                if deficit < least:
                    chosen, least = node, deficit
    return chosen
