from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from kube_objects import (
    NOW_S,
    budget,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
    read_record,
)

from flextopo.cluster.state.arrays import NOMINATED, RUNNING, TERMINATING
from flextopo.cluster.state.loss import waiting_cost
from flextopo.cluster.state.schema import LIVE_DTYPE, NODE_DTYPE, POD_DTYPE
from flextopo.cluster.topology.model import PRESETS
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.objects import (
    GangObject,
    Meta,
    PodGroupObject,
    VolcanoGroupObject,
)
from flextopo.policies.serving.places import Places


def state_of(documents: Sequence[Mapping[str, Any]], name: str = "n0") -> NodeState:
    return make_cache(documents).nodes.states[name]


def held(state: NodeState) -> dict[str, list[int]]:
    masks = live(state)["gpu_mask"].tolist()
    return {
        record.name: [gpu for gpu in range(16) if mask >> gpu & 1]
        for record, mask in zip(state.counted.records, masks, strict=True)
    }


def live(state: NodeState) -> np.ndarray[Any, Any]:
    at = NODE_DTYPE.itemsize + state.counted.cores_free.nbytes
    at += len(state.counted.records) * POD_DTYPE.itemsize
    return np.frombuffer(state.counted.packed, LIVE_DTYPE, len(state.counted.records), at)


def cores_held(state: NodeState) -> np.ndarray[Any, Any]:
    width = len(state.counted.cores_free)
    held = state.counted.packed[-2 * width * len(state.counted.records) :]
    return np.frombuffer(held, np.int16).reshape(-1, width)


def test_flextopo_tells_who_holds_what() -> None:
    state = state_of(full_node(count=6))
    assert held(state) == {f"n0-b{i}": [i] for i in range(6)}
    assert state.counted.gpu_free == 0b11000000
    # GPU 0 sits on NUMA node 3; seven of its eight cores are used.
    assert cores_held(state).sum(0).tolist() == [7, 7, 7, 7, 0, 0, 7, 7]
    assert state.counted.cores_free.tolist() == [1, 1, 1, 1, 8, 8, 1, 1]
    assert state.known
    assert state.sure.gpu_free == state.counted.gpu_free


def test_an_annotation_tells_more_than_flextopo() -> None:
    documents = [node("n0"), flextopo("n0", {"p": [0]}), pod("p", "n0")]
    documents[2]["metadata"]["annotations"] = {"flextopo/gpus": "5", "flextopo/cores": "48-54"}
    assert held(state_of(documents)) == {"p": [5]}


def without_gpu_marks(document: dict[str, Any]) -> dict[str, Any]:
    """Drop the marks of GPUs, which real objects often lack."""
    for vertex in document["spec"]["nodes"]:
        if vertex["type"] == "GPU":
            vertex["attributes"] = {"status": "free"}
    return document


def test_reserved_cores_are_nobodys_and_a_shared_gpu_is_no_pods() -> None:
    documents = full_node(count=6)
    for vertex in documents[1]["spec"]["nodes"]:
        if vertex["id"] in ("core-55", "core-63"):
            vertex["attributes"] = {"status": "reserved"}
        if vertex["attributes"].get("usedBy") == "n0-b0" and vertex["type"] == "GPU":
            vertex["attributes"] |= {"status": "shared", "usedBy": "n0-b0"}
    state = state_of(documents)
    assert sum(state.hardware.server.numa_cores) == 62
    assert state.counted.num_cores == 62 - 6 * 7
    # The pod has a GPU, and nobody knows which: none is free for sure.
    assert (state.unknown_gpus, state.sure.gpu_free, state.broken) == (1, 0, "")
    # The same graph without reserved cores is another kind of server.
    cache = make_cache([*documents, *full_node("n1")])
    states = cache.nodes.states
    assert states["n0"].hardware.model != states["n1"].hardware.model


def test_gpus_of_one_pod_are_known_by_elimination_only_when_none_is_free() -> None:
    documents = full_node()
    for vertex in documents[1]["spec"]["nodes"]:
        if vertex["id"] == "gpu-3":
            vertex["attributes"] = {"status": "free"}
    state = state_of(documents)
    assert held(state)["n0-b3"] == [3]
    assert state.known
    # With one pod less there are two GPUs it may hold, and the other is not free for sure.
    state = state_of([d for d in documents if d["metadata"]["name"] != "n0-b7"])
    assert not state.known
    assert (len(state.sure.records), state.unknown_gpus) == (6, 1)
    assert state.counted.gpu_free.bit_count() == 1
    assert state.sure.gpu_free == 0


