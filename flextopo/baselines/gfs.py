"""Victims as GFS chooses them among spot tasks.

GFS limits how many spot tasks are let in, by a forecast of the demand of high priority; guarantees each a
duration; and, where a task of high priority fits nowhere, evicts at the least preemption cost. A victim
selector decides the last alone. Taken from the paper's public text: what has run since the last
checkpoint is waste, and the number of evictions counts beside it; tasks within their guaranteed duration
are no victims (here the pods' protection). Inferred: that both are shares, of the cluster's GPU-hours and
of the tasks that run, weighed alike, and that GPUs freed beyond the need count as waste for as long as an
hour unless the demand forecast wants them. The forecast here is the growth of online demand over the last
hour, not the paper's linear model of each organisation.

References:
    Duan et al., "GFS: a preemption-aware scheduling framework for GPU clusters with predictive spot
    instance management", arXiv 2509.11134.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flextopo.cluster.state.arrays import DONE, FUTURE, RUNNING, lost_work_s
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod

LOOKED_AT = 64
"""Candidates that are costed: the cheapest minimal victim sets."""

HOUR_S = 3600


def demand_growth(cluster: ClusterState) -> int:
    """Return by how many GPUs online demand has grown over the last hour, 0 where it has not."""
    c, since_s = cluster.arrays, cluster.now_s - HOUR_S
    online = c.pods["online"] & (c.live["status"] != FUTURE)
    came = online & (c.pods["arrive_s"] > since_s)
    left = online & (c.live["status"] == DONE) & (c.pods["depart_s"] > since_s)
    return max(0, int(c.pods["gpus"][came].sum()) - int(c.pods["gpus"][left].sum()))


@dataclass(frozen=True)
class Gfs:
    """Evict at the least preemption cost of GFS: work since the checkpoint, and tasks evicted."""

    name: str = "gfs"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the candidate of the least preemption cost; None where there is none."""
        candidates = cluster.candidates(preemptor, self.filter.binds(preemptor), LOOKED_AT)
        if not candidates:
            return None
        c = cluster.arrays
        running = max(int(np.sum((c.live["status"] == RUNNING) & ~c.pods["online"])), 1)
        whole = max(int(c.totals[0]["gpus"]), 1)
        wanted = demand_growth(cluster)
        needed = sum(int(c.pods[member]["gpus"]) for member in cluster.gang(preemptor))

        def cost(candidate: Candidate) -> tuple[float, float]:
            gone = {
                pod
                for victim in candidate.victims
                for pod in cluster.stopped_with(victim, candidate.victims)
            }
            gpus = {pod: int(c.pods[pod]["gpus"]) for pod in gone}
            waste = sum(gpus[pod] * int(lost_work_s(c, pod)) for pod in gone) / HOUR_S
            surplus = max(0, sum(gpus.values()) - needed - wanted)
            own = cluster.cost_of(candidate, preemptor)
            return (waste + surplus) / whole + len(gone) / running, own

        return min(candidates, key=cost)
