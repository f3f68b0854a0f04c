"""Fit the hours of the rule `requeue-aware` on validation days."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.requeue import SIZES, RequeueAware
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.workload.seeds import VALIDATION, take
from flextopo.train.compare import find_fleet
from flextopo.train.config import FitConfig
from flextopo.train.demonstrations import tape_for, workload_on
from flextopo.train.scale_out import run_jobs
from flextopo.train.statistics import PairedDifference, paired_difference

Hours = tuple[float, ...]
Job = tuple[str, int, tuple[Hours, ...]]
"""A cluster, the seed of a day on it, and the hours to play it with."""


@dataclass(frozen=True)
class Fit:
    """What was found.

    Attributes:
        hours: of the least mean loss.
        tried: hours to their mean weighted loss over all days, in the order in which they were tried.
        gain: the difference of the best from no hours at all, on the same days.
    """

    hours: Hours
    tried: dict[Hours, float]
    gain: PairedDifference


def fit_requeue(
    config: FitConfig, workers: int = 1, done: Callable[[int, int], None] | None = None
) -> Fit:
    """Search the hours by coordinates, the largest size first, each among the grid.

    Args:
        config: what to fit on.
        workers: processes; the numbers do not depend on it.
        done: is told how many of how many settings are played at most.

    Returns:
        The best; of equals the one tried first, and so the lower hours.
    """
    losses: dict[Hours, npt.NDArray[np.float64]] = {}
    most = 1 + config.rounds * len(SIZES) * (len(config.grid) - 1)

    def play(settings: Sequence[Hours]) -> None:
        new = tuple(dict.fromkeys(hours for hours in settings if hours not in losses))
        days = [(s, seed) for s in config.servers for seed in take(VALIDATION, config.seeds)]
        jobs = [(*day, new) for day in days] if new else []
        played = dict(run_jobs(partial(_play, config.gang_share), jobs, workers))
        for at, hours in enumerate(new):
            losses[hours] = np.array([played[day][at] for day in range(len(days))])
        if done is not None:
            done(min(len(losses), most), most)

    nothing = best = (0.0,) * len(SIZES)
    play([nothing])
    for _ in range(config.rounds):
        for size in reversed(range(len(SIZES))):
            others = [(*best[:size], hours, *best[size + 1 :]) for hours in sorted(config.grid)]
            play(others)
            best = min([best, *others], key=lambda hours: losses[hours].mean())
    tried = {hours: float(loss.mean()) for hours, loss in losses.items()}
    return Fit(best, tried, paired_difference(losses[best], losses[nothing]))


def _play(gang_share: float, job: Job) -> list[float]:
    """Return the weighted loss of a day under each of some hours."""
    servers, seed, settings = job
    fleet = find_fleet(servers)
    tape = tape_for(fleet, workload_on(fleet, gang_share), seed).tape
    found = []
    for hours in settings:
        rule = RequeueAware(hours)
        sim = Simulator(tape, fleet, rule.filter)
        sim.play(rule)
        found.append(episode_metrics(sim)["weighted_loss"])
    return found


def document(fit: Fit, config: FitConfig) -> dict[str, Any]:
    """Return a fit as it is saved."""
    return {
        "hours": dict(zip(map(str, SIZES), fit.hours, strict=True)),
        "tried": [{"hours": hours, "weighted_loss": loss} for hours, loss in fit.tried.items()],
        "gain": fit.gain.as_dict(),
        "config": asdict(config),
    }
