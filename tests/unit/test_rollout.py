"""The rollout selector samples futures; it must not see the real one."""

from __future__ import annotations

import importlib
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tapes
from imagined_futures import HISTORY_S, HORIZON_S, sample, unfold
from kube_objects import flextopo, make_cache, node, preemptor, read_record
from kube_objects import pod as running

from flextopo.baselines import rollout
from flextopo.baselines.futures import FutureSampler, assemble, median_future
from flextopo.baselines.information import InformationState, find_jobs, imagined
from flextopo.baselines.policies import GreedyCost, OracleLookahead
from flextopo.baselines.registry import make_selector
from flextopo.baselines.replica_forecast import filter_demand, replica_runs, within_limit
from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.rollout import (
    Lookahead,
    Proposal,
    Rollout,
    compare_with,
    propose,
    worth_playing,
)
from flextopo.baselines.run_times import log_normal_beyond, remaining_beyond
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.from_snapshot import simulation_from
from flextopo.cluster.simulation.imagined import Futures, imagine, rings
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import BACKING_OFF, DONE, RUNNING, STARTING, Cluster
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.state.storage import Kind, names_of
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.tape import Tape
from flextopo.policies import continuation
from flextopo.policies.continuation import Net, PolicyLookahead, View
from flextopo.policies.runtime import load_policy
from flextopo.policies.selectors import find_selector
from flextopo.train.stress_world import with_a_claim

ROOT = Path(__file__).parents[2]
SERVERS = "4*rtx4090"
MODEL = WorkloadConfig()
SERVICE = ("service", "gpus", "deadline_s", "sensitivity")


def stop_at(tape: Tape, fleet: Fleet, decision: int) -> tuple[Simulator, Pod]:
    """Play a tape greedily to one of its decisions."""
    sim = Simulator(tape, fleet)
    for _ in range(decision):
        assert sim.next_decision() is not None
        pod = sim.state.pod(int(sim.events.clock[0]["asked"]))
        sim.apply(GreedyCost().select(sim.state, pod))
    pod_now = sim.next_decision()
    assert pod_now is not None
    return sim, pod_now


def given(sim: Simulator, pod: Pod) -> Proposal:
    """Return what the rule proposes."""
    return propose(RequeueAware(), sim.state, pod, 16, Rollout.filter)


class Plain:
    """The rule, but a selector like any other: branches go on in Python."""

    name, filter = "plain", AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose as the rule does."""
        return RequeueAware().select(cluster, preemptor)


class InPython(Plain):
    """A selector whose branches go on in Python."""

    def __init__(self, selector: VictimSelector) -> None:
        self.selector = selector

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose as the selector does."""
        return self.selector.select(cluster, preemptor)


def with_another_future(tape: Tape, sim: Simulator, seed: int) -> Tape:
    """Return a tape that was the same until now: what has not happened is drawn again."""
    rng = np.random.default_rng(seed)
    live, now = sim.state.arrays.live, sim.state.now_s
    arrived = np.arange(tape.num_pods) < int(sim.events.clock[0]["next_arrival"])
    unfinished = live["status"] != DONE
    ran = live["done_s"] + np.maximum(now - live["since_s"] - live["overhead_s"], 0)
    ran = np.where(live["status"] == RUNNING, ran, live["done_s"])
    # A pod that has been evicted must have been able to run as long as it did before.
    longer = tape.pods["duration_s"] + rng.integers(1, 90_000, tape.num_pods)
    shorter = np.minimum(ran + rng.integers(1, 600, tape.num_pods), tape.pods["duration_s"])
    drawn = np.where((rng.random(tape.num_pods) < 0.5) & (live["evictions"] == 0), shorter, longer)
    duration = np.where(
        tape.pods["online"], 0, np.where(unfinished, drawn, tape.pods["duration_s"])
    )
    here = tape.pods["online"] & unfinished
    leaves = now + rng.integers(1, 20_000, tape.num_pods)
    depart = np.where(here, np.maximum(leaves, tape.pods["arrive_s"]), tape.pods["depart_s"])
    waits = here & (live["status"] != RUNNING)
    started = np.where(live["status"] == STARTING, now - live["since_s"], 0)
    start = np.where(waits, started + rng.integers(1, 500, tape.num_pods), tape.pods["start_s"])
    kept = arrived | (rng.random(tape.num_pods) < 0.4)
    # Members of a PodGroup stay together and run for the same time.
    for group in np.unique(tape.pods["group"][tape.pods["group"] >= 0]):
        members = tape.pods["group"] == group
        kept[members] = kept[members].all()
        duration[members] = duration[members].max()
    pods = tape.pods.copy()
    pods["duration_s"], pods["depart_s"], pods["start_s"] = duration, depart, start
    return replace(tape, pods=pods[kept])


