"""Look ahead over imagined futures: what the lookahead oracle does, without knowing the tape."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flextopo.baselines.futures import FutureSampler, median_future
from flextopo.baselines.information import InformationState, imagined
from flextopo.baselines.requeue import RequeueAware, costs_of
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.simulation.from_snapshot import lost_elsewhere, simulation_from
from flextopo.cluster.simulation.imagined import Futures
from flextopo.cluster.simulation.lookahead import Branches
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.workload.config import WorkloadConfig

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

ROUND = 16
"""Futures of the first round; each further one is as large as all before it."""

BEFORE_JUDGING = 64
"""Futures before any branch is given up: losses have long tails, and fewer futures miss them."""

MOST_SAMPLES = 4096
"""Futures of a decision that is limited by its time alone."""

MOST_AT_ONCE = 1024
"""Futures of a round at most: all futures of a round are in memory together."""

HOPELESS = 3.0
"""Standard errors by which a branch must be worse than the best for no more futures to be spent on it."""


@dataclass(frozen=True)
class Proposal:
    """What a base has to say of a decision.

    Attributes:
        found: candidates.
        count: how many there are.
        tried: (count + 1,) bool, the branches worth a look, waiting last.
        own: the base's own choice, `count` = waiting.
    """

    found: CandidateArrays
    count: int
    tried: Bools
    own: int


def propose(
    base: VictimSelector,
    cluster: ClusterState,
    preemptor: Pod,
    most: int,
    filter_: AlignmentFilter,
) -> Proposal:
    """Return a base's choice, and its best few candidates.

    A rule of costs tries its cheapest candidates, a policy (which has `rank`) those of the highest scores. For
    any other the cheapest are tried, and the first stands for its own choice where that is not among them.
    """
    may_wait = cluster.may_wait(preemptor)
    rank = getattr(base, "rank", None)
    if rank is None:
        aligned, costs = filter_.binds(preemptor), costs_of(base, cluster)
        # Before the others are found, whose arrays are valid until the next search.
        chosen = base.select(cluster, preemptor) if costs is None else None
        found, count = cluster.find(preemptor, aligned, most, costs)
        tried = np.ones(count + 1, np.bool_)
        tried[count] = may_wait
        own = 0
        if costs is None and chosen is None and may_wait:
            own = count
        elif chosen is not None:
            own = place_of(chosen, cluster, preemptor, found, count)
        return Proposal(found, count, tried, own)
    found, count, scores = rank(cluster, preemptor)
    tried = np.zeros(count + 1, np.bool_)
    tried[np.argsort(-scores[:count], kind="stable")[:most]] = True
    tried[count] = may_wait
    best = int(np.argmax(np.append(scores[:count], scores[-1] if may_wait else -np.inf)))
    return Proposal(found, count, tried, best)


def place_of(
    chosen: Candidate, cluster: ClusterState, preemptor: Pod, found: CandidateArrays, count: int
) -> int:
    """Return which of the candidates was chosen, 0 if it is none of them.

    Args:
        chosen: a candidate of this very decision.
        cluster: at the decision.
        preemptor: whom it is about.
        found: candidates.
        count: how many there are.
    """
    what = chosen.node, chosen.seats, set(chosen.victims)
    for i in range(count):
        each = cluster.candidate_at(found, i, preemptor)
        if (each.node, each.seats, set(each.victims)) == what:
            return i
    return 0


@dataclass(frozen=True)
class Rollout:
    """Branch over the best candidates in sampled futures, and take the least mean loss.

    After its own choice each branch goes on with a base selector until the horizon, as with
    `OracleLookahead`. All branches of a decision face the same futures. These start from the present state,
    and are drawn from the workload model given what has been seen: how long batch jobs have run, and how
    many replicas services have had. The draw depends on the seed, the time and the pod alone.

    Futures are played in rounds, each as large as all before it, up to `MOST_AT_ONCE`. A branch that is
    clearly worse than the best one gets no more of them.

    Attributes:
        seed: of the futures.
        samples: futures a decision at most; with fewer, chance chooses among the branches.
        budget_s: wall-clock seconds a decision, None = as long as it takes. Only so many futures are played
            as there is time for: how many depends on the machine. The first one tells how long they take;
            where there is no time for a first round of `ROUND`, the base's own choice stands.
        caution: standard errors that are added to the mean difference from the base's own choice, or the
            branch with the luckiest futures would win.
        branches: how many of the base's best candidates are tried, beside waiting.
        horizon_s: how far a branch looks ahead.
        history_s: how far back the replicas of services are looked at.
        base: decides in the branches; compiled where it is a rule of costs or a network.
        workload: the model that futures are drawn from.
        futures: draws them; a subclass of `FutureSampler` is another forecast.
    """

    seed: int = 0
    samples: int = 64
    budget_s: float | None = None
    caution: float = 0.5
    branches: int = 16
    horizon_s: int = 4 * 3600
    history_s: int = 12 * 3600
    base: VictimSelector = field(default_factory=RequeueAware)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    futures: type[FutureSampler] = FutureSampler
    name: str = "rollout"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def __post_init__(self) -> None:
        for name in ("samples", "branches", "horizon_s", "history_s"):
            if getattr(self, name) < 1:
                raise FlextopoError(f"rollout: {name} = {getattr(self, name)}; legal: 1 or more")
        if self.seed < 0:
            raise FlextopoError(f"rollout: seed = {self.seed}; legal: 0 or more")
        if self.budget_s is not None and not self.budget_s > 0:
            raise FlextopoError(f"rollout: budget_s = {self.budget_s}; legal: above 0")

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the branch of the least mean loss; None where waiting loses least."""
        begin = time.perf_counter()
        given = propose(self.base, cluster, preemptor, self.branches, self.filter)
        if given.count == 0:
            return None
        chosen = given.own
        if given.tried.sum() > 1:
            losses = self.branch(cluster, preemptor, given, begin)
            if len(losses) >= min(ROUND, self.samples):
                mean, error = compare_with(losses, given.own)
                chosen = int(np.argmin(mean + self.caution * error))
        if chosen == given.count:
            return None
        return cluster.candidate_at(given.found, chosen, preemptor, priced=False)

    def branch(
        self,
        cluster: ClusterState,
        preemptor: Pod,
        given: Proposal,
        begin: float | None = None,
    ) -> Floats:
        """Return the loss of each candidate and of waiting in each future.

        Args:
            cluster: at the decision.
            preemptor: whom it is about.
            given: the candidates.
            begin: when the decision began, by `time.perf_counter`; not given = now.

        Returns:
            (samples, count + 1) float64, weighted GPU-seconds from now to the horizon; infinite from the
            round on in which a branch is not played any more. One row or none where the budget ends before
            the first round does.
        """
        begin = time.perf_counter() if begin is None else begin
        sim = simulation_at(cluster, preemptor, self.filter, self.horizon_s)
        known = InformationState.of(sim)
        rng = np.random.default_rng((self.seed, known.now_s & 0xFFFFFFFF, preemptor.index))
        sampler = self.futures(self.workload, known, self.horizon_s, self.history_s, rng)
        beyond = lost_elsewhere(cluster, given.found, given.tried, preemptor)
        losses, tried, size = np.empty((0, given.count + 1)), given.tried, ROUND
        while len(losses) < self.samples and (tried.sum() > 1 or not len(losses)):
            started = time.perf_counter()
            futures = sampler.sample(min(size, self.samples - len(losses)))
            ahead = imagined(sim, known, futures)
            branches = ahead.branches(given.found, given.count, self.horizon_s, self.base)
            until = np.inf if self.budget_s is None or len(losses) else begin + self.budget_s
            played = play_until(until, ahead, futures, branches, tried, self.base)
            losses = np.concatenate((losses, played + beyond))
            if len(played) < futures.num_futures:
                break
            now, size = time.perf_counter(), min(len(losses), MOST_AT_ONCE)
            if self.budget_s is not None:
                fits = int((begin + self.budget_s - now) / (now - started) * len(played))
                if fits < ROUND:
                    break
                size = min(size, fits)
            if len(losses) >= BEFORE_JUDGING:
                tried = worth_playing(losses, given.own)
        return losses


