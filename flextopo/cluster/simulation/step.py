"""One environment step as one kernel call: carry out an action, run on, show the next decision."""

from __future__ import annotations

from typing import NamedTuple

from flextopo.cluster.jit.kernels import stage
from flextopo.cluster.observation.features import Observation
from flextopo.cluster.observation.observe import observe, observe_end
from flextopo.cluster.simulation.events import Events
from flextopo.cluster.simulation.rules import Rules, must_align
from flextopo.cluster.simulation.scheduler import END, advance, carry_out, decline, may_wait
from flextopo.cluster.state.arrays import Cluster, as_index
from flextopo.cluster.state.candidates import CandidateArrays, Workspace
from flextopo.cluster.state.loss import Costs
from flextopo.cluster.state.preemption import find_candidates


class Decision(NamedTuple):
    """Everything a step reads and writes; all arrays are the simulator's own."""

    cluster: Cluster
    events: Events
    rules: Rules
    costs: Costs
    workspace: Workspace
    found: CandidateArrays
    observation: Observation


@stage
def show_next(d: Decision) -> int:
    """Run to the next decision that has candidates and observe it; return how many, or END."""
    while True:
        pod = advance(d.cluster, d.events, d.rules)
        if pod == END:
            observe_end(d.cluster, d.observation)
            return END
        aligned = must_align(d.cluster, d.rules, pod)
        count = find_candidates(d.cluster, d.costs, pod, aligned, d.workspace, d.found)
        if count > 0:
            observe(d.cluster, d.costs, pod, d.found, count, d.observation)
            d.observation.mask[d.observation.mask.shape[0] - 1] = may_wait(d.cluster, d.rules, pod)
            return count
        decline(d.cluster, d.events, d.rules, bool(count > 0))


@stage
def act(d: Decision, count: int, action: int) -> bool:
    """Carry out an action; say whether it was invalid.

    Args:
        d: the episode.
        count: how many candidates the present decision has, or END.
        action: index of a candidate, or K for "do not preempt now"; an index of an empty place
            counts as that, and as an invalid action. Where the pod may not be left pending any longer,
            that is invalid, and the first candidate is taken.
    """
    invalid = action >= count and action != d.observation.candidates.shape[0]
    asked = as_index(d.events.clock[0]["asked"])
    if action >= count > 0 and not may_wait(d.cluster, d.rules, asked):
        invalid, action = True, 0
    if count != END:
        d.events.account[0]["decisions"] += 1
        d.events.account[0]["invalid_actions"] += invalid
        if action < count:
            carry_out(d.cluster, d.events, d.rules, d.found, action)
        else:
            decline(d.cluster, d.events, d.rules, bool(count > 0))
    return invalid