def test_unknown_pods_keep_counts_and_take_the_worst_case() -> None:
    documents = full_node(count=4)
    documents[1] = without_gpu_marks(documents[1])
    state = state_of(documents)
    assert len(state.sure.records) == 0
    assert state.counted.gpu_free.bit_count() == 4
    assert sorted(len(gpus) for gpus in held(state).values()) == [1, 1, 1, 1]
    gpus, cores = state.sure.gpu_free, state.sure.cores_free
    assert gpus == 0
    # Their cores are known, so these are not guessed at.
    assert cores.tolist() == [1, 1, 1, 1, 8, 8, 8, 8]


def test_unknown_cores_are_taken_from_every_numa_node() -> None:
    documents = [node("n0"), flextopo("n0", {}), pod("p", "n0", annotations={"flextopo/gpus": "0"})]
    state = state_of(documents)
    assert (state.unknown_gpus, state.unknown_cores) == (0, 7)
    assert state.sure.gpu_free == 0b11111110
    assert state.sure.cores_free.tolist() == [1] * 8


def test_pods_without_gpus_and_pinned_cores_block_nothing() -> None:
    state = state_of([*full_node(count=0), pod("web", "n0", gpus=0, cpu="3")])
    assert state.counted.records == []
    assert state.requested["cpu"] == 3000
    assert state.known


def test_marks_under_a_name_that_two_pods_have_are_nobodys() -> None:
    twin = pod("p", "n0")
    twin["metadata"] |= {"namespace": "other", "uid": "uid-other"}
    state = state_of([node("n0"), flextopo("n0", {"p": [0]}), pod("p", "n0"), twin])
    assert len(state.sure.records) == 0
    qualified = flextopo("n0", {"batch/p": [0], "other/p": [1]})
    state = state_of([node("n0"), qualified, pod("p", "n0"), twin])
    assert len(state.sure.records) == 2


def test_two_pods_cannot_hold_one_gpu() -> None:
    documents = [node("n0"), flextopo("n0", {})]
    for name in ("a", "b"):
        documents.append(
            pod(name, "n0", annotations={"flextopo/gpus": "0", "flextopo/cores": "24-30"})
        )
    state = state_of(documents)
    assert len(state.sure.records) == 1
    assert state.counted.gpu_free.bit_count() == 6


def test_a_faulty_gpu_may_be_any() -> None:
    documents = full_node(count=2)
    documents[0] = node("n0", gpus=7)
    state = state_of(documents)
    assert state.counted.gpu_free.bit_count() == 5
    assert state.sure.gpu_free == 0


def test_pods_beyond_the_gpus_break_a_node() -> None:
    state = state_of([node("n0"), flextopo("n0", {}), *(pod(f"p{i}", "n0") for i in range(9))])
    assert state.broken == "pods hold 9 GPUs of 8 that it offers"


def test_statuses_follow_the_pod() -> None:
    documents = full_node(count=2)
    documents[2]["metadata"]["deletionTimestamp"] = "2027-01-15T07:59:00Z"
    nominated = pod("q", status={"nominatedNodeName": "n0"})
    state = state_of([*documents, nominated, pod("done", "n0", status={"phase": "Succeeded"})])
    assert dict(
        zip([r.name for r in state.counted.records], live(state)["status"].tolist(), strict=True)
    ) == {"n0-b0": TERMINATING, "n0-b1": RUNNING, "q": NOMINATED}
    assert state.counted.gpu_free.bit_count() == 5
    # What is kept for a pod is free for that pod itself.
    cache = make_cache([*documents, nominated])
    mine = Places(cache).state_of("n0", read_record(nominated))
    assert mine is not None
    assert mine.counted.gpu_free.bit_count() == 6
    assert mine.known


def test_a_node_without_flextopo_has_counts_alone() -> None:
    cache = make_cache([node("n0"), pod("p", "n0")])
    state = cache.nodes.states["n0"]
    assert not state.known
    assert state.counted.gpu_free.bit_count() == 7
    assert cache.nodes.sums["flat"] == 1
    assert cache.nodes.sums["unknown"] == 1
    assert make_cache([node("cpu", gpus=0)]).nodes.states == {}


def test_equal_servers_share_a_model() -> None:
    cache = make_cache(
        [*full_node("n0"), *full_node("n1"), node("n2"), flextopo("n2", {}, PRESETS["a100"])]
    )
    assert len(cache.table) == 2
    assert cache.nodes.sums["gpus"] == 24


