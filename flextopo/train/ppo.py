"""Train a scorer with sb3-contrib's MaskablePPO, from scratch or from an artifact.

Decisions are unevenly spaced, so `TimedRolloutBuffer` discounts by simulated time. A fine-tuned
policy can be held near its start by a divergence penalty.

A run directory holds `config.json`, tensorboard logs, the last checkpoint and the trained artifact.
An interrupted run (SIGINT) leaves its last checkpoint, environments and generators included, and
`resume` goes on from there to the same bits as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.save_util import load_from_zip_file

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.maskable import CandidatePolicy, use_threads
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.train.config import PPOConfig
from flextopo.train.devices import use_device
from flextopo.train.results import versions
from flextopo.train.rollout_buffer import TimedRolloutBuffer
from flextopo.train.vec_env import PreemptionVecEnv

CHECKPOINT_S = 20.0
"""Time between two checkpoints; where they fall changes no result."""


class _Checkpoints(BaseCallback):
    """Save between rollouts, tell the progress, and warm up the critic."""

    def __init__(
        self, folder: Path, config: PPOConfig, progress: Callable[[int, int], None] | None
    ) -> None:
        super().__init__()
        self.folder, self.config, self.progress = folder, config, progress
        self.saved_s = -math.inf

    def _actor(self) -> list[Any]:
        return [
            p
            for name, p in scorer_of(self.model).named_parameters()
            if not name.startswith("critic")
        ]

    def _on_rollout_start(self) -> None:
        for parameter in self._actor():
            parameter.requires_grad_(self.num_timesteps >= self.config.critic_steps)
        if time.monotonic() - self.saved_s > CHECKPOINT_S:
            save_checkpoint(self.model, self.folder)
            self.saved_s = time.monotonic()
        if self.progress is not None:
            self.progress(self.num_timesteps, self.config.timesteps)

    def _on_step(self) -> bool:
        return True


def scorer_of(model: BaseAlgorithm) -> CandidateScorer:
    """Return the network inside a model that was built with `CandidatePolicy`."""
    scorer = model.policy.scorer
    assert isinstance(scorer, CandidateScorer)
    return scorer


def save_checkpoint(model: BaseAlgorithm, folder: Path) -> None:
    """Write `checkpoint.zip`, under a temporary name first; between two rollouts."""
    state = {
        "envs": pickle.dumps(model.env),
        "torch": torch.get_rng_state().numpy(),
        "cuda": [state.numpy() for state in torch.cuda.get_rng_state_all()],
        "numpy": np.random.get_state(),  # noqa: NPY002  what Stable-Baselines3 shuffles with
    }
    model.__dict__["interrupted"] = state  # what is an attribute is saved
    temporary = folder / "checkpoint.tmp.zip"
    model.save(temporary, exclude=["rollout_buffer_kwargs"])
    temporary.replace(folder / "checkpoint.zip")


def make_envs(config: PPOConfig) -> PreemptionVecEnv:
    """Return the training environments, with randomised workloads."""
    return PreemptionVecEnv(
        config.num_envs,
        config.servers,
        k=config.k,
        randomise=True,
        allow_wait=config.allow_wait,
        tapes=config.tapes,
        relative=config.relative,
    )


def train_ppo(
    config: PPOConfig,
    folder: Path,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Train, and write the artifact to `folder / "policy"`.

    Args:
        config: how to train.
        folder: of the run; created.
        resume: go on from its last checkpoint.
        progress: is told how many of how many decisions are over.

    Returns:
        The artifact's folder.

    Raises:
        FlextopoError: nothing to resume, a run is there already, or there is no such device.
    """
    checkpoint = folder / "checkpoint.zip"
    if resume and not checkpoint.exists():
        raise FlextopoError(f"{checkpoint}: missing; legal: the folder of an interrupted run")
    if not resume and checkpoint.exists():
        raise FlextopoError(f"{folder}: holds a run already; legal: another folder, or --resume")
    use_device(config.device)
    use_threads(config.threads)
    make_folder(folder)
    if resume:
        model = _load_checkpoint(config, checkpoint)
    else:
        model = _new_model(config, make_envs(config), folder)
        text = json.dumps({"config": asdict(config), "versions": versions()}, indent=1)
        write_whole(folder / "config.json", (text + "\n").encode())
    try:
        model.learn(
            max(0, config.timesteps - model.num_timesteps),
            callback=_Checkpoints(folder, config, progress),
            reset_num_timesteps=not resume,
            tb_log_name="ppo",
        )
    except KeyboardInterrupt:
        kept = (
            f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "no checkpoint yet"
        )
        raise KeyboardInterrupt(kept) from None
    finally:
        if model.env is not None:
            model.env.close()
    save_checkpoint(model, folder)
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    return save_policy(
        scorer_of(model),
        folder / "policy",
        f"ppo-{config.seed}",
        config.k,
        allow_wait=config.allow_wait,
        config=asdict(config),
        mean_return=float(np.mean(returns)) if returns else None,
    )


def _load_checkpoint(config: PPOConfig, checkpoint: Path) -> MaskablePPO:
    """Return the model as it was between two rollouts, with everything random around it."""
    data, _, _ = load_from_zip_file(checkpoint, device="cpu")
    assert data is not None
    state = data["interrupted"]
    envs = pickle.loads(state["envs"])
    network = load_network(config.start, _width(envs)) if config.start else None
    model = MaskablePPO.load(
        checkpoint,
        env=envs,
        force_reset=False,
        device=config.device,
        rollout_buffer_kwargs=_buffer(config, envs, network),
    )
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    if config.device == "cuda":
        torch.cuda.set_rng_state_all([torch.from_numpy(one) for one in state["cuda"]])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    return model


def _width(envs: PreemptionVecEnv) -> int:
    """Return how many features of a candidate the environments show."""
    width: int = envs.observation_space["candidates"].shape[-1]  # type: ignore[index]
    return width


def _buffer(
    config: PPOConfig, envs: PreemptionVecEnv, network: CandidateScorer | None
) -> dict[str, Any]:
    return {"clock": envs, "tau_s": config.tau_s, "reference": network, "kl": config.kl}


def _new_model(config: PPOConfig, envs: PreemptionVecEnv, folder: Path) -> MaskablePPO:
    network = load_network(config.start, _width(envs)) if config.start else None
    size = network.config if network is not None else ScorerConfig(config.hidden)
    model = MaskablePPO(
        CandidatePolicy,
        envs,
        learning_rate=config.learning_rate,
        n_steps=config.rollout,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=0.0,  # the buffer discounts; a day ends with nothing behind it
        rollout_buffer_class=TimedRolloutBuffer,
        rollout_buffer_kwargs=_buffer(config, envs, network),
        clip_range=config.clip,
        ent_coef=config.entropy,
        policy_kwargs={"scorer": size},
        tensorboard_log=str(folder / "tensorboard"),
        seed=config.seed,
        device=config.device,
    )
    if network is not None:
        scorer_of(model).load_state_dict(network.state_dict())
    return model
