"""What greedy-cost loses on a tape as time goes on: the baseline of relative rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.simulation.simulator import Simulator

GRID_S = 300
"""Distance of the times at which greedy-cost's loss is kept; between them it is interpolated."""


class GreedyLosses:
    """What greedy-cost loses on the tapes that environments play, as a function of time.

    Args:
        simulate: returns a tape's simulation at the beginning of its episode.
        gpus: of the cluster.
    """

    def __init__(self, simulate: Callable[[int], Simulator], gpus: int) -> None:
        self._simulate, self._gpus = simulate, gpus
        self._forget()

    def _forget(self) -> None:
        self._rows: dict[int, int] = {}
        self._curves = np.zeros((0, 0))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle what makes the curves, without them."""
        return {"_simulate": self._simulate, "_gpus": self._gpus}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def curve(self, tape: int) -> npt.NDArray[np.float64]:
        """Return the loss until 0, GRID_S, 2 GRID_S ... s, GPU-hours per 100 GPUs.

        Until the episode begins nobody decides otherwise, so its places before that are 0; those after
        the end are like the last.
        """
        if tape not in self._rows:
            self._add(tape)
        found: npt.NDArray[np.float64] = self._curves[self._rows[tape]]
        return found

    def _add(self, tape: int) -> None:
        sim = self._simulate(tape)
        begin_s = int(sim.state.arrays.totals[0]["now_s"])
        points = range(0, sim.rules.end_s + GRID_S, GRID_S)
        lost = np.array([sim.greedy_loss(t) if t >= begin_s else 0.0 for t in points])
        row, (rows, width) = len(self._rows), self._curves.shape
        # Twice as many rows each time, as wide as the longest tape.
        more = max(1, rows) if row == rows else 0
        longer = max(0, len(lost) - width)
        self._curves = np.pad(self._curves, ((0, more), (0, 0)))
        self._curves = np.pad(self._curves, ((0, 0), (0, longer)), "edge" if width else "constant")
        self._curves[row] = lost[-1] / 36.0 / self._gpus
        self._curves[row, : len(lost)] = lost / 36.0 / self._gpus
        self._rows[tape] = row

    def between(
        self, tapes: npt.NDArray[np.int64], from_s: npt.NDArray[Any], until_s: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return what greedy-cost loses on each of (B,) tapes between two times, (B,) float64."""
        played = tapes.tolist()
        for tape in played:
            if tape not in self._rows:
                self._add(tape)
        rows = np.array([self._rows[tape] for tape in played])
        return self._until(rows, until_s) - self._until(rows, from_s)

    def _until(
        self, rows: npt.NDArray[np.int64], times_s: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return the value of each curve at its own time."""
        at, part = np.divmod(times_s, GRID_S)
        value = self._curves[rows, at]
        following = self._curves[rows, np.minimum(at + 1, self._curves.shape[1] - 1)]
        found: npt.NDArray[np.float64] = value + (following - value) * part / GRID_S
        return found