def play_until(
    until: float,
    ahead: Simulator,
    futures: Futures,
    branches: Branches,
    tried: Bools,
    base: VictimSelector,
) -> Floats:
    """Return the loss of branches in futures: all that there are, the first one, or none.

    Args:
        until: when to be done, by `time.perf_counter`; the first future tells how long all take.
        ahead: see `Simulator.branch_in`, as are the others.
        futures: at least one.
        branches: of the decision.
        tried: the branches to play.
        base: decides in them.
    """
    if until == np.inf:
        return ahead.branch_in(futures, branches, tried, base)
    started = time.perf_counter()
    if started >= until:
        return np.empty((0, len(tried)))
    first = ahead.branch_in(futures.some(0, 1), branches, tried, base)
    now, others = time.perf_counter(), futures.num_futures - 1
    if others == 0 or now + others * (now - started) > until:
        return first
    rest = ahead.branch_in(futures.some(1, others + 1), branches, tried, base)
    return np.concatenate((first, rest))


def compare_with(losses: Floats, own: int) -> tuple[Floats, Floats]:
    """Return mean and standard error of what each branch loses more than one of them.

    Args:
        losses: (M, B) float64 of B branches in M futures.
        own: the branch to compare with.

    Returns:
        Two (B,) float64; infinity and 0 for branches that were not played in every future.
    """
    mean, error = np.full(losses.shape[1], np.inf), np.zeros(losses.shape[1])
    played = np.isfinite(losses[-1])
    above = losses[:, played] - losses[:, own, None]
    mean[played], error[played] = above.mean(0), above.std(0) / np.sqrt(len(above))
    return mean, error