@pytest.mark.parametrize("decision", [0, 5, 11])
def test_the_tapes_future_changes_no_choice(decision: int) -> None:
    tape, fleet = tapes.make_tape(SERVERS, 3)
    sim, pod = stop_at(tape, fleet, decision)
    changed = with_another_future(tape, sim, seed=decision)
    twin, twin_pod = stop_at(changed, fleet, decision)
    assert twin_pod == pod
    assert twin.state.now_s == sim.state.now_s
    assert changed.num_pods < tape.num_pods
    found, count = sim.state.find(pod, Rollout.filter.binds(pod), 16)
    oracle = [s.branch(found, count, 4 * 3600) for s in (sim, twin)]
    assert (oracle[0] != oracle[1]).any(), "the futures differ, and the oracle sees it"
    rollout = Rollout(samples=12)
    losses = [rollout.branch(s.state, pod, given(s, pod)) for s in (sim, twin)]
    assert losses[0].tobytes() == losses[1].tobytes()
    assert rollout.select(sim.state, pod) == rollout.select(twin.state, pod)


def test_the_seed_draws_other_futures_and_equal_seeds_the_same() -> None:
    sim, pod = stop_at(*tapes.make_tape(SERVERS, 3), 5)
    what = given(sim, pod)
    one, again, other = (
        Rollout(seed, samples=12).branch(sim.state, pod, what) for seed in (0, 0, 1)
    )
    assert one.shape == (12, what.count + 1)
    assert one.tobytes() == again.tobytes()
    assert (one != other).any()


def test_another_forecast_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forecasts that know less: what they leave out does not come, and the planner sees the difference."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    forecasts = importlib.import_module("planning_knowledge")
    sim, pod = stop_at(*tapes.make_tape("16*rtx4090", 5, MODEL), 4)
    known, what = InformationState.of(sim), given(sim, pod)

    def drawn(kind: type[FutureSampler]) -> Futures:
        rng = np.random.default_rng(3)
        return kind(MODEL, known, HORIZON_S, HISTORY_S, rng).sample(16)

    everything = drawn(FutureSampler)
    online = everything.arrivals["online"] == 1
    assert online.any()
    assert (~online).any()
    jobless, still = drawn(forecasts.NoJobs), drawn(forecasts.NoReplicas)
    assert jobless.arrivals["online"].all()
    assert len(jobless.arrivals) == online.sum()
    assert not still.arrivals["online"].any()
    assert len(still.arrivals)
    assert (still.depart_s[:, ~known.gone] == NEVER_S).all()
    assert (everything.depart_s < NEVER_S).any()
    assert not len(drawn(forecasts.NoArrivals).arrivals)
    tape = sim.state.arrays.pods
    seen = drawn(forecasts.knowing(tape.copy()))
    come = (tape["online"] == 1) & (tape["arrive_s"] > known.now_s)
    come &= tape["arrive_s"] <= known.now_s + HORIZON_S
    in_first = seen.arrivals[: seen.first[1]]
    assert come.any()
    assert sorted(in_first["depart_s"][in_first["online"] == 1]) == sorted(tape["depart_s"][come])
    there = (known.pods["online"] == 1) & ~known.gone
    assert (seen.depart_s[:, there] == tape["depart_s"][known.rows[there]]).all()
    losses = [
        Rollout(samples=16, futures=kind).branch(sim.state, pod, what)
        for kind in (FutureSampler, forecasts.NoJobs, forecasts.NoReplicas, forecasts.NoArrivals)
    ]
    assert losses[0].tobytes() == Rollout(samples=16).branch(sim.state, pod, what).tobytes()
    assert len({each.tobytes() for each in losses}) == len(losses)


