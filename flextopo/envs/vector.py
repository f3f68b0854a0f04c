"""The native vector environment: one kernel call steps all of its environments."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import empty_observation
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.batch import DISABLED, NEXT_STEP, SAME_STEP, Batch
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.cluster.workload.tape import Tape
from flextopo.envs.core import ENVS_PER_THREAD, Core, given_tape, named, observation_space

AUTORESET = {
    AutoresetMode.NEXT_STEP: NEXT_STEP,
    AutoresetMode.SAME_STEP: SAME_STEP,
    AutoresetMode.DISABLED: DISABLED,
}

Arrays = dict[str, npt.NDArray[Any]]


class PreemptionVectorEnv(VectorEnv[Any, Any, Any]):
    """Many `PreemptionEnv`s in one set of arrays.

    Environment i gives bit for bit what a `PreemptionEnv` with seed `seed + i` gives, as inside
    Gymnasium's `SyncVectorEnv`, in each of its autoreset modes.

    Args:
        num_envs: how many.
        servers: this and the following as in `PreemptionEnv`.
        autoreset_mode: `NextStep` (the step after the end starts the new tape and ignores the
            action), `SameStep` (the last step of an episode shows the first decision of the next; the
            end is in `info["final_obs"]` and `info["final_info"]`) or `Disabled` (call `reset` with
            `options={"reset_mask": mask}`).
        threads: that step the environments side by side; None = one for each core that 16 or more
            environments are left for. It changes no result.
        copy: True gives observations that are the caller's own and never change; False gives the
            environment's arrays, without a copy, which the next `step` or `reset` writes over. All else
            that is returned is the caller's own either way.
    """

    def __init__(
        self,
        num_envs: int = 64,
        servers: str | Fleet = "16*rtx4090",
        *,
        workload: WorkloadConfig | dict[str, Any] | None = None,
        scenario: Scenario | None = None,
        k: int = 64,
        allow_wait: bool = True,
        randomise: bool = False,
        tape_source: Callable[[int], Tape] | None = None,
        tapes: int = 1024,
        relative: bool = False,
        shuffle: bool = False,
        episode_h: float | None = None,
        held: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        threads: int | None = None,
        copy: bool = True,
        render_mode: str | None = None,
    ) -> None:
        if render_mode is not None:
            raise FlextopoError(f"render_mode {render_mode!r} of a vector; legal: None")
        mode = AutoresetMode(autoreset_mode)
        if threads is None:
            threads = max(1, min(len(os.sched_getaffinity(0)), num_envs // ENVS_PER_THREAD))
        self.core = Core(
            num_envs,
            AUTORESET[mode],
            servers,
            workload,
            scenario,
            k,
            allow_wait,
            randomise,
            tape_source,
            tapes,
            relative,
            shuffle,
            episode_h,
            threads,
            shared=not copy,
            held=held,
        )
        self.num_envs, self.k, self.copy = num_envs, k, copy
        self.render_mode = None
        self.metadata = {"autoreset_mode": mode, "render_modes": []}
        self.single_action_space = spaces.Discrete(k + 1)
        self.single_observation_space = observation_space(k, self.core.width)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._random: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._legal = np.zeros((num_envs, k + 1), np.bool_)
        self._everywhere = np.ones(num_envs, np.bool_)
        self._everywhere.setflags(write=False)
        self._nowhere = np.zeros(num_envs, np.bool_)
        self._nowhere.setflags(write=False)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generator of each environment."""
        return tuple(self._random)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each environment."""
        return tuple(self._seeds)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start new tapes, in all environments or where `options["reset_mask"]` is true.

        Args:
            seed: of environment 0, the others follow; or one each; None goes on with the present
                random numbers.
            options: `reset_mask` (B,) bool; `tape_seed`, one for all.

        Raises:
            FlextopoError: an option or the number of seeds is not legal.
        """
        options = dict(options or {})
        where = np.asarray(options.pop("reset_mask", self._everywhere))
        tape = given_tape(options)
        if options:
            raise FlextopoError(f"reset option {min(options)!r}; legal: reset_mask, tape_seed")
        if where.shape != (self.num_envs,) or where.dtype != np.bool_ or not where.any():
            raise FlextopoError(
                f"reset_mask of shape {where.shape} and dtype {where.dtype}; "
                f"legal: ({self.num_envs},) bool with one true at least"
            )
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        seeds = [None] * self.num_envs if seeds is None else list(seeds)
        if len(seeds) != self.num_envs:
            raise FlextopoError(f"{len(seeds)} seeds; legal: {self.num_envs}")
        for i, own in enumerate(seeds):
            if own is not None or len(self._random) <= i:
                generator, used = gym.utils.seeding.np_random(own)
                self._random[i : i + 1] = [generator]
                self._seeds[i : i + 1] = [used]
        given = None if tape is None else np.full(self.num_envs, tape)
        batch = self.core.reset(where, self._random, given)
        return self._observe(batch), self._info(batch, where)

    def step(
        self, actions: npt.ArrayLike
    ) -> tuple[Arrays, Any, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Carry out one action in each environment and run to the next decisions.

        Args:
            actions: (B,) integers from 0 to K.

        Returns:
            Observations with a leading B (with `copy=False` until the next step), rewards (B,)
            float64, terminations and truncations (B,) bool, infos.

        Raises:
            FlextopoError: an action is not legal.
        """
        if self.core.batch is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        given = np.asarray(actions)
        if given.dtype.kind not in "iu":
            raise FlextopoError(f"actions of dtype {given.dtype}; legal: whole numbers")
        chosen = np.ascontiguousarray(given, np.int64)
        if chosen.shape != (self.num_envs,):
            raise FlextopoError(f"actions of shape {chosen.shape}; legal: ({self.num_envs},)")
        if np.count_nonzero(chosen.view(np.uint64) > self.k):  # negative ones are large then
            wrong = chosen[(chosen < 0) | (chosen > self.k)][0]
            raise FlextopoError(f"action {wrong}; legal: 0 to {self.k}")
        batch = self.core.step(chosen)
        truncated = batch.outcome["truncated"]
        info = self._info(batch, self._everywhere)
        if np.count_nonzero(truncated):
            self._add_final(info, batch, truncated)
        reward = batch.outcome["reward"].copy()
        return self._observe(batch), reward, self._nowhere, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal, (B, K + 1) bool."""
        if self.core.batch is None:
            raise gym.error.ResetNeeded("call reset() before action_masks()")
        return self._legal.copy()

    def close_extras(self, **kwargs: Any) -> None:
        """Stop the threads."""
        if hasattr(self, "core"):  # gymnasium 1.2 also closes what an argument kept from being made
            self.core.close()

    def _observe(self, batch: Batch) -> Arrays:
        """Return the observations, as copies unless nobody wants them."""
        shown = named(batch.observation)
        return {name: array.copy() for name, array in shown.items()} if self.copy else shown

    def _info(self, batch: Batch, where: npt.NDArray[np.bool_]) -> dict[str, Any]:
        """Return infos as Gymnasium's vectors give them: each with a mask of who has it."""
        out = batch.outcome
        self._legal[:] = batch.observation.mask  # whatever is done to the observation
        return _masked(
            {
                "action_mask": batch.observation.mask.copy(),
                "time_s": out["time_s"],
                "preemptor": out["asked"],
                "invalid_action": out["invalid"],
                "loss": _masked(dict(zip(LOSS_TERMS, out["loss"].T, strict=True)), where),
                "unrewarded": out["unrewarded"],
            },
            where,
        )

    def _add_final(
        self, info: dict[str, Any], batch: Batch, truncated: npt.NDArray[np.bool_]
    ) -> None:
        """Add what the episodes that ended in this step came to."""
        out = batch.outcome
        metrics = _masked(dict(zip(METRICS, out["metrics"].T, strict=True)), truncated)
        if self.metadata["autoreset_mode"] != AutoresetMode.SAME_STEP:
            info.update(_masked({"metrics": metrics}, truncated))
            return
        last = np.zeros((self.num_envs, self.k + 1), np.int8)
        last[truncated, self.k] = 1
        final = {
            "action_mask": last,
            "time_s": out["final_time_s"],
            "preemptor": np.where(truncated, -1, 0),
            "invalid_action": truncated & out["final_invalid"],
            "loss": _masked(dict(zip(LOSS_TERMS, out["final_loss"].T, strict=True)), truncated),
            "unrewarded": np.where(truncated, out["final_unrewarded"], 0.0),
            "metrics": metrics,
        }
        shown = np.full(self.num_envs, None, object)
        for i in np.flatnonzero(truncated):
            shown[i] = last_to_see(self.single_observation_space, out["final_cluster"][i])
        info.update(
            _masked({"final_obs": shown, "final_info": _masked(final, truncated)}, truncated)
        )


def _masked(values: dict[str, Any], where: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Add to each entry the mask of the environments that have it."""
    return {**values, **dict.fromkeys(map("_".__add__, values), where)}


def last_to_see(space: spaces.Space[Any], cluster: npt.NDArray[np.float32]) -> Arrays:
    """Return the observation at the end of an episode: the cluster, no preemptor, no candidates."""
    assert isinstance(space, spaces.Dict)
    k, width = space["candidates"].shape or (0, 0)
    o = empty_observation(k, width)
    o.mask[k] = 1
    o.cluster[:] = cluster[: len(o.cluster)]
    return named(o)
