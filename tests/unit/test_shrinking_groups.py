"""PodGroups that need not all run: who stops with whom, what that costs, and how they start again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.baselines.information import InformationState
from flextopo.baselines.registry import make_selector
from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.rollout import Lookahead, propose
from flextopo.baselines.workloads import workloads_below
from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.observation.features import F, empty_observation
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import DONE, PENDING, RUNNING, TERMINATING, spare_members
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.loss import eviction_cost, stopping_cost
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import ALL_MEMBERS, NEVER_S
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import Fleet, preset
from flextopo.cluster.topology.network import Network
from flextopo.cluster.workload.config import WorkloadConfig

A100 = Fleet((preset("a100"),), (0, 0))


def group(count: int, least: int, gpus: int = 4, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"arrive_s": -1000, "duration_s": 10**5, "gpus": gpus, "cores": gpus, "priority": 100,
         "preemptible": 1, "checkpoint_s": 900, "group": 3, "min_members": least, **fields}
    ] * count  # fmt: skip


def online(at: int, gpus: int = 4, depart_s: int = NEVER_S) -> dict[str, Any]:
    return {
        "arrive_s": at, "depart_s": depart_s, "gpus": gpus, "cores": gpus, "priority": 1000,
        "online": 1, "preemptible": 0,
    }  # fmt: skip


def play(*pods: dict[str, Any], end_s: int = 7200) -> Simulator:
    return Simulator(tapes.hand_tape(list(pods), end_s, warmup_s=2000), A100)


def step(sim: Simulator, pod: Pod | None = None) -> list[int]:
    """Decide as greedy-cost does, about the next pod if none is given; return the victims."""
    pod = pod or sim.next_decision()
    assert pod is not None
    chosen = make_selector("greedy-cost").select(sim.state, pod)
    assert chosen is not None
    sim.apply(chosen)
    sim.state.check_invariants()
    return list(chosen.victims)


def statuses(sim: Simulator) -> list[int]:
    live = sim.state.arrays.live
    return [int(live[pod]["status"]) for pod in range(4)]


def test_members_above_the_minimum_stop_alone_and_come_back_alone() -> None:
    sim = play(*group(4, 3), online(100, depart_s=200), online(300))
    (victim,) = step(sim)
    assert statuses(sim).count(RUNNING) == 3
    assert (
        sim.next_decision() is not None
    )  # at 300, after the first one left and the victim is back
    assert statuses(sim) == [RUNNING] * 4
    assert sim.state.arrays.live[victim]["since_s"] == 200
    sim.state.check_invariants()


def test_with_too_few_left_all_stop() -> None:
    sim = play(*group(4, 3), online(100), online(300))
    step(sim)
    step(sim)
    assert statuses(sim).count(TERMINATING) == 3
    assert sim.events.account[0]["evicted_gpus"] == 16
    sim.next_decision()
    assert statuses(sim) == [PENDING] * 4  # two places are left, three are needed
    sim.state.check_invariants()


def test_it_starts_with_the_minimum_if_not_all_fit() -> None:
    busy = {"arrive_s": -1500, "duration_s": 2000, "gpus": 4, "cores": 4, "preemptible": 0}
    sim = play(busy, *group(4, 3), end_s=400)
    assert sim.next_decision() is None
    live = sim.state.arrays.live[1:5]
    assert (live["since_s"] == -1000).sum() == 3
    assert (live["status"] == PENDING).sum() == 1
    later = play(busy, *group(4, 3), end_s=600)
    assert later.next_decision() is None
    assert sorted(later.state.arrays.live["since_s"][1:5]) == [-1000, -1000, -1000, 500]
    later.state.check_invariants()
    whole = play(busy, *group(4, ALL_MEMBERS), end_s=400)
    assert whole.next_decision() is None
    assert (whole.state.arrays.live["status"][1:5] == PENDING).all()


def test_members_that_are_done_are_missed_by_nobody() -> None:
    pods = group(4, ALL_MEMBERS)
    pods[0] = pods[0] | {"duration_s": 1050}
    sim = play(*pods, online(60, depart_s=200), online(100, 8), end_s=1000)
    (first, *_) = step(sim)
    assert statuses(sim)[0] == DONE
    assert first != 0
    assert sim.next_decision() is None
    assert statuses(sim).count(DONE) == 1


def test_a_victim_costs_itself_or_the_whole_group() -> None:
    sim = play(*group(4, 3), online(100))
    pod = sim.next_decision()
    assert pod is not None
    c, costs = sim.state.arrays, sim.costs
    alone, all_of_it = stopping_cost(c, 0, costs), sum(stopping_cost(c, i, costs) for i in range(4))
    assert spare_members(c, 0) == 1
    assert eviction_cost(c, 0, costs) == alone
    assert sim.state.stopped_with(0) == [0]
    assert sim.state.stopped_with(0, (0, 1)) == [0, 1, 2, 3]
    step(sim, pod)
    left = [i for i in range(4) if c.live[i]["status"] == RUNNING]
    assert eviction_cost(c, left[0], costs) == pytest.approx(all_of_it - alone)


def test_two_victims_of_one_group_are_priced_together() -> None:
    for least, stopped in ((2, 2), (3, 4)):
        sim = play(*group(4, least), online(100, 8))
        pod = sim.next_decision()
        assert pod is not None
        found = sim.state.candidates(pod, False)
        cost = sum(stopping_cost(sim.state.arrays, i, sim.costs) for i in range(stopped))
        waiting = sim.costs.waiting * 8 * sim.costs.grace_s
        waiting *= sim.costs.missing[0]
        assert found[0].cost_gpu_s == pytest.approx(cost + waiting)
        exact = make_selector("exact").select(sim.state, pod)
        assert exact is not None
        assert exact.cost_gpu_s == pytest.approx(found[0].cost_gpu_s)


@pytest.mark.parametrize(("least", "evicted", "others"), [(2, 8, 0), (3, 16 * 2, 6)])
def test_a_policy_sees_who_stops(least: int, evicted: int, others: int) -> None:
    """What stops is told for each victim, the whole group for each of two that break it."""
    sim = play(*group(4, least), online(100, 8))
    pod = sim.next_decision()
    assert pod is not None
    found, count = sim.state.find(pod, False, 4)
    seen = empty_observation(4)
    observe(sim.state.arrays, sim.costs, pod.index, found, count, seen)
    row = seen.candidates[0]
    assert row[F.evicted_gpus] == pytest.approx(min(1.0, evicted / 32))
    assert row[F.group_members] == pytest.approx(others / 8)


def many_workers(least: int) -> tuple[ClusterState, Pod]:
    """Three servers with two workers of one PodGroup and a dearer pod each, and a gang of three."""
    pods, where = list[Pod](), list[int]()
    for node in range(3):
        kinds = ((5, 7, 2000, -1), (1, 1, 100, 0), (1, 1, 100, 0), (1, 1, 100, -1))
        for gpus, cores, priority, of in kinds:
            pods.append(
                Pod(
                    index=len(pods), name=f"b{len(pods)}", gpus=gpus, cores=cores, priority=priority,
                    group=of, min_members=least if of == 0 else ALL_MEMBERS,
                    batch_class=0 if of == 0 else 1, checkpoint_s=0,
                )
            )  # fmt: skip
            where.append(node)
    first = len(pods)
    free = sum(preset("a100").numa_cores) - 10
    pods += [Pod(first + at, f"g{at}", 1, free - 5, 1000, online=True, group=9) for at in range(3)]
    cluster = ClusterState.from_pods(
        (preset("a100"),), (0, 0, 0), pods, now_s=10_000, network=Network((0, 0, 0), (0, 0, 0))
    )
    cluster.arrays.pods["required_tier"][first:] = NetworkLevel.CLUSTER
    for pod, node in enumerate(where):
        cluster.start(pod, node, None)
        cluster.arrays.live[pod]["since_s"] = 9_000
    return cluster, pods[first]


def test_what_a_group_can_spare_is_shared_by_all_servers_of_a_gang() -> None:
    """Each server's two cheapest answers are a worker; only one may go."""
    cluster, gang = many_workers(least=5)
    chosen = cluster.candidates(gang, False, 8)[0]
    groups = cluster.arrays.pods["group"][list(chosen.victims)]
    assert sorted(groups.tolist()) == [-1, -1, 0]
    free, gang = many_workers(least=3)
    chosen = free.candidates(gang, False, 8)[0]
    assert (free.arrays.pods["group"][list(chosen.victims)] == 0).all()


