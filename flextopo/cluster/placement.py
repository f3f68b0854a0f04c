"""Where a pod lands among free resources: what kubelet's TopologyManager would give it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import (
    MAX_PODS_PER_NODE,
    Cluster,
    as_index,
    lowest_bit,
    popcount,
)
from flextopo.cluster.kernels import inlined, kernel, stage

NUMA, SOCKET, CROSS_SOCKET, NO_FIT = 0, 1, 2, 3
"""`AlignmentLevel` as plain integers for the kernels; NO_FIT where nothing does."""


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

    The ladder of the paper's guaranteed filter, over GPUs and cores together: one NUMA node, else
    one socket, else the whole server, else NO_FIT.
    """
    all_cores = 0
    for u in range(models[model]["num_numa"]):
        if cores_free[u] >= cores and popcount(gpu_free & models[model]["numa_gpus"][u]) >= gpus:
            return NUMA
        all_cores += cores_free[u]
    if all_cores < cores or popcount(gpu_free) < gpus:
        return NO_FIT
    for s in range(models[model]["num_sockets"]):
        if popcount(gpu_free & models[model]["socket_gpus"][s]) < gpus:
            continue
        socket_cores = 0
        for u in range(models[model]["num_numa"]):
            if models[model]["numa_socket"][u] == s:
                socket_cores += cores_free[u]
        if socket_cores >= cores:
            return SOCKET
    return CROSS_SOCKET


@kernel
def best_level(models: npt.NDArray[Any], model: int, gpus: int, cores: int) -> int:
    """Return the level an empty server of that model gives, NO_FIT if it never fits."""
    everything = (1 << models[model]["num_gpus"]) - 1
    return alignment_level(models, model, everything, models[model]["numa_cores"], gpus, cores)


@inlined
def level_deficit(level: int, best: int) -> int:
    """Return 0 for the best possible level, 1 for a socket instead of a NUMA node, 2 for across."""
    if level <= best:
        return 0
    return 1 if level == SOCKET else 2


@inlined
def is_aligned(level: int, best: int) -> bool:
    """Say whether the guaranteed filter accepts the level: a socket, or the best there is."""
    return level <= SOCKET or level == best


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
    """Return the NUMA node or socket of that level with the fewest GPUs, then cores, to spare."""
    chosen, least_gpus, least_cores = -1, 0, 0
    count = models[model]["num_numa"] if level == NUMA else models[model]["num_sockets"]
    for d in range(count):
        free_cores = 0
        if level == NUMA:
            free_gpus = popcount(gpu_free & models[model]["numa_gpus"][d])
            free_cores = int(cores_free[d])
        else:
            free_gpus = popcount(gpu_free & models[model]["socket_gpus"][d])
            for u in range(models[model]["num_numa"]):
                if models[model]["numa_socket"][u] == d:
                    free_cores += cores_free[u]
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
def _next_numa_node(
    models: npt.NDArray[Any],
    model: int,
    gpu_free: int,
    cores_free: npt.NDArray[np.int16],
    level: int,
    domain: int,
    used: int,
) -> int:
    """Return the NUMA node of a domain to take from next, -1 when all are in the mask `used`.

    GPUs come from few sockets, then few NUMA nodes: most free GPUs on the socket first, then most
    on the NUMA node, then most free cores, then the lowest number.
    """
    chosen, most = -1, -1
    for u in range(models[model]["num_numa"]):
        socket = models[model]["numa_socket"][u]
        if (used >> u) & 1 or (level == NUMA and u != domain):
            continue
        if level == SOCKET and socket != domain:
            continue
        in_socket = popcount(gpu_free & models[model]["socket_gpus"][socket])
        in_numa = popcount(gpu_free & models[model]["numa_gpus"][u])
        key = ((in_socket * 64 + (63 - socket)) * 64 + in_numa) * 2048 + cores_free[u]
        if key > most:
            chosen, most = u, key
    return chosen


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
    for u in range(taken.shape[0]):
        taken[u] = 0
    level = alignment_level(models, model, gpu_free, cores_free, gpus, cores)
    if level == NO_FIT:
        return NO_FIT, 0
    domain = 0
    if level != CROSS_SOCKET:
        domain = _tightest(models, model, gpu_free, cores_free, gpus, cores, level)
    mask, gpus_left, cores_left, used = 0, gpus, cores, as_index(0)
    while True:
        u = _next_numa_node(models, model, gpu_free, cores_free, level, domain, used)
        if u < 0:
            break
        used |= 1 << u
        free = gpu_free & models[model]["numa_gpus"][u]
        here = 0
        while free != 0 and gpus_left > 0:
            mask |= free & -free
            free &= free - 1
            gpus_left -= 1
            here += 1
        share = min(-(-cores * here // max(gpus, 1)), cores_left, cores_free[u])
        taken[u] = share
        cores_left -= share
        if gpus_left == 0 and cores_left == 0:
            return level, mask
    used = as_index(0)
    while cores_left > 0:
        u = _next_numa_node(models, model, gpu_free, cores_free, level, domain, used)
        used |= 1 << u
        extra = min(cores_left, cores_free[u] - taken[u])
        taken[u] += extra
        cores_left -= extra
    return level, mask


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
    last = c.by_free.shape[1] - 1
    for free in range(gpus, c.by_free.shape[0]):
        if c.by_free[free, last] == 0:
            continue
        for word in range(last):
            nodes = c.by_free[free, word]
            while nodes != 0:
                node = 64 * word + lowest_bit(nodes)
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
