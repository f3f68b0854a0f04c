"""Decisions about gangs of a served cluster: who starts together, what is answered, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
from kube_objects import budget, flextopo, make_cache, node, pod, preemptor
from rogues import Rogue, seats_on

from flextopo.baselines.policies import GreedyCost
from flextopo.baselines.registry import make_selector
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import Candidate, Seat
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.levels import AlignmentLevel, NetworkLevel
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.decision import Decision
from flextopo.policies.serving.gang_decider import GangDecider
from flextopo.policies.serving.gangs import Preemptors, gather, keys_in_use, lay_out
from flextopo.policies.serving.objects import GangObject, PodGroupObject
from flextopo.policies.serving.runner import UndecidableError
from flextopo.policies.shipped import zoo_names

GROUP = "scheduling.x-k8s.io/pod-group"
LEAF, BLOCK = "cloud.provider.com/topology-rack", "cloud.provider.com/topology-block"
FALLBACK = make_selector("flextopo-best-effort")


def full(name: str, rack: str = "r0", ages: tuple[int, int] = (60, 60)) -> list[dict[str, Any]]:
    """Return a node that two batch pods of four GPUs hold, which run for so many minutes."""
    names = [f"{name}-b0", f"{name}-b1"]
    held = {names[0]: [0, 1, 2, 3], names[1]: [4, 5, 6, 7]}
    started = [f"2027-01-15T0{7 - age // 61}:{(60 - age) % 60:02}:00Z" for age in ages]
    pods = [
        pod(one, name, gpus=4, cpu="28", meta={"labels": {"app": one}}, status={"startTime": at})
        for one, at in zip(names, started, strict=True)
    ]
    return [node(name, labels={LEAF: rack, BLOCK: "h0"}), flextopo(name, held), *pods]


def member(name: str, gpus: int = 8, **more: Any) -> dict[str, Any]:
    meta = {"labels": {GROUP: "llm"}, **more.pop("meta", {})}
    return preemptor(gpus, more.pop("requirement", "guaranteed"), name, meta=meta, **more)


def cluster(*documents: list[dict[str, Any]] | dict[str, Any]) -> ClusterCache:
    found = []
    for each in documents:
        found += each if isinstance(each, list) else [each]
    return make_cache(found)


def gang_of(cache: ClusterCache, name: str = "g0") -> Preemptors:
    return gather(cache, cache.pods[f"uid-{name}"])


def decide(cache: ClusterCache, selector: Any = None, **more: Any) -> Decision:
    decider = Decider(cache, selector or GreedyCost(), FALLBACK, **{"budget_s": 60.0, **more})
    gangs, gang = GangDecider(decider), gang_of(cache)
    return gangs.decide(gang, sorted(gangs.nodes(gang)))


def victims(found: Decision) -> set[str]:
    return {victim.name for victim in found.victims}


def places(found: Decision) -> dict[str, str]:
    return {one.pod.name: one.node for one in found.members}


THREE = [full("n0", ages=(2, 2)), full("n1", ages=(1, 1)), full("n2", "r1", ages=(1, 1))]
TWO = [member("g0"), member("g1")]


def test_victims_on_all_nodes_and_a_place_for_every_member() -> None:
    found = decide(cluster(*THREE, *TWO))
    # n1 and n2 would lose less, but lie on two racks.
    assert set(places(found).values()) == {"n0", "n1"}
    assert victims(found) == {"n0-b0", "n0-b1", "n1-b0", "n1-b1"}
    assert [one.gpus for one in found.members] == [tuple(range(8))] * 2
    assert (found.network_level, found.level, found.selector) == (
        "leaf",
        "cross_socket",
        "greedy-cost",
    )
    assert (found.fallback, found.violations, found.wait_s) == ("", 0, 30)
    assert found.reasons[0] == "2 members within one leaf switch or rack"
    assert len(found.reasons) == 5
    parts = list(found.parts(gang_of(cluster(*THREE, *TWO)).leader))
    assert [pod.name for pod, _ in parts] == ["g0", "g1"]
    for _, part in parts:
        assert {victim.node for victim in part.victims} == {part.node}
        assert len(part.victims) == 2


def test_two_members_on_one_node_share_its_victims() -> None:
    found = decide(cluster(full("n0"), member("g0", 4), member("g1", 4)))
    assert places(found) == {"g0": "n0", "g1": "n0"}
    assert victims(found) == {"n0-b0", "n0-b1"}
    first, second = (part for _, part in found.parts(found.members[0].pod))
    assert (len(first.victims), len(second.victims)) == (2, 0)
    masks = [set(one.gpus) for one in found.members]
    assert not masks[0] & masks[1]
    assert found.network_level == "server"


def test_two_sizes() -> None:
    found = decide(cluster(*THREE, member("g0", 4), member("g1"), member("g2", 4)))
    assert len(found.members) == 3
    assert found.members[0].node == found.members[2].node != found.members[1].node
    assert len(found.victims) == 4


@pytest.mark.parametrize("name", zoo_names())
def test_a_trained_policy_decides_by_itself(name: str) -> None:
    cache = cluster(*THREE, full("far", "r7"), *TWO)
    found = decide(cache, load_policy(name))
    assert (found.selector, found.fallback) == (name, "")
    assert {victim.node for victim in found.victims} == set(places(found).values())


def test_a_gang_that_asks_for_no_alignment_is_decided_about_too() -> None:
    found = decide(cluster(*THREE, *(member(n, requirement="best-effort") for n in ("g0", "g1"))))
    assert len(found.victims) == 4


# Rows: two members, then two pods a node.
@pytest.mark.parametrize(
    ("change", "cause", "why"),
    [
        (lambda c: 1 / 0, "model_error", "division by zero"),
        (lambda c: replace(c, seats=()), "guard", "seats_everybody"),
        (lambda c: replace(c, seats=c.seats[:1]), "guard", "seats_everybody"),
        (lambda c: replace(c, seats=(c.seats[0],) * 2), "guard", "seats_everybody"),
        (seats_on(0, 99), "guard", "seats_everybody: node 99"),
        (seats_on(0, -1), "guard", "seats_everybody: node -1"),
        (seats_on(0, 2), "guard", "on_the_node"),
        (seats_on(0, 0), "guard", "on_the_node"),
        (lambda c: replace(c, victims=()), "guard", "fits"),
        (lambda c: replace(c, victims=c.victims[:3]), "guard", "fits"),
        (lambda c: replace(c, victims=(*c.victims, 6)), "guard", "on_the_node"),
        (lambda c: replace(c, victims=(*c.victims, 1)), "guard", "of_lower_priority"),
        (lambda c: replace(c, victims=(*c.victims, 999)), "model_error", ""),
        (lambda c: replace(c, tier=NetworkLevel.SERVER), "guard", "as_it_says"),
        (
            lambda c: replace(c, seats=(replace(c.seats[0], gpu_mask=1), c.seats[1])),
            "guard",
            "as_it_says",
        ),
    ],
)
def test_a_wrong_answer_is_replaced_by_the_baselines(change: Any, cause: str, why: str) -> None:
    found = decide(cluster(*THREE, *TWO), Rogue(change))
    assert (found.selector, found.fallback) == ("greedy-cost", cause)
    assert why in found.detail
    assert set(places(found).values()) == {"n0", "n1"}


def test_budgets_hold_over_all_nodes_whoever_decides() -> None:
    class Careless(Rogue):
        def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
            return cluster.gang_candidate(preemptor, {0: 0, 1: 1}, [2, 3, 4, 5])

    nodes = [full("n0"), full("n1"), full("n2", "r1"), full("n3", "r1")]
    for each in nodes[:2]:
        for one in each[2:]:
            one["metadata"]["labels"]["team"] = "x"
    found = decide(cluster(*nodes, budget("x", 4, {"team": "x"}), *TWO), Careless())
    assert (found.fallback, set(places(found).values())) == ("", {"n0", "n1"})
    found = decide(cluster(*nodes, budget("x", 3, {"team": "x"}), *TWO), Careless())
    assert (found.fallback, set(places(found).values())) == ("guard", {"n2", "n3"})
    assert "within_budgets: 1 victims violate" in found.detail


def test_within_the_preferred_level_nothing_is_lost() -> None:
    prefer = {"kueue.x-k8s.io/podset-preferred-topology": BLOCK}
    content = [member(name, annotations=prefer) for name in ("g0", "g1")]
    assert set(places(decide(cluster(*THREE, *content))).values()) == {"n1", "n2"}


def test_a_victim_that_is_not_needed_is_refused() -> None:
    cache = cluster(full("n0"), member("g0", 2), member("g1", 2))
    found = decide(cache, Rogue(lambda c: replace(c, victims=(2, 3))))
    assert (found.fallback, len(found.victims)) == ("guard", 1)
    assert "none_to_spare" in found.detail


def test_a_pod_alone_gets_no_seats() -> None:
    cache = cluster(full("n0"), preemptor(8))
    seat = Seat(0, 0, 255, (32, 24), AlignmentLevel.CROSS_SOCKET)
    rogue = Rogue(lambda c: replace(c, seats=(seat,)))
    decider = Decider(cache, rogue, FALLBACK, budget_s=60.0)
    found = decider.decide(cache.pods["uid-online"], ["n0"])
    assert (found.fallback, found.node) == ("guard", "n0")
    assert "seats_everybody" in found.detail


def test_a_late_selector_and_a_stale_watch_have_the_baseline_decide() -> None:
    @dataclass
    class Slow(Rogue):
        def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
            import time

            time.sleep(3.0)
            return None

    cache = cluster(*THREE, *TWO)
    found = decide(cache, Slow(), budget_s=1.0)
    assert (found.fallback, len(found.victims)) == ("timeout", 4)
    found = decide(cache, age_s=lambda: 100.0)
    assert (found.fallback, len(found.victims)) == ("stale_watch", 4)


def test_memory_counts_for_all_members_of_a_node_together() -> None:
    hungry = [member(f"g{i}", 4, memory="300Gi") for i in range(2)]
    found = decide(cluster(full("n0"), full("n1"), *hungry))
    # One node has 512 GiB: they do not both fit there, though their GPUs do.
    assert set(places(found).values()) == {"n0", "n1"}
    assert len(found.victims) == 2
    with pytest.raises(UndecidableError, match="memory on node n0 does not suffice"):
        decide(cluster(full("n0"), *hungry))


def test_budgets_are_never_violated() -> None:
    both = [{"app": "n0-b0"}, {"app": "n1-b0"}]
    none = [budget(f"x{i}", 0, labels) for i, labels in enumerate(both)]
    found = decide(cluster(full("n0"), full("n1"), *none, *TWO))
    assert (found.node, found.victims, found.members) == (None, (), ())


def test_what_leaves_anyway_is_counted_on() -> None:
    half = full("n0")
    for one in half[2:]:
        one["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:10Z"
    found = decide(cluster(half, full("n1", ages=(2, 2)), full("n2", "r1", ages=(1, 1)), *TWO))
    assert victims(found) == {"n1-b0", "n1-b1"}
    assert set(places(found).values()) == {"n0", "n1"}


def test_places_of_members_are_free_for_the_gang_and_kept_from_others() -> None:
    empty = [node("n0"), flextopo("n0", {}), node("n1"), flextopo("n1", {})]
    kept = [
        member(name, status={"nominatedNodeName": at}) for name, at in (("g0", "n1"), ("g1", "n0"))
    ]
    other = preemptor(8, name="other")
    cache = cluster(empty, *kept, other)
    gangs = GangDecider(Decider(cache, GreedyCost(), FALLBACK, budget_s=60.0))
    assert gangs.fits(gang_of(cache))
    assert not gangs.fits(gather(cache, cache.pods["uid-other"]))
    more = cluster(empty, *kept, member("g2"))
    assert not gangs.fits(gang_of(more))
    # The same where kube-scheduler has taken the nominations back.
    told = cluster(empty, *TWO, other)
    for name, at in (("g0", "n1"), ("g1", "n0")):
        told.reservations.answer(told.pods[f"uid-{name}"], at, [], 60.0)
    gangs = GangDecider(Decider(told, GreedyCost(), FALLBACK, budget_s=60.0))
    assert gangs.fits(gang_of(told))
    assert not gangs.fits(gather(told, told.pods["uid-other"]))


def test_nodes_without_labels_are_all_equally_far() -> None:
    documents = [full("n0", ages=(1, 1)), full("n1", ages=(2, 2)), full("n2", ages=(1, 1))]
    for each in documents:
        each[0]["metadata"]["labels"] = {}
    found = decide(cluster(*documents, *TWO))
    assert set(places(found).values()) == {"n0", "n2"}
    assert found.network_level == "block"


def test_one_server_where_the_group_must_agree_in_it() -> None:
    # The cheapest of each node, or both of one: those of n0 run for longer in all.
    nodes = [full("n0", ages=(1, 50)), full("n1", ages=(1, 60))]
    for each in nodes:
        each[0]["metadata"]["labels"]["kubernetes.io/hostname"] = each[0]["metadata"]["name"]
    small = [member("g0", 4), member("g1", 4)]
    assert victims(decide(cluster(*nodes, *small))) == {"n0-b0", "n1-b0"}
    key = [{"key": "kubernetes.io/hostname"}]
    alike = pod_group(minMember=2, schedulingConstraints={"topology": key})
    found = decide(cluster(*nodes, *small, alike))
    assert victims(found) == {"n0-b0", "n0-b1"}
    assert found.network_level == "server"


def test_as_many_free_gpus_are_no_place_where_they_lie_apart() -> None:
    half = []
    for i in range(4):
        own = pod(f"b{i}", f"n{i}", gpus=4, cpu="28")
        half += [node(f"n{i}"), flextopo(f"n{i}", {f"b{i}": [0, 1, 2, 3]}), own]
    for gpus, fit in ((8, False), (4, True)):
        cache = cluster(half, member("g0", gpus), member("g1", gpus))
        gangs = GangDecider(Decider(cache, GreedyCost(), FALLBACK, budget_s=60.0))
        assert gangs.fits(gang_of(cache)) == fit


def test_free_servers_on_two_racks_are_no_place_for_a_gang_that_requires_one() -> None:
    empty = []
    for name, rack in (("n0", "r0"), ("n1", "r1")):
        empty += [node(name, labels={LEAF: rack}), flextopo(name, {})]
    for key, fit in ((LEAF, False), ("", True)):
        topology = [{"key": key}] if key else []
        alike = pod_group(minMember=2, schedulingConstraints={"topology": topology})
        cache = cluster(empty, *TWO, alike)
        gangs = GangDecider(Decider(cache, GreedyCost(), FALLBACK, budget_s=60.0))
        assert gangs.fits(gang_of(cache)) == fit


def test_what_is_seen_of_the_whole_cluster_hangs_where_it_does() -> None:
    seen: list[Any] = []

    class Watching(Rogue):
        def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
            seen.append(cluster)
            return GreedyCost().select(cluster, preemptor)

    far = full("n2", "r1")
    far[0]["spec"] = {"unschedulable": True}
    found = decide(cluster(*THREE[:2], far, *TWO), Watching())
    assert found.fallback == ""
    (view,) = seen
    assert (len(view.arrays.network), len(view.whole.network)) == (2, 3)
    assert len(view.whole.nodes) == 3
    assert len(set(view.whole.network[:2, 1])) == 1
    assert view.whole.network[2, 1] != view.whole.network[0, 1]


@pytest.mark.parametrize("homes", [("n0", "n1"), ("n1", "n0")])
def test_members_keep_the_places_that_they_were_given(homes: tuple[str, str]) -> None:
    kept = [
        member(name, status={"nominatedNodeName": home})
        for name, home in zip(("g0", "g1"), homes, strict=True)
    ]
    found = decide(cluster(*THREE[:2], *kept))
    assert places(found) == dict(zip(("g0", "g1"), homes, strict=True))
    for _, part in found.parts(found.members[0].pod):
        assert {victim.node for victim in part.victims} == {part.node}


# Who starts together.


def by_annotation(name: str, size: str) -> dict[str, Any]:
    labels = {"leaderworkerset.sigs.k8s.io/group-key": "x"}
    annotations = {"leaderworkerset.sigs.k8s.io/size": size}
    return preemptor(8, name=name, meta={"labels": labels}, annotations=annotations)


def running(name: str, **more: Any) -> dict[str, Any]:
    status = {"phase": "Running", "startTime": "2027-01-15T07:00:00Z"}
    return member(name, status=status, spec={"nodeName": "n9"}, **more)


def pod_group(**spec: Any) -> dict[str, Any]:
    return {"kind": "PodGroup", "metadata": {"name": "llm", "namespace": "batch"}, "spec": spec}


BASIC = pod_group(schedulingPolicy={"basic": {}})


@pytest.mark.parametrize(
    ("documents", "members", "cause"),
    [
        ([preemptor(8, name="g0")], 1, ""),
        ([*TWO, pod_group(minMember=2)], 2, ""),
        ([*TWO, pod_group(minMember=3)], 2, "incomplete"),
        # Without an object, all that there are.
        (TWO, 2, ""),
        ([member("g0")], 1, ""),
        ([*TWO, BASIC], 1, ""),
        ([*TWO, pod_group(minMember=1)], 1, ""),
        ([by_annotation("g0", "2"), by_annotation("g1", "2")], 2, ""),
        ([by_annotation("g0", "2")], 1, "incomplete"),
        ([by_annotation("g0", "two")], 1, ""),
        # One is bound: the other one is what is missing, or one beyond.
        ([*TWO, running("g2"), pod_group(minMember=3)], 2, ""),
        ([*TWO, running("g2"), pod_group(minMember=4)], 2, "incomplete"),
        ([*TWO, running("g2"), running("g3"), pod_group(minMember=2)], 1, ""),
        # A launcher without GPUs is one of them, and needs no place here; who leaves is none any more.
        ([*TWO, member("g2", 0), pod_group(minMember=3)], 2, ""),
        (
            [*TWO, running("g2", meta={"deletionTimestamp": "x"}), pod_group(minMember=3)],
            2,
            "incomplete",
        ),
    ],
)
def test_who_starts_together(documents: list[dict[str, Any]], members: int, cause: str) -> None:
    for one in documents:
        if one["metadata"].get("deletionTimestamp"):
            one["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:10Z"
    gang = gang_of(cluster(*documents))
    assert len(gang.members) == members
    assert gang.why_not(lambda pod: True)[0] == cause


def test_all_or_as_many_as_must() -> None:
    documents = [*TWO, member("g2"), running("g3"), pod_group(minMember=3)]
    gang = gang_of(cluster(*documents))
    assert [len(some.members) for some in gang.attempts()] == [3, 2]
    exactly = gang_of(cluster(*documents[:3], pod_group(minMember=3)))
    assert [len(some.members) for some in exactly.attempts()] == [3]


# What it asks of the network.

NODES: Mapping[str, Mapping[str, str]] = {
    "n0": {LEAF: "a", BLOCK: "x", "rack": "1"},
    "n1": {LEAF: "a", BLOCK: "y", "rack": "1"},
    "n2": {LEAF: "b", "topology.kubernetes.io/zone": "z"},
}


def asking(*agree: str, prefer: str = "") -> Preemptors:
    cache = cluster(member("g0"))
    return replace(gang_of(cache), agree=agree, prefer=prefer)


@pytest.mark.parametrize(
    ("gang", "levels", "blocks"),
    [
        (asking(), ("CLUSTER", "LEAF"), ["x", "y", "z"]),
        (asking(LEAF), ("LEAF", "LEAF"), ["x", "y", "z"]),
        (asking(BLOCK), ("BLOCK", "LEAF"), ["x", "y", ""]),
        (asking("kubernetes.io/hostname"), ("SERVER", "SERVER"), ["x", "y", "z"]),
        (asking("rack"), ("BLOCK", "LEAF"), ["1", "1", ""]),
        (asking("rack", BLOCK), ("BLOCK", "LEAF"), ["1/x", "1/y", "/"]),
        (asking(prefer=BLOCK), ("CLUSTER", "BLOCK"), ["x", "y", "z"]),
        (asking(LEAF, prefer=BLOCK), ("LEAF", "LEAF"), ["x", "y", "z"]),
        (asking(prefer="unknown"), ("CLUSTER", "LEAF"), ["x", "y", "z"]),
    ],
)
def test_labels_become_levels(gang: Preemptors, levels: tuple[str, str], blocks: list[str]) -> None:
    found = lay_out(gang, NODES)
    assert (found.required.name, found.preferred.name) == levels
    assert [place.block for place in found.places] == blocks
    assert [place.leaf for place in found.places] == ["a", "a", "b"]


def test_the_labels_that_most_nodes_have_count() -> None:
    other = ("ib.coreweave.cloud/leafgroup", "ib.coreweave.cloud/superpod")
    assert keys_in_use(NODES.values()) == (LEAF, BLOCK)
    assert keys_in_use([dict.fromkeys(other, "1"), dict.fromkeys(other, "2"), {LEAF: "a"}]) == other


@pytest.mark.parametrize(
    ("spec", "keys"),
    [
        ({"schedulingConstraints": {"topology": [{"key": "rack"}]}}, ("rack",)),
        ({"schedulingConstraints": {"topology": [{"key": ""}, {"level": 3}, "odd"]}}, ()),
        ({"schedulingConstraints": {"topology": None}}, ()),
        ({"schedulingConstraints": [1]}, ()),
        (None, ()),
        ("odd", ()),
    ],
)
def test_what_a_pod_group_says_of_the_network(spec: Any, keys: tuple[str, ...]) -> None:
    for kind in (PodGroupObject, GangObject):
        found = msgspec.convert({"metadata": {"name": "x"}, "spec": spec}, kind)
        assert found.topology == keys
