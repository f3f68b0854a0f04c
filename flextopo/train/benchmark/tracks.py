"""The tracks of FlexTopo-Bench v1: what is played, on which tapes, and what is kept of each game.

No kernel is imported here, so that names can be listed and completed without compiling any.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import COMPARISON, take
from flextopo.train.config import ComparisonConfig
from flextopo.train.stress import BASE

NAME = "FlexTopo-Bench"
VERSION = 1

PAR = "requeue-aware"
"""The rule that every entry is held against: the best simple one when the benchmark was frozen."""

METRICS = (
    *("weighted_loss", "waiting", "misalignment", "discarded", "eviction", "idle"),
    *("hit_rate", "guaranteed_hit_rate", "guarantee_violations", "late_share", "gang_hit_rate"),
    *("gpus_evicted", "discarded_gpu_h", "batch_goodput", "preemptor_wait_p99_s", "decisions"),
)
"""What is kept of each game; see `flextopo.cluster.simulation.metrics.METRICS`."""

DISTURBANCES = (
    *("arrivals+6h", "arrivals-6h", "demand-x0.5", "demand-x0.75", "demand-x1.25", "demand-x1.5"),
    *("grace-0s", "grace-10s", "grace-60s", "grace-120s"),
    *("servers-a100", "servers-mixed", "servers-4gpu", "servers-uneven"),
    *("jobs-1gpu", "jobs-small", "backfill-easy", "backfill-reserve", "backoff-0s"),
    *("elastic-0", "elastic-0.5", "run-times-wrong", "server-missing", "server-claimed"),
)
"""Perturbations of the stress track: those of `flextopo stress` that every selector can be put to."""

SERVICES, BATCH = "services.csv.gz", "philly.csv"
"""Files of the recorded track; docs/benchmark.md says how anybody makes them from public ones."""


class Game(NamedTuple):
    """One tape of a track: the perturbation it is played under, and its seed."""

    perturbation: str
    seed: int


@dataclass(frozen=True)
class Track:
    """One world of the benchmark; deadlines are hard in all of them.

    Attributes:
        about: what it is, for tables.
        servers: the cluster.
        num_games: how many tapes, each a day with its own seed.
        workload: fields of `WorkloadConfig` that are not its defaults.
        perturbations: game i is played under entry i modulo their number.
        recorded: whether demand and jobs come from trace files instead of the generator.
    """

    about: str
    servers: str
    num_games: int
    workload: dict[str, Any] = field(default_factory=dict)
    perturbations: tuple[str, ...] = (BASE,)
    recorded: bool = False

    def games(self) -> list[Game]:
        """Return what is played, in the order of result files."""
        ways = self.perturbations
        seeds = take(COMPARISON, self.num_games)
        return [Game(ways[i % len(ways)], seed) for i, seed in enumerate(seeds)]

    def config(self, selector: Any, traces: Path | None) -> ComparisonConfig:
        """Return the comparison that one selector plays.

        Args:
            selector: a name, folder, `module:Class`, object or class.
            traces: folder of `SERVICES` and `BATCH`, for a recorded track.

        Raises:
            FlextopoError: the track is recorded, and a file is missing.
        """
        return ComparisonConfig(
            servers=self.servers,
            selectors=(selector,),
            policies=(),
            seeds=self.num_games,
            workload=WorkloadConfig(**self.workload),
            scenario=Scenario(deadline="hard"),
            services=_file(traces, SERVICES) if self.recorded else None,
            batch=_file(traces, BATCH) if self.recorded else None,
        )


def _file(folder: Path | None, name: str) -> str:
    if folder is None or not (folder / name).is_file():
        where = "no folder" if folder is None else folder
        raise FlextopoError(
            f"traces {where}: no {name}; legal: a folder with {SERVICES} and {BATCH}, made as "
            "docs/benchmark.md says"
        )
    return str(folder / name)


TRACKS: dict[str, Track] = {
    "rtx4090": Track("16 servers of 8 RTX 4090, 8 NUMA nodes each", "16*rtx4090", 50),
    "a100": Track("16 servers of 8 A100, 2 NUMA nodes each", "16*a100", 50),
    "mixed": Track("8 servers of each kind", "8*rtx4090,8*a100", 50),
    "gang": Track(
        "64 servers on 8 leaves; a quarter of the replicas span servers",
        "64*a100@leaf8",
        20,
        {"gang_share": 0.25},
    ),
    "recorded": Track(
        "16 servers of 8 RTX 4090; demand of ServeGen, jobs of Philly",
        "16*rtx4090",
        100,
        recorded=True,
    ),
    "stress": Track(
        f"16 servers of 8 RTX 4090; {len(DISTURBANCES)} disturbances, three days each",
        "16*rtx4090",
        3 * len(DISTURBANCES),
        perturbations=DISTURBANCES,
    ),
}
"""Name to track, in the order of tables."""


@dataclass(frozen=True)
class Frozen:
    """What never changes of a track.

    Attributes:
        digests: one a game, as `worlds.world_digest` makes them.
        par: weighted loss of `PAR`, one a game.
    """

    digests: tuple[str, ...]
    par: tuple[float, ...]


FROZEN = Path(__file__).parent / f"v{VERSION}.json"
"""Digests and par of every track; `benchmarks/freeze_bench.py` writes it, once a version."""


@lru_cache(maxsize=1)
def frozen() -> dict[str, Frozen]:
    """Return what is frozen, by the name of the track."""
    saved = json.loads(FROZEN.read_text())
    return {
        name: Frozen(tuple(row["digests"]), tuple(row["par"]))
        for name, row in saved["tracks"].items()
    }


def find_track(name: str) -> Track:
    """Return the track of a name.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in TRACKS:
        raise UnknownNameError("track", name, list(TRACKS))
    return TRACKS[name]
