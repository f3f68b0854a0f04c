"""The ablation runs, its rows are what playing gives, and its networks read what they say they read."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import NUM_CANDIDATE, NUM_CLUSTER, NUM_PREEMPTOR
from flextopo.cluster.observation.gpu_graph import NUM_GPU
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import load_policy
from flextopo.train.ablation import Arena, run_ablation, value_loss
from flextopo.train.ablation_dqn import TimedReplayBuffer, draw_legal, train_dqn
from flextopo.train.ablation_networks import AttentionScorer, GraphScorer, LinearScorer
from flextopo.train.config import AblationConfig, ImitationConfig, PPOConfig
from flextopo.train.imitation import train_imitation
from flextopo.train.rollout_buffer import REWARD_SCALE

TINY = ImitationConfig(
    servers=("4*rtx4090",), networks=2, tapes=6, rounds=1, improvements=1, last_tapes=6, epochs=1,
    k=8, hidden=8, validation_tapes=4,
)  # fmt: skip
PPO = PPOConfig(servers="4*rtx4090", timesteps=256, num_envs=2, rollout=16, k=8, hidden=8, tapes=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train_imitation(TINY, folder, 1, lambda _: None)
    return folder


def test_every_row_is_played_on_the_same_tapes(run: Path) -> None:
    said: list[str] = []
    config = AblationConfig(4, PPO, validation_tapes=4, importance_tapes=1)
    found = run_ablation(run, config, said.append)
    rows = {(row["group"], row["name"]): row for row in found["ablation"]}
    assert [group for group, _ in rows].count("networks") == 6
    assert rows["baseline", "greedy-cost"]["against_greedy"]["mean"] == 0.0
    arena = Arena(TINY.servers, 4)
    losses, _ = arena.validate(load_policy(run / "policy"))
    stages = [row["loss"] for row in rows.values() if row["group"] == "stages"]
    assert len(stages) == 4  # two rounds of the best network, the committee's and one more
    assert losses.mean() in stages
    assert ("DQN", "from scratch, beyond greedy-cost") in rows
    assert len(found["importance"]) == NUM_PREEMPTOR + NUM_CLUSTER + NUM_CANDIDATE
    assert all(len(curve["loss"]) == 8 for curve in found["learning_curves"].values())
    assert len(said) == len(rows) + 2


class Clock:
    elapsed_s = np.array([0.0, 3600.0])


def test_dqn_discounts_by_elapsed_time() -> None:
    space = gym.spaces.Dict({"x": gym.spaces.Box(0, 1, (1,))})
    action = gym.spaces.Discrete(2)
    memory = TimedReplayBuffer(8, space, action, n_envs=2, clock=Clock(), tau_s=7200.0)
    seen = {"x": np.zeros((2, 1), np.float32)}
    for over in (False, True):
        memory.add(seen, seen, np.zeros(2), np.ones(2), np.array([over, over]), [{}, {}])
    # What follows a step counts exp(-dt / tau) times, and nothing after the last.
    assert memory.dones[:2].ravel() == pytest.approx([0.0, 1 - math.exp(-0.5), 1.0, 1.0])
    assert memory.rewards[0] == pytest.approx(
        [REWARD_SCALE, REWARD_SCALE * (1 - math.exp(-0.5)) / 0.5]
    )


def test_dqn_explores_legal_actions_and_repeats_itself() -> None:
    mask = np.array([[0, 1, 0, 1], [1, 0, 0, 0]])
    drawn = np.array([draw_legal(mask) for _ in range(200)])
    assert set(drawn[:, 0]) == {1, 3}
    assert set(drawn[:, 1]) == {0}
    first, again = (train_dqn(PPO).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.manual_seed(PPO.seed)
    fresh = CandidateScorer(ScorerConfig(PPO.hidden)).state_dict()
    assert not torch.equal(first["score.weight"], fresh["score.weight"])


def test_a_folder_without_rounds_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").symlink_to(run / "policy")
    with pytest.raises(FlextopoError, match="legal: an imitation run"):
        run_ablation(tmp_path, AblationConfig(), print)


def inputs(b: int, k: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(b)
    arrays = [rng.random(shape) for shape in ((b, NUM_PREEMPTOR), (b, NUM_CLUSTER))]
    arrays += [rng.random((b, k, NUM_CANDIDATE))]
    tensors = [torch.tensor(array, dtype=torch.float32) for array in arrays]
    mask = torch.ones(b, k + 1, dtype=torch.int8)
    mask[:, k - 2 : k] = 0
    return [*tensors, mask]


@pytest.mark.parametrize("make", [LinearScorer, AttentionScorer, GraphScorer])
def test_the_order_of_candidates_does_not_matter(make: Any) -> None:
    torch.manual_seed(0)
    network, given = make(), inputs(3, 6)
    graph = (torch.rand(3, 6, 16, NUM_GPU) * 4).round() / 4
    order = torch.tensor([2, 0, 3, 1, 5, 4])
    turned = [*given[:2], given[2][:, order], given[3]]
    extra = ([graph], [graph[:, order]]) if make is GraphScorer else ([], [])
    with torch.no_grad():
        scores, turned_scores = (
            network.packed(*args)[0] for args in (given + extra[0], turned + extra[1])
        )
    assert torch.allclose(scores[:, order], turned_scores[:, :-1], atol=1e-5)
    assert torch.allclose(scores[:, -1], turned_scores[:, -1], atol=1e-5)
    assert (scores[:, 4:6] < -1e7).all()


def test_the_graph_network_reads_the_graph() -> None:
    torch.manual_seed(0)
    network: Any = GraphScorer()
    given = inputs(2, 4)
    graph = torch.zeros(2, 4, 16, NUM_GPU)
    graph[:, :, :8, 0] = 1.0
    graph[:, :, :8, 6] = torch.arange(8) // 4 / 32
    other = graph.clone()
    other[0, 1, :8, 6] = torch.arange(8) % 2 / 32  # the same GPUs, on NUMA nodes in turn
    other[:, :, :4, 1] = graph[:, :, :4, 1] = 1.0
    with torch.no_grad():
        one, two = (network.packed(*given, g)[0] for g in (graph, other))
    assert not torch.allclose(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_value_regression_wants_minus_the_losses_up_to_a_constant() -> None:
    class Fixed:
        def packed(self, *_: Any) -> tuple[torch.Tensor, None]:
            return torch.tensor([[5.0, 3.0, -1e8, 4.0]]), None

    mask = torch.tensor([[1, 1, 0, 1]], dtype=torch.int8)
    right = torch.tensor([[0.0, 2.0, 0.0, 1.0]])
    wrong = torch.tensor([[0.0, 2.0, 0.0, 4.0]])
    dummy = torch.zeros(1)
    assert value_loss(Fixed(), [dummy, dummy, dummy, mask, right], 0.0) == 0.0
    assert value_loss(Fixed(), [dummy, dummy, dummy, mask, wrong], 0.0) == pytest.approx(6.0)
