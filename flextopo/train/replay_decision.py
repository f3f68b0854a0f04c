"""Describe a decision for people: its candidates, their scores, and in words why one was taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.exact import Exact
from flextopo.baselines.policies import (
    FLEXTOPO_BEST_EFFORT,
    STANDARD,
    FlexTopo,
    GreedyCost,
    OracleLookahead,
    PreemptionPolicy,
    RandomCandidate,
)
from flextopo.baselines.residents import NodeOption, NodeView, disruptions_left
from flextopo.baselines.rollout import Lookahead, Rollout, propose
from flextopo.cluster.state.arrays import lost_work_s
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate, Seat
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.runtime import LearnedSelector
from flextopo.policies.selectors import inner

SHOWN = 8
"""Candidates described beside the one taken, the cheapest first."""

LOOKED_AT = 64
"""Candidates searched for, where a selector does not say how many it looks at."""


@dataclass(frozen=True)
class ShownSeat:
    """The place of a gang's member: index of the pod and of its node, GPUs, level, and levels below
    the best, as in `Shown`.
    """

    pod: int
    node: int
    gpu_mask: int
    level: int
    below: int


@dataclass(frozen=True)
class Shown:
    """A candidate as it is shown.

    Attributes:
        node: index of the node.
        victims: pods by descending importance.
        stopped: PodGroup members that stop with them, on any node.
        gpu_mask: GPUs the preemptor gets, bit i = GPU i.
        level: an `AlignmentLevel`.
        below: levels below the best that the server can give the pod, 0 = the best.
        cost_gpu_s: its own loss in weighted GPU-seconds.
        discarded_gpu_s: GPU-seconds of work lost or repeated.
        score: by the selector, None where it gives none.
        wait_s: until the preemptor has its place.
        tier: a `NetworkLevel`, of a gang.
        seats: of the members of a gang; empty for a single pod, whose place is `node` and so on.
        victim_nodes: node of each victim of a gang, then of each pod stopped with them.
    """

    node: int
    victims: tuple[int, ...]
    stopped: tuple[int, ...]
    gpu_mask: int
    level: int
    below: int
    cost_gpu_s: float
    discarded_gpu_s: int
    score: float | None
    wait_s: int = 0
    tier: int = 0
    seats: tuple[ShownSeat, ...] = ()
    victim_nodes: tuple[int, ...] = ()

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node of each member, or of the single pod."""
        return tuple(seat.node for seat in self.seats) or (self.node,)


@dataclass(frozen=True)
class Choice:
    """One decision.

    Attributes:
        pod: the preemptor.
        waited_s: how long it has been pending.
        num_candidates: that the selector looked at.
        shown: some of them, by ascending cost, among them the one taken.
        chosen: its place in `shown`; None = do not preempt now.
        wait_score: of waiting, None where there is none.
        reason: in words.
    """

    pod: int
    waited_s: int
    num_candidates: int
    shown: tuple[Shown, ...]
    chosen: int | None
    wait_score: float | None
    reason: str

    @property
    def taken(self) -> tuple[int, frozenset[int]] | None:
        """Node and victims, None = do not preempt now."""
        if self.chosen is None:
            return None
        return self.shown[self.chosen].node, frozenset(self.shown[self.chosen].victims)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Node of each member that gets one."""
        return () if self.chosen is None else self.shown[self.chosen].nodes


@dataclass(frozen=True)
class _Ranked:
    """What a selector looked at: candidates by ascending cost, with scores where it has them."""

    candidates: list[Candidate]
    scores: list[float] | None = None
    wait: float | None = None
    label: str = ""


def describe(
    selector: VictimSelector, state: ClusterState, pod: Pod, taken: Candidate | None
) -> tuple[Choice, str]:
    """Describe a decision that has been made and not yet carried out.

    Args:
        selector: who decided.
        state: the cluster, not modified.
        pod: the preemptor.
        taken: the selector's answer.

    Returns:
        The decision, and what the scores are, "" where there are none.
    """
    selector = inner(selector)
    ranked = _rank(selector, state, pod)
    rows = list(range(min(SHOWN, len(ranked.candidates))))
    chosen = None
    extra: list[Candidate] = []
    if taken is not None:
        at = _find(ranked.candidates, taken)
        if at is None:
            chosen, extra = len(rows), [taken]
        else:
            rows += [] if at in rows else [at]
            chosen = rows.index(at)
    shown = [_show(state, pod, ranked.candidates[i], _score(ranked, i)) for i in rows]
    shown += [_show(state, pod, candidate, None) for candidate in extra]
    choice = Choice(
        pod=pod.index,
        waited_s=state.now_s - int(state.arrays.live[pod.index]["queued_s"]),
        num_candidates=len(ranked.candidates),
        shown=tuple(shown),
        chosen=chosen,
        wait_score=ranked.wait,
        reason=_reason(selector, state, pod, ranked, None if chosen is None else shown[chosen]),
    )
    return choice, ranked.label


def _rank(selector: VictimSelector, state: ClusterState, pod: Pod) -> _Ranked:
    """Look at a decision through the selector's eyes."""
    if isinstance(selector, LearnedSelector):
        found, count, scores = selector.rank(state, pod)
        wait = float(scores[-1]) if count and scores[-1] > -1e7 else None
        listed = [state.candidate_at(found, i, pod) for i in range(count)]
        return _Ranked(listed, scores[:count].tolist(), wait, "score")
    aligned = selector.filter.binds(pod)
    if isinstance(selector, OracleLookahead | Rollout | Lookahead) and state.simulator is not None:
        given = propose(selector.base, state, pod, selector.branches, selector.filter)
        found, count = given.found, given.count
        listed = [state.candidate_at(found, i, pod, priced=False) for i in range(count)]
        if not count:
            return _Ranked([])
        losses: npt.NDArray[Any]
        if isinstance(selector, Rollout | Lookahead):
            losses = selector.branch(state, pod, given).mean(0)
        else:
            losses = state.simulator.branch(found, count, selector.horizon_s, selector.base)
        *ahead, wait = (losses / 3600).tolist()
        far = selector.horizon_s >= NEVER_S
        span = "to the end" if far else f"in {selector.horizon_s / 3600:g} h"
        legal = wait if math.isfinite(wait) else None  # it may not be left pending any longer
        return _Ranked(listed, ahead, legal, f"loss {span}")
    return _Ranked(state.candidates(pod, aligned, LOOKED_AT))


