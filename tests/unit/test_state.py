"""The named view of the arrays: building, starting, and its checks."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.cluster.errors import FlextopoError, PodError
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights
from flextopo.cluster.state import arrays
from flextopo.cluster.state.arrays import Cluster, copy_cluster, lost_work_s, may_evict, release
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.loss import compile_costs, eviction_cost, misalignment_cost
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import CROSS_SOCKET, NUMA, SOCKET
from flextopo.cluster.topology.model import preset

PODS = (
    Pod(0, "ns/a", gpus=2, cores=14, priority=100, checkpoint_s=900, batch_class=1),
    Pod(1, "ns/b", gpus=1, cores=7, priority=100, protection_s=60, group=0),
    Pod(2, "ns/c", gpus=1, cores=7, priority=100, group=0, preemptible=False, pdb=0),
    Pod(3, "ns/d", gpus=1, cores=7, priority=1000, online=True,
        requirement=TopologyRequirement.GUARANTEED),
)  # fmt: skip


def build(now_s: int = 10_000) -> ClusterState:
    return ClusterState.from_pods([preset("rtx4090")], [0, 0], PODS, pdb_allowed=[1], now_s=now_s)


def running() -> ClusterState:
    state = build()
    for pod in range(3):
        state.start(pod, pod % 2)
    return state


def test_start_writes_every_array() -> None:
    state = running()
    c = state.arrays
    assert c.live["node"].tolist() == [0, 1, 0, -1]
    assert c.live["gpu_mask"].tolist() == [0b1100, 0b1000, 0b0010, 0]
    assert c.nodes["gpu_free"].tolist() == [0b11110001, 0b11110111]
    assert c.cores_free.tolist() == [[1, 1, 1, 8, 8, 8, 8, 8], [1, 8, 8, 8, 8, 8, 8, 8]]
    assert c.nodes["cores_free"].tolist() == [43, 57]
    assert c.node_pods[:, :2].tolist() == [[0, 2], [1, -1]]
    assert c.totals[0]["free_gpus"] == 12
    assert c.totals[0]["batch_gpus"] == 4
    state.check_invariants()
    assert [pod.name for pod in state.pods_on(0)] == ["ns/a", "ns/c"]
    assert state.pod(0) == replace(PODS[0], start_s=10_000)
    assert state.pod(3) == PODS[3]


def test_release_undoes_it() -> None:
    state, empty = running(), build()
    for pod in range(3):
        release(state.arrays, pod)
    for name in ("nodes", "cores_free", "pod_cores", "node_pods"):
        assert (getattr(state.arrays, name) == getattr(empty.arrays, name)).all()
    assert state.arrays.totals[0]["free_gpus"] == 16


def corrupt_gpu(c: Cluster) -> None:
    c.nodes["gpu_free"][0] |= 0b1100


def lose_gpu(c: Cluster) -> None:
    c.nodes["gpu_free"][0] &= ~1


def corrupt_cores(c: Cluster) -> None:
    c.cores_free[1, 3] -= 1


def corrupt_node_cores(c: Cluster) -> None:
    c.nodes["cores_free"][0] += 1


def corrupt_node(c: Cluster) -> None:
    c.live["node"][0] = 1


def corrupt_total(c: Cluster) -> None:
    c.totals["free_gpus"] += 1


def corrupt_batch(c: Cluster) -> None:
    c.totals["batch_gpus"] -= 1


def corrupt_request(c: Cluster) -> None:
    c.pods["cores"][0] = 13


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (corrupt_gpu, "two owners"),
        (lose_gpu, "legal: all of them"),
        (corrupt_cores, "do not add up"),
        (corrupt_node_cores, "free cores is not true"),
        (corrupt_node, "two owners"),
        (corrupt_total, "free_gpus = 13; true: 12"),
        (corrupt_batch, "batch_gpus"),
        (corrupt_request, "'ns/a' holds 2 GPUs and 14 cores"),
    ],
)
def test_a_corrupted_array_is_found(corrupt: Callable[[Cluster], None], message: str) -> None:
    state = running()
    corrupt(state.arrays)
    with pytest.raises(PodError, match=message):
        state.check_invariants()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda s: s.start(0, 0), "holds resources already"),
        (lambda s: s.start(3, 2), "node 2; legal: 0 to 1"),
        (lambda s: s.start(3, 0, [3]), r"legal: 1 of the free ones \[0, 4, 5, 6, 7\]"),
        (lambda s: s.start(3, 0, [0, 4]), "legal: 1 of"),
        (lambda s: s.pod(4), "pod index 4; legal: 0 to 3"),
        (lambda s: s.slots_of(1, [0]), "'ns/a' is not on node 1"),
        (lambda s: s.slots_of(0, [-1]), "pod index -1; legal: 0 to 3"),
        (lambda s: s.slots_of(-1, []), "node -1; legal: 0 to 1"),
    ],
)
def test_every_mistake_has_its_error(do: Callable[[ClusterState], Any], message: str) -> None:
    with pytest.raises(PodError, match=message):
        do(running())


@pytest.mark.parametrize(
    ("pods", "message"),
    [
        ([replace(PODS[0], index=1)], "has index 1; legal here: 0"),
        ([PODS[0], replace(PODS[0], index=1)], "used twice"),
        ([replace(PODS[0], pdb=1)], "disruption budget 1; legal: below 1"),
    ],
)
def test_pods_that_make_no_cluster(pods: list[Pod], message: str) -> None:
    with pytest.raises(PodError, match=message):
        ClusterState.from_pods([preset("a100")], [0], pods, pdb_allowed=[1])


def test_a_pod_that_does_not_fit_is_refused() -> None:
    pods = [Pod(0, "ns/a", gpus=9, cores=1, priority=1), Pod(1, "ns/b", 1, 129, 1)]
    state = ClusterState.from_pods([preset("a100")], [0], pods)
    for pod in range(2):
        with pytest.raises(PodError, match="legal on node 0: up to 8 and 128"):
            state.start(pod, 0)


@pytest.mark.parametrize(
    "wrong",
    [{"gpus": -1}, {"cores": -1}, {"gpus": 0, "cores": 0}, {"protection_s": -1},
     {"checkpoint_s": -1}, {"batch_class": -1}],
)  # fmt: skip
def test_illegal_pods(wrong: dict[str, int]) -> None:
    with pytest.raises(PodError, match="legal: 0 or more"):
        replace(PODS[0], **wrong)  # type: ignore[arg-type]


def test_eligibility_rule_by_rule() -> None:
    state = running()
    c = state.arrays

    def may(pod: int, priority: int = 1000) -> bool:
        return bool(may_evict(c, pod, priority))

    assert may(0)
    assert not may(0, 100), "equal priority"
    assert not may(1), "newly started"
    c.live["since_s"][1] = 10_000 - 60
    assert may(1)
    assert not may(2), "not preemptible"
    c.pods["preemptible"][2] = 1
    assert may(2)
    assert arrays.is_eligible(c, 2, 1000)
    c.pdb_left[0] = 0
    assert may(2)
    assert not arrays.is_eligible(c, 2, 1000), "no disruption left"
    for status in (arrays.NOMINATED, arrays.TERMINATING, arrays.PENDING, arrays.DONE):
        c.live["status"][0] = status
        assert not may(0)


def test_what_an_eviction_loses() -> None:
    state = running()
    c, costs = state.arrays, state.costs
    c.live["since_s"][:3] = 10_000 - 2000
    c.live["overhead_s"][0] = 60
    # 2000 - 60 s of progress, the last checkpoint at 1800; class 1 counts double.
    assert lost_work_s(c, 0) == 1940 - 1800
    assert eviction_cost(c, 0, costs) == 2 * ((140 + 60) * 2 + 180)
    # The PodGroup of pods 1 and 2 has no checkpoint, and goes as one.
    assert eviction_cost(c, 1, costs) == eviction_cost(c, 2, costs) == 2 * (2000 + 60 + 180)
    c.live["overhead_s"][0] = 3000
    assert lost_work_s(c, 0) == 0
    state.start(3, 1)
    # An online replica starts up elsewhere, missed as a first one: it is of no known service.
    assert eviction_cost(c, 3, costs) == 180 + 4 * 90


def test_weights_and_their_units() -> None:
    costs = compile_costs(LossWeights(), grace_s=30, restart_s=60)
    assert costs.eviction == pytest.approx(180)
    assert (costs.waiting, costs.late) == (1.0, 32.0)
    assert 600 * 2 * costs.late_growth == pytest.approx(32.0)
    assert costs.missing == pytest.approx((4.0, 2.5, 2.0, 1.6, 1 + 3 / 9))
    kinds = [SENSITIVITIES[name] for name in ("offload", "resident", "linked", "host-heavy")]
    rates = [
        (0, 1 - k.off_island, 1 - k.off_numa, 1 - k.off_socket, 1 - k.off_leaf, 1 - k.off_block)
        for k in kinds
    ]
    assert costs.misaligned == pytest.approx(3 * np.array(rates).ravel())
    state = running()
    c = state.arrays
    c.pods["gpus"][0], c.pods["sensitivity"][0] = 2, 2
    for level, lost in ((0, 0.0), (NUMA, 0.2), (SOCKET, 0.2), (CROSS_SOCKET, 0.35)):
        assert misalignment_cost(c, costs, 0, level) == pytest.approx(2 * 7200 * 3 * lost)


@pytest.mark.parametrize(
    ("wrong", "legal"),
    [({"waiting": -1.0}, "0 to 1e"), ({"late": float("inf")}, "0 to 1e"),
     ({"idle": float("nan")}, "0 to 1e"), ({"late": 1e308}, "0 to 1e")],
)  # fmt: skip
def test_illegal_weights(wrong: dict[str, float], legal: str) -> None:
    with pytest.raises(FlextopoError, match=f"{next(iter(wrong))} = .*legal: {legal}"):
        LossWeights(**wrong)


def test_victims_come_by_priority_then_age() -> None:
    pods = [Pod(i, f"ns/{i}", gpus=1, cores=7, priority=100) for i in range(4)]
    pods[2] = replace(pods[2], priority=200)
    pods.append(Pod(4, "ns/online", gpus=8, cores=56, priority=1000, online=True))
    pods.append(Pod(5, "ns/5", gpus=1, cores=7, priority=100))
    state = ClusterState.from_pods([preset("rtx4090")], [0], pods)
    for pod, start_s in ((3, 7), (0, 9), (1, 8), (2, 50)):
        state.start(pod, 0)
        state.arrays.live[pod]["since_s"] = start_s
    found = state.candidate(0, [0, 1, 2, 3], pods[4])
    assert found is not None
    assert found.victims == (2, 3, 1, 0)
    assert sorted([5, 1], key=state.importance) == [1, 5]  # one that never started is the least


def test_a_copied_cluster_goes_its_own_way() -> None:
    state = running()
    other = copy.deepcopy(build().arrays)
    copy_cluster(state.arrays, other)
    assert (other.live == state.arrays.live).all()
    release(other, 0)
    assert state.arrays.live["node"][0] == 0
    assert np.array_equal(state.arrays.pods, other.pods)
    state.check_invariants()


def test_the_cost_of_any_victim_set_is_the_kernels() -> None:
    counted = 0
    for sim, pod in tapes.decisions("2*rtx4090,2*a100", 3):
        for candidate in sim.state.candidates(pod, AlignmentFilter.OWN.binds(pod), 32):
            unknown = replace(candidate, cost_gpu_s=math.nan)
            assert sim.state.cost_of(unknown, pod) == pytest.approx(candidate.cost_gpu_s)
            counted += len(candidate.victims) > 1
    assert counted > 10
