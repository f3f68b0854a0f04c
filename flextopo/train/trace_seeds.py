"""What each seed of a comparison plays of recorded traces, and whether there is anything to compare."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.online_demand import STEP_S, num_services
from flextopo.cluster.workload.trace_rates import DAY_S
from flextopo.train.compare import play_traces, read_traces
from flextopo.train.config import ComparisonConfig


def describe_seeds(
    config: ComparisonConfig, fleet: Fleet, seeds: list[int]
) -> list[dict[str, Any]]:
    """Return what each seed plays of the traces, and how the load was scaled.

    Returns:
        One a seed: `seed`, `begins` (file or source to when its stretch begins), `load_found` and
        `load` of batch jobs (GPU-hours asked for a GPU-hour of the cluster), `scaling` in words, and
        `new_replicas`, online pods that arrive during the account.

    Raises:
        WorkloadError: the demand is shorter than a day and adds a replica on no seed, so that nothing
            would be preempted.
    """
    if config.services is None or config.batch is None:
        return []
    services, _ = read_traces(config.services, config.batch)
    out = []
    for seed in seeds:
        tape, report = play_traces(config, fleet, seed)
        new = tape.pods["online"] & (tape.pods["arrive_s"] >= 0)
        out.append(
            {
                "seed": seed,
                "begins": dict(report.begins),
                "load_found": report.load_found,
                "load": report.load,
                "scaling": report.scaling,
                "new_replicas": int(np.count_nonzero(new)),
            }
        )
    if not services.aligned and not any(row["new_replicas"] for row in out):
        hours = services.rates.shape[1] * STEP_S / 3600
        raise WorkloadError(
            f"{config.services}: {hours:.3g} h of demand, in which no replica is added on any of "
            f"{len(seeds)} seeds, so nothing would be preempted and there is nothing to compare; legal: "
            "demand that rises, of a day or more at best"
        )
    return out


def count_stretches(config: ComparisonConfig, fleet: Fleet) -> dict[str, Any] | None:
    """Return how many stretches the traces have that share nothing, None without traces.

    A stretch is as long as an episode without its warm-up, and begins at a midnight where the trace is
    of a day or more. Several disjoint choices of services can be played from one stretch.

    Returns:
        `hours` of a stretch; `disjoint`, how many there are, and `trace`, of the one that has fewest:
        the services' file or a source of jobs.
    """
    if config.services is None or config.batch is None:
        return None
    services, jobs = read_traces(config.services, config.batch)
    hours = config.workload.horizon_h
    days = math.ceil(hours / 24)
    steps = services.rates.shape[1]
    length = days * DAY_S // STEP_S if services.aligned else math.ceil(hours * 3600 / STEP_S)
    wanted, available = num_services(config.workload, fleet.num_gpus), len(services.names)
    # Where there are too few services, each is played several times, from different starts.
    pieces = max(1, steps // length) * max(1, available // max(1, wanted))
    found = {services.source: max(1, pieces // max(1, math.ceil(wanted / available)))}
    for i, source in enumerate(jobs.sources):
        submit_s = jobs.submit_s[jobs.source == i]
        if len(submit_s):
            begin_s = int(submit_s.min()) // DAY_S * DAY_S
            whole = max(1, (int(submit_s.max()) - begin_s) // DAY_S)
            # A stretch begins on a day that has jobs.
            starts = np.unique((submit_s - begin_s) // DAY_S)
            found[source] = max(1, int((starts < whole).sum()) // days)
    trace = min(found, key=lambda name: found[name])
    return {"hours": hours, "disjoint": found[trace], "trace": trace}


def seed_rows(tapes: list[dict[str, Any]]) -> list[list[str]]:
    """Return what each seed plays: headings, then a row a seed."""
    names = list(tapes[0]["begins"])
    out = [["seed", *(f"{name}\nfrom" for name in names), "load\nfound", "jobs", "load\nplayed",
            "replicas\nadded"]]  # fmt: skip
    for row in tapes:
        begins = [row["begins"][name] for name in names]
        loads = [f"{row['load_found']:.3g}", row["scaling"], f"{row['load']:.3g}"]
        out.append([str(row["seed"]), *begins, *loads, str(row["new_replicas"])])
    return out