@pytest.mark.parametrize(("servers", "decision"), [(SERVERS, 0), (SERVERS, 9), ("16*a100", 4)])
def test_with_the_true_future_it_is_the_oracle(servers: str, decision: int) -> None:
    """The present state is carried over whole: on the real tape the branches lose the same, and again where
    another, longer future has been laid ahead in the meantime.
    """
    tape, fleet = tapes.make_tape(servers, 3)
    pods = tape.pods.copy()
    pods["pdb"] = -1
    sim, pod = stop_at(replace(tape, pods=pods), fleet, decision)
    c, known = sim.state.arrays, InformationState.of(sim)
    now, coming = c.pods[known.rows], c.pods[int(sim.events.clock[0]["next_arrival"]) :].copy()
    less = coming[::2][coming["group"][::2] < 0]
    arrivals = np.concatenate((coming, less, coming))
    future = np.repeat([0, 1, 2], [len(coming), len(less), len(coming)])
    times = [np.tile(now[name], (3, 1)) for name in ("duration_s", "depart_s", "start_s")]
    times[0][1] += 5000
    numbered = arrivals["group"] >= 0
    arrivals["group"][numbered] += 10_000 * future[numbered]
    futures = assemble(known, (times[0], times[1], times[2]), arrivals, future, 0)
    ahead = imagined(sim, known, futures)
    for i in (1, 0):
        imagine(ahead.state.arrays, ahead.events, futures, i)
        ahead.state.check_invariants()
    what = given(sim, pod)
    base = Rollout().base
    branches = ahead.branches(what.found, what.count, Rollout.horizon_s, base)
    played = ahead.branch_in(futures, branches, what.tried, base)
    losses = sim.branch(what.found, what.count, Rollout.horizon_s, base)
    assert played[0].tobytes() == played[2].tobytes() == losses.tobytes()
    assert played[1].tobytes() != losses.tobytes()
    branches = ahead.branches(what.found, what.count, 3600)
    whole = ahead.branch_in(futures, branches, what.tried, Plain())
    assert whole[2].tobytes() == sim.branch(what.found, what.count, 3600, base).tobytes()


def test_futures_agree_with_what_is_known() -> None:
    sim, _ = stop_at(*tapes.make_tape("16*rtx4090", 5, MODEL), 4)
    known = InformationState.of(sim)
    for name in ("duration_s", "depart_s", "start_s"):
        assert not known.pods[name].any()
    futures = sample(MODEL, known, 12)
    live, batch = known.live, known.pods["online"] == 0
    spent = np.where(live["status"] == RUNNING, known.now_s - live["since_s"], 0)
    done = live["done_s"] + np.maximum(spent - live["overhead_s"], 0)
    for future in futures:
        assert (future.present["duration_s"][batch] > done[batch]).all()
        assert (future.present["depart_s"][~batch] > known.now_s).all()
        assert (future.arrivals["arrive_s"] > known.now_s).all()
        assert (np.diff(future.arrivals["arrive_s"]) >= 0).all()
        assert (future.arrivals["depart_s"] >= future.arrivals["arrive_s"]).all()
        grouped = known.pods["group"]
        for group in np.unique(grouped[grouped >= 0]):
            assert len(set(future.present["duration_s"][grouped == group].tolist())) == 1
    drawn = {future.present["duration_s"].tobytes() for future in futures}
    assert len(drawn) == len({future.arrivals.tobytes() for future in futures}) == 12


LONG = replace(MODEL, elastic_share=0.6, spot_share=0.5, batch_load=1.0)