def test_workloads_are_evicted_by_what_their_disruption_mode_says() -> None:
    cluster, gang = many_workers(least=5)
    whole = workloads_below(cluster, gang)
    assert sorted(len(workload.pods) for workload in whole) == [1, 1, 1, 6]
    assert {len(w.pods) for w in workloads_below(cluster, gang, by_disruption=True)} == {1}


@pytest.mark.parametrize("name", ["greedy-cost", "kubernetes", "flextopo", "gfs", "requeue-aware"])
def test_a_day_of_shrinking_groups_keeps_its_books(name: str) -> None:
    config = WorkloadConfig(
        online_peak_share=0.4, max_duration_s=86400, elastic_group_share=1.0, group_share=0.6
    )
    tape, fleet = tapes.make_tape("16*a100", 4, config)
    shrinking = (tape.pods["min_members"] < ALL_MEMBERS) & (tape.pods["group"] >= 0)
    assert shrinking.any()
    sim = Simulator(tape, fleet)
    selector, alone = make_selector(name), 0
    while (pod := sim.next_decision()) is not None:
        sim.apply(selector.select(sim.state, pod))
        sim.state.check_invariants()
        c = sim.state.arrays
        running = np.flatnonzero(shrinking & (c.live["status"] == RUNNING))
        spare = np.array([spare_members(c, int(pod)) for pod in running])
        assert (spare >= 0).all(), "a group runs with too few"
        alone += int((spare > 0).sum())
    assert alone > 0


