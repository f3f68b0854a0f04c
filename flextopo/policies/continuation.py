"""The scorer as a kernel, and branches that go on under it: what policy improvement looks ahead with.

The lookahead oracle lets each branch go on greedily. A policy that waits where greedy would not
must be judged by what it does next itself, or "wait" looks good at every single decision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import Cluster, copy_cluster
from flextopo.cluster.candidates import CandidateArrays, Workspace, find_candidates
from flextopo.cluster.events import Events, copy_events
from flextopo.cluster.features import Observation, observe
from flextopo.cluster.kernels import copying_kernel, inlined, kernel
from flextopo.cluster.loss import Costs, weighted_gpu_s
from flextopo.cluster.simulation import END, Rules, advance, decline, must_align, preempt

Array = npt.NDArray[np.float32]


class Scorer(NamedTuple):
    """Weights of a `CandidateScorer`, inputs first, and room for its layers; h hidden units.

    Fields: `candidate` (30, h), `shared` (18, h), `own` (h, h), `pooled` (2h, h), `wait` (2h, h);
    biases (h,); `score` and `wait_score` (h + 1,), the bias last; `encoded` (K, h), `common` (h,),
    `pool` (2h,) and `layer` (h,) are scratch memory.
    """

    candidate: Array
    candidate_bias: Array
    shared: Array
    own: Array
    own_bias: Array
    pooled: Array
    score: Array
    wait: Array
    wait_bias: Array
    wait_score: Array
    encoded: Array
    common: Array
    pool: Array
    layer: Array


def scorer_of(weights: Mapping[str, Array], k: int) -> Scorer:
    """Return the kernel's form of a scorer's weights, for up to `k` candidates."""

    def turned(name: str) -> Array:
        return np.ascontiguousarray(weights[name].T)

    h = len(weights["candidate.bias"])
    return Scorer(
        candidate=turned("candidate.weight"),
        candidate_bias=weights["candidate.bias"],
        shared=turned("shared.weight"),
        own=turned("own.weight"),
        own_bias=weights["own.bias"],
        pooled=turned("pooled.weight"),
        score=np.append(weights["score.weight"][0], weights["score.bias"]),
        wait=turned("wait.0.weight"),
        wait_bias=weights["wait.0.bias"],
        wait_score=np.append(weights["wait.2.weight"][0], weights["wait.2.bias"]),
        encoded=np.zeros((k, h), np.float32),
        common=np.zeros(h, np.float32),
        pool=np.zeros(2 * h, np.float32),
        layer=np.zeros(h, np.float32),
    )


@inlined
def _add_product(x: Array, weights: Array, first: int, out: Array) -> None:
    """Add x @ weights[first : first + len(x)] to `out`."""
    for i in range(x.shape[0]):
        value = x[i]
        if value != 0:
            for u in range(out.shape[0]):
                out[u] += value * weights[first + i, u]


@inlined
def _output(layer: Array, weights: Array) -> float:
    """Return relu(layer) . weights, the last of which is the bias."""
    total = weights[layer.shape[0]]
    for u in range(layer.shape[0]):
        total += max(layer[u], np.float32(0)) * weights[u]
    return float(total)


@kernel
def best_action(s: Scorer, o: Observation, count: int, allow_wait: bool) -> int:
    """Return the action of the highest score: a candidate, or `count` for waiting.

    Args:
        s: weights and scratch memory.
        o: the decision.
        count: candidates in it, 1 or more.
        allow_wait: may it wait?
    """
    h = s.common.shape[0]
    for u in range(h):
        s.common[u] = s.candidate_bias[u]
        s.pool[u] = s.pool[h + u] = 0.0
    _add_product(o.preemptor, s.shared, 0, s.common)
    _add_product(o.cluster, s.shared, o.preemptor.shape[0], s.common)
    for i in range(count):
        encoded = s.encoded[i]
        for u in range(h):
            encoded[u] = s.common[u]
        _add_product(o.candidates[i], s.candidate, 0, encoded)
        for u in range(h):
            encoded[u] = max(encoded[u], np.float32(0))
            s.pool[u] += encoded[u] / count
            s.pool[h + u] = max(s.pool[h + u], encoded[u])
    best, most = count, -np.inf
    if allow_wait:
        for u in range(h):
            s.layer[u] = s.wait_bias[u]
        _add_product(s.pool, s.wait, 0, s.layer)
        most = _output(s.layer, s.wait_score)
    for u in range(h):
        s.common[u] = s.own_bias[u]
    _add_product(s.pool, s.pooled, 0, s.common)
    for i in range(count):
        for u in range(h):
            s.layer[u] = s.common[u]
        _add_product(s.encoded[i], s.own, 0, s.layer)
        score = _output(s.layer, s.score)
        if score > most:
            best, most = i, score
    return best


@kernel
def run_scorer(
    c: Cluster, e: Events, rules: Rules, costs: Costs, w: Workspace, found: CandidateArrays,
    o: Observation, s: Scorer, allow_wait: bool,
) -> None:  # fmt: skip
    """Run to the rules' end with the scorer's decisions."""
    while True:
        pod = advance(c, e, rules)
        if pod == END:
            return
        count = find_candidates(c, costs, pod, must_align(c, rules, pod), w, found)
        action = count
        if count > 0:
            observe(c, costs, pod, found, count, o)
            action = best_action(s, o, count, allow_wait)
        if action < count:
            preempt(c, e, rules, found.node[action], found.slots[action])
        else:
            decline(e)


@copying_kernel
def branch_losses_under(
    c: Cluster, e: Events, scratch_c: Cluster, scratch_e: Events, rules: Rules, costs: Costs,
    horizon_s: int, found: CandidateArrays, count: int, w: Workspace, room: CandidateArrays,
    o: Observation, s: Scorer, allow_wait: bool, losses: npt.NDArray[np.float64],
) -> None:  # fmt: skip
    """Write the loss of each branch: an action now, then the scorer's until the horizon.

    The arguments are those of `cluster.lookahead.branch_losses`, with `room` for K candidates, `o`
    for an observation of them, and the scorer.
    """
    end = min(rules.end_s, c.totals[0]["now_s"] + horizon_s)
    ahead = Rules(rules.filter, rules.restricted, rules.grace_s, rules.restart_s, end)
    for i in range(count + 1):
        copy_cluster(c, scratch_c)
        copy_events(e, scratch_e)
        if i < count:
            preempt(scratch_c, scratch_e, ahead, found.node[i], found.slots[i])
        else:
            decline(scratch_e)
        run_scorer(scratch_c, scratch_e, ahead, costs, w, room, o, s, allow_wait)
        losses[i] = weighted_gpu_s(scratch_e.account, costs)