def test_the_workers_of_a_job_are_known_and_run_for_the_same_time() -> None:
    sim, _ = stop_at(*tapes.make_tape("16*rtx4090", 5, LONG), 4)
    known = InformationState.of(sim)
    truth = sim.tape.pods[known.rows]["duration_s"]
    jobs = np.unique(known.job[known.elastic])
    # Jobs in progress at the record's begin share their second, and may look like one.
    later = np.unique(known.job[known.elastic & (known.pods["arrive_s"] > known.begin_s)])
    assert len(later) > 3
    for job in later:
        assert len(set(truth[known.job == job].tolist())) == 1
    futures = sample(LONG, known, 6)
    lengths = [{f.present["duration_s"][known.job == job][0] for f in futures} for job in jobs]
    assert any(len(drawn) > 1 for drawn in lengths)
    for future in futures:
        for job in jobs:
            assert len(set(future.present["duration_s"][known.job == job].tolist())) == 1


def test_jobs_that_come_in_one_second_are_told_apart() -> None:
    alike = {"arrive_s": 5, "duration_s": 100, "gpus": 2}
    group = {**alike, "group": 0}
    tape = tapes.hand_tape(
        [
            *(alike, alike, {**alike, "checkpoint_s": 60}, {**alike, "gpus": 4}),
            *(group, group, {**group, "gpus": 1}, {**alike, "group": 1}),
        ],
        1000,
    )
    job, elastic = find_jobs(tape.pods)
    assert job.tolist() == [0, 0, 1, 2, 3, 3, 3, 4]
    assert elastic.tolist() == [True, True] + [False] * 6


def test_futures_have_long_elastic_and_guaranteed_jobs() -> None:
    sim, _ = stop_at(*tapes.make_tape("16*rtx4090", 5, LONG), 4)
    known = InformationState.of(sim)
    futures = sample(LONG, known, 40)
    batch = known.pods["online"] == 0
    present = np.concatenate([future.present[batch] for future in futures])
    coming = np.concatenate([future.arrivals for future in futures])
    jobs, replicas = coming[~coming["online"]], coming[coming["online"]]
    for pods in (present, jobs):
        assert 86400 < pods["duration_s"].max() <= 2592000
        assert pods["duration_s"][pods["checkpoint_s"] == 0].max() <= 86400
    assert set(jobs["protection_s"].tolist()) == {0, 3600}
    assert find_jobs(jobs)[1].any()
    assert not np.isin(jobs["gpus"], (4, 8)).all()
    asked = {tuple(p) for p in sim.tape.pods[sim.tape.pods["online"]][list(SERVICE)].tolist()}
    assert {tuple(p) for p in replicas[list(SERVICE)].tolist()} <= asked


def test_the_newest_replica_leaves_first() -> None:
    counts = np.array([[[3, 1, 2]]])
    runs = replica_runs(counts, np.array([3]), np.array([True]), 600, np.random.default_rng(0))
    assert runs.present.tolist() == [1, 1, 0, 1]
    assert runs.level.tolist() == [1, 2, 2, 3]
    assert runs.depart_s[0] == NEVER_S
    assert 1200 <= runs.depart_s[1] == runs.depart_s[3] < 1800
    assert 1800 <= runs.arrive_s[2] < 2400
    assert runs.depart_s[2] == NEVER_S


def test_hypotheses_explain_the_replicas_seen() -> None:
    counts = np.repeat([[4], [9]], 30, axis=1)
    flat = replace(MODEL, daily_amplitude=0.0, half_daily_amplitude=0.0)
    prior = (np.zeros(2), np.ones(2))
    demand = filter_demand(flat, counts, 0, np.ones(2), prior, np.random.default_rng(0))
    wanted = np.ceil(np.exp(demand.window.max(0) + demand.log_size))
    assert np.abs(wanted - counts[:, -1:]).mean() < 0.5


def test_futures_far_beyond_the_days_limit_are_left_out() -> None:
    counts = np.stack([np.full((2, 4), n) for n in (1, 2, 30, 40)])
    chosen = within_limit(counts, np.array([1, 2]), 10.0, 2, np.random.default_rng(0))
    assert sorted(chosen[:, 0, 0].tolist()) == [1, 2]


def survivors(values: npt.NDArray[np.float64], age: float) -> npt.NDArray[np.float64]:
    return values[values > age]


