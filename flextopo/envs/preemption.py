"""The environment: one decision of the cluster simulator is one step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.batch import DISABLED, Batch
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.cluster.workload.tape import Tape
from flextopo.envs.core import Core, given_tape, named, observation_space
from flextopo.envs.rendering import draw_cluster, print_cluster

ObsType = dict[str, npt.NDArray[Any]]


class PreemptionEnv(gym.Env[Any, Any]):
    """Choose the victims for one pending online pod after another.

    ## Description
    A cluster of GPU servers runs online services (high priority, diurnal) and batch jobs. Whenever
    an online pod fits nowhere, the agent picks one of K candidates: a node and a minimal set of
    lower-priority pods to evict there. Where servers have a network, replicas may be gangs: one decision
    then seats all members, on several servers. Between decisions the simulator runs by itself. An episode
    is one day; before its first decision the cluster warms up for half a day. `episode_h` makes it
    shorter, `relative` and `shuffle` are for training as well.

    ## Action Space
    `Discrete(K + 1)`: candidate 0 ... K - 1 by ascending own loss (with `shuffle`, in any order), or
    K = "do not preempt now" (the pod stays pending and is asked about again after the next event). An action whose place is empty
    counts as K and sets `info["invalid_action"]`; with `strict=True` it raises instead. With a hard
    deadline (`scenario.deadline`, the default) K is masked once waiting might take the pod past its
    deadline; whoever chooses it nevertheless gets the one of the least own loss.

    ## Observation Space
    `Dict` of float32 boxes within [-1, 1]: `preemptor` (9,), `cluster` (16,), `candidates` (K, 33),
    with a network (K, 41), and `action_mask` (K + 1,) int8, 1 = legal. `flextopo.cluster.observation.features` names every entry.

    ## Rewards
    The weighted loss since the last decision, negative, in GPU-hours per 100 GPUs. What is lost before
    the first decision is in no reward, a third of a day's loss on average: `info["unrewarded"]` has it.
    With `relative`, the reward beyond greedy-cost's in the same time of the same tape.

    ## Starting State
    A tape of a seed drawn from the first `tapes` training seeds, drawn again while it has no decision
    at all; or the tape of `options={"tape_seed": seed}`. With `episode_h`, a full hour of the tape,
    drawn by its seed, the more often the more greedy-cost preempts in it; until then greedy-cost plays,
    and all that counts from time 0 (`loss`, `metrics`, `unrewarded`) counts these hours, too.

    ## Episode End
    `truncated` at the end of the tape, or after `episode_h` hours; the last observation shows the
    cluster as it is then, without preemptor and candidates. A given tape without any decision ends with the first step.

    ## Information
    `action_mask` (as in the observation), `loss` (terms of the weighted loss in GPU-hours since
    time 0), `unrewarded` (GPU-hours of it before the first decision), `time_s`, `preemptor` (row of the pod in the simulator), `invalid_action`; at the end
    also `metrics` (see `flextopo.cluster.simulation.metrics`).

    ## Arguments
    servers: such as `16*rtx4090` or `8*rtx4090,8*a100`, or a `Fleet`. workload: parameters of the
    generator, or a dict of those that differ from the defaults. scenario: loss weights with node
    admission. k: candidates shown. allow_wait: False masks action K wherever a candidate exists.
    randomise: draw workload parameters anew for each episode. strict: raise on an invalid action.
    tape_source: any pure function from a seed to a tape. tapes: how many different tapes the training
    seeds give; those that fit in 256 MiB stay warmed up in memory. relative: take greedy-cost's reward
    off, so that what arrivals cost whoever decides cancels out; the sum over a day changes by a number
    that no action changes. shuffle: show the candidates in an order that tape, time and pod fix and
    that says nothing, so that no network learns to love a place. episode_h: hours of an episode; None =
    the whole tape. held: tell who holds the GPUs of each candidate's server, and of all, too; see the
    features `server_...` and `held_...`.

    ## Version History
    v0: first version.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        servers: str | Fleet = "16*rtx4090",
        *,
        workload: WorkloadConfig | dict[str, Any] | None = None,
        scenario: Scenario | None = None,
        k: int = 64,
        allow_wait: bool = True,
        randomise: bool = False,
        strict: bool = False,
        tape_source: Callable[[int], Tape] | None = None,
        tapes: int = 1024,
        relative: bool = False,
        shuffle: bool = False,
        episode_h: float | None = None,
        held: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise FlextopoError(f"render_mode {render_mode!r}; legal: None, ansi, rgb_array")
        self.core = Core(
            1,
            DISABLED,
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
            held=held,
        )
        self.fleet = self.core.fleet
        self.k = k
        self.strict = strict
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(k + 1)
        self.observation_space = observation_space(k, self.core.width)
        self._all = np.ones(1, np.bool_)
        self._action = np.zeros(1, np.int64)
        self._legal = np.zeros(k + 1, np.bool_)
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Start a new tape; `options={"tape_seed": seed}` fixes its tape.

        Raises:
            FlextopoError: `options` has another key, or it is no seed.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        tape = given_tape(options)
        if options:
            raise FlextopoError(f"reset option {min(options)!r}; legal: tape_seed")
        given = None if tape is None else np.array([tape])
        batch = self.core.reset(self._all, [self.np_random], given)
        self._over = False
        return self._observe(batch), self._info(batch)

    def step(self, action: np.int64 | int) -> tuple[ObsType, float, bool, bool, dict[str, Any]]:
        """Carry out an action and run to the next decision.

        Raises:
            ResetNeeded: no episode has begun, or it is over.
            FlextopoError: the action is no whole number from 0 to K; with `strict`, it is masked.
        """
        if self._over:
            raise gym.error.ResetNeeded("no episode is under way; legal: reset() before step()")
        try:
            chosen = operator.index(action)
        except TypeError:
            chosen = -1
        if not 0 <= chosen <= self.k:
            raise FlextopoError(f"action {action}; legal: whole numbers from 0 to {self.k}")
        if self.strict and not self._legal[chosen]:
            raise FlextopoError(
                f"action {chosen} is masked; legal: {np.flatnonzero(self._legal).tolist()}"
            )
        self._action[0] = chosen
        batch = self.core.step(self._action)
        info = self._info(batch)
        truncated = bool(batch.outcome[0]["truncated"])
        if truncated:
            self._over = True
            info["metrics"] = self.core.metrics(0)
        reward = float(batch.outcome[0]["reward"])
        return self._observe(batch), reward, False, truncated, info

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal, (K + 1,) bool, as sb3-contrib wants it."""
        if self.core.batch is None:
            raise gym.error.ResetNeeded("call reset() before action_masks()")
        return self._legal.copy()

    @property
    def simulator(self) -> Simulator:
        """The episode as a simulation over the environment's own arrays, as they stand now."""
        if self.core.batch is None:
            raise gym.error.ResetNeeded("call reset() first")
        return self.core.simulator(0)

    def render(self) -> Any:
        """Draw the cluster: text for `ansi`, an (H, W, 3) uint8 picture for `rgb_array`."""
        if self.core.batch is None or self.render_mode is None:
            return None
        draw = print_cluster if self.render_mode == "ansi" else draw_cluster
        return draw(self.simulator.state)

    def close(self) -> None:
        self.core.close()

    def _observe(self, batch: Batch) -> ObsType:
        self._legal[:] = batch.observation.mask[0]  # whatever is done to the observation
        return {name: array[0].copy() for name, array in named(batch.observation).items()}

    def _info(self, batch: Batch) -> dict[str, Any]:
        outcome = batch.outcome[0]
        return {
            "action_mask": batch.observation.mask[0].copy(),
            "time_s": int(outcome["time_s"]),
            "preemptor": int(outcome["asked"]),
            "invalid_action": bool(outcome["invalid"]),
            "loss": dict(zip(LOSS_TERMS, outcome["loss"].tolist(), strict=True)),
            "unrewarded": float(outcome["unrewarded"]),
        }
