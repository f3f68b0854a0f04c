"""What the scalar and the vector environments share: a batch of episodes, and who feeds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import (
    NUM_CANDIDATE,
    NUM_OBSERVED,
    NUM_PREEMPTOR,
    Observation,
    candidate_features,
    cluster_width,
)
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.batch import (
    DRAWS,
    NEXT_STEP,
    OUTCOME_DTYPE,
    Batch,
    BatchSettings,
    empty_batch,
    step_batch,
)
from flextopo.cluster.simulation.episodes import (
    Episodes,
    cluster_of,
    events_of,
    move,
    no_tapes,
    scratch_of_thread,
)
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.storage import scratch_of
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.cluster.workload.seeds import TRAINING
from flextopo.cluster.workload.tape import Tape
from flextopo.envs.candidate_order import shuffled_places
from flextopo.envs.greedy_losses import GreedyLosses
from flextopo.envs.tape_store import EpisodeStore, TapeSource, workload_of
from flextopo.envs.worker_threads import WorkerThreads

NO_ACTIONS = np.zeros(0, np.int64)

EVERYWHERE = slice(None)

LAST_SEED = 2**63 - 1
"""The largest seed that the arrays hold."""

ENVS_PER_THREAD = 16
"""Fewer environments than that in a thread are not worth a second one."""

Arrays = dict[str, npt.NDArray[Any]]


def observation_space(k: int, width: int = NUM_CANDIDATE) -> spaces.Dict:
    """Return the space of one environment's observations with K candidates of so many features."""
    return spaces.Dict(
        {
            "preemptor": spaces.Box(-1.0, 1.0, (NUM_PREEMPTOR,), np.float32),
            "cluster": spaces.Box(-1.0, 1.0, (cluster_width(width),), np.float32),
            "candidates": spaces.Box(-1.0, 1.0, (k, width), np.float32),
            "action_mask": spaces.Box(0, 1, (k + 1,), np.int8),
        }
    )


def named(o: Observation) -> Arrays:
    """Return an observation under the names of its space: its own arrays, no copies."""
    return {
        "preemptor": o.preemptor,
        "cluster": o.cluster,
        "candidates": o.candidates,
        "action_mask": o.mask,
    }


def given_tape(options: dict[str, Any]) -> int | None:
    """Take `tape_seed` out of the options of a reset; None where it is not given.

    Raises:
        FlextopoError: it is no seed.
    """
    seed = options.pop("tape_seed", None)
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if seed is not None and not (whole and 0 <= seed <= LAST_SEED):
        raise FlextopoError(f"reset option tape_seed = {seed!r}; legal: 0 to {LAST_SEED}")
    return seed if seed is None else int(seed)


