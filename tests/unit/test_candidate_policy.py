"""CandidatePolicy in MaskablePPO: its name, any environment, masks that were spoilt, and order."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tapes import BUSY

pytest.importorskip("sb3_contrib")

from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from flextopo.envs.preemption import PreemptionEnv
from flextopo.policies.maskable import CandidatePolicy, check_masks
from flextopo.train.vec_env import PreemptionVecEnv

ID = "flextopo/Preempt-RTX4090-v0"
SMALL: dict[str, Any] = {"servers": "2*rtx4090", "workload": BUSY, "tapes": 8, "k": 8}
MODEL: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize(
    "imports",
    [
        "import flextopo; from sb3_contrib import MaskablePPO",
        "from sb3_contrib import MaskablePPO; import flextopo",
        "from sb3_contrib.ppo_mask import MaskablePPO; import flextopo.policies.maskable",
        "import flextopo.policies.maskable; from sb3_contrib import MaskablePPO",
    ],
)
def test_the_policy_has_its_name_in_any_order_of_imports(imports: str) -> None:
    script = f"{imports}\nprint(MaskablePPO.policy_aliases['CandidatePolicy'].__module__)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "flextopo.policies.maskable\n"), done.stderr


def scalar() -> Any:
    return gym.make(ID, **SMALL)


@pytest.mark.parametrize(
    "make",
    [
        scalar,
        lambda: DummyVecEnv([scalar, scalar]),
        lambda: PreemptionVecEnv(2, **SMALL),
        lambda: VecNormalize(PreemptionVecEnv(2, **SMALL), norm_obs=False),
    ],
    ids=["scalar", "DummyVecEnv", "PreemptionVecEnv", "normalised rewards"],
)
def test_it_learns_from_any_environment_without_a_warning(make: Any) -> None:
    model = MaskablePPO("CandidatePolicy", make(), **MODEL)
    assert isinstance(model.policy, CandidatePolicy)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(16)
    assert any((p != old).any() for p, old in zip(model.policy.parameters(), before, strict=True))


def test_without_masks_it_predicts_what_the_observations_mask_allows() -> None:
    """Other policies choose something illegal in most of such calls."""
    env = PreemptionEnv(allow_wait=False, **{**SMALL, "k": 32})
    model = MaskablePPO("CandidatePolicy", env, **MODEL)
    shown, _ = env.reset(seed=1)
    for _ in range(30):
        action, _ = model.predict(shown)
        assert env.action_masks()[action]
        shown, _, _, over, _ = env.step(int(action))
        if over:
            shown, _ = env.reset()


def test_normalised_observations_are_warned_of_and_masks_still_hold() -> None:
    envs = VecNormalize(PreemptionVecEnv(2, allow_wait=False, **SMALL))
    with pytest.warns(UserWarning, match=r"legal: VecNormalize\(norm_obs=False\)"):
        model = MaskablePPO("CandidatePolicy", envs, **MODEL).learn(16)
    shown: Any = envs.reset()
    for _ in range(20):
        masks = get_action_masks(envs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            actions, _ = model.predict(shown, action_masks=masks)
        assert masks[np.arange(2), actions].all()
        shown, _, _, _ = envs.step(actions)


def test_masks_that_cannot_be_are_warned_of_in_one_sentence() -> None:
    good = torch.tensor([[1, 0, 1], [0, 0, 1]], dtype=torch.int8)
    check_masks(good)
    check_masks(good.float())
    nothing = torch.tensor([[1, 0], [0, 0]])
    for wrong in (good.float() * 0.5, good.float() - 1.0, nothing):
        with pytest.warns(UserWarning, match="one legal action at least") as said:
            check_masks(wrong)
        assert str(said[0].message).count(". ") == 0


def test_the_order_of_candidates_is_nothing_to_it() -> None:
    """A policy with weights for each place ends up in the first; this one cannot tell places apart."""
    env = PreemptionEnv(allow_wait=True, **SMALL)
    model = MaskablePPO("CandidatePolicy", env, **MODEL)
    shown, info = env.reset(seed=3)
    while info["action_mask"][:-1].sum() < 3:
        shown, _, _, _, info = env.step(0)
    count = int(info["action_mask"][:-1].sum())
    order = np.arange(8)
    order[:count] = np.random.default_rng(0).permutation(count)
    moved = {**shown, "candidates": shown["candidates"][order]}
    scores = []
    for observation in (shown, moved):
        tensors, _ = model.policy.obs_to_tensor(observation)
        found: Any = model.policy.get_distribution(tensors).distribution
        scores.append(found.probs[0].detach())
    expected = torch.cat([scores[0][:8][torch.from_numpy(order)], scores[0][8:]])
    assert scores[1].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
