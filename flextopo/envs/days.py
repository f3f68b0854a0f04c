"""Where the environments' days come from: tapes by seed, kept warmed up once they were used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from flextopo.cluster.arrays import Cluster
from flextopo.cluster.episodes import Episodes, bytes_of_episode, empty_episodes, store
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.simulator import Scenario, Simulator
from flextopo.cluster.tape import Tape
from flextopo.cluster.workload import WorkloadConfig, generate_tape, randomised

STORE_BYTES = 256 * 2**20
"""Memory of one store of days at most; a smaller one holds fewer days and makes them more often."""


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


class DayStore:
    """Days at time 0, after their warm-up. Day d stands in row d % S, where another may replace it.

    Args:
        fleet: the servers.
        scenario: loss weights and node admission.
        source: a pure function from a seed to a tape.
        days: how many different days will be asked for, about.

    Attributes:
        episodes: the rows; grows when a day needs more room, see `load`.
    """

    def __init__(
        self, fleet: Fleet, scenario: Scenario, source: Callable[[int], Tape], days: int
    ) -> None:
        self.fleet, self.scenario, self.source, self.days = fleet, scenario, source, days
        self.episodes: Episodes | None = None
        self._room = 0, 0  # pods and budgets of a row: never less than it was, pickled or not

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the days: they are made again."""
        return {**self.__dict__, "episodes": None}

    def play(self, day: int) -> Simulator:
        """Return the simulation of a day, warmed up."""
        return Simulator(self.source(day), self.fleet, scenario=self.scenario)

    def load(self, day: int) -> Episodes:
        """Put a day into its row, and return the rows: new arrays if it needed more room."""
        sim = self.play(day)
        cluster = sim.state.arrays
        pods, budgets = len(cluster.pods), len(cluster.pdb_left)
        e = self.episodes
        if e is None or pods > e.pods.shape[1] or budgets > e.pdb_left.shape[1]:
            e = self._make_room(cluster, pods, budgets)
        store(e, day % len(e.day), day, sim)
        return e

    def _make_room(self, cluster: Cluster, pods: int, budgets: int) -> Episodes:
        """Return rows with a quarter more room than asked for; the days so far are forgotten."""
        self._room = max(pods * 5 // 4 + 1, self._room[0]), max(budgets * 5 // 4 + 1, self._room[1])
        each = bytes_of_episode(empty_episodes(cluster, 1, *self._room))
        rows = max(1, min(self.days, STORE_BYTES // each))
        self.episodes = empty_episodes(cluster, rows, *self._room)
        return self.episodes
