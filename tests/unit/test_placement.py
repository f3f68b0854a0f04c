"""Placement on the preset servers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from flextopo.cluster.jit.kernels import popcount
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.placement import (
    alignment_level,
    best_level,
    find_node,
    is_aligned,
    level_deficit,
    place,
)
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import CROSS_SOCKET, NO_FIT, NUMA, SOCKET, AlignmentLevel
from flextopo.cluster.topology.model import compile_models, preset

RTX, A100 = 0, 1
TABLES = compile_models([preset("rtx4090"), preset("a100")])


def cores(*counts: int) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.array(counts + (0,) * (8 - len(counts)), np.int16)


def placed(
    model: int, gpu_free: int, free: tuple[int, ...], gpus: int, wanted: int
) -> tuple[int, list[int], list[int]]:
    taken = np.zeros(8, np.int16)
    level, mask = place(TABLES, model, gpu_free, cores(*free), gpus, wanted, taken)
    return level, [i for i in range(8) if mask >> i & 1], taken.tolist()


def test_the_papers_simulated_cores() -> None:
    # 1 card, 2 cards, then 1 card five times, 7 cores a card: the last core of a NUMA node stays.
    sizes = (1, 2, 1, 1, 1, 1, 1)
    pods = [Pod(i, f"ns/{i}", gpus=n, cores=7 * n, priority=1) for i, n in enumerate(sizes)]
    state = ClusterState.from_pods([preset("rtx4090")], [0], pods)
    for i in range(len(pods)):
        state.start(i, 0)
    held = [{u: int(n) for u, n in enumerate(row) if n} for row in state.arrays.pod_cores]
    assert held == [{0: 7}, {1: 7, 2: 7}, {3: 7}, {4: 7}, {5: 7}, {6: 7}, {7: 7}]
    assert state.arrays.cores_free.tolist() == [[1] * 8]
    levels = [AlignmentLevel(level) for level in state.arrays.live["level"]]
    assert levels == [NUMA, SOCKET, NUMA, NUMA, NUMA, NUMA, NUMA]


@pytest.mark.parametrize(
    ("model", "gpus", "wanted", "best"),
    [
        (RTX, 1, 8, NUMA),
        (RTX, 1, 9, SOCKET),
        (RTX, 2, 2, SOCKET),
        (RTX, 4, 32, SOCKET),
        (RTX, 4, 33, CROSS_SOCKET),
        (RTX, 5, 5, CROSS_SOCKET),
        (RTX, 8, 64, CROSS_SOCKET),
        (RTX, 8, 65, NO_FIT),
        (RTX, 9, 9, NO_FIT),
        (RTX, 0, 8, NUMA),
        (A100, 4, 64, NUMA),
        (A100, 4, 65, CROSS_SOCKET),
        (A100, 5, 5, CROSS_SOCKET),
    ],
)
def test_best_level(model: int, gpus: int, wanted: int, best: int) -> None:
    assert best_level(TABLES, model, gpus, wanted) == best


FULL = (8,) * 8


@pytest.mark.parametrize(
    ("gpu_free", "free", "gpus", "wanted", "expected"),
    [
        # GPU 3 sits on NUMA node 0, the lowest.
        (0xFF, FULL, 1, 7, (NUMA, [3], [7, 0, 0, 0, 0, 0, 0, 0])),
        # The socket with fewer free GPUs is taken: GPUs 4 and 5 on NUMA nodes 7 and 6.
        (0b00111111, FULL, 2, 4, (SOCKET, [4, 5], [0, 0, 0, 0, 0, 0, 2, 2])),
        # One GPU left on each socket: across.
        (0b00010001, FULL, 2, 4, (CROSS_SOCKET, [0, 4], [0, 0, 0, 2, 0, 0, 0, 2])),
        # The GPU's NUMA node has 3 cores; the socket gives the other 4.
        (0b1, (8, 8, 8, 3, 0, 0, 0, 0), 1, 7, (SOCKET, [0], [4, 0, 0, 3, 0, 0, 0, 0])),
        # Its socket has 6: across.
        (0b1, (2, 1, 0, 3, 8, 0, 0, 0), 1, 7, (CROSS_SOCKET, [0], [2, 1, 0, 3, 1, 0, 0, 0])),
        (0b1, (2, 1, 0, 3, 0, 0, 0, 0), 1, 7, (NO_FIT, [], [0] * 8)),
        (0b1, FULL, 2, 2, (NO_FIT, [], [0] * 8)),
    ],
)
def test_place_on_the_4090_server(
    gpu_free: int,
    free: tuple[int, ...],
    gpus: int,
    wanted: int,
    expected: tuple[int, list[int], list[int]],
) -> None:
    assert placed(RTX, gpu_free, free, gpus, wanted) == expected
    assert alignment_level(TABLES, RTX, gpu_free, cores(*free), gpus, wanted) == expected[0]


def test_place_takes_the_tighter_numa_node_of_an_a100_server() -> None:
    assert placed(A100, 0b1110_1111, (64, 64), 2, 20) == (NUMA, [5, 6], [0, 20] + [0] * 6)


def test_deficits_and_the_filter() -> None:
    table = {
        (level, best): (level_deficit(level, best), is_aligned(level, best))
        for best in (NUMA, SOCKET, CROSS_SOCKET)
        for level in range(best, CROSS_SOCKET + 1)
    }
    assert table == {
        (NUMA, NUMA): (0, True),
        (SOCKET, NUMA): (SOCKET, True),
        (CROSS_SOCKET, NUMA): (CROSS_SOCKET, False),
        (SOCKET, SOCKET): (0, True),
        (CROSS_SOCKET, SOCKET): (CROSS_SOCKET, False),
        (CROSS_SOCKET, CROSS_SOCKET): (0, True),
    }


def test_popcount() -> None:
    assert [popcount(mask) for mask in (0, 1, 0b1011, 0xFFFF)] == [0, 1, 3, 16]


def test_find_node_prefers_the_tightest_node_and_alignment_if_asked() -> None:
    # Node 0 has GPUs 0 and 4 free (two sockets), node 1 has GPUs 0, 1 and 2 (one socket).
    pods = [
        Pod(0, "ns/a", gpus=6, cores=6, priority=1),
        Pod(1, "ns/b", gpus=5, cores=5, priority=1),
        Pod(2, "ns/c", gpus=2, cores=2, priority=9, online=True),
        Pod(3, "ns/d", gpus=6, cores=6, priority=9, online=True),
    ]
    state = ClusterState.from_pods([preset("rtx4090")], [0, 0], pods)
    state.start(0, 0, [1, 2, 3, 5, 6, 7])
    state.start(1, 1, [3, 4, 5, 6, 7])
    assert find_node(state.arrays, 2, False, False) == 0
    assert find_node(state.arrays, 2, False, True) == 1
    assert find_node(state.arrays, 2, True, True) == 1
    assert find_node(state.arrays, 3, False, False) == -1
