"""How long a planned decision takes, and how many futures fit into a budget.

Decisions of generated days under `requeue-aware` are planned with each number of futures, and within each budget.
Prints processor time of this machine; ratios to the first row say more.
"""

from __future__ import annotations

import time

import numpy as np

from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.rollout import MOST_SAMPLES, Proposal, Rollout, propose
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.generator import generate_tape

CLUSTERS = {"16*rtx4090": 60, "64*rtx4090": 10}
"""Servers to decisions; larger clusters take seconds a future."""

PLANS = {f"@{n}": Rollout(samples=n) for n in (16, 64, 256, 1024)} | {
    f"@{ms}ms": Rollout(samples=MOST_SAMPLES, budget_s=ms / 1000) for ms in (5, 20, 50, 200)
}


def measure(servers: str, decisions: int) -> None:
    """Print a row a plan: p50 and p99 of a decision in ms, and the mean number of futures."""
    fleet, rule = parse_servers(servers), RequeueAware()
    took: dict[str, list[tuple[float, int]]] = {name: [] for name in PLANS}
    seed = 0
    while len(took["@16"]) <= decisions:
        shape = {"gpus_per_server": fleet.gpus_per_server, "cores_per_gpu": fleet.cores_per_gpu}
        tape = generate_tape(WorkloadConfig(), fleet.num_gpus, seed, **shape)
        sim = Simulator(tape, fleet)
        while (pod := sim.next_decision()) is not None and len(took["@16"]) <= decisions:
            given = propose(rule, sim.state, pod, 16, rule.filter)
            if given.tried.sum() > 1:
                for name, plan in PLANS.items():
                    took[name].append(_timed(plan, sim, pod, given))
            sim.apply(rule.select(sim.state, pod))
        seed += 1
    for name, each in took.items():
        ms, futures = np.array(each[1:]).T  # the first compiles
        low, high = np.quantile(ms, (0.5, 0.99))
        print(f"| {servers} | `{name}` | {low:.1f} | {high:.1f} | {futures.mean():.0f} |")


def _timed(plan: Rollout, sim: Simulator, pod: Pod, given: Proposal) -> tuple[float, int]:
    begin = time.perf_counter()
    losses = plan.branch(sim.state, pod, given, begin)
    return (time.perf_counter() - begin) * 1000, len(losses)


if __name__ == "__main__":
    print("| servers | plan | p50 ms | p99 ms | futures |")
    print("| --- | --- | --- | --- | --- |")
    for cluster, number in CLUSTERS.items():
        measure(cluster, number)