def _find(candidates: Sequence[Candidate], taken: Candidate) -> int | None:
    for i, candidate in enumerate(candidates):
        if (candidate.node, _seat_nodes(candidate)) == (taken.node, _seat_nodes(taken)) and set(
            candidate.victims
        ) == set(taken.victims):
            return i
    return None


def _seat_nodes(candidate: Candidate) -> list[tuple[int, int]]:
    return [(seat.pod, seat.node) for seat in candidate.seats]


def _score(ranked: _Ranked, i: int) -> float | None:
    return None if ranked.scores is None else ranked.scores[i]


def _show(state: ClusterState, pod: Pod, candidate: Candidate, score: float | None) -> Shown:
    victims = set(candidate.victims)
    stopped = {m for v in victims for m in state.stopped_with(v, tuple(victims))}
    c, discarded = state.arrays, 0
    seats = tuple(_show_seat(state, seat) for seat in candidate.seats)
    others = tuple(sorted(stopped - victims))
    gone = (*candidate.victims, *others) if seats else ()
    for row in stopped:
        if not c.pods[row]["online"]:
            lost_s = int(lost_work_s(c, row)) + int(state.costs.restart_s)
            discarded += int(c.pods[row]["gpus"]) * lost_s
    return Shown(
        node=candidate.node,
        victims=candidate.victims,
        stopped=others,
        gpu_mask=candidate.gpu_mask,
        level=int(candidate.level),
        below=max(seat.below for seat in seats) if seats else state.levels_below(candidate, pod),
        cost_gpu_s=state.cost_of(candidate, pod),
        discarded_gpu_s=discarded,
        score=score,
        wait_s=candidate.wait_s,
        tier=int(candidate.tier),
        seats=seats,
        victim_nodes=tuple(int(c.live[row]["node"]) for row in gone),
    )


def _show_seat(state: ClusterState, seat: Seat) -> ShownSeat:
    spec = state.arrays.pods[seat.pod]
    best = state.model(seat.node).best_level(int(spec["gpus"]), int(spec["cores"]))
    below = 0 if best is None else int(seat.level) - int(best)
    return ShownSeat(seat.pod, seat.node, seat.gpu_mask, int(seat.level), below)


