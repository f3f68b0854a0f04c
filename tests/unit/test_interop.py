"""Other libraries' wrappers, vectors and trainers take the environments; the heavier ones are tried
by `make interop`."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from gymnasium.wrappers import FlattenObservation, RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

import flextopo
from flextopo.envs.preemption import PreemptionEnv

ID = "flextopo/Preempt-RTX4090-v0"
ROOT = Path(flextopo.__file__).parents[1]


def make() -> gymnasium.Env[Any, Any]:
    return gymnasium.make(ID, servers="2*rtx4090", k=8, tapes=16)


def play(env: gymnasium.Env[Any, Any], seed: int = 0) -> tuple[float, int, dict[str, Any]]:
    """Play a day with the first candidate; return its return, its length and the last info."""
    env.reset(seed=seed)
    total, steps, over = 0.0, 0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(0)
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps, info


def test_statistics_and_flattening() -> None:
    total, steps, _ = play(make())
    env = RecordEpisodeStatistics(FlattenObservation(make()))
    observation, info = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape
    assert observation[: len(info["action_mask"])].tolist() == info["action_mask"].tolist()
    again, length, info = play(env)
    assert (again, length) == (total, steps)
    assert info["episode"]["r"] == pytest.approx(total)
    assert info["episode"]["l"] == steps


def test_a_time_limit_cuts_a_day() -> None:
    assert play(TimeLimit(make(), 2))[1] == 2


def test_vectors_of_scalar_environments_equal_the_native_one() -> None:
    native = gymnasium.make_vec(
        ID, 2, "vector_entry_point", servers="2*rtx4090", k=8, tapes=16, autoreset_mode="SameStep"
    )
    vectors = [
        RecordVectorStatistics(SyncVectorEnv([make, make], autoreset_mode="SameStep")),
        AsyncVectorEnv([make, make], autoreset_mode="SameStep", context="spawn"),
    ]
    expected, _ = native.reset(seed=5)
    for envs in vectors:
        observations, _ = envs.reset(seed=5)
        assert all((observations[name] == expected[name]).all() for name in expected)
    for _ in range(12):
        actions = expected["action_mask"].argmax(1)
        expected, reward, _, over, _ = native.step(actions)
        for envs in vectors:
            observations, rewards, _, truncated, _ = envs.step(actions)
            assert (rewards == reward).all()
            assert (truncated == over).all()
            assert all((observations[name] == expected[name]).all() for name in expected)
    for envs in (native, *vectors):
        envs.close()


def test_sb3s_own_vectors_and_monitor() -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    arguments = {"servers": "2*rtx4090", "k": 8, "tapes": 16}
    envs = make_vec_env(ID, n_envs=2, seed=0, env_kwargs=arguments)
    model = PPO("MultiInputPolicy", envs, n_steps=32, batch_size=32, n_epochs=1, seed=0)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(128)
    changed = [bool((a != b).any()) for a, b in zip(before, model.policy.parameters(), strict=True)]
    assert any(changed)
    assert model.ep_info_buffer


def test_sb3_contrib_with_its_action_masker_takes_legal_actions_alone() -> None:
    pytest.importorskip("sb3_contrib")
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.wrappers import ActionMasker

    def masks(env: gymnasium.Env[Any, Any]) -> np.ndarray[Any, Any]:
        inner = env.unwrapped
        assert isinstance(inner, PreemptionEnv)
        return inner.action_masks()

    class Counting(gymnasium.Wrapper[Any, Any, Any, Any]):
        invalid, steps = 0, 0

        def step(self, action: Any) -> Any:
            found = super().step(action)
            Counting.steps += 1
            Counting.invalid += found[4]["invalid_action"]
            return found

    env = ActionMasker(Counting(make()), masks)
    model = MaskablePPO("MultiInputPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0)
    model.learn(64)
    assert (Counting.steps, Counting.invalid) == (64, 0)


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    path = ROOT / "interop" / "run.py"
    if not path.exists():
        pytest.skip("installed without the repository's root")
    spec = importlib.util.spec_from_file_location("interop_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["interop_run"] = module
    spec.loader.exec_module(module)
    return module


def test_every_script_of_make_interop_is_run_and_pins_what_it_needs(runner: ModuleType) -> None:
    scripts = {path.name for path in (ROOT / "interop").glob("*.py")} - {"run.py"}
    assert scripts == {library.script for library in runner.LIBRARIES}
    for library in runner.LIBRARIES:
        assert all("==" in pin for pin in library.pins)
        names = [re.split(r"[\[=]", pin)[0] for pin in library.pins]
        kept = [line.partition("==")[0] for line in runner.constraints_of(library).splitlines()]
        assert not set(names) & set(kept)
        assert "numba" in kept
        assert "torch" not in names or "torch==2.13.0" in library.pins


def test_make_interop_refuses_an_unknown_library(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "jaxrl"])
    with pytest.raises(SystemExit):
        runner.main()
    assert "jaxrl; legal: gymnasium, minari" in capsys.readouterr().err
