"""What was learned beats what was not: thresholds that a random choice misses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import NUM_CANDIDATE
from flextopo.cluster.simulation.events import copy_events
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import copy_cluster
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.loss import weighted_gpu_s
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.cluster.workload.seeds import TRAINING, VALIDATION, take
from flextopo.policies.artifact import load_network
from flextopo.policies.continuation import PolicyLookahead
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector, load_policy, read_meta
from flextopo.policies.shipped import ZOO, zoo_names
from flextopo.train import ppo
from flextopo.train.config import ImitationConfig, PPOConfig
from flextopo.train.demonstrations import Demonstrations, Demonstrator, tape_for
from flextopo.train.fitting import fit
from flextopo.train.imitation import imitate, train_imitation, validate
from flextopo.train.ppo import train_ppo
from flextopo.train.rounds import Rounds, read_rounds, weights_of


def losses(selector: VictimSelector, servers: str, count: int) -> float:
    fleet = parse_servers(servers)
    found = []
    for seed in take(VALIDATION, count):
        tape = generate_tape(
            WorkloadConfig(), fleet.num_gpus, seed, cores_per_gpu=fleet.cores_per_gpu
        )
        sim = Simulator(tape, fleet, selector.filter)
        sim.play(selector)
        found.append(episode_metrics(sim)["weighted_loss"])
    return float(np.mean(found))


@pytest.mark.parametrize("servers", ["16*rtx4090", "16*a100"])
@pytest.mark.parametrize("name", zoo_names())
def test_shipped_policies_beat_every_deterministic_selector(name: str, servers: str) -> None:
    learned = losses(load_policy(name), servers, 16)
    for other in ("random", "kubernetes", "flextopo-guaranteed", "greedy-cost"):
        assert learned < losses(make_selector(other), servers, 16), other


@pytest.mark.parametrize("name", zoo_names())
def test_shipped_policies_lose_on_the_validation_tapes_what_they_say(name: str) -> None:
    said = read_meta(ZOO / name)["validation"]["weighted_loss"]
    assert validate(load_policy(name), ImitationConfig()) == pytest.approx(said, abs=2e-4)


SMALL = ImitationConfig(
    servers=("4*rtx4090",), networks=1, tapes=60, rounds=1, improvements=1, last_tapes=30, epochs=20,
    k=8, validation_tapes=16, hidden=32, members=0,
)  # fmt: skip
TINY = replace(SMALL, tapes=6, rounds=2, improvements=3, last_tapes=8, epochs=2, hidden=8)


def demonstrations(weights: dict[str, Any], improve: bool, workers: int = 1) -> Demonstrations:
    return Demonstrator(("4*rtx4090",), 8, 7200, weights, improve).collect(0, 6, workers)


def some_weights() -> dict[str, Any]:
    torch.manual_seed(1)
    return weights_of(CandidateScorer(ScorerConfig(16)))


def test_imitation_learns_from_a_minute_of_demonstrations() -> None:
    said: list[str] = []
    network, history = imitate(SMALL, 1, said.append)
    learned = LearnedSelector("learned", weights_of(network), SMALL.k)
    assert min(history) == validate(learned, SMALL)
    assert [line.split()[0] for line in said] == ["imitation", "improvement"]
    assert min(history) < losses(make_selector("random"), "4*rtx4090", 16)


@pytest.mark.parametrize("improve", [False, True])
def test_demonstrations_repeat_and_do_not_depend_on_processes(improve: bool) -> None:
    weights = some_weights()
    one, two = demonstrations(weights, improve, 1), demonstrations(weights, improve, 2)
    for name in vars(one):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    assert (one.losses[one.mask == 0] == 0).all()
    assert (one.losses[:, 0] == 0).all()


def test_branches_under_a_policy_cost_what_playing_it_costs() -> None:
    """Take each action, then play on with the selector itself: the losses are those of the kernel."""
    weights = some_weights()
    policy = LearnedSelector("policy", weights, 8)
    fleet = parse_servers("4*rtx4090")
    compared = 0
    for seed in take(TRAINING, 8):
        sim = tape_for(fleet, WorkloadConfig(online_peak_share=0.9), seed)
        for _ in range(3):
            if (pod := sim.next_decision()) is None:
                break
            found, count = sim.state.find(pod, AlignmentFilter.OWN.binds(pod), 8)
            if count:
                ahead = sim.branch(found, count, 7200, PolicyLookahead(weights, 8))
                assert np.isfinite(ahead[count]) == sim.may_wait(pod)
                for action in range(count + sim.may_wait(pod)):
                    chosen = sim.state.candidate_at(found, action, pod) if action < count else None
                    assert ahead[action] == played(sim, seed, fleet, chosen, policy), action
                    compared += 1
            sim.apply(sim.state.candidate_at(found, 0, pod) if count else None)
    assert compared > 20


def played(
    sim: Simulator, seed: int, fleet: Fleet, first: Candidate | None, policy: LearnedSelector
) -> float:
    """Return the loss of two hours in which `first` is done now and the policy decides the rest."""
    other = tape_for(fleet, WorkloadConfig(online_peak_share=0.9), seed)
    copy_cluster(sim.state.arrays, other.state.arrays)
    copy_events(sim.events, other.events)
    before = weighted_gpu_s(sim.events.account, sim.costs)
    end = min(sim.rules.end_s, sim.state.now_s + 7200)
    other.rules = other.rules._replace(end_s=end)
    other.apply(first)
    other.play(policy)
    return float(weighted_gpu_s(other.events.account, other.costs) - before)


LAST_LINES = [
    "improvement 5/5",
    "committee of 2",
    "improvement on it",
    "on 64 other validation tapes",
]


@pytest.mark.parametrize(("stopped_at", "left"), [("improvement 4/5", 0), ("committee", 2)])
def test_interrupted_imitation_resumes_to_the_same_bits(
    stopped_at: str, left: int, tmp_path: Path
) -> None:
    config = replace(TINY, members=2)
    whole = load_policy(train_imitation(config, tmp_path / "whole", 1, lambda _: None)).weights

    def stop(line: str) -> None:
        if line.startswith(stopped_at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_imitation(config, tmp_path / "parts", 1, stop)
    with pytest.raises(FlextopoError, match="--resume"):
        train_imitation(config, tmp_path / "parts", 1, stop)
    said: list[str] = []
    policy = train_imitation(config, tmp_path / "parts", 1, said.append, resume=True)
    assert [line.split(":")[0] for line in said] == LAST_LINES[left:]
    resumed = load_policy(policy).weights
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)
    assert not list(tmp_path.rglob("demonstrations*"))


def test_the_best_of_several_networks_is_kept(tmp_path: Path) -> None:
    config = replace(TINY, networks=2, rounds=1, improvements=1, seed=3)
    alone = []
    for at in range(2):
        one = config.of_network(at)
        assert (one.networks, one.seed) == (1, 6 + at)
        alone.append(imitate(one, 1, lambda _: None))
    best = int(np.argmin([min(history) for _, history in alone]))

    def stop(line: str) -> None:
        if line.startswith("network 2/2, imitation 1/2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_imitation(config, tmp_path, 1, stop)
    said: list[str] = []
    policy = train_imitation(config, tmp_path, 1, said.append, resume=True)
    assert [line.split(":")[0] for line in said] == ["network 2/2, improvement 2/2"]
    kept, expected = load_policy(policy).weights, weights_of(alone[best][0])
    assert all(np.array_equal(kept[key], expected[key]) for key in kept)
    meta = read_meta(policy)
    assert meta["validation_loss"] == alone[best][1]
    assert read_rounds(tmp_path / meta["rounds"])["losses"] == alone[best][1]


def test_rounds_of_another_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FlextopoError, match="missing"):
        Rounds(TINY, tmp_path).resume()
    for damaged in ("{", "[]", '{"config": 1, "losses": []}'):
        (tmp_path / "rounds.json").write_text(damaged)
        with pytest.raises(FlextopoError, match="is damaged"):
            Rounds(TINY, tmp_path).resume()
    (tmp_path / "rounds.json").write_text('{"config": {"tapes": 7}, "losses": []}')
    with pytest.raises(FlextopoError, match="another configuration"):
        Rounds(TINY, tmp_path).resume()


def test_fitting_lowers_the_expected_loss() -> None:
    data = demonstrations({}, False)
    course = list(fit(CandidateScorer(ScorerConfig(32)), data, SMALL, 0))
    assert course[-1] < course[0]


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
on_every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])

PPO = PPOConfig(servers="4*rtx4090", timesteps=128, num_envs=2, rollout=32, k=8, hidden=16)


def test_ppo_trains_resumes_and_leaves_an_artifact(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = train_ppo(PPO, tmp_path / "run", progress=lambda *at: seen.append(at))
    assert seen[0] == (0, 128)
    assert load_policy(folder).k == 8
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "checkpoint.zip", "config.json", "policy", "tensorboard",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "legal"),
    [
        ({"tau_s": 0.0}, "above 0"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"clip": float("nan")}, "above 0"),
        ({"epochs": 0}, "1 or more"),
        ({"kl": -0.1}, "0 or more"),
        ({"kl": 0.1}, "or a start policy"),
        ({"device": "gpu"}, "cpu, cuda"),
    ],
)
def test_what_ppo_cannot_do_is_said_before_it_starts(wrong: dict[str, Any], legal: str) -> None:
    with pytest.raises(FlextopoError, match=f"{next(iter(wrong))}.*legal: .*{legal}"):
        replace(PPO, **wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlextopoError, match=r"cuda.*legal here: cpu"):
        train_ppo(replace(PPO, device="cuda"), tmp_path / "run")
    with pytest.raises(FlextopoError, match=r"cuda.*legal here: cpu"):
        train_imitation(replace(SMALL, device="cuda"), tmp_path / "run", 1, print)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config", [PPO, SMALL])
def test_servers_that_are_not_there_are_named_before_training_starts(config: Any) -> None:
    wrong = "lathe" if config is PPO else ("4*rtx4090", "lathe")
    with pytest.raises(FlextopoError, match="unknown server 'lathe'; legal: a100"):
        replace(config, servers=wrong)
    with pytest.raises(FlextopoError, match=r"servers.*; legal: "):
        replace(config, servers=type(config.servers)())


def test_trainings_of_other_seeds_share_no_tape() -> None:
    config = ImitationConfig(seed=55)
    one = config.of_network(config.networks - 1)
    used = (one.seed + 1) * sum(one.plan)  # from the front
    last = (config.seed + 1) * sum(config.last_plan)  # from the end
    assert used + last <= len(TRAINING)
    with pytest.raises(FlextopoError, match=r"seed = 56: .* legal: up to 1000000"):
        ImitationConfig(seed=56)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0}, {"horizon_s": -5}, {"entropy": -1.0}, {"members": -1},
        {"validation_tapes": 2001}, {"seed": 10**6},
    ],
)  # fmt: skip
def test_what_imitation_cannot_do_is_said_before_it_starts(wrong: dict[str, Any]) -> None:
    with pytest.raises(FlextopoError, match=f"{next(iter(wrong))} = .*; legal: "):
        replace(TINY, **wrong)


@on_every_device
@pytest.mark.parametrize("start", ["", zoo_names()[0]])
def test_interrupted_ppo_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str, device: str
) -> None:
    monkeypatch.setattr(ppo, "CHECKPOINT_S", 0.0)
    config = replace(PPO, timesteps=512, start=start, kl=0.1 if start else 0.0, device=device)
    whole = load_policy(train_ppo(config, tmp_path / "whole")).weights

    def stop(done: int, _: int) -> None:
        if done == 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"checkpoint\.zip"):
        train_ppo(config, tmp_path / "parts", progress=stop)
    seen: list[int] = []
    policy = train_ppo(config, tmp_path / "parts", True, lambda done, _: seen.append(done))
    assert seen[0] == 256
    resumed = load_policy(policy).weights
    assert all(np.array_equal(whole[key], resumed[key]) for key in whole)


@on_every_device
def test_ppo_repeats_with_its_seed(tmp_path: Path, device: str) -> None:
    config = replace(PPO, device=device)
    weights = [load_policy(train_ppo(config, tmp_path / name)).weights for name in "ab"]
    assert all(np.array_equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_ppo_warms_the_critic_up_before_it_touches_the_actor(tmp_path: Path) -> None:
    start = zoo_names()[0]
    config = PPOConfig(**{**PPO.__dict__, "start": start, "k": 16, "critic_steps": 10**6})
    before = weights_of(load_network(start, NUM_CANDIDATE))
    after = load_policy(train_ppo(config, tmp_path)).weights
    changed = {key for key in before if not np.array_equal(before[key], after[key])}
    assert changed == {key for key in before if key.startswith("critic")}