@pytest.mark.parametrize("age", [0.0, 500.0, 20_000.0])
def test_run_times_given_an_age_are_those_of_jobs_that_ran_so_long(age: float) -> None:
    rng = np.random.default_rng(1)
    drawn = np.exp(7.65 + 1.83 * rng.standard_normal(400_000))
    n = 20_000
    mu, sigma, share = np.full(n, 7.65), np.full(n, 1.83), 1 - rng.random(n)
    found = log_normal_beyond(mu, sigma, np.full(n, age), share)
    assert (found > age).all()
    for q in (0.1, 0.5, 0.9):
        truth = np.quantile(survivors(drawn, age), q)
        assert np.quantile(found, q) == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize("age", [0.0, 500.0, 20_000.0])
def test_run_times_up_to_a_longest_are_those_of_jobs_that_ran_no_longer(age: float) -> None:
    rng = np.random.default_rng(1)
    drawn = np.exp(9.12 + 2.76 * rng.standard_normal(800_000))
    drawn = drawn[drawn <= 86400]
    n = 20_000
    mu, sigma, share = np.full(n, 9.12), np.full(n, 2.76), 1 - rng.random(n)
    found = log_normal_beyond(mu, sigma, np.full(n, age), share, 86400.0)
    assert found.max() <= 86400 * (1 + 1e-9)
    for q in (0.1, 0.5, 0.9):
        truth = np.quantile(survivors(drawn, age), q)
        assert np.quantile(found, q) == pytest.approx(truth, rel=0.06)


@pytest.mark.parametrize("age", [0.0, 10_000.0])
@pytest.mark.parametrize(("high", "none_longer"), [(86400, False), (86400, True), (2592000, False)])
def test_what_remains_of_jobs_in_progress_is_length_biased(
    age: float, high: int, none_longer: bool
) -> None:
    rng = np.random.default_rng(2)
    drawn = np.exp(9.12 + 2.76 * rng.standard_normal(400_000))
    drawn = np.clip(drawn[drawn <= high] if none_longer else drawn, 60, high)
    biased = rng.choice(drawn, 200_000, p=drawn / drawn.sum())
    remains = survivors(biased * (1 - rng.random(len(biased))), age)
    n = 20_000
    share = 1 - rng.random(n)
    found = remaining_beyond((9.12, 2.76), 60, high, np.full(n, age), share, none_longer)
    for q in (0.1, 0.5, 0.9):
        assert np.quantile(found, q) == pytest.approx(np.quantile(remains, q), rel=0.06)


def test_a_snapshot_is_planned_from_what_it_knows() -> None:
    """Simulated on from a snapshot of a moment, branches begin where they do in the simulation itself."""
    sim, pod = stop_at(*tapes.make_tape(SERVERS, 3), 5)
    c = sim.state.arrays
    arrived = int(sim.events.clock[0]["next_arrival"])
    rows = np.flatnonzero(c.live["status"][:arrived] != DONE)
    new = np.full(len(c.pods), -1)
    new[rows] = np.arange(len(rows))
    copied = {name: getattr(c, name).copy() for name in ("nodes", "cores_free", "pdb_left")}
    there = c.node_pods >= 0
    arrays = c._replace(
        pods=c.pods[rows],
        live=c.live[rows],
        pod_cores=c.pod_cores[rows],
        node_pods=np.where(there, new[c.node_pods], -1).astype(np.int32),
        by_free=np.zeros((0, 0), np.int64),
        totals=np.zeros_like(c.totals),
        **copied,
    )
    arrays.pods["next_member"] = rings(arrays.pods["group"])
    arrays.totals["now_s"], arrays.totals["gpus"] = sim.state.now_s, c.totals["gpus"]
    kept = list(names_of(Cluster, Kind.GIVEN, Kind.STATE))
    before = [getattr(arrays, name).tobytes() for name in kept]
    snapshot = ClusterState(arrays, sim.state.models, sim.costs)
    asked = snapshot.pod(int(new[pod.index]))
    begun = simulation_from(snapshot, asked, Rollout.filter, 3600)
    # What pods hold, and who waits, is as it was; only how well replicas sit is not known.
    for name in ("free_gpus", "online_gpus", "wait_gpus", "batch_wait_gpus", "free_counts"):
        assert begun.state.arrays.totals[0][name] == c.totals[0][name], name
    queue = begun.events.queue[: begun.events.clock[0]["queue_size"]]
    then = sim.events.queue[: sim.events.clock[0]["queue_size"]]
    assert set(queue.tolist()) == set(new[then].tolist())
    assert queue[begun.events.clock[0]["cursor"]] == asked.index
    for selector in (Rollout(samples=16), Lookahead(), Lookahead(base=Plain())):
        chosen = selector.select(snapshot, asked)
        assert chosen is None or snapshot.candidate(chosen.node, chosen.victims, asked)
    assert [getattr(arrays, name).tobytes() for name in kept] == before