def change(document: dict[str, Any], version: int, **status: Any) -> dict[str, Any]:
    meta = {**document["metadata"], "resourceVersion": str(version)}
    return {**document, "metadata": meta, "status": {**document["status"], **status}}


def test_duplicate_and_old_events_change_nothing() -> None:
    cache = make_cache(full_node(count=0))
    new, old = change(pod("p", "n0"), 7), change(pod("p", "n0"), 6, phase="Succeeded")
    for document in (new, old, new, old):
        cache.put(read(document))
    assert cache.nodes.states["n0"].counted.gpu_free.bit_count() == 7
    cache.put(read(change(pod("p", "n0"), 8, phase="Succeeded")))
    assert cache.nodes.states["n0"].counted.gpu_free.bit_count() == 8


def test_a_late_event_does_not_bring_a_deleted_pod_back() -> None:
    cache = make_cache([*full_node(count=0), change(pod("p", "n0"), 7)])
    cache.remove(read(change(pod("p", "n0"), 9)))
    cache.remove(read(change(pod("p", "n0"), 9)))
    cache.put(read(change(pod("p", "n0"), 8)))
    cache.put(read(change(pod("p", "n0"), 10)))
    assert "uid-p" not in cache.pods
    assert cache.nodes.states["n0"].counted.gpu_free.bit_count() == 8


def test_a_fresh_list_takes_out_what_is_gone() -> None:
    cache = make_cache([*full_node("n0"), *full_node("n1"), budget("b", 1, {"a": "b"})])
    for kind in ("Pod", "Node", "FlexTopo", "PodDisruptionBudget"):
        documents = [d for d in full_node("n0") if d["kind"] == kind]
        objects = [read(document) for document in documents]
        cache.replace(
            type(read(budget("b", 1, {}) if kind == "PodDisruptionBudget" else documents[0])),
            objects,
        )
    assert list(cache.nodes.states) == ["n0"]
    assert len(cache.pods) == 8
    assert not cache.budgets.by_key
    fresh = make_cache(full_node("n0"))
    assert cache.nodes.sums == fresh.nodes.sums


@pytest.mark.parametrize("kind", [PodGroupObject, GangObject, VolcanoGroupObject])
def test_a_fresh_list_takes_out_groups_of_its_api_alone(kind: type[PodGroupObject]) -> None:
    cache = make_cache([])
    kinds: list[type[PodGroupObject]] = [PodGroupObject, GangObject, VolcanoGroupObject]
    for one in kinds:
        meta = Meta(name=f"of-{kinds.index(one)}", namespace="batch", resourceVersion="5")
        cache.replace(one, [one(meta)])
    (cache.lack if kind is PodGroupObject else partial(cache.replace, objects=[]))(kind)
    for i, one in enumerate(kinds):
        assert (cache.group(f"batch/of-{i}") is None) == (one is kind)
    # It may come back, whatever its version was.
    name = f"of-{kinds.index(kind)}"
    cache.put(kind(Meta(name=name, namespace="batch", resourceVersion="4")))
    assert cache.group(f"batch/{name}") is not None


def test_sums_follow_every_change() -> None:
    cache = make_cache([*full_node("n0"), *full_node("n1", count=3)])
    for uid in ("uid-n0-b1", "uid-n0-b2", "uid-n1-b0"):
        name = uid.removeprefix("uid-")
        cache.remove(read(pod(name, name[:2])))
    cache.remove(read(node("n1")))
    cache.put(read(pod("n0-c", "n0", gpus=2)))
    kept = [d for d in full_node("n0") if d["metadata"]["name"] not in ("n0-b1", "n0-b2")]
    assert +cache.nodes.sums == +make_cache([*kept, pod("n0-c", "n0", gpus=2)]).nodes.sums


def test_a_pod_that_cannot_be_read_closes_its_node() -> None:
    cache = make_cache(full_node(count=0))
    bad = pod("p", "n0", priority=2**31)
    cache.put(read(bad))
    assert "batch/p" in cache.nodes.states["n0"].broken
    assert "Pod uid-p" in cache.problems
    cache.remove(read(bad))
    assert cache.nodes.states["n0"].broken == ""
    assert not cache.problems


