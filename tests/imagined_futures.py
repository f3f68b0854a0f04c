"""Imagined futures one by one, as tables of pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.baselines.futures import FutureSampler
from flextopo.baselines.information import InformationState
from flextopo.cluster.simulation.imagined import Futures
from flextopo.cluster.workload.config import WorkloadConfig

HORIZON_S, HISTORY_S = 4 * 3600, 12 * 3600


class Future(NamedTuple):
    """One future: the pods that are there, and those that come."""

    present: npt.NDArray[Any]
    arrivals: npt.NDArray[Any]


def unfold(known: InformationState, futures: Futures) -> Iterator[Future]:
    """Yield futures one by one."""
    for i in range(futures.num_futures):
        present = known.pods.copy()
        for name in ("duration_s", "depart_s", "start_s"):
            present[name] = getattr(futures, name)[i]
        yield Future(present, futures.arrivals[futures.first[i] : futures.first[i + 1]])


def sample(
    config: WorkloadConfig, known: InformationState, num_futures: int, seed: int = 0
) -> list[Future]:
    """Return sampled futures one by one."""
    rng = np.random.default_rng(seed)
    sampler = FutureSampler(config, known, HORIZON_S, HISTORY_S, rng)
    return list(unfold(known, sampler.sample(num_futures)))
