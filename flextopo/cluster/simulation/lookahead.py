"""Run the simulation under the greedy rule: the warm-up, and branches of the lookahead oracle."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import copying_kernel, program, stage
from flextopo.cluster.simulation.events import Events, copy_events
from flextopo.cluster.simulation.rules import Rules, must_align
from flextopo.cluster.simulation.scheduler import END, advance, carry_out, decline
from flextopo.cluster.state.arrays import Cluster, as_index, copy_cluster
from flextopo.cluster.state.candidates import CandidateArrays, Workspace
from flextopo.cluster.state.loss import Costs, weighted_gpu_s
from flextopo.cluster.state.preemption import find_candidates


def warm_up(
    c: Cluster, e: Events, rules: Rules, costs: Costs, w: Workspace, one: CandidateArrays
) -> None:
    """Run to the rules' end, always taking the candidate of the least own loss.

    Python between kernels, which every environment needs anyway: 0.3 ms more for each new tape, and
    2 s less before the first than with `run_greedy`.
    """
    while True:
        pod = advance(c, e, rules)
        if pod == END:
            return
        if find_candidates(c, costs, pod, must_align(c, rules, pod), w, one) == 0:
            decline(c, e, rules, bool(np.bool_(False)))
        else:
            carry_out(c, e, rules, one, as_index(0))


run_greedy = program(warm_up)
"""The same compiled, for branches."""


@stage
def rules_ahead(c: Cluster, rules: Rules, horizon_s: int) -> Rules:
    """Return the rules of a branch, which ends at the horizon or with the tape."""
    end = min(rules.end_s, c.totals[0]["now_s"] + horizon_s)
    return Rules(
        rules.filter,
        rules.restricted,
        rules.hard,
        rules.backfill,
        rules.max_wait_s,
        rules.grace_s,
        rules.restart_s,
        rules.backoff_s,
        end,
    )


class Branches(NamedTuple):
    """Branches of one decision.

    Fields: `cluster` with a pod that waits for a decision, and its `events`, both not modified;
    `scratch_cluster` and `scratch_events`, memory for a copy that shares what never changes; `rules`
    of the simulated scheduler; `costs`, the loss in GPU-seconds; `base`, those by which the greedy rule
    goes on; `horizon_s`, how far a branch looks
    ahead, cut at the end of the tape; `found`, the candidates of the decision, of which `num_branched`
    are branched.
    """

    cluster: Cluster
    events: Events
    scratch_cluster: Cluster
    scratch_events: Events
    rules: Rules
    costs: Costs
    base: Costs
    horizon_s: int
    found: CandidateArrays
    num_branched: int


@copying_kernel
def begin_branch(b: Branches, ahead: Rules, i: int) -> None:
    """Copy a decision, and take candidate i there; `num_branched` = "do not preempt now"."""
    copy_cluster(b.cluster, b.scratch_cluster)
    copy_events(b.events, b.scratch_events)
    if i < b.num_branched:
        carry_out(b.scratch_cluster, b.scratch_events, ahead, b.found, i)
    else:
        decline(b.scratch_cluster, b.scratch_events, ahead, bool(b.num_branched > 0))


@copying_kernel
def branch_losses(
    b: Branches,
    w: Workspace,
    one: CandidateArrays,
    tried: npt.NDArray[np.bool_],
    losses: npt.NDArray[np.float64],
) -> None:
    """Write the loss of each branch: take a candidate now, then be greedy until the horizon.

    Args:
        b: the branches.
        w: scratch memory.
        one: memory for one candidate.
        tried: (num_branched + 1,) the branches to play; the last is "do not preempt now".
        losses: (num_branched + 1,) output, weighted GPU-seconds from now on; others are left alone.
    """
    ahead = rules_ahead(b.cluster, b.rules, b.horizon_s)
    before = weighted_gpu_s(b.events.account, b.costs)
    for i in range(b.num_branched + 1):
        if tried[i]:
            begin_branch(b, ahead, i)
            run_greedy(b.scratch_cluster, b.scratch_events, ahead, b.base, w, one)
            losses[i] = weighted_gpu_s(b.scratch_events.account, b.costs) - before