def test_a_slip_in_an_annotation_does_not_close_a_node() -> None:
    cache = make_cache(full_node(count=0))
    slip = pod("p", "n0", annotations={"flextopo/gpus": "x"})
    cache.put(read(slip))
    state = cache.nodes.states["n0"]
    assert (state.broken, state.unknown_gpus) == ("", 1)
    assert "flextopo/gpus" in cache.problems["Pod uid-p"]
    mended = pod("p", "n0", annotations={"flextopo/gpus": "0"}, meta={"resourceVersion": "9"})
    cache.put(read(mended))
    assert not cache.problems
    assert cache.nodes.states["n0"].unknown_gpus == 0


def test_a_flextopo_that_is_none_counts_as_missing() -> None:
    cache = make_cache(full_node(count=1))
    document = flextopo("n0", {})
    document["spec"]["edges"].append({"source": "numa-0", "target": "nothing", "type": "contains"})
    cache.put(read(document))
    assert not cache.nodes.states["n0"].hardware.known
    assert "nothing" in cache.problems["FlexTopo n0"]


def test_what_made_a_node_unusable_is_told_until_it_is_over() -> None:
    cache = ClusterCache(lambda: NOW_S)
    cache.put(read(node("n0", gpus=80)))  # of a GPU that is shared, until its FlexTopo tells
    assert "n0" not in cache.nodes.states
    assert "80 GPUs" in cache.problems["Node n0"]
    cache.put(read(flextopo("n0", {})))
    assert "n0" in cache.nodes.states
    assert not cache.problems


def test_a_budget_has_only_the_nodes_of_its_pods_worked_out() -> None:
    def labelled(name: str, where: str, job: str) -> dict[str, Any]:
        return pod(name, where, meta={"labels": {"job": job}})

    names = ("n0", "n1", "n2")
    documents = [document for name in names for document in (node(name), flextopo(name, {}))]
    documents += [labelled("a", "n0", "x"), labelled("b", "n1", "x"), labelled("c", "n2", "y")]
    cache = make_cache([*documents, budget("first", 2, {"job": "x"})])
    looked = cache.nodes.changed_since(0)[1]

    def worked_out(document: dict[str, Any] | None, gone: str = "") -> set[str]:
        nonlocal looked
        if document is not None:
            cache.put(read(document))
        else:
            cache.remove(read(budget(gone, 0, {})))
        found, looked = cache.nodes.changed_since(looked)
        return set(found)

    def indices() -> dict[str, int]:
        nodes = dict(cache.nodes.states)
        view = cache.view(read_record(preemptor(1)), nodes, worst_case=False)
        of = view.arrays.pods["pdb"].tolist()
        return {record.name: of[row] for row, record in enumerate(view.records) if row}

    assert worked_out(budget("first", 1, {"job": "x"})) == set()
    # An eviction names a pod, and its end takes the name out.
    named = budget("first", 0, {"job": "x"}, disruptedPods={"b": "2027-01-15T08:00:00Z"})
    assert worked_out(named) == {"n1"}
    assert indices() == {"a": 0, "b": -1, "c": -1}
    assert worked_out(budget("first", 0, {"job": "x"})) == {"n1"}
    # A budget that is added, asks for others, or is removed, which moves no other budget.
    assert worked_out(budget("second", 3, {"job": "y"})) == {"n2"}
    assert worked_out(budget("third", 3, {"job": "z"})) == set()
    assert worked_out(budget("third", 3, {"job": "y"})) == {"n2"}
    assert worked_out(None, "first") == {"n0", "n1"}
    assert indices() == {"a": -1, "b": -1, "c": 1}
    assert worked_out(budget("fourth", 0, {"job": "x"})) == {"n0", "n1"}
    assert indices() == {"a": 0, "b": 0, "c": 1}
    assert cache.budgets.left() == [0, 3, 3]


def test_nothing_is_kept_of_nodes_that_are_gone() -> None:
    cache = make_cache(full_node("n0"))
    books = (cache.book, cache.hosts, cache.nodes)

    def kept() -> dict[str, int]:
        cache.refresh()
        found = {name: value for book in books for name, value in vars(book).items()}
        return {name: len(value) for name, value in found.items() if hasattr(value, "__len__")}

    before = kept()
    for i in range(3):
        waiting = pod(f"q{i}", status={"nominatedNodeName": f"m{i}"})
        documents = [*full_node(f"m{i}"), waiting]
        for document in documents:
            cache.put(read(document))
        assert kept() != before
        for document in reversed(documents):
            cache.remove(read(document))
        assert kept() == before


