"""What an episode shows at its end, and what of its loss is in no reward."""

from __future__ import annotations

import numpy as np
import pytest
import tapes

from flextopo.cluster.observation.features import C
from flextopo.envs.preemption import PreemptionEnv
from flextopo.envs.vector import PreemptionVectorEnv

SERVERS = "4*rtx4090"
WORKLOAD = tapes.BUSY


def test_rewards_and_what_came_before_them_are_the_loss() -> None:
    env = PreemptionEnv(SERVERS, workload=WORKLOAD, k=8)
    _, info = env.reset(seed=3)
    before, rewards, over = info["unrewarded"], 0.0, False
    assert before > 0
    assert np.isclose(before, sum(info["loss"].values()))
    while not over:
        _, reward, _, over, info = env.step(0)
        rewards += float(reward)
        assert info["unrewarded"] == before
    lost = sum(info["loss"].values())
    assert np.isclose(before - rewards * env.fleet.num_gpus / 100, lost)


def test_the_last_observation_shows_the_cluster_as_it_is() -> None:
    env = PreemptionEnv(SERVERS, workload=WORKLOAD, k=8)
    shown, _ = env.reset(seed=3)
    over = False
    while not over:
        shown, _, _, over, info = env.step(0)
    totals = env.simulator.state.arrays.totals[0]
    cluster = shown["cluster"]
    assert cluster[C.free] == np.float32(totals["free_gpus"] / totals["gpus"])
    assert cluster[C.online] == np.float32(totals["online_gpus"] / totals["gpus"])
    assert cluster[C.online] > 0
    assert not shown["preemptor"].any()
    assert not shown["candidates"].any()
    assert info["action_mask"].tolist() == [0] * 8 + [1]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_vector_shows_the_same_end(mode: str) -> None:
    one = PreemptionEnv(SERVERS, workload=WORKLOAD, k=8)
    many = PreemptionVectorEnv(1, SERVERS, workload=WORKLOAD, k=8, autoreset_mode=mode)
    shown, _ = one.reset(seed=3)
    many.reset(seed=3)
    over = False
    while not over:
        shown, _, _, over, info = one.step(0)
        several, _, _, truncated, infos = many.step([0])
        assert bool(truncated[0]) == over
    last = {name: several[name][0] for name in several}
    final = infos
    if mode == "SameStep":
        last, final = infos["final_obs"][0], infos["final_info"]
    assert tapes.same(last, shown)
    assert final["unrewarded"][0] == info["unrewarded"]
