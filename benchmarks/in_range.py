"""How often a policy is out of its training ranges, and what leaving these decisions to the rule comes to.

Plays days on clusters like those that the policy was trained on, on others, and under every perturbation of
`flextopo stress`, each with the rule, the policy as it is served and `deepset-planning+in-range@0`. Writes
`docs/results/in-range.json`, of which `flextopo report` makes a table.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from flextopo.cli.terminal import num_workers
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import SPLITS, take
from flextopo.policies.selectors import find_selector
from flextopo.train.config import ComparisonConfig
from flextopo.train.range_results import GUARDED, POLICY, RULE, world_rows
from flextopo.train.results import markdown, save_results, versions
from flextopo.train.scale_out import run_jobs
from flextopo.train.stress import BASE, PERTURBATIONS
from flextopo.train.stress_run import make_world, misled


class World(NamedTuple):
    """What is played.

    Fields: `config`, servers and demand; `perturbation` of them; `share` of the days that are played.
    """

    config: ComparisonConfig
    perturbation: str = BASE
    share: float = 1.0


def on(servers: str, share: float = 1.0, **workload: Any) -> World:
    """Return undisturbed days on some servers."""
    config = ComparisonConfig(servers=servers, workload=WorkloadConfig(**workload))
    return World(config, share=share)


WORLDS = {
    **{f"`{servers}`, trained on": on(servers) for servers in ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")},
    **{f"`{servers}`": on(servers) for servers in ("2*rtx4090", "4*rtx4090", "64*rtx4090")},
    "`128*rtx4090`": on("128*rtx4090", 0.4),
    "`1000*rtx4090`": on("1000*rtx4090", 0.1),
    **{f"`16*{model}`": on(f"16*{model}") for model in ("gh200", "gb200", "mi300a", "dgx-spark")},
    "`64*a100@leaf8`, gangs": on("64*a100@leaf8", 0.4, gang_share=0.25),
    **{
        name: World(ComparisonConfig(servers="16*rtx4090"), name)
        for name in PERTURBATIONS
        if name not in (BASE, "servers-rtx4090", "servers-a100", "servers-mixed")
    },
}  # fmt: skip
"""Name, as the table shows it, to world."""


class Counted:
    """A selector, and how many of its decisions were left to the rule, and why."""

    def __init__(self, selector: VictimSelector) -> None:
        self.selector, self.name, self.filter = selector, selector.name, selector.filter
        self.decisions = self.outside = 0
        self.why: Counter[str] = Counter()

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        told: list[str] = []
        cluster.out_of_range = told  # type: ignore[attr-defined]
        chosen = self.selector.select(cluster, preemptor)
        self.decisions += 1
        self.outside += len(told)
        for text in told:
            reason = text.partition(": ")[2].removesuffix(" out of range")
            self.why.update([reason] if " servers;" in reason else reason.split(", "))
        return chosen


def play(world: World, selector: VictimSelector, seed: int) -> float:
    """Return the weighted loss of a day."""
    config, tape, fleet = make_world(world.config, world.perturbation, seed)
    selector = misled(selector, world.perturbation, seed)
    sim = Simulator(tape, fleet, selector.filter, config.scenario)
    sim.play(selector)
    return float(episode_metrics(sim)["weighted_loss"])


def measure(job: tuple[str, int, str]) -> dict[str, Any]:
    """Return a world as the results have it: of a name, so many days of a split."""
    name, days, split = job
    world, counted = WORLDS[name], Counted(find_selector(GUARDED))
    seeds = take(SPLITS[split], max(3, round(world.share * days)))
    losses = {
        RULE: [play(world, find_selector(RULE), seed) for seed in seeds],
        POLICY: [play(world, find_selector(POLICY), seed) for seed in seeds],
        GUARDED: [play(world, counted, seed) for seed in seeds],
    }
    reasons = counted.why.most_common(1)
    return {
        "name": name,
        "decisions": counted.decisions,
        "outside": counted.outside,
        "why": reasons[0][0] if reasons else "",
        "losses": losses,
    }


def main() -> None:
    """Play all worlds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--days", type=int, default=50, help="days of a world; fewer on large clusters"
    )
    parser.add_argument("--split", default="comparison", choices=SPLITS)
    parser.add_argument("--json", type=Path, help="file for the results")
    given = parser.parse_args()
    jobs = [(name, given.days, given.split) for name in WORLDS]
    played = {}
    for i, world in run_jobs(measure, jobs, workers=num_workers(0)):
        played[i] = world
        print(markdown(world_rows([world])).splitlines()[-1], flush=True)
    if given.json:
        config = {"days": given.days, "split": given.split, "versions": versions()}
        worlds = [played[i] for i in range(len(jobs))]
        save_results({"worlds": worlds, "config": config}, given.json)


if __name__ == "__main__":
    main()