def test_what_has_changed_since_a_moment_is_told_without_a_look_at_the_rest() -> None:
    cache = make_cache([*full_node("n0"), *full_node("n2"), *full_node("n1")])
    everything, moment = cache.nodes.changed_since(0)
    assert sorted(everything) == ["n0", "n1", "n2"]
    assert cache.nodes.changed_since(moment) == ([], moment)
    cache.put(read(pod("p", "n0", gpus=0)))
    found, later = cache.nodes.changed_since(moment)
    assert found == ["n0"]
    cache.put(read(pod("q", "n2", gpus=0)))
    cache.refresh()
    cache.remove(read(node("n0")))
    assert cache.nodes.changed_since(moment)[0] == ["n2"]
    assert cache.nodes.changed_since(later)[0] == ["n2"]
    # The latest stands last, so that the others need not be looked at.
    for name in ("n1", "n2", "n1"):
        cache.put(read(pod(f"more-{name}", name, gpus=0)))
        found, later = cache.nodes.changed_since(later)
        assert [*cache.nodes._changed][-1] == name


def test_nodes_without_pods_are_in_the_view() -> None:
    documents = [*full_node("n0", count=0), *full_node("n1", count=2), *full_node("n2", count=0)]
    cache = make_cache(documents)
    nodes = {name: cache.nodes.states[name] for name in ("n0", "n1", "n2")}
    view = cache.view(read_record(preemptor(4)), nodes, worst_case=False)
    assert view.arrays.nodes["num_pods"].tolist() == [0, 2, 0]
    assert view.arrays.nodes["gpu_free"].tolist() == [0xFF, 0b11111100, 0xFF]
    assert view.arrays.cores_free.sum(1).tolist() == [64, 50, 64]
    assert (view.arrays.node_pods[:, :3] == [[-1] * 3, [1, 2, -1], [-1] * 3]).all()
    assert view.arrays.live["node"].tolist() == [-1, 1, 1]


def test_the_view_holds_what_the_cache_does() -> None:
    cache = make_cache([*full_node("n0"), *full_node("n1", count=3), *full_node("n2", count=5)])
    asking = read_record(preemptor(4))
    nodes = {name: cache.nodes.states[name] for name in ("n2", "n0")}
    view = cache.view(asking, nodes, worst_case=False)
    assert view.node_names == ["n2", "n0"]
    assert view.pod(0).gpus == 4
    assert [p.name for p in view.pods_on(1)] == [f"batch/n0-b{i}" for i in range(8)]
    assert view.whole.nodes["gpu_free"].tolist() == [0b11100000, 0, 0b11111000]
    assert view.arrays.totals[0]["batch_gpus"] == 16
    assert view.arrays.totals[0]["wait_gpus"] == 4
    assert view.pods_on(0)[0].start_s == cache.clock() - 3600
    found = view.candidates(view.pod(0), True)
    assert found
    assert all(view.is_aligned(candidate, view.pod(0)) for candidate in found)
    # Nothing is shared: what a selector does to its view does not reach the cache.
    view.arrays.pods["priority"] = 0
    view.arrays.cores_free[:] = 0
    again = cache.view(asking, nodes, worst_case=False)
    assert (again.arrays.pods["priority"][1:] == 100).all()
    assert np.array_equal(again.arrays.cores_free[0], cache.nodes.states["n2"].counted.cores_free)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_what_fits_is_what_would_be_placed(gpus: int, aligned: bool) -> None:
    cache = make_cache([*full_node("n0"), *full_node("n1", count=3)])
    view = cache.view(read_record(preemptor(gpus)), dict(cache.nodes.states), worst_case=aligned)
    for n in range(view.num_nodes):
        rows = [p.index for p in view.pods_on(n)]
        for slots in range(1 << len(rows)):
            gone = [row for i, row in enumerate(rows) if slots >> i & 1]
            found = view.candidate(n, gone, view.preemptor)
            expected = found is not None and (not aligned or view.is_aligned(found, view.preemptor))
            assert view.fits(n, gone, aligned) is expected
        for stranger in (-1, 0, view.num_pods, view.pods_on(1 - n)[0].index):
            assert not view.fits(n, [*rows, stranger], aligned)
        assert view.fits(n, [*rows, *rows], aligned)


