"""Look ahead under a learned policy: branches that it goes on with, instead of the greedy rule.

The scorer runs inside the kernel: a branch makes dozens of decisions, and leaving the kernel for each
would take a hundred times as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import copying_kernel, kernel, program
from flextopo.cluster.observation.features import (
    FEATURES,
    Observation,
    cluster_width,
    empty_observation,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.events import Events
from flextopo.cluster.simulation.lookahead import Branches, begin_branch, rules_ahead
from flextopo.cluster.simulation.rules import Rules, must_align
from flextopo.cluster.simulation.scheduler import END, advance, carry_out, decline, may_wait
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.candidates import (
    CandidateArrays,
    Workspace,
    candidate_arrays,
    workspace,
)
from flextopo.cluster.state.loss import Costs, weighted_gpu_s
from flextopo.cluster.state.preemption import find_candidates

Array = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


ROWS = 4
"""Rows of scratch memory beside one for each candidate."""


class Net(NamedTuple):
    """Weights of a `CandidateScorer` for the kernels, transposed: (inputs, outputs); h hidden.

    Fields: as the network's layers; `scratch` (K + 4, 2h) float32 is scratch memory.
    """

    candidate: Array
    candidate_bias: Array
    shared: Array
    own: Array
    own_bias: Array
    pooled: Array
    score: Array
    score_bias: Array
    wait: Array
    wait_bias: Array
    wait_out: Array
    wait_out_bias: Array
    scratch: Array


class View(NamedTuple):
    """Memory for what the policy looks at in a branch: candidates, and their observation."""

    workspace: Workspace
    found: CandidateArrays
    observation: Observation


class PolicyLookahead:
    """Branch decisions of simulations, each branch going on under one policy.

    Args:
        weights: of a `CandidateScorer`, arrays by parameter name, as in an artifact.
        k: candidates that the policy looks at.
    """

    def __init__(self, weights: Mapping[str, Array], k: int) -> None:
        self.net = _transposed(weights, k)
        self._k, self._width = k, weights["candidate.weight"].shape[1]
        self._idle: list[tuple[Net, View]] = []

    def branch_losses(self, branches: Branches, tried: Bools, losses: Floats) -> None:
        """Write the loss of each branch of a decision; see `branch_losses_under`.

        A decision that a service has given up goes on in its thread beside the next one, so each call
        has its scratch memory to itself.
        """
        try:
            net, view = self._idle.pop()
        except IndexError:
            net, view = self._memory()
        branch_losses_under(net, branches, view, tried, losses)
        self._idle.append((net, view))

    def _memory(self) -> tuple[Net, View]:
        """Return the network and a view with scratch memory of their own."""
        view = View(workspace(), candidate_arrays(self._k), empty_observation(self._k, self._width))
        return self.net._replace(scratch=np.zeros_like(self.net.scratch)), view


def spread(
    weights: Mapping[str, Array], columns: Mapping[str, Sequence[int]], width: int
) -> dict[str, Array]:
    """Return the first layers of a scorer that reads some features as those of one that is shown all.

    Args:
        weights: as above.
        columns: of the features that it reads, by part of the observation, in its order.
        width: features of a candidate that are observed.
    """
    given, h = columns["preemptor"], len(weights["candidate.bias"])
    behind = len(FEATURES["preemptor"])
    shared = np.zeros((h, behind + cluster_width(width)), np.float32)
    shared[:, [*given, *(behind + at for at in columns["cluster"])]] = weights["shared.weight"]
    candidate = np.zeros((h, width), np.float32)
    candidate[:, columns["candidates"]] = weights["candidate.weight"]
    return {"shared.weight": shared, "candidate.weight": candidate}


def _transposed(weights: Mapping[str, Array], k: int) -> Net:
    """Return the weights of a scorer as the kernels take them."""
    h = len(weights["own.bias"])
    pooled = weights.get("pooled.weight", np.zeros((h, 2 * h), np.float32))
    layers = (
        weights["candidate.weight"].T,
        weights["candidate.bias"],
        weights["shared.weight"].T,
        weights["own.weight"].T,
        weights["own.bias"],
        pooled.T,
        weights["score.weight"][0],
        weights["score.bias"],
        weights["wait.0.weight"].T,
        weights["wait.0.bias"],
        weights["wait.2.weight"][0],
        weights["wait.2.bias"],
        np.zeros((k + ROWS, 2 * h)),
    )
    return Net(*(np.array(layer, np.float32, order="C") for layer in layers))


@kernel
def _add_product(x: Array, n: int, w: Array, at: int, out: Array) -> None:
    """Add x[:n] @ w[at : at + n] to `out`."""
    for i in range(n):
        v = x[i]
        if v != 0.0:
            row = w[at + i]
            for j in range(row.shape[0]):
                out[j] += v * row[j]


@kernel
def _encode(net: Net, o: Observation, count: int) -> None:
    """Write the first `count` candidates' encodings, what is pooled of them, and their context."""
    h = net.own.shape[0]
    scratch = net.scratch
    k = scratch.shape[0] - ROWS
    shared, pooled, context = scratch[k], scratch[k + 1], scratch[k + 2]
    for j in range(h):
        shared[j] = net.candidate_bias[j]
        context[j] = net.own_bias[j]
    for j in range(2 * h):
        pooled[j] = 0.0
    _add_product(o.preemptor, o.preemptor.shape[0], net.shared, 0, shared)
    _add_product(o.cluster, o.cluster.shape[0], net.shared, o.preemptor.shape[0], shared)
    for i in range(count):
        e = scratch[i]
        for j in range(h):
            e[j] = shared[j]
        _add_product(o.candidates[i], o.candidates.shape[1], net.candidate, 0, e)
        for j in range(h):
            v = max(e[j], np.float32(0.0))
            e[j] = v
            pooled[j] += v
            pooled[h + j] = max(pooled[h + j], v)
    for j in range(h):
        pooled[j] /= np.float32(count)
    _add_product(pooled, 2 * h, net.pooled, 0, context)