class Core:
    """B environments; the arguments are those of `PreemptionEnv`, and `shared` as in `Batch`.

    Attributes:
        fleet: the servers.
        batch: the arrays; replaced when a tape needs larger rows.
        k: candidates shown.
        width: features of each.
        order: (B, K) which candidate stands in each place; None = each in its own.
    """

    def __init__(
        self,
        num_envs: int,
        autoreset: int,
        servers: str | Fleet,
        workload: WorkloadConfig | dict[str, Any] | None,
        scenario: Scenario | None,
        k: int,
        allow_wait: bool,
        randomise: bool,
        tape_source: Callable[[int], Tape] | None,
        tapes: int,
        relative: bool = False,
        shuffle: bool = False,
        episode_h: float | None = None,
        threads: int = 1,
        shared: bool = False,
        held: bool = False,
    ) -> None:
        for name, value in (
            ("num_envs", num_envs),
            ("k", k),
            ("tapes", tapes),
            ("threads", threads),
        ):
            if value < 1:
                raise FlextopoError(f"{name} = {value}; legal: 1 or more")
        if episode_h is not None and not 0 < episode_h < math.inf:
            raise FlextopoError(f"episode_h = {episode_h}; legal: above 0, or None")
        if tapes > len(TRAINING):
            raise FlextopoError(f"tapes = {tapes}; legal: 1 to {len(TRAINING)}")
        self.fleet = servers if isinstance(servers, Fleet) else parse_servers(servers)
        self.scenario = scenario or Scenario()
        self.source = tape_source or TapeSource(self.fleet, workload_of(workload), randomise)
        self.k, self.num_envs, self.tapes = k, num_envs, tapes
        self.width = NUM_OBSERVED if held else len(candidate_features(self.fleet))
        self._settings = BatchSettings(
            num_envs=num_envs,
            k=k,
            width=self.width,
            threads=threads,
            allow_wait=allow_wait,
            autoreset=autoreset,
            shared=shared,
            gpus=self.fleet.num_gpus,
        )
        self._threads = WorkerThreads(threads)
        self._store = EpisodeStore(self.fleet, self.scenario, self.source, tapes, episode_h)
        self._greedy = GreedyLosses(self._store.simulate, self.fleet.num_gpus) if relative else None
        self.order = np.tile(np.arange(k), (num_envs, 1)) if shuffle else None
        self._random: list[np.random.Generator] = []
        self.batch: Batch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without threads, and without the tapes in memory: see `EpisodeStore`."""
        batch = self.batch
        if batch is not None:
            batch = batch._replace(stored=no_tapes(batch.stored))
        return {
            **self.__dict__,
            "_threads": WorkerThreads(self._threads.size),
            "batch": batch,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; the models become read-only again, or every kernel would compile anew."""
        self.__dict__.update(state)
        if self.batch is not None:
            for episodes in (self.batch.running, self.batch.stored):
                episodes.cluster.models.setflags(write=False)

    def close(self) -> None:
        """Stop the threads."""
        self._threads.stop()

    def reset(
        self,
        which: npt.NDArray[np.bool_],
        random: list[np.random.Generator],
        given: npt.NDArray[np.int64] | None = None,
    ) -> Batch:
        """Start new tapes in some environments.

        Args:
            which: (B,) the environments.
            random: one generator each; a new one throws away the tapes drawn ahead.
            given: (B,) seeds of the tapes instead of drawn ones.

        Returns:
            The arrays, with the first decisions.
        """
        if self.batch is None:
            asked = [] if given is None else given[which].tolist()
            self._grow(self._store.load(asked[0] if asked else TRAINING.start))
        assert self.batch is not None
        b = self.batch
        for i in range(self.num_envs):
            if which[i] and (not self._random or self._random[i] is not random[i]):
                b.environments[i]["cursor"] = DRAWS
        self._random = list(random)
        self.batch = b = b._replace(outcome=b.outcome.copy())
        b.environments["starting"][which] = True
        b.environments["tries"][which] = 0
        b.environments["given"][which] = -1 if given is None else given[which]
        b.outcome["invalid"][which] = False
        self._run(NO_ACTIONS)
        self._shuffle(which)
        return self.batch

    def step(self, actions: npt.NDArray[np.int64]) -> Batch:
        """Step every environment; return the arrays, `outcome` a fresh one.

        `observation` is written over by the next step or reset: who shows it copies it.
        """
        assert self.batch is not None
        before = self.batch
        tapes, ended = before.running.tape.copy(), before.environments["ended"].copy()
        if self.order is not None:
            rows = np.arange(self.num_envs)
            stands = self.order[rows, np.minimum(actions, self.k - 1)]
            actions = np.where(actions < self.k, stands, actions)
        outcome = np.zeros(self.num_envs, OUTCOME_DTYPE)
        self.batch = before._replace(outcome=outcome)
        self._run(actions)
        if self._greedy is not None:
            until_s = np.where(outcome["truncated"], outcome["final_time_s"], outcome["time_s"])
            began = ended & (before.autoreset == NEXT_STEP)  # nothing was played in this step
            from_s = before.outcome["time_s"]
            until_s = np.where(began, from_s, until_s)
            outcome["reward"] += self._greedy.between(tapes, from_s, until_s)
        self._shuffle(EVERYWHERE)
        return self.batch

    def _shuffle(self, which: Any) -> None:
        """Put the candidates of some environments in another order, which the decision alone fixes."""
        b = self.batch
        if self.order is None or b is None:
            return
        decision = b.running.tape[which], b.outcome["time_s"][which], b.outcome["asked"][which]
        order = shuffled_places(decision, b.environments["options"][which], self.k)
        shown = b.observation.candidates
        shown[which] = np.take_along_axis(shown[which], order[:, :, None], 1)
        self.order[which] = order

    def _run(self, actions: npt.NDArray[np.int64]) -> None:
        assert self.batch is not None
        b = self.batch
        b.taken[0] = 0
        waiting = sum(self._threads.call_all(step_batch, b, actions))
        while waiting:
            for i in np.flatnonzero(self.batch.environments["starting"]):
                self._help(int(i))
            self.batch.taken[0] = 0
            waiting = step_batch(self.batch, NO_ACTIONS, 0)

    def _help(self, i: int) -> None:
        """Draw tapes for an environment that has none left, and load the one it waits for."""
        b = self.batch
        assert b is not None
        environment = b.environments[i]
        if environment["given"] < 0 and environment["cursor"] == DRAWS:
            begin = TRAINING.start
            b.draws[i] = self._random[i].integers(begin, begin + self.tapes, DRAWS)
            environment["cursor"] = 0
        tape = int(
            environment["given"] if environment["given"] >= 0 else b.draws[i, environment["cursor"]]
        )
        if b.stored.tape[tape % len(b.stored.tape)] != tape:
            self._grow(self._store.load(tape))
            if self._greedy is not None:
                self._greedy.curve(tape)  # now, since the tape is at hand

    def _grow(self, stored: Episodes) -> None:
        """Give the environments rows as large as those of the stored tapes."""
        b = self.batch
        if b is not None and b.stored is stored:
            return
        like = cluster_of(stored, 0, scratch_of(stored.cluster))
        fresh = empty_batch(like, stored, self._settings)
        if b is not None:
            # What the environments are playing moves into the wider rows.
            move(b.running, fresh.running)
            fresh = b._replace(running=fresh.running, stored=stored)
        self.batch = fresh

    def simulator(self, i: int) -> Simulator:
        """Return environment i as a simulation, over its own arrays."""
        assert self.batch is not None
        running = self.batch.running
        scratch = scratch_of_thread(scratch_of(running.cluster, 1), 0)
        arrays = cluster_of(running, i, scratch), events_of(running, i)
        end_s = Rules(*running.rules[i].tolist()).end_s
        tape = replace(self.source(int(running.tape[i])), end_s=end_s)
        return Simulator(tape, self.fleet, scenario=self.scenario, arrays=arrays)

    def simulate(self, tape: int) -> Simulator:
        """Return the simulation of a tape where its episode begins, over arrays of its own."""
        return self._store.simulate(tape)

    def metrics(self, i: int) -> dict[str, float]:
        """Return the metrics of the episode that environment i has just ended."""
        assert self.batch is not None
        return dict(zip(METRICS, self.batch.outcome[i]["metrics"].tolist(), strict=True))
