"""Where the environments' tapes come from: tapes by seed, kept warmed up once they were used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from operator import gt
from typing import Any

import numpy as np

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.episodes import Episodes, bytes_of_episode, empty_episodes, store
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape, randomised
from flextopo.cluster.workload.tape import Tape

STORE_BYTES = 256 * 2**20
"""Memory of one store of tapes at most; a smaller one holds fewer tapes and makes them more often."""


def workload_of(given: WorkloadConfig | dict[str, Any] | None) -> WorkloadConfig:
    """Return a workload; registered ids give only the fields that differ from the defaults.

    Raises:
        FlextopoError: there is no such field.
    """
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


HOUR_S = 3600


class EpisodeStore:
    """Tapes where their episodes begin, in row d % S for tape d, where another may replace it.

    That is at time 0, after the warm-up; or, where episodes have a length, at a full hour of the tape
    until which greedy-cost plays. The hour is drawn by the tape's seed, the more often the more
    greedy-cost preempts in it.

    Args:
        fleet: the servers.
        scenario: loss weights and node admission.
        source: a pure function from a seed to a tape.
        tapes: how many different tapes will be asked for, about.
        episode_h: length of an episode; None = the whole tape, and so does one that is no longer.

    Attributes:
        episodes: the rows; grows when a tape needs larger rows, see `load`.
    """

    def __init__(
        self,
        fleet: Fleet,
        scenario: Scenario,
        source: Callable[[int], Tape],
        tapes: int,
        episode_h: float | None = None,
    ) -> None:
        self.fleet, self.scenario, self.source, self.tapes = fleet, scenario, source, tapes
        self.episode_s = None if episode_h is None else max(1, round(episode_h * HOUR_S))
        self._begins_s: dict[int, int] = {}
        self._last: tuple[int, Tape] | None = None
        self.episodes: Episodes | None = None
        # Pods, budgets and services of a row: never less than they were, pickled or not.
        self._sizes = 0, 0, 0

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the tapes: they are made again."""
        return {**self.__dict__, "episodes": None, "_last": None}

    def simulate(self, tape: int) -> Simulator:
        """Return the simulation of a tape where its episode begins; it ends with the episode."""
        if self._last is None or self._last[0] != tape:  # it is asked for a few times in a row
            self._last = tape, self.source(tape)
        whole = self._last[1]
        if self.episode_s is None or self.episode_s >= whole.end_s:
            return Simulator(whole, self.fleet, scenario=self.scenario)
        if tape not in self._begins_s:
            self._begins_s[tape] = self._draw_begin(tape, whole, self.episode_s)
        begin_s = self._begins_s[tape]
        cut = replace(whole, end_s=begin_s + self.episode_s)
        sim = Simulator(cut, self.fleet, scenario=self.scenario)
        sim.greedy_loss(begin_s)
        return sim

    def _draw_begin(self, tape: int, whole: Tape, episode_s: int) -> int:
        """Return a full hour at which an episode may begin, drawn by what greedy-cost preempts in it."""
        sim = Simulator(whole, self.fleet, scenario=self.scenario)
        made = [0]
        for hour in range(1, (whole.end_s - episode_s) // HOUR_S + 2):
            sim.greedy_loss(hour * HOUR_S)
            made.append(int(sim.events.account[0]["preemptions"]))
        busy = np.diff(made).astype(float)
        if not busy.any():
            busy[:] = 1.0
        hours = np.random.default_rng(tape)
        return HOUR_S * int(hours.choice(len(busy), p=busy / busy.sum()))

    def load(self, tape: int) -> Episodes:
        """Put a tape into its row, and return the rows: new arrays if it needed larger ones."""
        sim = self.simulate(tape)
        cluster = sim.state.arrays
        needed = len(cluster.pods), len(cluster.pdb_left), len(cluster.serving)
        e = self.episodes
        if e is None or any(map(gt, needed, self._sizes)):
            e = self._make_larger(cluster, needed)
        store(e, tape % len(e.tape), tape, sim)
        return e

    def _make_larger(self, cluster: Cluster, needed: tuple[int, int, int]) -> Episodes:
        """Return rows a quarter larger than asked for; the tapes so far are forgotten."""
        pods, budgets, services = (
            max(size * 5 // 4 + 1, before) for size, before in zip(needed, self._sizes, strict=True)
        )
        self._sizes = pods, budgets, services
        each = bytes_of_episode(empty_episodes(cluster, 1, *self._sizes))
        rows = max(1, min(self.tapes, STORE_BYTES // each))
        self.episodes = empty_episodes(cluster, rows, *self._sizes)
        return self.episodes
