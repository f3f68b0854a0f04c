"""What a planner must know: the same planner with forecasts that know less and less, against the rule.

Validation days of the generator, and validation stretches of recorded demand and jobs, of which the generator's
model is wrong. Each forecast plays both; the losses go to docs/results/planning-knowledge.json.

    python benchmarks/planning_knowledge.py --traces ../shared/data
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flextopo.baselines.futures import FutureSampler, nobody
from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.rollout import Rollout
from flextopo.cli.terminal import num_workers
from flextopo.cluster.files import write_whole
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import VALIDATION, take
from flextopo.train.compare import find_fleet, make_tape
from flextopo.train.config import ComparisonConfig
from flextopo.train.planning_results import RULE
from flextopo.train.scale_out import run_jobs

OUT = Path(__file__).parents[1] / "docs" / "results" / "planning-knowledge.json"
FUTURES = 64


class NoJobs(FutureSampler):
    """No batch job arrives."""

    def jobs(self, num_futures: int) -> Any:
        """Return none."""
        return self.known.pods[:0].copy(), np.zeros(0, np.int64), 0


class NoReplicas(FutureSampler):
    """Replicas stay as they are."""

    def replicas(self, num_futures: int) -> Any:
        """Return that nobody comes or goes."""
        return nobody(self.known, num_futures)


class NoArrivals(NoJobs, NoReplicas):
    """Both."""


def knowing(pods: Any) -> type[FutureSampler]:
    """Return a forecast of online demand that is right: what no planner can have.

    Args:
        pods: POD_DTYPE, all of the tape.
    """

    class Known(FutureSampler):
        """Replicas come and go as they will; jobs do as is imagined."""

        def replicas(self, num_futures: int) -> Any:
            """Return the tape's own, the same in all futures."""
            known, until_s = self.known, self.known.now_s + self._horizon_s
            leaves_s = np.where(known.gone, known.now_s, pods["depart_s"][known.rows])
            leaves_s[known.pods["online"] == 0] = NEVER_S
            coming = (pods["online"] == 1) & (pods["arrive_s"] > known.now_s)
            come = pods[coming & (pods["arrive_s"] <= until_s)]
            of = np.repeat(np.arange(num_futures), len(come))
            return np.tile(leaves_s, (num_futures, 1)), np.tile(come, num_futures), of

    return Known


SEEN = "all, and online demand as it will be"
DAY = WorkloadConfig()
FLAT = replace(DAY, daily_amplitude=0.0, half_daily_amplitude=0.0)
LATE = replace(
    DAY,
    daily_peak_h=(DAY.daily_peak_h + 6) % 24,
    half_daily_peak_h=(DAY.half_daily_peak_h + 6) % 12,
)

PLANNERS: dict[str, VictimSelector] = {
    RULE: RequeueAware(),
    SEEN: Rollout(samples=FUTURES),
    "all of the model": Rollout(samples=FUTURES),
    "all but the jobs to come": Rollout(samples=FUTURES, futures=NoJobs),
    "all but the hours of online demand": Rollout(samples=FUTURES, workload=FLAT),
    "all, the hours 6 h late": Rollout(samples=FUTURES, workload=LATE),
    "all but online demand to come": Rollout(samples=FUTURES, futures=NoReplicas),
    "run times alone": Rollout(samples=FUTURES, futures=NoArrivals),
}
"""What the planner knows to who plays; the rule first."""


def play(job: tuple[ComparisonConfig, str, int]) -> float:
    """Return the weighted loss of one game."""
    config, name, seed = job
    fleet, planner = find_fleet(config.servers), PLANNERS[name]
    sim = Simulator(make_tape(config, fleet, seed)[0], fleet, planner.filter, config.scenario)
    if isinstance(planner, Rollout):
        planner = replace(planner, seed=seed)
        if name == SEEN:
            planner = replace(planner, futures=knowing(sim.state.arrays.pods.copy()))
    sim.play(planner)
    return episode_metrics(sim)["weighted_loss"]


def main() -> None:
    """Play, and save the losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--traces", default="../shared/data", help="folder of recorded demand")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 = one a core")
    options = parser.parse_args()
    generated = ComparisonConfig(servers="16*rtx4090")
    recorded = replace(
        generated,
        services=f"{options.traces}/online/servegen_services34_10min.csv.gz",
        batch=f"{options.traces}/batch/batch_jobs_unified.csv.gz",
    )
    seeds = take(VALIDATION, options.seeds)
    worlds: dict[str, dict[str, list[float]]] = {}
    for world, config in (("generated", generated), ("recorded", recorded)):
        jobs = [(config, name, seed) for name in PLANNERS for seed in seeds]
        played = dict(run_jobs(play, jobs, num_workers(options.workers)))
        losses = [played[i] for i in range(len(jobs))]
        worlds[world] = {
            name: losses[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(PLANNERS)
        }
        print(world, {name: round(float(np.mean(got)), 5) for name, got in worlds[world].items()})
    saved = {"futures": FUTURES, "seeds": seeds, "worlds": worlds}
    write_whole(OUT, (json.dumps(saved, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
