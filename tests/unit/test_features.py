"""What a policy sees, against counts made by hand and in plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from tapes import decisions

from flextopo.cluster.observation.features import (
    CANDIDATE_FEATURES,
    CLUSTER_FEATURES,
    Observation,
    empty_observation,
)
from flextopo.cluster.observation.gpu_graph import GPU_FEATURES, empty_graph, observe_graph
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import PENDING
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.pods import Pod
from flextopo.envs.graph import GraphObservation

CLUSTER, CANDIDATE = list(CLUSTER_FEATURES), list(CANDIDATE_FEATURES)
GPU = {name: i for i, name in enumerate(GPU_FEATURES)}

Seen = tuple[Simulator, Pod, CandidateArrays, int, Observation]


def seen(servers: str, seed: int, k: int = 16) -> Iterator[Seen]:
    """Yield the decisions of a tape with their observations."""
    for sim, pod in decisions(servers, seed):
        found, count = sim.state.find(pod, False, k)
        o = empty_observation(k)
        if count:
            observe(sim.state.arrays, sim.costs, pod.index, found, count, o)
            yield sim, pod, found, count, o


@pytest.mark.parametrize("seed", range(3))
def test_what_waits_is_told_by_size(seed: int) -> None:
    told = 0.0
    for sim, _, _, _, o in seen("2*rtx4090,2*a100", seed):
        c = sim.state.arrays
        queue = [i for i in np.flatnonzero(c.live["status"] == PENDING) if not c.pods[i]["online"]]
        gpus = float(c.totals[0]["gpus"])
        for name, low, high in (("waiting_1", 0, 1), ("waiting_2", 2, 2), ("waiting_4", 3, 4)):
            known = sum(c.pods[i]["gpus"] for i in queue if low <= c.pods[i]["gpus"] <= high)
            assert o.cluster[CLUSTER.index(name)] == np.float32(min(1.0, known / gpus)), name
            told += known
        known = sum(c.pods[i]["gpus"] for i in queue if c.pods[i]["group"] >= 0)
        assert o.cluster[CLUSTER.index("waiting_groups")] == np.float32(min(1.0, known / gpus))
    assert told > 0


@pytest.mark.parametrize("seed", range(3))
def test_victims_that_fit_elsewhere_and_what_refills_the_node(seed: int) -> None:
    shares: set[float] = set()
    for sim, pod, found, count, o in seen("2*rtx4090,2*a100", seed):
        c = sim.state.arrays
        free = [int(mask).bit_count() for mask in c.nodes["gpu_free"]]
        for i in range(count):
            candidate = sim.state.candidate_at(found, i, pod)
            sizes = [int(c.pods[v]["gpus"]) for v in candidate.victims]
            room = max(f for node, f in enumerate(free) if node != candidate.node)
            fits = sum(size for size in sizes if size <= room) / max(1, sum(sizes))
            assert o.candidates[i][CANDIDATE.index("victims_fit")] == np.float32(fits)
            size = sim.state.model(candidate.node).num_gpus
            after = round(float(o.candidates[i][CANDIDATE.index("free_after")]) * size)
            refill = float(o.candidates[i][CANDIDATE.index("refill")]) * size
            assert 0 <= refill <= after + 1e-6
            if c.totals[0]["batch_wait_gpus"] == 0:
                assert refill == 0
            elif c.totals[0]["batch_wait_1"] >= size:
                assert refill == pytest.approx(after)
            shares.add(fits)
    assert len(shares) > 1


def test_the_graph_says_who_holds_each_gpu_and_where_it_hangs() -> None:
    told = 0
    for sim, pod, found, count, _ in seen("2*rtx4090,2*a100", 1):
        c, graph = sim.state.arrays, empty_graph(16)
        observe_graph(c, pod.index, found, count, graph)
        assert (graph[count:] == 0).all()
        assert graph.min() >= 0
        assert graph.max() <= 1
        for i in range(count):
            candidate = sim.state.candidate_at(found, i, pod)
            model = sim.state.model(candidate.node)
            assert graph[i, :, GPU["exists"]].sum() == model.num_gpus
            held = sum(int(c.live[v]["gpu_mask"]).bit_count() for v in candidate.victims)
            free = int(c.nodes[candidate.node]["gpu_free"]).bit_count()
            assert graph[i, :, GPU["free"]].sum() == free
            assert graph[i, :, GPU["freed"]].sum() == held
            taken = graph[i, :, GPU["taken"]]
            assert taken.sum() == pod.gpus
            usable = graph[i, :, GPU["free"]] + graph[i, :, GPU["freed"]]
            assert (taken <= usable).all()
            for gpu, numa in enumerate(model.gpu_numa):
                assert graph[i, gpu, GPU["numa"]] == np.float32(numa / 32)
                assert graph[i, gpu, GPU["socket"]] == np.float32(model.numa_socket[numa] / 32)
            told += held
    assert told > 0


@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version")
def test_the_graph_is_an_observation_option() -> None:
    import flextopo  # noqa: F401

    env = GraphObservation(gymnasium.make("flextopo/Preempt-Mixed-v0", k=8))
    check_env(env, skip_render_check=True)  # warns that a wrapped environment is checked
    shown: Any = env.reset(seed=1)[0]
    assert shown["graph"].shape == (8, 16, len(GPU_FEATURES))
    assert (shown["graph"][:, :, 0].sum(1) > 0).sum() == shown["action_mask"][:-1].sum()
    over = False
    while not over:
        shown, _, _, over, _ = env.step(8)
    assert (shown["graph"] == 0).all()
    with pytest.raises(TypeError, match="legal: a PreemptionEnv"):
        GraphObservation(gymnasium.make("CartPole-v1"))