def test_a_pod_group_is_charged_for_where_its_members_are() -> None:
    def grouped(name: str, node_name: str) -> dict[str, Any]:
        labels = {"scheduling.x-k8s.io/pod-group": "g"}
        return pod(name, node_name, meta={"labels": labels})

    documents = [
        node("n0"), flextopo("n0", {"a": [0], "x": [1]}), grouped("a", "n0"), pod("x", "n0"),
        node("n1"), flextopo("n1", {"b": [0], "c": [1]}), grouped("b", "n1"), grouped("c", "n1"),
    ]  # fmt: skip
    asking = read_record(preemptor(8))

    def cost(cache: ClusterCache, name: str = "n0") -> dict[str, float]:
        view = cache.view(asking, Places(cache).states_of([name], asking), worst_case=False)
        rows = {p.name: p.index for p in view.pods_on(0)}
        everyone = view.candidate(0, list(rows.values()), view.preemptor)
        assert everyone is not None
        waiting = waiting_cost(view.arrays, view.costs, 0, view.costs.grace_s)
        total = view.cost_of(everyone, view.preemptor) - waiting
        return {**dict.fromkeys(rows, total), "members": float(view.num_pods)}

    alone = cost(make_cache(documents))
    assert alone["members"] == 5
    group = {
        "kind": "PodGroup",
        "metadata": {"name": "g", "namespace": "batch", "uid": "g"},
        "spec": {"minMember": 2},
    }
    # Three run and two suffice: losing one stops nobody else, losing two stops the third.
    spare = cost(make_cache([*documents, group]))
    assert alone["batch/a"] == pytest.approx(2 * spare["batch/a"])
    both = cost(make_cache([*documents, group]), "n1")
    assert both["batch/b"] == pytest.approx(cost(make_cache(documents), "n1")["batch/b"])
    one_by_one = {**group, "spec": {"schedulingPolicy": {"gang": {"minCount": 1}}}}
    assert cost(make_cache([*documents, one_by_one]), "n1")["batch/b"] == pytest.approx(
        both["batch/b"] * 2 / 3
    )
    for mode, whole in (
        ({"all": {}}, True),
        ("PodGroup", True),
        ({"single": {}}, False),
        ("Pod", False),
    ):
        told = {**group, "spec": {"minMember": 2, "disruptionMode": mode}}
        expected = alone if whole else spare
        found = cost(make_cache([*documents, told]))["batch/a"]
        assert found == pytest.approx(expected["batch/a"])
    # Somebody else is to come to the node, after the preemptor: its members count once all the same.
    promised = make_cache(documents)
    low = read_record(pod("low", gpus=1, priority=0, meta={"uid": "low"}))
    promised.reservations.answer(low, "n0", [])
    assert Places(promised).states_of(["n0"], asking)["n0"] is not promised.nodes.states["n0"]
    assert cost(promised) == alone


@pytest.mark.parametrize(
    "spec",
    [
        {"minMember": 2**31}, {"minMember": -1}, {"minMember": "2"}, {"disruptionMode": 5},
        {"schedulingConstraints": {"topology": 5}}, {"schedulingConstraints": {"topology": [5, {"key": 6}]}},
        5, None,
    ],
)  # fmt: skip
def test_a_pod_group_that_says_nothing_sensible_says_nothing(spec: Any) -> None:
    odd = read({"kind": "PodGroup", "metadata": {"name": "g", "namespace": "n"}, "spec": spec})
    assert isinstance(odd, PodGroupObject)
    assert (odd.least, odd.topology, odd.stops_whole) == (None, (), False)


def test_the_other_nodes_of_a_view_are_those_that_are_not_in_it() -> None:
    documents = [full_node(f"n{i}", count=i + 1) for i in range(6)]
    cache = make_cache([document for documents_of in documents for document in documents_of])
    asking = read_record(preemptor(2))

    def others(*names: str) -> list[int]:
        nodes = Places(cache).states_of(names, asking)
        view = cache.view(asking, nodes, worst_case=False)
        return sorted(view.whole.nodes["num_pods"][len(nodes) :].tolist())

    assert others("n1", "n4") == [1, 3, 4, 6]
    # One that changes keeps its row; one as the preemptor finds it, which is in no table, is left out too.
    cache.put(read(pod("more", "n0", priority=1, cpu="1")))
    low = read_record(pod("low", gpus=1, priority=0, meta={"uid": "low"}))
    cache.reservations.answer(low, "n4", [])
    assert others("n1", "n4") == [2, 3, 4, 6]
    # States from before a node was gone do not know the rows of today.
    old = Places(cache).states_of(["n0", "n3"], asking)
    cache.remove(read(node("n0")))
    view = cache.view(asking, old, worst_case=False)
    assert sorted(view.whole.nodes["num_pods"][2:].tolist()) == [2, 3, 6, 6]
