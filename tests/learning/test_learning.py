"""What was learned beats what was not: thresholds that a random choice misses."""

from pathlib import Path

import numpy as np
import pytest

from flextopo.baselines.registry import make_selector
from flextopo.cluster.metrics import episode_metrics
from flextopo.cluster.seeds import VALIDATION, take
from flextopo.cluster.selector import VictimSelector
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import parse_servers
from flextopo.cluster.simulator import Simulator
from flextopo.cluster.workload import WorkloadConfig, generate_tape
from flextopo.policies.runtime import load_policy, zoo_names
from flextopo.train.imitation import ImitationConfig, collect, fit, imitate, validate
from flextopo.train.ppo import PPOConfig, train_ppo


def losses(selector: VictimSelector, servers: str, count: int) -> float:
    fleet = Fleet(*parse_servers(servers))
    found = []
    for seed in take(VALIDATION, count):
        tape = generate_tape(
            WorkloadConfig(), fleet.num_gpus, seed, cores_per_gpu=fleet.cores_per_gpu
        )
        sim = Simulator(tape, fleet, selector.filter)
        sim.run(selector)
        found.append(episode_metrics(sim)["weighted_loss"])
    return float(np.mean(found))


@pytest.mark.parametrize("servers", ["16*rtx4090", "16*a100"])
@pytest.mark.parametrize("name", zoo_names())
def test_shipped_policies_beat_every_deterministic_selector(name: str, servers: str) -> None:
    learned = losses(load_policy(name), servers, 16)
    for other in ("random", "kubernetes", "flextopo-guaranteed", "greedy-cost"):
        assert learned < losses(make_selector(other), servers, 16), other


SMALL = ImitationConfig(
    servers=("4*rtx4090",), tapes=60, rounds=1, epochs=20, k=8, validation_tapes=16, hidden=32
)


def test_imitation_learns_from_a_minute_of_demonstrations() -> None:
    said: list[str] = []
    network, history = imitate(SMALL, 1, said.append)
    assert history == [validate(network, SMALL)]
    assert len(said) == 1
    assert history[0] < losses(make_selector("random"), "4*rtx4090", 16)


def test_demonstrations_repeat_and_do_not_depend_on_processes() -> None:
    config = ImitationConfig(servers=("4*rtx4090",), tapes=6, rounds=1, k=8)
    one, two = collect(config, 0, None, 1), collect(config, 0, None, 2)
    for name in one.__annotations__:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.losses[one.mask == 0] == 0).all()
    assert (one.losses[:, 0] == 0).all()


def test_fitting_lowers_the_expected_loss() -> None:
    from flextopo.policies.network import CandidateScorer, ScorerConfig

    data = collect(SMALL, 0, None, 1)
    course = list(fit(CandidateScorer(ScorerConfig(32)), data, SMALL, 0))
    assert course[-1] < course[0]


PPO = PPOConfig(servers="4*rtx4090", timesteps=128, num_envs=2, rollout=32, k=8, hidden=16)


def test_ppo_trains_resumes_and_leaves_an_artifact(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = train_ppo(PPO, tmp_path / "run", progress=lambda *at: seen.append(at))
    assert seen[0] == (0, 128)
    assert load_policy(folder).k == 8
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint.zip", "config.json", "policy", "tensorboard",
    }  # fmt: skip
    longer = PPOConfig(**{**PPO.__dict__, "timesteps": 256})
    train_ppo(longer, tmp_path / "run", resume=True, progress=lambda *at: seen.append(at))
    assert seen[-1] == (192, 256)


def test_ppo_repeats_with_its_seed(tmp_path: Path) -> None:
    weights = [load_policy(train_ppo(PPO, tmp_path / name)).weights for name in "ab"]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_ppo_warms_the_critic_up_before_it_touches_the_actor(tmp_path: Path) -> None:
    start = zoo_names()[0]
    config = PPOConfig(**{**PPO.__dict__, "start": start, "k": 16, "critic_steps": 10**6})
    before, after = load_policy(start).weights, load_policy(train_ppo(config, tmp_path)).weights
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {key for key in before if key.startswith("critic")}
