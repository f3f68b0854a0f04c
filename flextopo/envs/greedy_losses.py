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
        self._curves: dict[int, list[float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the curves: they are made again."""
        return {**self.__dict__, "_curves": {}}

    def curve(self, tape: int) -> list[float]:
        """Return the loss until 0, GRID_S, 2 GRID_S ... s, GPU-hours per 100 GPUs.

        Until the episode begins nobody decides otherwise, so its places before that are 0.
        """
        if tape not in self._curves:
            sim = self._simulate(tape)
            begin_s = int(sim.state.arrays.totals[0]["now_s"])
            points = range(0, sim.rules.end_s + GRID_S, GRID_S)
            self._curves[tape] = [
                sim.greedy_loss(t) / 36.0 / self._gpus if t >= begin_s else 0.0 for t in points
            ]
        return self._curves[tape]

    def until(self, tape: int, time_s: int) -> float:
        """Return what greedy-cost has lost on a tape by some time, GPU-hours per 100 GPUs."""
        curve = self.curve(tape)
        at, part = divmod(time_s, GRID_S)
        following = curve[min(at + 1, len(curve) - 1)]
        return curve[at] + (following - curve[at]) * part / GRID_S

    def between(
        self, tapes: npt.NDArray[np.int64], from_s: npt.NDArray[Any], until_s: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Return what greedy-cost loses on each of (B,) tapes between two times, (B,) float64."""
        rows = zip(tapes.tolist(), from_s.tolist(), until_s.tolist(), strict=True)
        return np.array([self.until(d, t1) - self.until(d, t0) for d, t0, t1 in rows])