def _reason(
    selector: VictimSelector, state: ClusterState, pod: Pod, ranked: _Ranked, taken: Shown | None
) -> str:
    """Say in a sentence why the selector answers what it answers."""
    if taken is None and not ranked.candidates:
        return "It finds no victim set that lets the pod start, so the pod stays pending."
    policy = selector if isinstance(selector, PreemptionPolicy) else None
    if isinstance(selector, FlexTopo):
        states_nothing = pod.requirement == TopologyRequirement.NONE
        policy = STANDARD if states_nothing else FLEXTOPO_BEST_EFFORT
    if policy is not None and taken is not None:
        return _by_ordered_scores(policy, state, pod)
    if isinstance(selector, LearnedSelector):
        return _by_score(ranked, taken)
    if ranked.scores is not None:
        return _by_loss_ahead(selector, ranked, taken)
    if isinstance(selector, RandomCandidate):
        return f"Drawn at random from {_count(len(ranked.candidates))}."
    return _by_cost(selector, ranked, taken)


def _by_score(ranked: _Ranked, taken: Shown | None) -> str:
    scores = ranked.scores or []
    best = max(scores)
    among = _count(len(scores))
    if taken is None:
        return f"Waiting scores {ranked.wait:.2f}, the best of {among} {best:.2f}."
    text = f"Scores {taken.score:.2f}, the highest of {among}"
    text += "." if ranked.wait is None else f"; waiting scores {ranked.wait:.2f}."
    if int(np.argmax(scores)) == 0:
        return text + " It is also the cheapest."
    extra = taken.cost_gpu_s - ranked.candidates[0].cost_gpu_s
    return f"{text} The cheapest costs {_gpu_h(extra)} less and scores {scores[0]:.2f}."


def _by_loss_ahead(selector: VictimSelector, ranked: _Ranked, taken: Shown | None) -> str:
    scores = ranked.scores or []
    tape = {
        Rollout: "on average over sampled futures",
        Lookahead: "in the likeliest future",
    }.get(type(selector), "on this tape")
    if taken is None:
        what, loss, other = "Waiting", ranked.wait, f"the best candidate to {min(scores):.2f}"
    else:
        other = "waiting is over" if ranked.wait is None else f"waiting to {ranked.wait:.2f}"
        what, loss = "This choice", taken.score
        if taken.score is not None and taken.score != scores[0]:
            other += f", what its base takes to {scores[0]:.2f}"
    text = f"{what} leads to {loss:.2f} GPU-h lost {ranked.label[5:]} {tape}; {other}."
    if loss is not None and loss > min([*scores, *([] if ranked.wait is None else [ranked.wait])]):
        text += " It leaves what its base takes only for more than chance would explain."
    return text


def _by_cost(selector: VictimSelector, ranked: _Ranked, taken: Shown | None) -> str:
    if taken is None:
        return f"It waits; the cheapest candidate costs {_gpu_h(ranked.candidates[0].cost_gpu_s)}."
    cost = _gpu_h(taken.cost_gpu_s)
    others = [c.cost_gpu_s for c in ranked.candidates[:2]]
    if isinstance(selector, GreedyCost):
        text = f"The least loss of its own, {cost}"
        return text + (f"; the next costs {_gpu_h(others[1])}." if len(others) > 1 else ".")
    text = f"Its own loss is {cost}"
    if isinstance(selector, Exact):
        text = f"The least loss of its own over all victim sets, {cost}"
    return text + (f"; the cheapest minimal set costs {_gpu_h(others[0])}." if others else ".")


def _by_ordered_scores(policy: PreemptionPolicy, state: ClusterState, pod: Pod) -> str:
    """Name the score by which the policy's first victim set beats the second."""
    aligned, allowed = policy.filter.binds(pod), disruptions_left(state)
    options: list[NodeOption] = []
    for node in range(state.num_nodes):
        view = NodeView(state, node, policy.gpu_locality, policy.terminating)
        options += policy.search(view, pod, allowed, aligned)
    ranked = sorted(tuple(score(option) for score in policy.scores) for option in options)
    if len(ranked) < 2:
        return "It is the only victim set that its search finds."
    for score, first, second in zip(policy.scores, ranked[0], ranked[1], strict=True):
        if first != second:
            words = (score.__doc__ or score.__name__).partition("(")[0].strip(" .")
            return (
                f"First of the {len(ranked)} sets of its search by: {words[0].lower()}{words[1:]}."
            )
    return f"First of the {len(ranked)} sets of its search; ties go to the lower node."


def _count(candidates: int) -> str:
    return f"{candidates} candidate{'s' if candidates != 1 else ''}"


def _gpu_h(gpu_s: float) -> str:
    return f"{gpu_s / 3600:.2f} GPU-h"
