"""Searches, scores and each selector on cases small enough to check by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from flextopo.baselines.policies import FLEXTOPO_BEST_EFFORT, FLEXTOPO_GUARANTEED, KUBERNETES
from flextopo.baselines.registry import ORACLES, SELECTORS, make_selector
from flextopo.baselines.residents import (
    NodeOption,
    NodeView,
    PodStatus,
    Terminating,
    disruptions_left,
)
from flextopo.baselines.scores import (
    FLEXTOPO_SCORES,
    GODEL_SCORES,
    KUBERNETES_SCORES,
    Option,
    Score,
    choose,
)
from flextopo.baselines.search import (
    CandidateLimit,
    by_importance,
    default_victims,
    dry_run,
    reprieve,
    smallest_sets,
    split_by_budget,
    within_budget,
)
from flextopo.cluster.state.arrays import STARTING, TERMINATING
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.topology.levels import AlignmentLevel
from flextopo.cluster.topology.model import ServerModel, preset


@dataclass(frozen=True)
class V:
    """A resident of the simplest kind."""

    priority: int
    start_s: float = 0.0
    size: int = 1
    pdbs: tuple[int, ...] = ()


def option(node: int, *priorities: int, starts: tuple[float, ...] = ()) -> Option[V]:
    starts = starts or (0.0,) * len(priorities)
    return Option(node, [V(p, s) for p, s in zip(priorities, starts, strict=True)])


def best(scores: tuple[Score, ...], *options: Option[V]) -> int | None:
    found = choose(options, scores)
    return None if found is None else found.node


every_order = pytest.mark.parametrize(
    "scores", [GODEL_SCORES, KUBERNETES_SCORES, FLEXTOPO_SCORES], ids=["godel", "kube", "flextopo"]
)


@every_order
def test_the_papers_node_choices(scores: tuple[Score, ...]) -> None:
    assert best(scores, option(0, 10, 9), option(1, 9, 9)) == 1
    assert best(scores, option(0, 10, 10), option(1, 10, 9)) == 1
    assert best(scores, option(0, 0), option(1)) == 1
    early_late = option(0, 5, 5, starts=(1.0, 3.0))
    assert best(scores, early_late, option(1, 5, 5, starts=(2.0, 3.0))) == 1


@every_order
def test_later_scores_decide_only_ties(scores: tuple[Score, ...]) -> None:
    # The sum counts every pod above zero, so one victim beats two of the lowest priority.
    assert best(scores, option(0, 5, -(10**6)), option(1, 5)) == 1
    assert best(scores, option(1, 5), option(0, 5)) == 0
    assert best(scores) is None
    # Only the most important victims' starts count.
    assert best(scores, option(0, 5, 4, starts=(2.0, 0.0)), option(1, 5, 4, starts=(1.0, 9.0))) == 0


def test_violations_come_first_for_kubernetes_and_topology_for_flextopo() -> None:
    violating, clean = replace(option(0, 1), pdb_violations=1), option(1, 9)
    assert best(KUBERNETES_SCORES, violating, clean) == 1
    assert best(GODEL_SCORES, violating, clean) == 0
    scattered, close = replace(option(0, 1, 1), topology=7.0), replace(option(1, 9, 9), topology=12)
    assert best(FLEXTOPO_SCORES, scattered, close) == 1
    assert best(GODEL_SCORES, scattered, close) == 0


def test_the_papers_t() -> None:
    # Victims with 4 cores each on the 4090 server: NUMA nodes 1 and 4 (two sockets), 1 and 2, 1.
    pods = [Pod(i, f"ns/{i}", gpus=0, cores=4, priority=1) for i in range(4)]
    state = ClusterState.from_pods([preset("rtx4090")], [0], [*pods, Pod(4, "ns/p", 1, 1, 9)])
    for pod in range(4):
        state.start(pod, 0)
    view = NodeView(state, 0)
    cores = ([0, 4, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 4, 0, 0, 0], [0, 0, 4, 0, 0, 0, 0, 0])
    one, far, near = (
        replace(resident, cores=tuple(row))
        for resident, row in zip(view.evictable(state.pod(4)), cores, strict=False)
    )
    assert [view.topology(v) for v in ([one, far], [one, near], [one, replace(one)])] == [7, 12, 15]
    assert view.topology([replace(one, cores=(0,) * 8)]) == 15


@pytest.mark.parametrize(("size", "count"), [(1, 4), (2, 6), (3, 4), (4, 1), (5, 0)])
def test_the_papers_combinations(size: int, count: int) -> None:
    residents = [V(i) for i in range(4)]
    assert len(smallest_sets(residents, lambda gone: len(gone) >= size)) == count


def test_smallest_sets_stop_at_the_first_size_and_begin_with_the_least_important() -> None:
    a, b, c = V(3, size=2), V(2), V(1)

    def fits(gone: object) -> bool:
        return sum(v.size for v in gone) >= 2  # type: ignore[attr-defined]

    assert smallest_sets([a, b, c], fits) == [[a]]
    assert smallest_sets([a, b, c], fits, full=True) == [[a], [c, b]]
    assert smallest_sets([a, b, c], lambda gone: True) == [[]]
    assert smallest_sets([a, b, c], lambda gone: False) == []


def test_reprieve_puts_back_the_most_important_first() -> None:
    a, b, c = V(3, size=2), V(2, size=1), V(1, size=1)

    def fits(gone: object) -> bool:
        return sum(v.size for v in gone) >= 2  # type: ignore[attr-defined]

    assert reprieve([a, b, c], fits) == [b, c]
    assert reprieve([a, b, c], fits, first=[b]) == [a]
    assert reprieve([a, b, c], lambda gone: True) == []
    assert reprieve([a, b, c], lambda gone: False) is None


def test_default_victims() -> None:
    a, b = V(3, pdbs=(0,)), V(1)
    assert default_victims([a, b], [0], lambda gone: len(gone) >= 1) == ([b], 0)
    assert default_victims([a, b], [0], lambda gone: len(gone) >= 2) == ([a, b], 1)
    assert default_victims([a, b], [0], lambda gone: True) is None
    assert default_victims([a, b], [0], lambda gone: False) is None
    assert default_victims([], [0], lambda gone: True) is None


def test_importance_is_priority_then_earlier_start_then_as_given() -> None:
    late, early, high, unknown = V(1, 5.0), V(1, 2.0), V(2, 9.0), V(1, float("inf"))
    assert by_importance([unknown, late, early, high]) == [high, early, late, unknown]


def test_budgets() -> None:
    pods = [V(3, pdbs=(0,)), V(2, pdbs=(0, 1)), V(1, pdbs=(1,)), V(0)]
    assert split_by_budget(pods, [1, 1]) == ([pods[1], pods[2]], [pods[0], pods[3]])
    assert within_budget(pods, [1, 1]) == [pods[0], pods[2], pods[3]]


def test_a_dry_run_ends_with_enough_candidates_one_of_them_clean() -> None:
    seen: list[int] = []

    def search(i: int) -> int | None:
        seen.append(i)
        return None if i == 1 else i

    limit = CandidateLimit(percentage=40, absolute=1)
    assert dry_run(5, search, lambda i: int(i in (4, 0)), limit, scan_offset=4) == [2, 4, 0]
    assert seen == [4, 0, 1, 2]
    assert CandidateLimit().num_candidates(50) == 50
    assert CandidateLimit().num_candidates(500) == 100
    assert CandidateLimit().num_candidates(5000) == 500


DUO = ServerModel("duo", gpu_numa=(0, 0, 1, 1), numa_socket=(0, 1), numa_cores=(4, 4))


def scattered(requirement: TopologyRequirement) -> ClusterState:
    """Four batch pods a GPU each, the less important ones on two sockets; pod 4 wants two GPUs.

    Ages make the sets on socket 0 and 1 cost differently: pods 0 and 1 lose 1000 s each, 2 and 3
    lose 3000 s.
    """
    rows = ((100, 0), (50, 1), (100, 2), (50, 3))
    pods = [Pod(i, f"ns/{i}", gpus=1, cores=1, priority=p) for i, (p, _) in enumerate(rows)]
    asks = Pod(4, "ns/asks", 2, 2, 1000, requirement=requirement, online=True)
    state = ClusterState.from_pods([DUO], [0], [*pods, asks], now_s=5000)
    for i, (_, gpu) in enumerate(rows):
        state.start(i, 0, [gpu])
        state.arrays.live["since_s"][i] = 4000 if i < 2 else 2000
    return state


@pytest.mark.parametrize(
    ("name", "requirement", "victims", "level"),
    [
        # Blind: the two of the lowest priority, on two sockets.
        ("kubernetes", TopologyRequirement.GUARANTEED, (3, 1), AlignmentLevel.CROSS_SOCKET),
        ("godel", TopologyRequirement.GUARANTEED, (3, 1), AlignmentLevel.CROSS_SOCKET),
        ("flextopo", TopologyRequirement.NONE, (3, 1), AlignmentLevel.CROSS_SOCKET),
        # T puts the pairs of one socket first, then equal sums, then the later earliest start.
        ("flextopo", TopologyRequirement.BEST_EFFORT, (0, 1), AlignmentLevel.NUMA),
        ("flextopo", TopologyRequirement.GUARANTEED, (0, 1), AlignmentLevel.NUMA),
        ("flextopo-best-effort", TopologyRequirement.NONE, (0, 1), AlignmentLevel.NUMA),
        ("flextopo-guaranteed", TopologyRequirement.NONE, (0, 1), AlignmentLevel.NUMA),
        # 2 * (1000 + 60 + 180) against 2 * (3000 + 60 + 180), or across.
        ("greedy-cost", TopologyRequirement.NONE, (0, 1), AlignmentLevel.NUMA),
        ("exact", TopologyRequirement.NONE, (0, 1), AlignmentLevel.NUMA),
    ],
)
def test_each_selector_by_hand(
    name: str, requirement: TopologyRequirement, victims: tuple[int, ...], level: AlignmentLevel
) -> None:
    state = scattered(requirement)
    candidate = make_selector(name).select(state, state.pod(4))
    assert candidate is not None
    assert candidate.victims == victims
    assert candidate.level == level
    if name in ("greedy-cost", "exact"):
        assert candidate.cost_gpu_s == pytest.approx(4 * 2 * 30 + 2 * (1000 + 60 + 180))


def test_random_takes_each_candidate_some_time_and_repeats_itself() -> None:
    state = scattered(TopologyRequirement.GUARANTEED)
    pod = state.pod(4)
    chosen = [make_selector("random", seed).select(state, pod) for seed in range(20)]
    assert {c.victims for c in chosen if c is not None} == {(0, 1), (2, 3)}
    again = [make_selector("random", seed).select(state, pod) for seed in range(20)]
    assert list(map(repr, again)) == list(map(repr, chosen))


def test_kubernetes_evicts_over_budget_if_nothing_else_helps_and_godel_does_not() -> None:
    pods = [
        Pod(0, "ns/a", gpus=4, cores=4, priority=1, pdb=0),
        Pod(1, "ns/asks", 1, 1, 1000, online=True),
    ]
    state = ClusterState.from_pods([DUO], [0], pods, pdb_allowed=[0])
    state.start(0, 0)
    asked = state.pod(1)
    answers = {
        name: make_selector(name).select(state, asked) for name in SELECTORS if name not in ORACLES
    }
    for name in ("kubernetes", "kubernetes-workload", "kueue", "volcano"):
        assert answers.pop(name) == state.candidate(0, [0], asked)
    assert set(answers.values()) == {None}


def test_exact_takes_one_victim_more_to_align() -> None:
    # GPU 0 and GPU 2 are held by pods that lost little; GPU 3 is held for good; GPU 1 is free.
    # Any one victim lets two GPUs come together only across sockets, but the one beside GPU 1.
    pods = [
        Pod(0, "ns/old", gpus=1, cores=0, priority=1, batch_class=1),
        Pod(1, "ns/new", gpus=1, cores=0, priority=1),
        Pod(2, "ns/new2", gpus=1, cores=0, priority=1),
        Pod(3, "ns/asks", 2, 2, 1000, online=True),
    ]
    state = ClusterState.from_pods([DUO], [0], pods, now_s=100_000)
    for i, gpu in enumerate((0, 2, 3)):
        state.start(i, 0, [gpu])
    state.arrays.live["since_s"][:1] = 0
    asked = state.pod(3)
    greedy, exact = (make_selector(name).select(state, asked) for name in ("greedy-cost", "exact"))
    assert greedy is not None
    assert exact is not None
    assert (len(greedy.victims), greedy.level) == (1, AlignmentLevel.CROSS_SOCKET)
    assert (exact.victims, exact.level) == ((1, 2), AlignmentLevel.NUMA)
    assert exact.cost_gpu_s < greedy.cost_gpu_s


def test_without_gpu_locality_only_cores_are_aligned() -> None:
    # Cores are plenty on each socket, GPUs 1 and 3 alone can be freed.
    pods = [
        Pod(0, "ns/a", gpus=1, cores=0, priority=5000),
        Pod(1, "ns/b", gpus=1, cores=1, priority=1),
        Pod(2, "ns/c", gpus=1, cores=0, priority=5000),
        Pod(3, "ns/d", gpus=1, cores=1, priority=1),
        Pod(4, "ns/asks", 2, 2, 1000, online=True, requirement=TopologyRequirement.GUARANTEED),
    ]
    state = ClusterState.from_pods([DUO], [0], pods)
    for pod in range(4):
        state.start(pod, 0, [pod])
    assert FLEXTOPO_GUARANTEED.select(state, state.pod(4)) is None
    by_cores = replace(FLEXTOPO_GUARANTEED, gpu_locality=False).select(state, state.pod(4))
    assert by_cores is not None
    assert by_cores.level == AlignmentLevel.CROSS_SOCKET


@pytest.mark.parametrize("policy", [KUBERNETES, FLEXTOPO_BEST_EFFORT])
def test_victims_come_from_the_node_with_the_lower_priority(policy: object) -> None:
    pods = [
        Pod(0, "ns/a", gpus=4, cores=4, priority=10),
        Pod(1, "ns/b", gpus=4, cores=4, priority=9),
        Pod(2, "ns/asks", 4, 4, 1000, online=True),
    ]
    state = ClusterState.from_pods([DUO], [0, 0], pods)
    state.start(0, 0)
    state.start(1, 1)
    candidate = policy.select(state, state.pod(2))  # type: ignore[attr-defined]
    assert (candidate.node, candidate.victims) == (1, (1,))


def test_candidates_that_do_the_same_are_equal_whether_their_cost_is_known_or_not() -> None:
    unknown = Candidate(3, (7, 2), 0b11, (4, 0), AlignmentLevel.NUMA)
    assert unknown == replace(unknown, cost_gpu_s=float("nan")) == replace(unknown, cost_gpu_s=5.0)
    assert unknown != replace(unknown, victims=(7,))


def test_scores_see_the_preemptor_and_what_the_victims_are() -> None:
    asks = Pod(4, "ns/asks", 2, 2, 1000, requirement=TopologyRequirement.GUARANTEED, online=True)
    pods = [
        Pod(0, "ns/job", gpus=1, cores=2, priority=1, checkpoint_s=900, batch_class=1, group=0),
        Pod(1, "ns/mate", gpus=1, cores=0, priority=1, group=0),
        Pod(2, "ns/serves", gpus=1, cores=1, priority=500, online=True, pdb=0),
        Pod(3, "ns/leaves", gpus=1, cores=0, priority=1),
    ]
    state = ClusterState.from_pods([DUO], [0], [*pods, asks], pdb_allowed=[1], now_s=5000)
    for i in range(4):
        state.start(i, 0, [i])
    state.arrays.live["since_s"][:4] = 3000
    state.arrays.live["overhead_s"][0] = 60
    state.arrays.live["status"][2:4] = STARTING, TERMINATING
    state.arrays.live["next_s"][3] = 5000 + 20
    view = NodeView(state, 0)
    job, mate, serves, leaves = view.residents
    assert (job.gpus, job.num_cores, job.group, job.batch_class) == (1, 2, 0, 1)
    assert (job.progress_s, job.checkpoint_s, job.lost_s) == (1940, 900, 140)
    assert (mate.status, mate.lost_s, mate.group) == (PodStatus.RUNNING, 2000, 0)
    assert (serves.status, serves.online, serves.progress_s) == (PodStatus.STARTING, True, 0)
    assert leaves.status == PodStatus.TERMINATING
    assert [resident.index for resident in view.evictable(asks)] == [0, 1, 2]
    assert (view.gpu_free, view.cores_free) == (0b1000, [2, 3])
    held = NodeView(state, 0, terminating=Terminating.HELD)
    assert (held.gpu_free, len(held.evictable(asks))) == (0, 3)
    again = NodeView(state, 0, terminating=Terminating.VICTIMS)
    assert (again.gpu_free, len(again.evictable(asks))) == (0, 4)
    assert disruptions_left(state) == [1]

    def size_aware(option: NodeOption) -> float:
        """Fewer GPUs freed beyond those asked for."""
        return option.free_gpus + sum(v.gpus for v in option.victims) - option.preemptor.gpus

    seen: list[NodeOption] = []

    def see(option: NodeOption) -> float:
        seen.append(option)
        return 0.0

    found = replace(FLEXTOPO_BEST_EFFORT, scores=(see, size_aware)).select(state, state.pod(4))
    assert found is not None
    assert len(found.victims) == 1
    assert {(option.preemptor.gpus, option.free_gpus, option.node) for option in seen} == {
        (2, 1, 0)
    }