def worth_playing(losses: Floats, own: int) -> Bools:
    """Say which branches may still turn out best, (B,) bool; the base's own is always played."""
    mean, error = compare_with(losses, own)
    best = int(np.argmin(mean + error))
    to_best, error = compare_with(losses, best)
    worth: Bools = to_best - HOPELESS * error <= 0
    worth[own] = True
    return worth


@dataclass(frozen=True)
class Lookahead:
    """Branch over the best candidates in the one future that is likeliest.

    It takes what its base takes, unless another branch loses clearly less: one future is no proof.

    Nothing is sampled and nothing of the tape is known: every run lasts as long as the median of runs
    that have lasted so long already, replicas stay as they are, and nobody else arrives.

    Attributes:
        branches: how many of the cheapest candidates are tried, beside waiting.
        horizon_s: how far a branch looks ahead.
        caution_h: GPU-hours that it must lose less; of 0 to 8 the best on 40 validation days.
        base: decides in the branches; compiled where it is a rule of costs or a network.
        workload: the model of run times.
    """

    branches: int = 16
    horizon_s: int = 4 * 3600
    caution_h: float = 1.0
    base: VictimSelector = field(default_factory=RequeueAware)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    name: str = "lookahead"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose a branch; None where waiting loses clearly less than what the base takes."""
        given = propose(self.base, cluster, preemptor, self.branches, self.filter)
        if given.count == 0:
            return None
        losses = self.branch(cluster, preemptor, given)[0]
        chosen = int(np.argmin(losses))
        if losses[given.own] - losses[chosen] < self.caution_h * 3600.0:
            chosen = given.own
        if chosen == given.count:
            return None
        return cluster.candidate_at(given.found, chosen, preemptor, priced=False)

    def branch(self, cluster: ClusterState, preemptor: Pod, given: Proposal) -> Floats:
        """Return the loss of each candidate and of waiting.

        Returns:
            (1, count + 1) float64, weighted GPU-seconds from now to the horizon.
        """
        sim = simulation_at(cluster, preemptor, self.filter, self.horizon_s)
        known = InformationState.of(sim)
        future = median_future(self.workload, known)
        ahead = imagined(sim, known, future)
        branches = ahead.branches(given.found, given.count, self.horizon_s, self.base)
        beyond = lost_elsewhere(cluster, given.found, given.tried, preemptor)
        return ahead.branch_in(future, branches, given.tried, self.base) + beyond


def simulation_at(
    cluster: ClusterState, preemptor: Pod, filter_: AlignmentFilter, horizon_s: int
) -> Simulator:
    """Return the simulation that a cluster belongs to, or one that begins with a snapshot."""
    if isinstance(cluster.simulator, Simulator):
        return cluster.simulator
    return simulation_from(cluster, preemptor, filter_, horizon_s)