@pytest.mark.parametrize(("name", "value"), [("samples", 0), ("branches", 0), ("seed", -1)])
def test_impossible_options_are_refused(name: str, value: int) -> None:
    with pytest.raises(FlextopoError, match=f"rollout: {name} = {value}"):
        replace(Rollout(), **{name: value})  # type: ignore[arg-type]


def test_it_takes_what_every_future_favours() -> None:
    """One victim has just begun, the other would lose an hour: no future makes that right."""
    jobs = [{"arrive_s": 0, "duration_s": 50_000, "gpus": 4}]
    online = {"depart_s": 20_000, "gpus": 4}
    tape = tapes.hand_tape(
        [*jobs, {"arrive_s": 3500, "duration_s": 50_000, "gpus": 4}, {"arrive_s": 3600, **online}],
        30_000,
    )
    fleet = Fleet((tapes.DUO,), (0, 0))
    sim, pod = stop_at(tape, fleet, 0)
    chosen = Rollout(samples=12).select(sim.state, pod)
    assert chosen is not None
    assert chosen.victims == (1,)
    assert OracleLookahead().select(sim.state, pod) is not None


def test_no_imagined_event_is_in_the_past() -> None:
    """Pods that back off, or will be asked about again, come back when they do; what left stays gone."""
    config = replace(tapes.BUSY, backoff_s=60, grace_s=3600, batch_load=1.1)
    checked, gone = 0, 0
    for seed in range(4):
        tape, fleet = tapes.make_tape("16*rtx4090", seed, config)
        sim = Simulator(tape, fleet, scenario=Scenario(deadline="soft"))
        greedy = make_selector("greedy-cost")
        while (pod := sim.next_decision()) is not None:
            known = InformationState.of(sim)
            futures = median_future(config, known)
            ahead = imagined(sim, known, futures)
            imagine(ahead.state.arrays, ahead.events, futures, 0)
            heap = ahead.events.heap[: ahead.events.clock[0]["heap_size"]] >> 32
            (future,) = unfold(known, futures)
            assert (heap >= sim.state.now_s).all()
            checked += int((known.live["status"] == BACKING_OFF).sum())
            gone += int(known.gone.sum())
            assert (future.present["depart_s"][known.gone] == sim.state.now_s).all()
            sim.apply(greedy.select(sim.state, pod))
    assert checked > 0
    assert gone > 0


def test_a_pod_of_no_service_is_no_replica_of_the_last() -> None:
    tape, fleet = tapes.make_tape("16*rtx4090", 5, MODEL)
    claimed, _ = with_a_claim(tape, fleet, 5)
    sim, _ = stop_at(claimed, fleet, 4)
    known = InformationState.of(sim)
    assert (known.replica_service >= 0).all()


def test_branches_that_are_clearly_worse_get_no_more_futures() -> None:
    rng = np.random.default_rng(0)
    luck = 100 * rng.standard_normal((16, 1))
    losses = luck + np.array([10.0, 11.0, 9.5, 500.0, 20.0]) + rng.standard_normal((16, 5))
    assert worth_playing(losses, 0).tolist() == [True, False, True, False, False]
    assert worth_playing(losses, 4).tolist() == [True, False, True, False, True]
    losses[8:, 3] = np.inf
    mean, error = compare_with(losses, 0)
    assert mean[0] == error[0] == 0
    assert np.isinf(mean[3])
    assert mean[2] == pytest.approx(-0.5, abs=0.8)


