"""Rules for gangs on servers of 8 GPUs, worked out by hand from the source that each names."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from flextopo.baselines.kueue import fewest_domains
from flextopo.baselines.registry import GANG_RULES, make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import preset
from flextopo.cluster.topology.network import Network
from flextopo.policies.selectors import find_selector

ONE = Network((0,), (0,))
LEAF = Network((0, 0), (0, 0))
TWO_LEAVES = Network((0, 1), (0, 0))
NOW_S = 100_000


class Runs(NamedTuple):
    """A batch pod that runs."""

    name: str
    node: int
    gpus: int
    priority: int = 100
    ago_s: int = 1000
    group: int = -1


def answer(
    rule: str,
    runs: Sequence[Runs],
    gang: Sequence[int],
    network: Network = ONE,
    required: NetworkLevel = NetworkLevel.CLUSTER,
) -> tuple[set[str], list[int]] | None:
    """Return names of the victims, and the nodes of the members, None if the rule does not preempt."""
    pods = [
        Pod(i, run.name, gpus=run.gpus, cores=run.gpus, priority=run.priority, group=run.group)
        for i, run in enumerate(runs)
    ]
    first = len(pods)
    pods += [
        Pod(first + i, f"g{i}", gpus=n, cores=n, priority=1000, online=True, group=9)
        for i, n in enumerate(gang)
    ]
    nodes = len(network.leaf)
    cluster = ClusterState.from_pods(
        [preset("a100")], [0] * nodes, pods, now_s=NOW_S, network=network
    )
    cluster.arrays.pods["required_tier"][first:] = required
    for pod, run in enumerate(runs):
        cluster.start(pod, run.node)
        cluster.arrays.live[pod]["since_s"] = NOW_S - run.ago_s
    found = find_selector(rule).select(cluster, cluster.pod(first))
    if found is None:
        return None
    return {cluster.name(v) for v in found.victims}, [seat.node for seat in found.seats]


def test_kubernetes_keeps_a_group_before_pods_that_have_run_for_longer() -> None:
    """kubernetes 1.37, podgrouppreemption.go, moreImportantVictim, 2: PodGroups before pods.

    Half the server is needed. The group is put back first; then neither pod fits any more, although
    each has run for ten times as long, without a checkpoint.
    """
    runs = [
        Runs("a", 0, 2, ago_s=90_000),
        Runs("b", 0, 2, ago_s=90_000),
        Runs("c", 0, 2, ago_s=60, group=0),
        Runs("d", 0, 2, ago_s=60, group=0),
    ]
    assert answer("kubernetes-workload", runs, (2, 2)) == ({"a", "b"}, [0, 0])


def test_kubernetes_keeps_the_larger_of_two_groups() -> None:
    """kubernetes 1.37, podgrouppreemption.go, moreImportantVictim, 4: size goes before start."""
    runs = [
        Runs("a", 0, 2, ago_s=90_000, group=0),
        Runs("b", 0, 2, ago_s=90_000, group=0),
        *(Runs(name, 0, 1, ago_s=60, group=1) for name in "cdef"),
    ]
    assert answer("kubernetes-workload", runs, (2, 2)) == ({"a", "b"}, [0, 0])


def test_kubernetes_seats_the_gang_before_it_puts_anybody_back() -> None:
    """kubernetes 1.37, selectVictimsOnDomain: scheduling is called once, without all victims.

    On two empty servers the members go to one each, so that both pods have to leave; one server would
    have done, as rules for single servers find.
    """
    runs = [Runs("a", 0, 8), Runs("b", 1, 8, priority=500)]
    assert answer("kubernetes-workload", runs, (4, 4), LEAF) == ({"a", "b"}, [0, 1])
    assert answer("godel", runs, (4, 4), LEAF) == ({"a"}, [0, 0])


def test_kubernetes_takes_the_domain_of_the_less_important_victims() -> None:
    """KEP-5710: placements are scored by the functions for nodes, of which priority is the first here."""
    runs = [Runs("a", 0, 8, priority=500), Runs("b", 1, 8)]
    found = answer("kubernetes-workload", runs, (4, 4), TWO_LEAVES, NetworkLevel.LEAF)
    assert found == ({"b"}, [1, 1])


def test_kueue_evicts_by_priority_everywhere_and_takes_back_in_reverse() -> None:
    """Kueue, preemption.go, classicalPreemptions and fillBackWorkloads.

    Only the first leaf has two servers. In order of priority, c goes first, then a, then b, with which
    the gang fits; a is needed, and c, on the other leaf, is taken back.
    """
    runs = [
        Runs("a", 0, 8, priority=100),
        Runs("b", 1, 8, priority=200),
        Runs("c", 2, 8, priority=50),
    ]
    network = Network((0, 0, 1), (0, 0, 0))
    found = answer("kueue", runs, (8, 8), network, NetworkLevel.LEAF)
    assert found == ({"a", "b"}, [0, 1])


def test_kueue_evicts_the_newest_of_one_priority() -> None:
    """Kueue, common/ordering.go, CandidatesOrdering, 4: admitted more recently first; groups as one."""
    runs = [
        Runs(name, 0, 2, ago_s=ago) for name, ago in zip("abcd", (10, 400, 300, 20), strict=True)
    ]
    assert answer("kueue", runs, (2, 2)) == ({"a", "d"}, [0, 0])
    grouped = [run._replace(group=0 if run.name in "ab" else -1) for run in runs]
    assert answer("kueue", grouped, (2, 2)) == ({"c", "d"}, [0, 0])


@pytest.mark.parametrize(
    ("seats", "count", "chosen"),
    [((3, 1, 2), 2, [2]), ((1, 3, 2), 4, [1, 0]), ((2, 2), 2, [0]), ((1, 1), 3, [])],
)
def test_kueue_takes_the_tightest_domain_that_is_enough(
    seats: tuple[int, ...], count: int, chosen: list[int]
) -> None:
    """Kueue, tas_flavor_snapshot.go, profile BestFit: most seats first, the last as tight as possible."""
    assert fewest_domains(seats, count) == chosen


def test_kueue_takes_the_tighter_leaf() -> None:
    """Kueue, tas_flavor_snapshot.go, findBestFitDomainBy: the least capacity that is enough."""
    network = Network((0, 0, 0, 1, 1), (0, 0, 0, 0, 0))
    assert answer("kueue", [], (8, 8), network, NetworkLevel.LEAF) == (set(), [3, 4])


def test_volcano_skips_gangs_that_require_a_part_of_the_network() -> None:
    """Volcano, preempt.go, Execute, and its issue 4374; where they fit, allocation finds the place."""
    runs = [Runs("a", 0, 8), Runs("b", 1, 8)]
    assert answer("volcano", runs, (4, 4), LEAF, NetworkLevel.LEAF) is None
    assert answer("volcano", runs[1:], (4, 4), LEAF, NetworkLevel.LEAF) == (set(), [0, 0])


def test_volcano_takes_the_first_node_that_works() -> None:
    """Volcano, preempt.go, normalPreempt: nodes in their order, on each the lowest priority first.

    The second member goes to the first node, too, at the cost of a pod of 500.
    """
    runs = [Runs("a", 0, 4, priority=500), Runs("b", 0, 4), Runs("c", 1, 8)]
    assert answer("volcano", runs, (4, 4), LEAF) == ({"a", "b"}, [0, 0])


def test_volcano_puts_nobody_back() -> None:
    """Volcano, preempt.go, normalPreempt; Kubernetes would have put back the small pod."""
    runs = [Runs("a", 0, 2, priority=100), Runs("b", 0, 4, priority=200), Runs("c", 0, 2, 2000)]
    assert answer("volcano", runs, (2, 2)) == ({"a", "b"}, [0, 0])
    assert answer("kubernetes-workload", runs, (2, 2)) == ({"b"}, [0, 0])


@pytest.mark.parametrize("rule", ["kubernetes", "godel", "flextopo", "flextopo-guaranteed"])
def test_rules_for_one_server_take_the_first_part_that_does(rule: str) -> None:
    """The first leaf works, so that the second, with a pod of 100, is never looked at."""
    runs = [Runs("a", 0, 8, priority=500), Runs("b", 1, 8)]
    found = answer(rule, runs, (4, 4), TWO_LEAVES, NetworkLevel.LEAF)
    assert found == ({"a"}, [0, 0])
    assert answer(rule, runs, (8, 8), TWO_LEAVES, NetworkLevel.LEAF) is None
    assert answer(rule, runs, (8, 8), TWO_LEAVES) == ({"a", "b"}, [1, 0])


@pytest.mark.parametrize("rule", GANG_RULES)
def test_single_pods_are_decided_as_kubernetes_does(rule: str) -> None:
    pods = [
        Pod(0, "a", gpus=4, cores=4, priority=100),
        Pod(1, "b", gpus=4, cores=4, priority=200),
        Pod(2, "asks", gpus=2, cores=2, priority=1000, online=True),
    ]
    cluster = ClusterState.from_pods([preset("a100")], [0], pods, network=ONE)
    cluster.start(0, 0)
    cluster.start(1, 0)
    expected = make_selector("kubernetes").select(cluster, pods[2])
    assert make_selector(rule).select(cluster, pods[2]) == expected
    assert expected is not None
    assert expected.victims == (0,)


def test_exact_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("ortools"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(FlextopoError, match=r"pip install 'flextopo\[exact\]'"):
        answer("exact", [Runs("a", 0, 8)], (4, 4))


@pytest.mark.parametrize("gang", [(2, 2), (2,)])
def test_a_policy_that_knows_no_gangs_reads_what_it_knows(gang: tuple[int, ...]) -> None:
    """Trained where servers have no network, it observes too few features for those of gangs."""
    found = answer("deepset-imitation", [Runs("a", 0, 8)], gang)
    assert found is None or found[0] == {"a"}
