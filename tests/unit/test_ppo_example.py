"""`examples/ppo.py`: the library's network, the library's advantages, equal bits, and what it measures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")

from gymnasium import spaces

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.network import CandidateScorer
from flextopo.policies.runtime import load_policy
from flextopo.train.ppo_results import budget_rows, load_ppo, speed_rows
from flextopo.train.rollout_buffer import REWARD_SCALE, TimedRolloutBuffer

ROOT = Path(__file__).parents[2]
if not (ROOT / "examples").is_dir():
    pytest.skip("installed without the repository's root", allow_module_level=True)


@pytest.fixture(name="learners")
def _learners(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the benchmark's learners, with few and small rollouts."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    learners = importlib.import_module("ppo_learners")
    load = learners.load_example

    def smaller(tapes: int = 4) -> Any:
        example = load(tapes)
        example.NUM_ENVS, example.STEPS, example.MINIBATCH = 4, 8, 16
        return example

    monkeypatch.setattr(learners, "load_example", smaller)
    return learners


@pytest.fixture(name="example")
def _example(learners: Any) -> Any:
    return learners.load_example()


def test_its_network_is_the_librarys_with_all_gradients(example: Any) -> None:
    torch.manual_seed(0)
    rollouts = example.Rollouts(0)
    network = example.make_network(rollouts.observation)
    reference = CandidateScorer()
    reference.load_state_dict(network.state_dict())
    for _ in range(3):
        rollouts.play(network)
        shown = {name: torch.from_numpy(array) for name, array in rollouts.observation.items()}
        mask = shown["action_mask"].clone()
        mask[0, -1] = 1  # waiting is legal somewhere
        rows, legal = rollouts.packed()
        legal[0, -1] = True
        assert len(rows) == int(legal[:, :-1].sum())
        log_p, value = network(rows, legal)
        scores, expected = reference.packed(
            shown["preemptor"], shown["cluster"], shown["candidates"], mask
        )
        known = torch.log_softmax(scores, 1)
        assert (log_p - known)[legal].abs().max() < 1e-5
        assert (log_p[~legal] < -1e7).all()
        assert (value - expected).abs().max() < 1e-5
        for one, other in ((log_p, known), (value, expected)):
            weight = torch.where(legal, 0.1, 0.0) if one.ndim == 2 else torch.tensor(0.1)
            names = [name for name, _ in network.named_parameters()]
            ours = torch.autograd.grad(
                (one * weight).sum(), list(network.parameters()),
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            theirs = torch.autograd.grad(
                (other * weight).sum(), list(reference.parameters()),
                retain_graph=True, allow_unused=True,
            )  # fmt: skip
            for name, mine, yours in zip(names, ours, theirs, strict=True):
                assert (mine is None) == (yours is None), name
                if mine is not None and yours is not None:
                    assert (mine - yours).abs().max() < 1e-4, name


def test_its_advantages_are_those_of_the_timed_buffer(example: Any) -> None:
    rng = np.random.default_rng(0)
    steps, envs = 6, 3
    spans = rng.exponential(1.0, (steps, envs))
    rewards, values = rng.normal(size=(2, steps, envs))
    ends = rng.random((steps, envs)) < 0.3
    last = rng.normal(size=envs).astype(np.float32)
    clock = SimpleNamespace(elapsed_s=np.zeros(envs))
    space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (1,), np.float32)})
    buffer = TimedRolloutBuffer(
        steps, space, spaces.Discrete(2), "cpu", example.LAMBDA, 0.0, envs, clock=clock,
        tau_s=example.TAU_S,
    )  # fmt: skip
    for step in range(steps):
        clock.elapsed_s = spans[step] * example.TAU_S
        began = ends[step - 1].astype(np.float32) if step else np.zeros(envs)
        buffer.add(
            {"x": np.zeros((envs, 1), np.float32)}, np.zeros((envs, 1)), rewards[step], began,
            torch.from_numpy(values[step]).float(), torch.zeros(envs),
            action_masks=np.ones((envs, 2)),
        )  # fmt: skip
    buffer.compute_returns_and_advantage(torch.from_numpy(last), ends[-1])
    weighed = rewards * REWARD_SCALE * -np.expm1(-spans) / spans
    assert example.REWARD_SCALE == REWARD_SCALE
    found = example.advantages(values, weighed, np.exp(-spans) * ~ends, last)
    assert found == pytest.approx(buffer.advantages, abs=1e-5)


def test_equal_seeds_give_equal_bits_and_other_seeds_others(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def weights(seed: int, folder: str) -> dict[str, Any]:
        out = str(tmp_path / folder)
        words = ["--timesteps", "96", "--days", "2", "--seed", str(seed), "--out", out]
        monkeypatch.setattr("sys.argv", ["ppo.py", *words])
        example.main()
        policy = load_policy(out)
        assert (policy.k, policy.allow_wait) == (16, False)
        return dict(policy.weights)

    one, two, other = weights(3, "a"), weights(3, "b"), weights(4, "c")
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("96 decisions, ")
    assert "beyond greedy-cost" in lines[2]
    said = [line.partition(" s: ")[2] for line in lines]
    assert said[:3] == said[3:6]


def test_the_benchmark_measures_both_learners(
    learners: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("ppo", "ppo_budget"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "Example", learners.Example)
        monkeypatch.setattr(module, "Maskable", learners.Maskable)
    bench, budget = (importlib.import_module(name) for name in ("ppo", "ppo_budget"))
    path = tmp_path / "speed.json"
    words = ["--timesteps", "64", "--days", "2", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["ppo.py", *words])
    bench.main()
    found = load_ppo(path)["learners"]
    assert found["example"]["times_as_fast"] == 1.0
    assert found["example"]["example_beyond"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert len(speed_rows(load_ppo(path))) == 4
    assert len(found) == 3
    assert all(row["per_s"] > 0 for row in found.values())
    rows = tmp_path / "ppo.json"
    for learner in ("example", "MaskablePPO", "example"):
        words = [learner, "64", "--days", "2", "--json", str(rows)]
        monkeypatch.setattr("sys.argv", ["ppo_budget.py", *words])
        budget.main()
    table = budget_rows(load_ppo(rows))
    assert [row[:2] for row in table[1:]] == [["MaskablePPO", "64"], ["example", "64"]]
    assert "verdict" in json.loads(rows.read_text())[0]["greedy-cost"]
    capsys.readouterr()


def test_results_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    for name, message in (("x.json", "benchmarks/ppo.py writes"), ("y.json", "No such file")):
        with pytest.raises(FlextopoError, match=message):
            load_ppo(tmp_path / name)