@pytest.mark.parametrize(("budget_s", "least", "most"), [(0.5, 0, 0), (10, 1, 1), (20, 16, 64)])
def test_a_budget_ends_it_where_no_more_of_the_same_futures_fit(
    monkeypatch: pytest.MonkeyPatch, budget_s: float, least: int, most: int
) -> None:
    sim, pod = stop_at(*tapes.make_tape(SERVERS, 3), 5)
    what = given(sim, pod)
    long = Rollout(samples=64).branch(sim.state, pod, what)
    ticks = count(start=0.0)  # whoever looks at the clock takes a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    planner = Rollout(samples=64, budget_s=budget_s)
    short = planner.branch(sim.state, pod, what)
    assert least <= len(short) <= most
    assert short[:16].tobytes() == long[: len(short)][:16].tobytes()


def test_without_time_for_a_round_the_bases_own_choice_stands() -> None:
    sim, pod = stop_at(*tapes.make_tape("16*rtx4090", 3, MODEL), 5)
    for name in ("requeue-aware", "greedy-cost", "flextopo", "deepset-imitation"):
        chosen = find_selector(name).select(sim.state, pod)
        planned = Rollout(base=find_selector(name), budget_s=1e-9).select(sim.state, pod)
        if chosen is None:
            assert planned is None
        else:
            assert planned is not None
            assert (planned.node, planned.victims) == (chosen.node, chosen.victims)


class Second(Plain):
    """Takes the second of the cheapest, or waits."""

    def __init__(self, waits: bool) -> None:
        self.waits = waits

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Take the second candidate."""
        return None if self.waits else cluster.candidates(preemptor, True, 16)[1]


@pytest.mark.parametrize("waits", [False, True])
def test_the_own_choice_of_any_selector_is_what_it_chooses(waits: bool) -> None:
    sim, pod = stop_at(*tapes.make_tape("16*rtx4090", 3, MODEL), 5)
    pod = replace(pod, requirement=TopologyRequirement.GUARANTEED)
    what = propose(Second(waits), sim.state, pod, 16, AlignmentFilter.OWN)
    assert what.own == (what.count if waits and what.tried[-1] else 0 if waits else 1)


def test_a_policy_plans_among_what_it_ranks_highest() -> None:
    sim, pod = stop_at(*tapes.make_tape("16*rtx4090", 3, MODEL), 5)
    policy = load_policy("deepset-imitation")
    what = propose(policy, sim.state, pod, 3, policy.filter)
    _, count, scores = policy.rank(sim.state, pod)
    assert count > 3
    assert set(np.flatnonzero(what.tried[:-1])) == set(np.argsort(-scores[:count])[:3])
    assert what.own == int(np.argmax(np.append(scores[:count], scores[-1])))
    assert what.tried[what.own]
    planned = find_selector("deepset-imitation+plan@4").branch(sim.state, pod, what)  # type: ignore[attr-defined]
    assert planned.shape == (4, count + 1)
    assert np.isfinite(planned[0]).tolist() == what.tried.tolist()


def test_a_policy_that_may_not_wait_plans_without_the_kernel_that_may() -> None:
    policy = load_policy("deepset-imitation")
    assert hasattr(policy, "branch_losses")
    assert not hasattr(replace(policy, allow_wait=False), "branch_losses")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_network_that_reads_some_features_runs_in_kernels(mixed: bool) -> None:
    """The shipped network does not read all of what is observed, and may do so in any order."""
    sim, pod = stop_at(*tapes.make_tape("16*rtx4090", 3, MODEL), 5)
    policy = load_policy("deepset-imitation")
    if mixed:
        names = {part: [*reversed(names)] for part, names in policy.names.items()}
        parts = policy.weights["shared.weight"], len(names["preemptor"])
        shared = np.hstack([parts[0][:, : parts[1]][:, ::-1], parts[0][:, parts[1] :][:, ::-1]])
        candidate = policy.weights["candidate.weight"][:, ::-1]
        mirrored = {"shared.weight": shared, "candidate.weight": candidate}
        policy = replace(policy, features=names, weights={**policy.weights, **mirrored})
    found, count, _ = policy.rank(sim.state, pod)
    played = sim.branch(found, count, 4 * 3600, policy)
    slowly = sim.branch(found, count, 4 * 3600, InPython(policy))
    np.testing.assert_array_equal(played, slowly)


def test_decisions_side_by_side_share_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision that was given up goes on in its thread while the next one is made."""
    ahead = PolicyLookahead(load_policy("deepset-imitation").weights, 8)
    inside: list[tuple[object, ...]] = []

    def play(net: Net, branches: object, view: View, *_: object) -> None:
        inside.append((net.scratch, *view.found, *view.workspace, *view.observation))
        if len(inside) == 1:
            ahead.branch_losses(*[None] * 3)  # type: ignore[arg-type]

    monkeypatch.setattr(continuation, "branch_losses_under", play)
    ahead.branch_losses(*[None] * 3)  # type: ignore[arg-type]
    first, second = ({id(array) for array in arrays} for arrays in inside)
    assert not first & second
    ahead.branch_losses(*[None] * 3)  # type: ignore[arg-type]
    assert {id(array) for array in inside[2]} in (first, second)