def test_the_model_draws_them_beside_what_it_drew_before() -> None:
    plain, shrinking = (
        tapes.make_tape("8*a100", 5, WorkloadConfig(elastic_group_share=share))[0]
        for share in (0.0, 1.0)
    )
    assert (plain.pods["min_members"] == ALL_MEMBERS).all()
    grouped = plain.pods["group"] >= 0
    assert (shrinking.pods["min_members"][grouped] < ALL_MEMBERS).all()
    for name in plain.pods.dtype.names or ():
        if name != "min_members":
            assert (plain.pods[name] == shrinking.pods[name]).all(), name


@pytest.mark.parametrize(
    ("pods", "said"),
    [
        (group(2, -1), "min_members = -1; legal: whole numbers from 0"),
        ([*group(1, 1), *group(1, 2)], "min_members = 2; legal: the same for all members of a Pod"),
        ([*group(1, 1), *group(1, 1, arrive_s=0)], "arrive_s = 0; legal: the same for all members"),
        ([*group(1, 1), online(-1000), *group(1, 1)], "members of a PodGroup next to each other"),
        ([online(0) | {"group": 1, "min_members": 1}], "for a gang, which starts as a whole"),
    ],
)
def test_what_a_tape_cannot_mean_is_said(pods: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        play(*pods)
    assert said in str(caught.value)


def test_it_starts_as_soon_as_enough_members_are_back() -> None:
    """Members whose back-offs differ come back one after the other; the last one makes enough."""
    pods = [*group(4, 3), online(100, depart_s=200), online(1000, depart_s=1100)]
    pods += [online(2000, depart_s=2100)] * 2
    tape = tapes.hand_tape(pods, 7200, warmup_s=2000)
    sim = Simulator(tapes.with_backoff(tape, 60), A100)
    while (pod := sim.next_decision()) is not None:
        step(sim, pod)
    assert statuses(sim) == [RUNNING] * 4
    assert (sim.state.arrays.live["since_s"][:4] <= 2150).all()


@pytest.mark.parametrize("sizes", [(8, 8, 4), (4, 8, 8)])
def test_members_that_fit_nowhere_are_left_out_wherever_they_stand(sizes: tuple[int, ...]) -> None:
    busy = {"arrive_s": -1500, "duration_s": 10**6, "gpus": 4, "cores": 4, "preemptible": 0}
    sim = play(busy, *(group(1, 2, gpus)[0] for gpus in sizes), end_s=400)
    assert sim.next_decision() is None
    running = sim.state.arrays.live["status"][1:4] == RUNNING
    assert sorted(np.array(sizes)[running].tolist()) == [4, 8]


def test_members_that_are_done_count_in_imagined_futures() -> None:
    pods = group(4, 3)
    pods[0] = pods[0] | {"duration_s": 1050}
    other = {"arrive_s": -900, "duration_s": 10**5, "gpus": 4, "cores": 4, "batch_class": 1}
    sim = play(*pods, other, online(100))
    pod = sim.next_decision()
    assert pod is not None
    assert statuses(sim)[0] == DONE
    given = propose(RequeueAware(), sim.state, pod, 8, Lookahead.filter)
    losses = Lookahead().branch(sim.state, pod, given)[0]
    for i in range(given.count):
        victims = sim.state.candidate_at(given.found, i, pod).victims
        if victims == (1,):
            own = stopping_cost(sim.state.arrays, 1, sim.costs)
            assert own < losses[i] < 3 * own  # which the two others alone come to, with it
    known = InformationState.of(sim)
    assert set(known.pods["min_members"][known.pods["group"] == 3].tolist()) == {2}


@pytest.mark.parametrize("important", [False, True])
def test_a_group_is_lost_once_whoever_of_it_may_not_go(important: bool) -> None:
    """Evicting one of it on two servers costs no more than on one, be its first member safe or not."""
    pods = [
        Pod(0, "b0", 4, 28, 2000 if important else 100, group=0),
        Pod(1, "b1", 4, 28, 100, checkpoint_s=900),
        Pod(2, "b2", 4, 28, 100, group=0),
        Pod(3, "b3", 4, 28, 100, checkpoint_s=900),
        Pod(4, "b4", 8, 56, 100, checkpoint_s=900),
        Pod(5, "g0", 8, 56, 1000, online=True, group=9),
        Pod(6, "g1", 4, 28, 1000, online=True, group=9),
    ]
    on_one_leaf = Network((0,) * 3, (0,) * 3)
    cluster = ClusterState.from_pods(
        (preset("a100"),), (0,) * 3, pods, now_s=10**5, network=on_one_leaf
    )
    for pod, node in enumerate((0, 0, 1, 1, 2)):
        cluster.start(pod, node)
        cluster.arrays.live[pod]["since_s"] = 10**5 - (899 if pod in (1, 3) else 5000)
    best = cluster.candidates(pods[5], False, 64)[0]
    seated = cluster.gang_candidate(pods[5], {5: 2, 6: 1}, (4, 2))
    assert seated is not None
    assert best.cost_gpu_s <= cluster.cost_of(seated, pods[5])
