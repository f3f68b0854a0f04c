"""Run the simulation under the greedy rule: the warm-up, and branches of the lookahead oracle."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import copying_kernel, program, stage
from flextopo.cluster.simulation.events import Events, copy_events
from flextopo.cluster.simulation.scheduler import END, Rules, advance, decline, must_align, preempt
from flextopo.cluster.state.arrays import Cluster, copy_cluster
from flextopo.cluster.state.candidates import CandidateArrays, Workspace, find_candidates
from flextopo.cluster.state.loss import Costs, weighted_gpu_s


def warm_up(
    c: Cluster, e: Events, rules: Rules, costs: Costs, w: Workspace, one: CandidateArrays
) -> None:
    """Run to the rules' end, always taking the candidate of the least own loss.

    Python between kernels, which every environment needs anyway: 0.3 ms more for each new day, and
    2 s less before the first than with `run_greedy`.
    """
    while True:
        pod = advance(c, e, rules)
        if pod == END:
            return
        if find_candidates(c, costs, pod, must_align(c, rules, pod), w, one) == 0:
            decline(e)
        else:
            preempt(c, e, rules, one.node[0], one.slots[0])


run_greedy = program(warm_up)
"""The same compiled, for branches."""


@stage
def rules_ahead(c: Cluster, rules: Rules, horizon_s: int) -> Rules:
    """Return the rules of a branch, which ends at the horizon or with the tape."""
    end = min(rules.end_s, c.totals[0]["now_s"] + horizon_s)
    return Rules(rules.filter, rules.restricted, rules.grace_s, rules.restart_s, end)


@copying_kernel
def begin_branch(
    c: Cluster, e: Events, scratch_c: Cluster, scratch_e: Events, ahead: Rules,
    found: CandidateArrays, count: int, i: int,
) -> None:  # fmt: skip
    """Copy a decision, and take candidate i there; `count` = "do not preempt now"."""
    copy_cluster(c, scratch_c)
    copy_events(e, scratch_e)
    if i < count:
        preempt(scratch_c, scratch_e, ahead, found.node[i], found.slots[i])
    else:
        decline(scratch_e)


@copying_kernel
def branch_losses(
    c: Cluster,
    e: Events,
    scratch_c: Cluster,
    scratch_e: Events,
    rules: Rules,
    costs: Costs,
    horizon_s: int,
    found: CandidateArrays,
    count: int,
    w: Workspace,
    one: CandidateArrays,
    losses: npt.NDArray[np.float64],
) -> None:
    """Write the loss of each branch: take a candidate now, then be greedy until the horizon.

    Args:
        c: the cluster with a pod that waits for a decision; not modified.
        e: its events; not modified.
        scratch_c: room for a copy of the cluster; shares what never changes.
        scratch_e: room for a copy of the events.
        rules: the simulated scheduler's rules.
        costs: the loss in GPU-seconds.
        horizon_s: how far a branch looks ahead, cut at the end of the tape.
        found: the candidates of the decision.
        count: how many of them are branched.
        w: scratch memory.
        one: room for one candidate.
        losses: (count + 1,) output, weighted GPU-seconds; the last is "do not preempt now".
    """
    ahead = rules_ahead(c, rules, horizon_s)
    for i in range(count + 1):
        begin_branch(c, e, scratch_c, scratch_e, ahead, found, count, i)
        run_greedy(scratch_c, scratch_e, ahead, costs, w, one)
        losses[i] = weighted_gpu_s(scratch_e.account, costs)