@pytest.mark.parametrize("name", ["requeue-aware+plan@16@0", "lookahead@0"])
def test_members_on_other_nodes_count_when_they_stop_with_a_victim(name: str) -> None:
    """The victim with the least work of its own would stop four whole servers that the view lacks."""
    group = {"labels": {"scheduling.x-k8s.io/pod-group": "g"}}
    later, sooner = ({"startTime": f"2027-01-15T0{hour}:00:00Z"} for hour in (7, 6))
    documents = [node("n0"), flextopo("n0", {"a": [0, 1], "b": [2, 3], "c": [4, 5], "d": [6, 7]})]
    documents.append(running("a", "n0", gpus=2, cpu="14", meta=group, status=later))
    documents += [running(name, "n0", gpus=2, cpu="14", status=sooner) for name in "bcd"]
    for other in ("n1", "n2", "n3", "n4"):
        documents += [node(other), flextopo(other, {f"a-{other}": list(range(8))})]
        documents.append(running(f"a-{other}", other, gpus=8, cpu="56", meta=group, status=later))
    cache = make_cache(documents)
    view = cache.view(read_record(preemptor(2)), {"n0": cache.nodes.states["n0"]}, worst_case=True)
    chosen = find_selector(name).select(view, view.preemptor)
    assert chosen is not None
    assert [view.name(victim) for victim in chosen.victims] == ["batch/b"]


@pytest.mark.parametrize(
    "suffix", ["", "@", "@0", "@-3", "@5s", "@1000000", "@1.5ms", "@ 5", "@\u0663"]
)
def test_a_plan_of_no_number_says_what_is_legal(suffix: str) -> None:
    with pytest.raises(FlextopoError, match=r"greedy-cost\+plan.*legal: NAME\+plan@FUTURES or"):
        find_selector(f"greedy-cost+plan{suffix}")


@pytest.mark.parametrize(
    "name",
    ["rollout+plan@4", "oracle-lookahead+plan@8", "lookahead+godel+plan@8", "godel+plan@8+plan@8",
     "lookahead+rollout"],
)  # fmt: skip
def test_what_looks_ahead_itself_is_no_base(name: str) -> None:
    with pytest.raises(FlextopoError, match="looks ahead itself; legal: a base that does not"):
        find_selector(name)


def test_rounds_end_at_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout, "MOST_AT_ONCE", 32)
    sim, pod = stop_at(*tapes.make_tape(SERVERS, 3), 5)
    sizes: list[int] = []
    drawn = FutureSampler.sample

    def sample_and_note(self: FutureSampler, num_futures: int) -> Futures:
        sizes.append(num_futures)
        return drawn(self, num_futures)

    monkeypatch.setattr(FutureSampler, "sample", sample_and_note)
    assert len(Rollout(samples=100).branch(sim.state, pod, given(sim, pod))) == 100
    assert sizes == [16, 16, 32, 32, 4]
