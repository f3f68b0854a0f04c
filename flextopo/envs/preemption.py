"""The environment: one decision of the cluster simulator is one step."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from flextopo.cluster.candidates import candidate_arrays, workspace
from flextopo.cluster.decision import Decision, show_next, step
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.features import (
    NUM_CANDIDATE,
    NUM_CLUSTER,
    NUM_PREEMPTOR,
    empty_observation,
)
from flextopo.cluster.loss import loss_terms
from flextopo.cluster.metrics import episode_metrics
from flextopo.cluster.seeds import TRAINING
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import parse_servers
from flextopo.cluster.simulation import END
from flextopo.cluster.simulator import Scenario, Simulator
from flextopo.cluster.tape import Tape
from flextopo.cluster.workload import WorkloadConfig, generate_tape, randomised
from flextopo.envs.rendering import draw_cluster, print_cluster

MAX_REDRAWS = 100
"""Tapes without a decision that a reset skips before it shows one."""

ObsType = dict[str, npt.NDArray[Any]]


def _workload(given: WorkloadConfig | dict[str, Any] | None) -> WorkloadConfig:
    """Return a workload; registered ids give only the fields that differ from the defaults."""
    if isinstance(given, WorkloadConfig):
        return given
    legal = [spec.name for spec in fields(WorkloadConfig)]
    for name in given or {}:
        if name not in legal:
            raise FlextopoError(f"workload field {name!r}; legal: {', '.join(legal)}")
    return WorkloadConfig(**(given or {}))


class TapeSource:
    """Draw a tape from a seed: the generated workload, or one with randomised parameters.

    Args:
        fleet: the servers, which fix how much is asked of them.
        workload: parameters of the generator.
        randomise: draw each tape's parameters anew from the ranges for training.
    """

    def __init__(self, fleet: Fleet, workload: WorkloadConfig, randomise: bool = False) -> None:
        self.fleet = fleet
        self.workload = workload
        self.randomise = randomise

    def __call__(self, seed: int) -> Tape:
        """Return the tape of a seed; equal seeds give equal tapes."""
        workload = randomised(seed, self.workload) if self.randomise else self.workload
        return generate_tape(
            workload,
            self.fleet.num_gpus,
            seed,
            gpus_per_server=self.fleet.gpus_per_server,
            cores_per_gpu=self.fleet.cores_per_gpu,
        )


class PreemptionEnv(gym.Env[Any, Any]):
    """Choose the victims for one pending online pod after another.

    ## Description
    A cluster of GPU servers runs online services (high priority, diurnal) and batch jobs. Whenever
    an online pod fits nowhere, the agent picks one of K candidates: a node and a minimal set of
    lower-priority pods to evict there. Between decisions the simulator runs by itself. An episode
    is one day; before its first decision the cluster warms up for half a day.

    ## Action Space
    `Discrete(K + 1)`: candidate 0 ... K - 1 by ascending own loss, or K = "do not preempt now" (the
    pod stays pending and is asked about again after the next event). An action whose place is empty
    counts as K and sets `info["invalid_action"]`; with `strict=True` it raises instead.

    ## Observation Space
    `Dict` of float32 boxes within [-1, 1]: `preemptor` (6,), `cluster` (12,), `candidates` (K, 30),
    and `action_mask` (K + 1,) int8, 1 = legal. `flextopo.cluster.features` names every entry.

    ## Rewards
    The weighted loss since the last decision, negative, in GPU-hours per 100 GPUs.

    ## Starting State
    A tape of a seed drawn from the training seeds, drawn again while it has no decision at all; or
    the tape of `options={"tape_seed": seed}`.

    ## Episode End
    `truncated` at the end of the day. A given tape without any decision ends with the first step.

    ## Information
    `action_mask` (as in the observation), `loss` (terms of the weighted loss in GPU-hours since
    time 0), `time_s`, `preemptor` (row of the pod in the simulator), `invalid_action`; at the end
    also `metrics` (see `flextopo.cluster.metrics`).

    ## Arguments
    servers: such as "16*rtx4090" or "8*rtx4090,8*a100" or a `Fleet`. workload: parameters of the
    generator, or a dict of those that differ from the defaults. scenario: loss weights with node
    admission. k: candidates shown. allow_wait: False masks action K wherever a candidate exists.
    randomise: draw workload parameters anew for each episode. strict: raise on an invalid action.
    tape_source: any function from a seed to a tape.

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
        tape_source: Any = None,
        render_mode: str | None = None,
    ) -> None:
        if k < 1:
            raise FlextopoError(f"k = {k} candidates; legal: 1 or more")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise FlextopoError(f"render_mode {render_mode!r}; legal: None, ansi, rgb_array")
        self.fleet = servers if isinstance(servers, Fleet) else Fleet(*parse_servers(servers))
        self.scenario = scenario or Scenario()
        self.tape_source = tape_source or TapeSource(self.fleet, _workload(workload), randomise)
        self.k = k
        self.allow_wait = allow_wait
        self.strict = strict
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(k + 1)
        self.observation_space = spaces.Dict(
            {
                "preemptor": spaces.Box(-1.0, 1.0, (NUM_PREEMPTOR,), np.float32),
                "cluster": spaces.Box(-1.0, 1.0, (NUM_CLUSTER,), np.float32),
                "candidates": spaces.Box(-1.0, 1.0, (k, NUM_CANDIDATE), np.float32),
                "action_mask": spaces.Box(0, 1, (k + 1,), np.int8),
            }
        )
        self._found = candidate_arrays(k)
        self._workspace = workspace()
        self._observation = empty_observation(k)
        self._count = END
        self.simulator: Simulator | None = None
        self._decision: Decision | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ObsType, dict[str, Any]]:
        """Start a new day; `options={"tape_seed": seed}` fixes its tape.

        Raises:
            FlextopoError: `options` has another key.
        """
        super().reset(seed=seed)
        unknown = set(options or {}) - {"tape_seed"}
        if unknown:
            raise FlextopoError(f"reset option {min(unknown)!r}; legal: tape_seed")
        if options:
            self._start(options["tape_seed"])
        else:
            for _ in range(MAX_REDRAWS):
                self._start(int(self.np_random.integers(TRAINING.start, TRAINING.stop)))
                if self._count != END:
                    break
        return self._observe(), self._info(False)

    def _start(self, tape_seed: int) -> None:
        """Warm up the cluster on a tape and run to its first decision."""
        self.simulator = Simulator(self.tape_source(tape_seed), self.fleet, scenario=self.scenario)
        self._decision = Decision(
            self.simulator.state.arrays,
            self.simulator.events,
            self.simulator.rules,
            self.simulator.costs,
            self._workspace,
            self._found,
            self._observation,
        )
        self._count = show_next(self._decision)

    def step(self, action: np.int64 | int) -> tuple[ObsType, float, bool, bool, dict[str, Any]]:
        """Carry out an action and run to the next decision."""
        if self._decision is None or self.simulator is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        if not 0 <= action <= self.k:
            raise FlextopoError(f"action {action}; legal: 0 to {self.k}")
        masked = not self._mask()[action]
        if self.strict and masked:
            raise FlextopoError(
                f"action {action} is masked; legal: {np.flatnonzero(self.action_masks()).tolist()}"
            )
        self._count, lost_gpu_s, invalid = step(self._decision, self._count, int(action))
        if masked and not invalid:  # waiting where `allow_wait` forbids it
            self.simulator.events.account[0]["invalid_actions"] += 1
        reward = -lost_gpu_s / 36.0 / self.fleet.num_gpus
        return self._observe(), reward, False, self._count == END, self._info(masked)

    def action_masks(self) -> npt.NDArray[np.bool_]:
        """Return which actions are legal, (K + 1,) bool, as sb3-contrib wants it."""
        return self._mask().astype(bool)

    def render(self) -> Any:
        """Draw the cluster: text for `ansi`, an (H, W, 3) uint8 picture for `rgb_array`."""
        if self.simulator is None or self.render_mode is None:
            return None
        draw = print_cluster if self.render_mode == "ansi" else draw_cluster
        return draw(self.simulator.state)

    def _mask(self) -> npt.NDArray[np.int8]:
        mask = self._observation.mask.copy()
        if not self.allow_wait and self._count > 0:
            mask[self.k] = 0
        return mask

    def _observe(self) -> ObsType:
        """Copy the kernel's buffers: an observation that was kept does not change."""
        o = self._observation
        return {
            "preemptor": o.preemptor.copy(),
            "cluster": o.cluster.copy(),
            "candidates": o.candidates.copy(),
            "action_mask": self._mask(),
        }

    def _info(self, invalid: bool) -> dict[str, Any]:
        assert self.simulator is not None
        sim = self.simulator
        info: dict[str, Any] = {
            "action_mask": self._mask(),
            "time_s": sim.state.now_s,
            "preemptor": int(sim.events.clock[0]["asked"]),
            "invalid_action": invalid,
            "loss": {
                name: lost / 3600.0
                for name, lost in loss_terms(sim.events.account, sim.costs).items()
            },
        }
        if self._count == END:
            info["metrics"] = episode_metrics(sim)
        return info