@kernel
def choose(net: Net, o: Observation, count: int, wait: bool) -> int:
    """Return the legal action of the highest score; `count` = waiting, where one may `wait`.

    The twin of `runtime.score`, which sums in another order.
    """
    _encode(net, o, count)
    h = net.own.shape[0]
    scratch = net.scratch
    k = scratch.shape[0] - ROWS
    pooled, context, hidden = scratch[k + 1], scratch[k + 2], scratch[k + 3]
    best, most = 0, -1e30
    for i in range(count):
        for j in range(h):
            hidden[j] = context[j]
        _add_product(scratch[i], h, net.own, 0, hidden)
        s = 0.0
        for j in range(h):
            s += max(hidden[j], np.float32(0.0)) * net.score[j]
        s += net.score_bias[0]
        if s > most:
            best, most = i, s
    if not wait:
        return best
    for j in range(h):
        hidden[j] = net.wait_bias[j]
    _add_product(pooled, 2 * h, net.wait, 0, hidden)
    s = 0.0
    for j in range(h):
        s += max(hidden[j], np.float32(0.0)) * net.wait_out[j]
    s += net.wait_out_bias[0]
    return count if s > most else best


@program
def _run_policy(net: Net, c: Cluster, e: Events, rules: Rules, costs: Costs, view: View) -> None:
    """Run to the rules' end under the policy."""
    found, o = view.found, view.observation
    while True:
        pod = advance(c, e, rules)
        if pod == END:
            return
        count = find_candidates(c, costs, pod, must_align(c, rules, pod), view.workspace, found)
        if count == 0:
            decline(c, e, rules, bool(count > 0))
            continue
        observe(c, costs, pod, found, count, o)
        action = choose(net, o, count, may_wait(c, rules, pod))
        if action == count:
            decline(c, e, rules, bool(count > 0))
        else:
            carry_out(c, e, rules, found, action)


@copying_kernel
def branch_losses_under(
    net: Net,
    b: Branches,
    view: View,
    tried: Bools,
    losses: Floats,
) -> None:
    """Write the loss of each branch: take a candidate now, then follow the policy.

    Args:
        net: the policy.
        b: the branches.
        view: memory for the decisions within them.
        tried: (num_branched + 1,) the branches to play; the last is "do not preempt now".
        losses: (num_branched + 1,) output, weighted GPU-seconds from now on; others are left alone.
    """
    ahead = rules_ahead(b.cluster, b.rules, b.horizon_s)
    before = weighted_gpu_s(b.events.account, b.costs)
    for i in range(b.num_branched + 1):
        if tried[i]:
            begin_branch(b, ahead, i)
            _run_policy(net, b.scratch_cluster, b.scratch_events, ahead, b.costs, view)
            losses[i] = weighted_gpu_s(b.scratch_events.account, b.costs) - before
