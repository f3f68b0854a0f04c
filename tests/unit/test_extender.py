"""The verbs of kube-scheduler, on recorded bodies and on hand-made ones."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from kube_objects import (
    NOW_S,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
    read_record,
)

from flextopo.baselines.registry import make_selector
from flextopo.cluster.state.placement import alignment_level
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.selectors import find_selector, find_served
from flextopo.policies.serving import decider
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.node_state import NodeState
from flextopo.policies.serving.objects import ObjectError
from flextopo.policies.serving.telemetry import Telemetry

SOON = "2027-01-15T08:00:20Z"
RECORDED = Path(__file__).parents[3] / "shared" / "cases" / "extender"


def make_extender(
    cache: ClusterCache,
    lines: list[bytes] | None = None,
    *,
    shadow: bool = False,
    selector: VictimSelector | None = None,
    leave_gangs: bool = False,
) -> Extender:
    telemetry = Telemetry(cache, write=(lines if lines is not None else []).append)
    selector = selector or make_selector("greedy-cost")
    decider = Decider(cache, selector, make_selector("flextopo-best-effort"), budget_s=60)
    return Extender(decider, telemetry, shadow, leave_gangs=leave_gangs)


def ask(extender: Extender, verb: str, body: Any) -> Any:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return json.loads(getattr(extender, verb)(encoded))


def meta_victims(victims: Mapping[str, Sequence[str]], asking: Any = None) -> dict[str, Any]:
    found = {
        name: {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": 0}
        for name, uids in victims.items()
    }
    return {
        "Pod": asking or preemptor(2),
        "NodeNameToVictims": None,
        "NodeNameToMetaVictims": found,
    }


def check_accepted(
    request: Mapping[str, Any], answer: Mapping[str, Any], cache: ClusterCache
) -> None:
    """Check what kube-scheduler checks, and what it leaves to us."""
    proposed = request["NodeNameToMetaVictims"] or request["NodeNameToVictims"]
    priority = request["Pod"]["spec"]["priority"]
    for name, victims in answer["NodeNameToMetaVictims"].items():
        pods = [cache.pods[victim["UID"]] for victim in victims["Pods"]]
        assert all(pod.node == name for pod in pods)
        assert all(pod.priority < priority for pod in pods)
        assert [pod.priority for pod in pods] == sorted((p.priority for p in pods), reverse=True)
        assert pods or not proposed[name]["Pods"]
        assert victims["NumPDBViolations"] == 0
    assert set(answer["NodeNameToMetaVictims"]) <= set(proposed)


def recorded(name: str) -> dict[str, Any]:
    path = RECORDED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def recorded_cluster(request: Mapping[str, Any], *, known: bool) -> ClusterCache:
    """Return the cluster that a recorded body was sent from: its victims, and others on the GPUs."""
    documents: list[dict[str, Any]] = []
    for name, victims in (request["NodeNameToVictims"] or request["NodeNameToMetaVictims"]).items():
        pods = [
            {"kind": "Pod", **entry} if "metadata" in entry else by_uid(entry["UID"], i, name)
            for i, entry in enumerate(victims["Pods"] or ())
        ]
        sizes = [
            int(p["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"]) for p in pods
        ]
        for i in range(8 - sum(sizes)):
            pods.append(pod(f"{name}-high{i}", name, cpu="1", priority=20000))
            sizes.append(1)
        documents += [node(name), *pods]
        if known:
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            held = {
                p["metadata"]["name"]: list(range(start, start + size))
                for p, start, size in zip(pods, starts, sizes, strict=True)
            }
            documents.append(flextopo(name, held))
    return make_cache(documents)


def by_uid(uid: str, i: int, name: str) -> dict[str, Any]:
    gpus = 4 if name == "gpu-b" else 1
    return pod(
        f"{name}-low{i}", name, gpus=gpus, cpu="1", meta={"uid": uid, "namespace": "default"}
    )


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("cached", ["", "_nodecache"])
def test_recorded_preemptions_are_answered_so_that_kube_scheduler_accepts(
    cached: str, known: bool
) -> None:
    request = recorded(f"extender_preempt_request{cached}")
    cache = recorded_cluster(request, known=known)
    answer = ask(make_extender(cache), "preempt", request)
    check_accepted(request, answer, cache)
    # Four cards are needed: gpu-a's four victims, or gpu-b's one.
    recorded_answer = recorded(f"extender_preempt_response{cached}")["NodeNameToMetaVictims"]
    for name, victims in answer["NodeNameToMetaVictims"].items():
        assert {p["UID"] for p in victims["Pods"]} == {
            p["UID"] for p in recorded_answer[name]["Pods"]
        }
    assert len(answer["NodeNameToMetaVictims"]) == 1


@pytest.mark.parametrize("cached", ["", "_nodecache"])
def test_nodes_that_came_without_victims_are_filled(cached: str) -> None:
    request = recorded(f"extender_preempt_request_emptyvictims{cached}")
    request["Pod"]["metadata"]["annotations"] = {
        "godel.bytedance.com/flextopo-requirement": "guaranteed"
    }
    # Four cards are free, two on each socket; four one-card pods hold the others.
    held = {f"low{i}": [gpu] for i, gpu in enumerate((0, 1, 4, 5))}
    documents = [node("gpu-a"), flextopo("gpu-a", held)]
    documents += [pod(name, "gpu-a") for name in held]
    cache = make_cache(documents)
    answer = ask(make_extender(cache), "preempt", request)
    check_accepted(request, answer, cache)
    victims = answer["NodeNameToMetaVictims"]["gpu-a"]["Pods"]
    assert sorted(victim["UID"] for victim in victims) in (
        ["uid-low0", "uid-low1"], ["uid-low2", "uid-low3"],
    )  # fmt: skip


def test_an_empty_node_that_fits_is_passed_on_and_one_that_never_does_is_left_out() -> None:
    cache = make_cache([*full_node("n0", 2), *full_node("n1")])
    extender = make_extender(cache)
    answer = ask(extender, "preempt", meta_victims({"n0": []}))
    assert answer == {"NodeNameToMetaVictims": {"n0": {"Pods": [], "NumPDBViolations": 0}}}
    low = preemptor(2, priority=50)
    assert ask(extender, "preempt", meta_victims({"n1": []}, low)) == {"NodeNameToMetaVictims": {}}


@pytest.mark.parametrize("cached", ["", "_nodecache"])
def test_recorded_filters_keep_nodes_as_they_came(cached: str) -> None:
    request = recorded(f"extender_filter_request{cached}")
    cache = make_cache([node("gpu-b")])
    answer = ask(make_extender(cache), "filter", request)
    assert answer["FailedNodes"] == answer["FailedAndUnresolvableNodes"] == {}
    if cached:
        assert answer["NodeNames"] == ["gpu-b"]
        assert "Nodes" not in answer
    else:
        assert answer["Nodes"]["items"] == request["Nodes"]["items"]
        assert answer["Nodes"] == recorded("extender_filter_response")["Nodes"]


def nodes_request(names: Sequence[str], asking: Any) -> dict[str, Any]:
    return {"Pod": asking, "Nodes": None, "NodeNames": list(names)}


FILTERED = [
    *full_node("half", 0),
    *full_node("full"),
    *[node("spread"), flextopo("spread", {f"s{i}": [i] for i in (0, 1, 2, 4, 5, 6)})],
    *[pod(f"s{i}", "spread") for i in (0, 1, 2, 4, 5, 6)],
    node("flat"),
    node("guess"),
    flextopo("guess", {}),
    pod("g", "guess"),
]


def test_filter_refuses_what_does_not_align_a_guaranteed_pod() -> None:
    extender = make_extender(make_cache(FILTERED))
    names = ["half", "full", "spread", "flat", "guess", "new"]
    answer = ask(extender, "filter", nodes_request(names, preemptor(2)))
    assert answer["NodeNames"] == ["half"]
    assert answer["FailedAndUnresolvableNodes"] == {}
    words = {
        "full": "do not fit",
        "spread": "on several sockets",
        "flat": "no FlexTopo",
        "guess": "not known",
        "new": "not seen",
    }
    assert set(answer["FailedNodes"]) == set(words)
    for name, word in words.items():
        assert word in answer["FailedNodes"][name]
    # Others are none of the filter's business.
    for requirement in ("best-effort", "none"):
        answer = ask(extender, "filter", nodes_request(names, preemptor(2, requirement)))
        assert answer["NodeNames"] == names
    # Nine cards never fit, whoever leaves.
    answer = ask(extender, "filter", nodes_request(["half", "full"], preemptor(9)))
    assert set(answer["FailedAndUnresolvableNodes"]) == {"half", "full"}
    # Eight cards are aligned at the best level that the server gives.
    assert ask(extender, "filter", nodes_request(["half"], preemptor(8)))["NodeNames"] == ["half"]


def test_prioritize_scores_the_alignment_of_free_resources() -> None:
    extender = make_extender(make_cache(FILTERED))
    names = ["half", "full", "spread", "flat", "guess", "new"]
    found = ask(extender, "prioritize", nodes_request(names, preemptor(2)))
    assert [entry["Host"] for entry in found] == names
    # Two cards never share a NUMA node here, so one socket is the best; the spread two miss that.
    assert [entry["Score"] for entry in found] == [10, 0, 0, 0, 0, 0]
    # Only GPU 3 is free, and the cores of its NUMA node are taken: those of the socket are left.
    others = [i for i in range(1, 8) if i != 3]
    late = [node("late"), flextopo("late", {f"late-b{i}": [i] for i in others})]
    late += [pod(f"late-b{i}", "late") for i in others]
    where = {"flextopo/gpus": "0", "flextopo/cores": "0-6"}
    late.append(pod("late-b0", "late", annotations=where))
    extender = make_extender(make_cache([*late, *full_node("half", 0)]))
    one = ask(extender, "prioritize", nodes_request(["half", "late"], preemptor(1)))
    assert [entry["Score"] for entry in one] == [10, 5]


def test_a_served_policy_leaves_no_pod_waiting_unless_told_to() -> None:
    name = "deepset-imitation"
    cache, request = make_cache(full_node()), meta_victims({"n0": ["uid-n0-b3"]}, preemptor(1))
    waits: dict[str, Any] = {"NodeNameToMetaVictims": {}}
    # By its scores the shipped policy would wait here, for ever since nothing changes.
    assert ask(make_extender(cache, selector=find_selector(name)), "preempt", request) == waits
    extender = make_extender(cache, selector=find_served(name))
    answer = ask(extender, "preempt", request)
    check_accepted(request, answer, cache)
    assert len(answer["NodeNameToMetaVictims"]["n0"]["Pods"]) == 1
    for created, expected in (("2027-01-15T07:59:30Z", waits), ("2027-01-15T07:58:30Z", answer)):
        patient = make_extender(make_cache(full_node()), selector=find_served(f"{name}@60"))
        request["Pod"]["metadata"]["creationTimestamp"] = created
        assert ask(patient, "preempt", request) == expected


def test_a_pod_without_gpus_is_left_alone() -> None:
    extender = make_extender(make_cache(full_node()))
    web = pod("web", gpus=0, priority=1000)
    request = meta_victims({"n0": ["uid-n0-b3"]}, web)
    answer = ask(extender, "preempt", request)
    assert answer["NodeNameToMetaVictims"] == request["NodeNameToMetaVictims"]
    assert ask(extender, "filter", nodes_request(["n0"], web))["NodeNames"] == ["n0"]
    assert ask(extender, "prioritize", nodes_request(["n0"], web)) == [{"Host": "n0", "Score": 0}]


def lowered(value: Any) -> Any:
    """Write the protocol's keys as older clients do."""
    renamed = {
        "Pod": "pod", "NodeNameToMetaVictims": "nodeNameToMetaVictims", "Nodes": "nodes",
        "NodeNameToVictims": "nodeNameToVictims", "NodeNames": "nodenames", "Pods": "pods",
        "NumPDBViolations": "numPDBViolations", "UID": "uid",
    }  # fmt: skip
    if isinstance(value, dict):
        return {renamed.get(k, k): v if k == "Pod" else lowered(v) for k, v in value.items()}
    return [lowered(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("full", [True, False])
def test_lower_case_keys_are_tolerated(full: bool) -> None:
    extender = make_extender(make_cache(full_node()))
    request = meta_victims({"n0": ["uid-n0-b3", "uid-n0-b5"]})
    if full:
        pods = [pod("n0-b3", "n0"), pod("n0-b5", "n0")]
        request["NodeNameToMetaVictims"] = None
        request["NodeNameToVictims"] = {"n0": {"Pods": pods, "NumPDBViolations": 0}}
    expected = ask(extender, "preempt", request)
    assert len(expected["NodeNameToMetaVictims"]["n0"]["Pods"]) == 2
    assert ask(extender, "preempt", lowered(request)) == expected
    # Victims must not get lost where only the inner keys are of another case.
    mixed = {k: v if k == "Pod" else lowered(v) for k, v in request.items()}
    assert ask(extender, "preempt", mixed) == expected
    # Nor where those of the victims alone are, or where a node came without.
    for key in ("uid", "Uid"):
        victims = request["NodeNameToMetaVictims"]
        odd = [{key: one["UID"]} for one in victims["n0"]["Pods"]] if victims else []
        body = {**request, "NodeNameToMetaVictims": {"n0": {"Pods": odd}}}
        if victims:
            assert ask(extender, "preempt", body) == expected
    for empty in ({}, {"NumPDBViolations": 0}, {"Pods": None}, None):
        body = {"Pod": preemptor(2), "NodeNameToMetaVictims": {"n0": empty, "n1": empty}}
        assert "NodeNameToMetaVictims" in ask(extender, "preempt", body)
    names = nodes_request(["n0"], preemptor(2))
    assert ask(extender, "filter", lowered(names)) == ask(extender, "filter", names)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"Pod": 1}', b'{"Pod": {}}', b'{"Pod": {"metadata": {}}}',
     b"\xff", b'{"Pod": ' + b"[" * 100_000, json.dumps({"Pod": preemptor(2)}).encode(),
     json.dumps({"Pod": preemptor(2), "NodeNameToMetaVictims": {"n0": {"Pods": [{}]}}}).encode(),
     json.dumps({"Pod": preemptor(2), "NodeNameToMetaVictims": {"n0": 3}}).encode(),
     json.dumps({"Pod": preemptor(2, cpu="-1"), "NodeNameToMetaVictims": {}}).encode()],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["preempt", "filter", "prioritize"])
def test_bad_bodies_are_one_sentence(verb: str, body: bytes) -> None:
    with pytest.raises(ObjectError) as error:
        ask(make_extender(make_cache(full_node())), verb, body)
    assert "\n" not in str(error.value)


def test_deep_unknown_fields_do_no_harm() -> None:
    body = json.dumps(meta_victims({"n0": []})).encode()
    deep = body[:-1] + b', "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    with pytest.raises(ObjectError):
        ask(make_extender(make_cache(full_node())), "preempt", deep)


def test_victims_on_unknown_nodes_and_unknown_victims_are_not_evicted() -> None:
    extender = make_extender(make_cache(full_node()))
    # An error would let kube-scheduler's own victims stand, protected or not.
    answer = ask(extender, "preempt", meta_victims({"nowhere": ["x"]}))
    assert answer == {"NodeNameToMetaVictims": {}}
    assert ask(extender, "preempt", meta_victims({})) == {"NodeNameToMetaVictims": {}}
    answer = ask(extender, "preempt", meta_victims({"n0": ["stranger"]}))
    assert "stranger" not in json.dumps(answer)
    assert len(answer["NodeNameToMetaVictims"]["n0"]["Pods"]) == 2


def test_victims_go_by_descending_priority_with_true_violations() -> None:
    documents = full_node()
    for i, priority in enumerate((5, 300, 20, 100, 1, 1, 1, 1)):
        documents[2 + i] = pod(f"n0-b{i}", "n0", priority=priority)
    cache = make_cache(documents)
    request = meta_victims({"n0": [f"uid-n0-b{i}" for i in range(4)]}, preemptor(8))
    answer = ask(make_extender(cache), "preempt", request)
    check_accepted(request, answer, cache)
    assert [p["UID"] for p in answer["NodeNameToMetaVictims"]["n0"]["Pods"]][:3] == [
        "uid-n0-b1", "uid-n0-b3", "uid-n0-b2",
    ]  # fmt: skip


def test_shadow_answers_what_came_and_logs_both() -> None:
    lines: list[bytes] = []
    extender = make_extender(make_cache(full_node()), lines, shadow=True)
    request = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b7"]})
    answer = ask(extender, "preempt", request)
    assert answer["NodeNameToMetaVictims"] == request["NodeNameToMetaVictims"]
    (event,) = map(json.loads, lines)
    assert event["shadow"] is True
    assert event["default"]["victims"] == ["batch/n0-b0", "batch/n0-b7"]
    assert event["default"]["level"] == "cross_socket"
    assert event["default"]["aligned"] is False
    assert event["level"] == "socket"
    assert event["default"]["cost_gpu_h"] > event["cost_gpu_h"]
    # Nothing is refused either.
    names = nodes_request(["n0"], preemptor(2))
    assert ask(extender, "filter", names)["NodeNames"] == ["n0"]


GANG = {"kueue.x-k8s.io/pod-group-name": "llm"}
TOLD = {"kueue.x-k8s.io/pod-group-total-count": "2"}


@pytest.mark.parametrize(
    ("others", "asking", "left"),
    [
        ([{}], {}, True),  # both are there
        ([], {}, True),  # one is still to come
        ([{"priority": 900}], {}, False),  # members differ: no controller decides about them
        ([{"node": "n1"}, {"node": "n1"}], {}, False),  # as many as must run together do
        ([{}], {"labels": {}}, False),  # one alone
        ([{}], {"requirement": "none"}, False),  # not online
    ],
)
def test_nobody_is_evicted_for_one_of_a_gang_where_a_controller_decides_about_it(
    others: list[dict[str, Any]], asking: dict[str, Any], left: bool
) -> None:
    """kube-scheduler asks about one pod at a time: its choice for the first may leave no place for the second."""
    request = preemptor(2, asking.get("requirement", "guaranteed"), annotations=TOLD)
    request["metadata"]["labels"] = asking.get("labels", GANG)
    documents = [*full_node("n0"), *full_node("n1", 0), request]
    for i, other in enumerate(others):
        change = dict(other)
        bound = change.pop("node", None)
        one = preemptor(2, name=f"other-{i}", annotations=TOLD, **change)
        one["metadata"]["labels"] = GANG
        if bound:
            one["spec"]["nodeName"], one["status"]["phase"] = bound, "Running"
        documents.append(one)
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, request)
    for leave_gangs in (True, False):
        lines: list[bytes] = []
        extender = make_extender(make_cache(documents), lines, leave_gangs=leave_gangs)
        answer = ask(extender, "preempt", body)["NodeNameToMetaVictims"]
        assert bool(answer) == (not left or not leave_gangs)
        assert (b"a controller decides" in b"".join(lines)) == (left and leave_gangs)


def with_a_place_kept(held: Mapping[str, Sequence[int]], gpus: int, **more: Any) -> ClusterCache:
    """Return a node on which pods hold GPUs, and a guaranteed pod is nominated for a place."""
    ahead = preemptor(gpus, name="ahead", status={"nominatedNodeName": "n0"}, **more)
    pods = [pod(name, "n0", gpus=len(here), cpu=str(7 * len(here))) for name, here in held.items()]
    return make_cache([node("n0"), flextopo("n0", held), *pods, ahead])


@pytest.mark.parametrize("requirement", ["none", "best-effort", "guaranteed"])
def test_nobody_is_let_in_who_might_be_given_what_was_freed_for_another(requirement: str) -> None:
    """kubelet knows of no planned place: it gave a pod GPU 0 although 6 and 7 were free as well."""
    cache = with_a_place_kept({"b4": [4], "b5": [5]}, 4)
    extender = make_extender(cache)
    late = preemptor(1, requirement, name="late", priority=500)
    for _ in range(2):
        answer = ask(extender, "filter", nodes_request(["n0"], late))
        assert "kept for batch/ahead" in answer["FailedNodes"]["n0"]
    # Nor is anybody evicted for it elsewhere: it has a place as soon as the other is bound.
    assert cache.reservations.is_held_back("uid-late")
    # Who comes first is let in; and then the other is.
    first = preemptor(4, name="ahead", status={"nominatedNodeName": "n0"})
    assert ask(extender, "filter", nodes_request(["n0"], first))["NodeNames"] == ["n0"]
    cache.put(read({**first, "spec": {**first["spec"], "nodeName": "n0"}}))
    cache.put(read(flextopo("n0", {"b4": [4], "b5": [5], "ahead": [0, 1, 2, 3]})))
    assert ask(extender, "filter", nodes_request(["n0"], late))["NodeNames"] == ["n0"]


@pytest.mark.parametrize(("lands", "nominated"), [(0, True), (4, True), (0, False)])
def test_who_is_on_its_way_may_be_given_another_place_than_the_one_planned(
    lands: int, nominated: bool
) -> None:
    """Two were bound within 2 ms: the one planned for GPU 0 got GPU 4, the other 0, 5, 6 and 7."""
    held = {f"b{gpu}": [gpu] for gpu in (1, 2, 3)}
    first = preemptor(1, name="first", priority=2000, status={"nominatedNodeName": "n0"})
    status = {"nominatedNodeName": "n0"} if nominated else {}
    second = preemptor(4, name="second", status=status)
    pods = [pod(name, "n0") for name in held]
    waiting = [first, second] if nominated else [first]
    cache = make_cache([node("n0"), flextopo("n0", held), *pods, *waiting])
    extender = make_extender(cache)
    request = nodes_request(["n0"], second)
    assert ask(extender, "filter", nodes_request(["n0"], first))["NodeNames"] == ["n0"]
    answer = ask(extender, "filter", request)
    assert answer["NodeNames"] == []
    assert "batch/first" in answer["FailedNodes"]["n0"]
    cache.put(read({**first, "spec": {**first["spec"], "nodeName": "n0"}}))
    cache.put(read(flextopo("n0", {**held, "first": [lands]})))
    assert ask(extender, "filter", request)["NodeNames"] == (["n0"] if lands == 0 else [])


@pytest.mark.parametrize(
    ("held", "gpus", "late", "change"),
    [
        # Wherever it lands there is another place.
        ({"b4": [4, 5, 6, 7]}, 2, preemptor(1, "none", name="late", priority=500), {}),
        ({}, 4, preemptor(4, name="late"), {}),
        # Its own place is all that is free; what the other waits for is not.
        ({"b0": [0, 1, 2, 3], "b4": [4, 5]}, 4, preemptor(1, "none", name="late"), {}),
        # The other one does not need a place that is aligned, or comes after it.
        ({"b4": [4]}, 4, preemptor(1, "none", name="late"), {"requirement": "none"}),
        ({"b4": [4]}, 4, preemptor(1, "none", name="late", priority=2000), {}),
        # It does not fit there whoever else does.
        ({"b0": [0], "b4": [4]}, 4, preemptor(1, "none", name="late"), {}),
    ],
)
def test_who_is_in_nobodys_way_is_let_in(
    held: Mapping[str, Sequence[int]], gpus: int, late: dict[str, Any], change: dict[str, Any]
) -> None:
    cache = with_a_place_kept(held, gpus, **change)
    if "b0" in held and len(held["b0"]) > 1:
        leaving = pod("b0", "n0", gpus=4, cpu="28", meta={"deletionTimestamp": SOON})
        cache.put(read(leaving))
    extender = make_extender(cache)
    assert ask(extender, "filter", nodes_request(["n0"], late))["NodeNames"] == ["n0"]


@pytest.mark.parametrize(
    ("kept", "passed"),
    [
        ({"n0": 4}, ["n1"]),  # on n1 it takes nobody's place
        ({"n0": 4, "n1": 2}, ["n1"]),  # of two it takes the smaller
        ({"n0": 2, "n1": 2}, ["n0", "n1"]),
        ({}, ["n0", "n1"]),
    ],
)
def test_who_takes_the_place_of_less_important_pods_takes_the_one_that_costs_least(
    kept: Mapping[str, int], passed: list[str]
) -> None:
    """A pod of 4 GPUs whose place lost one of them left the other three, freed in vain."""
    held = {"n0": [4, 5, 6, 7], "n1": [4, 5, 6, 7]}
    documents: list[dict[str, Any]] = []
    for name, gpus in held.items():
        most = 4 - kept.get(name, 4)
        held_here = {f"{name}-b": gpus, **({f"{name}-c": list(range(most))} if most else {})}
        documents += [node(name), flextopo(name, held_here)]
        documents += [
            pod(one, name, gpus=len(here), cpu=str(7 * len(here)))
            for one, here in held_here.items()
        ]
        if name in kept:
            nominated = {"nominatedNodeName": name}
            documents.append(preemptor(kept[name], name=f"for-{name}", status=nominated))
    request = nodes_request(["n0", "n1"], preemptor(1, name="top", priority=2000))
    assert ask(make_extender(make_cache(documents)), "filter", request)["NodeNames"] == passed
    # A pod of their own priority takes nobody's place, and goes where there is more room.
    if kept == {"n0": 4}:
        request = nodes_request(["n0", "n1"], preemptor(1, name="equal"))
        assert ask(make_extender(make_cache(documents)), "filter", request)["NodeNames"] == ["n1"]


@pytest.mark.parametrize(
    ("kept", "requirement", "controller", "waits"),
    [
        (4, "guaranteed", True, True),
        (1, "guaranteed", True, False),  # it takes as much as the other loses
        (4, "guaranteed", False, False),  # nobody has kube-scheduler look again
        (4, "best-effort", True, True),
        (4, "none", True, True),
    ],
)
def test_who_would_spoil_more_than_it_takes_waits_for_five_seconds(
    kept: int, requirement: str, controller: bool, waits: bool
) -> None:
    now = [0.0]
    held = {"b": [4, 5, 6, 7], **({"c": list(range(4 - kept))} if kept < 4 else {})}
    cache = with_a_place_kept(held, kept)
    cache.reservations._clock = lambda: now[0]
    extender = make_extender(cache, leave_gangs=controller)
    top = preemptor(1, requirement, name="top", priority=2000)
    request = nodes_request(["n0"], top)
    assert ask(extender, "filter", request)["NodeNames"] == ([] if waits else ["n0"])
    # Nobody is evicted for it meanwhile.
    assert cache.reservations.is_held_back("uid-top") == waits
    now[0] = 4.9
    assert ask(extender, "filter", request)["NodeNames"] == ([] if waits else ["n0"])
    now[0] = 5.1
    assert ask(extender, "filter", request)["NodeNames"] == ["n0"]


@pytest.mark.parametrize("controller", [True, False])
def test_where_alignment_alone_is_in_the_way_elsewhere_a_controller_has_fewer_evicted(
    controller: bool,
) -> None:
    """With one nominated for n0, kube-scheduler asks about n0 alone: two victims, where one would do."""
    now = [0.0]
    documents = []
    for name, gpus in (("n0", range(2, 8)), ("n1", (1, 2, 3, 5, 6, 7))):
        held = {f"{name}-{i}": [i] for i in gpus}
        documents += [node(name), flextopo(name, held), *(pod(one, name) for one in held)]
    documents.append(preemptor(2, name="first", status={"nominatedNodeName": "n0"}))
    cache = make_cache(documents)
    cache.reservations._clock = lambda: now[0]
    extender = make_extender(cache, leave_gangs=controller)
    second = preemptor(2, name="second")
    body = meta_victims({"n0": ["uid-n0-5", "uid-n0-6"]}, second)

    def asked() -> Any:
        ask(extender, "filter", nodes_request(["n1"], second))
        return ask(extender, "preempt", body)["NodeNameToMetaVictims"]

    assert bool(asked()) == (not controller)
    if controller:
        # It is not left waiting for a controller that never comes.
        for now[0] in range(1, 25):
            answer = asked()
        assert len(answer["n0"]["Pods"]) == 2


@pytest.mark.parametrize("copy", ["kube-scheduler's", "the watch's"])
def test_nobody_is_named_while_a_controller_elsewhere_carries_out_what_it_decided(
    copy: str,
) -> None:
    """kube-scheduler asks again at once when a controller nominates: both had pods evicted."""
    told = {"flextopo/attended": str(NOW_S - 1)}
    attended = preemptor(2, annotations=told, status={"nominatedNodeName": "n0"})
    plain = preemptor(2)
    cache = make_cache([*full_node(), plain if copy == "kube-scheduler's" else attended])
    extender = make_extender(cache)
    asking = attended if copy == "kube-scheduler's" else plain
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b7"]}, asking)
    assert ask(extender, "preempt", body)["NodeNameToMetaVictims"] == {}
    # If nothing came of it, it is asked about like any other.
    cache.told_time(NOW_S + 5)
    assert ask(extender, "preempt", body)["NodeNameToMetaVictims"]["n0"]["Pods"]


@pytest.mark.parametrize("at", ["", "soon", "-5", "2027-01-15T08:00:00Z", "1" * 5000])
def test_an_odd_note_of_a_controller_is_none(at: str) -> None:
    asking = preemptor(2, annotations={"flextopo/attended": at})
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b7"]}, asking)
    cache = make_cache(full_node())
    answer = ask(make_extender(cache), "preempt", body)
    assert answer["NodeNameToMetaVictims"]["n0"]["Pods"]
    # Nor does one on a running pod take its node out of decisions.
    cache.put(read(pod("n0-b0", "n0", annotations={"flextopo/attended": at})))
    assert not cache.problems


LEAVING = {"deletionTimestamp": SOON}


@pytest.mark.parametrize(
    ("leaving", "change", "waits"),
    [
        ([0, 1], {}, True),
        ([0, 4], {}, False),  # on two sockets
        ([0], {}, False),
        ([0, 1], {"spec": {"nodeSelector": {"zone": "a"}}}, False),  # it may not go there
        ([0, 1], {"memory": "600Gi"}, False),  # memory is short
    ],
)
@pytest.mark.parametrize("gone", [SOON, "2027-01-15T08:05:00Z", "2027-01-15T07:59:00Z"])
def test_nobody_goes_where_a_node_that_has_no_victims_is_about_to_have_room(
    leaving: list[int], change: dict[str, Any], waits: bool, gone: str
) -> None:
    """A rolling update: a replica of the old version leaves as the next one of the new version comes."""
    held = {f"old{i}": [i] for i in range(8)}
    old = [
        pod(
            f"old{i}",
            "n1",
            priority=1000,
            meta={"deletionTimestamp": gone} if i in leaving else {},
        )
        for i in range(8)
    ]
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", held), *old])
    extender = make_extender(cache)
    new = preemptor(2, name="new", **change)
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, new)
    answer = ask(extender, "preempt", body)["NodeNameToMetaVictims"]
    waits = waits and gone == SOON  # one that takes minutes, or is overdue, is not waited for
    if waits:
        assert answer == {}
        # So it is when it asks again, also when they have just gone: kube-scheduler does not know it yet.
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"] == {}
        for one in old[:2]:
            cache.remove(read(one))
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"] == {}
        # But not for ever, where kube-scheduler knows why it cannot go there.
        cache.reservations._clock = lambda: time.monotonic() + 41
        assert ask(extender, "preempt", body)["NodeNameToMetaVictims"]
        # The room is kept for it, and for nobody else.
        other = preemptor(2, name="other")
        answer = ask(extender, "preempt", meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, other))
    assert bool(answer) or "memory" in change


@pytest.mark.parametrize("priority", [500, 1000, 2000])
def test_what_is_being_freed_for_another_is_no_room_to_come(priority: int) -> None:
    held = {f"old{i}": [i] for i in range(8)}
    old = [
        pod(f"old{i}", "n1", priority=400, meta=LEAVING if i in (0, 1) else {}) for i in range(8)
    ]
    first = preemptor(2, name="first", status={"nominatedNodeName": "n1"})
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", held), *old, first])
    second = preemptor(2, name="second", priority=priority)
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, second)
    assert ask(make_extender(cache), "preempt", body)["NodeNameToMetaVictims"]


@pytest.mark.parametrize(
    ("leaving", "free", "priority", "waits"),
    [
        ([4, 5], [0, 1], 500, True),
        (
            [4, 5],
            [0, 1],
            2000,
            False,
        ),  # it would get the free ones, and the other wait for those that leave
        ([0, 1, 2, 3], [], 2000, True),  # both wait for what leaves, and it suffices for both
        ([0, 1, 2], [], 500, False),
        ([0, 1, 2], [], 2000, False),
    ],
)
def test_who_waits_for_room_keeps_nobody_who_comes_later_from_its_place(
    leaving: list[int], free: list[int], priority: int, waits: bool
) -> None:
    """A more important pod that was promised what leaves comes first there: a pod whose victims had gone went on."""
    held = {f"old{i}": [i] for i in range(8) if i not in free}
    old = [
        pod(f"old{i}", "n1", priority=400, meta=LEAVING if i in leaving else {})
        for i in range(8)
        if i not in free
    ]
    first = preemptor(2, name="first", priority=1000, status={"nominatedNodeName": "n1"})
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", held), *old, first])
    second = preemptor(2, name="second", priority=priority)
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, second)
    answer = ask(make_extender(cache), "preempt", body)["NodeNameToMetaVictims"]
    assert (answer == {}) == waits
    told = cache.reservations.answered("uid-second")
    assert told is not None
    assert told[0] == ("n1" if waits else "n0")


@pytest.mark.parametrize("fresh", [True, False])
def test_a_replica_that_was_bound_a_moment_ago_hides_no_room_to_come(fresh: bool) -> None:
    held = {f"old{i}": [i] for i in range(7)}
    old = [
        pod(f"old{i}", "n1", priority=1000, meta=LEAVING if i in (0, 1) else {}) for i in range(7)
    ]
    at = "2027-01-15T08:00:00Z" if fresh else "2027-01-15T07:00:00Z"
    bound = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at}]
    late = pod("late", "n1", priority=1000, status={"conditions": bound})
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", held), *old, late])
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, preemptor(2, name="new"))
    answer = ask(make_extender(cache), "preempt", body)["NodeNameToMetaVictims"]
    assert (answer == {}) == fresh


def test_who_is_in_the_way_is_worked_out_once_until_the_node_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 1,000 nodes each was looked at twice, and 100 with places kept there took 70 ms."""
    cache = with_a_place_kept({"b4": [4], "b5": [5]}, 4)
    for name in ("n1", "n2"):
        cache.put(read(node(name)))
        cache.put(read(flextopo(name, {})))
    extender, derived = make_extender(cache), []
    derive = ClusterCache.derive

    def counted(self: ClusterCache, name: str, without: Any = ()) -> Any:
        derived.append(name)
        return derive(self, name, without)

    cache.refresh()
    monkeypatch.setattr(ClusterCache, "derive", counted)

    def asked(name: str) -> Any:
        late = preemptor(1, "none", name=name, priority=500)
        return ask(extender, "filter", nodes_request(["n0", "n1", "n2"], late))["NodeNames"]

    for each in ("late", "later"):
        assert asked(each) == ["n1", "n2"]
        assert derived == ["n0"]
    # Without one of the pods there the other place is left.
    cache.remove(read(pod("b4", "n0")))
    cache.remove(read(pod("b5", "n0")))
    cache.put(read(flextopo("n0", {})))
    assert asked("latest") == ["n0", "n1", "n2"]


@pytest.mark.parametrize(
    ("kept", "elsewhere", "spares"),
    [
        (4, 1, True),
        (1, 1, False),  # it takes as much as the other loses
        (4, 2, True),
        (4, 4, False),
        (2, 4, False),  # elsewhere more would go than the other loses
    ],
)
def test_nobody_takes_a_part_of_a_place_where_fewer_go_elsewhere(
    kept: int, elsewhere: int, spares: bool
) -> None:
    """One GPU of four that others had left was taken, and three of them had gone in vain: four more went."""
    ends = {f"old{i}": [i] for i in range(kept)} | {"rest": list(range(kept, 8))}
    first = pod("rest", "n0", gpus=8 - kept, cpu=str(7 * (8 - kept)), priority=3000)
    leave = [pod(f"old{i}", "n0", priority=400, meta=LEAVING) for i in range(kept)]
    low = preemptor(kept, name="low", status={"nominatedNodeName": "n0"})
    jobs = {f"job{i}": list(range(i, i + elsewhere)) for i in range(0, 8, elsewhere)}
    batch = [pod(name, "n1", gpus=elsewhere, cpu=str(7 * elsewhere)) for name in jobs]
    documents = [node("n0"), flextopo("n0", ends), first, *leave, low]
    cache = make_cache([*documents, node("n1"), flextopo("n1", jobs), *batch])
    top = preemptor(1, name="top", priority=2000)
    body = meta_victims({"n0": ["uid-old0"], "n1": ["uid-job0"]}, top)
    answer = ask(make_extender(cache), "preempt", body)["NodeNameToMetaVictims"]
    assert (answer != {}) == spares
    told = cache.reservations.answered("uid-top")
    assert told is not None
    assert told[0] == ("n1" if spares else "n0")


@pytest.mark.parametrize(("running", "goes"), [(500, True), (1500, False)])
def test_no_more_important_pod_goes_so_that_a_less_important_one_keeps_its_place(
    running: int, goes: bool
) -> None:
    held = {**{f"old{i}": [i] for i in range(4)}, "rest": [4, 5, 6, 7]}
    rest = pod("rest", "n0", gpus=4, cpu="28", priority=3000)
    leave = [pod(f"old{i}", "n0", priority=100, meta=LEAVING) for i in range(4)]
    low = preemptor(4, name="low", priority=500, status={"nominatedNodeName": "n0"})
    jobs = {f"job{i}": [i] for i in range(8)}
    there = [pod(name, "n1", priority=running) for name in jobs]
    documents = [node("n0"), flextopo("n0", held), rest, *leave, low]
    cache = make_cache([*documents, node("n1"), flextopo("n1", jobs), *there])
    top = preemptor(1, name="top", priority=2000)
    body = meta_victims({"n0": ["uid-old0"], "n1": ["uid-job0"]}, top)
    answer = ask(make_extender(cache), "preempt", body)["NodeNameToMetaVictims"]
    assert (answer != {}) == goes


def test_a_second_search_that_fails_leaves_the_first_ones_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = {**{f"old{i}": [i] for i in range(4)}, "rest": [4, 5, 6, 7]}
    rest = pod("rest", "n0", gpus=4, cpu="28", priority=3000)
    leave = [pod(f"old{i}", "n0", priority=100, meta=LEAVING) for i in range(4)]
    low = preemptor(4, name="low", priority=500, status={"nominatedNodeName": "n0"})
    cache = make_cache([node("n0"), flextopo("n0", held), rest, *leave, low, *full_node("n1")])
    extender, runs = make_extender(cache), list[Any]()
    run = extender.decider.run

    def once(*about: Any) -> Any:
        runs.append(about)
        if len(runs) > 1:
            raise RuntimeError("no more")
        return run(*about)

    monkeypatch.setattr(extender.decider, "run", once)
    asking = read_record(preemptor(1, name="top", priority=2000))
    assert extender.decider.decide(asking, ["n0", "n1"]).node == "n0"
    assert len(runs) > 1


def test_a_place_of_its_own_is_refused_to_nobody_for_a_less_important_pod() -> None:
    """It was refused all other nodes for its own place's sake, and that one for another's."""
    held = {"rest": [4, 5, 6, 7], "old3": [3]}
    nominee = {"nominatedNodeName": "n0"}
    rest = pod("rest", "n0", gpus=4, cpu="28", priority=3000)
    low = preemptor(4, name="low", priority=500, status=nominee)
    top = preemptor(1, name="top", priority=2000, status=nominee)
    leaves = pod("old3", "n0", priority=400, meta=LEAVING)
    documents = [node("n0"), flextopo("n0", held), rest, leaves, low, top]
    cache = make_cache([*documents, node("n1"), flextopo("n1", {})])
    request = nodes_request(["n0", "n1"], top)
    assert ask(make_extender(cache, leave_gangs=True), "filter", request)["NodeNames"] == ["n0"]


def test_a_victim_that_ends_before_it_is_evicted_leaves_nothing_twice() -> None:
    cache = make_cache(full_node("n1"))
    cache.put(read(pod("n1-b0", "n1", status={"phase": "Succeeded"})))
    cache.mark_terminating("uid-n1-b0")
    assert cache.book.leaving == {}


def test_who_was_let_in_a_moment_ago_is_looked_for_only_where_it_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 100 pods let in a moment before, a filter of 1,000 full nodes took over a second."""
    names = [f"n{i}" for i in range(3)]
    full = {f"b{i}": [i] for i in range(8)}
    documents = [one for name in names for one in (node(name), flextopo(name, {}))]
    documents += [node("full"), flextopo("full", full), *(pod(name, "full") for name in full)]
    extender, looked = make_extender(make_cache(documents)), []
    for i in range(3):
        ask(extender, "filter", nodes_request(names, preemptor(8, "none", name=f"in{i}")))
    monkeypatch.setattr(NodeState, "holding", lambda self, uid: looked.append(uid))
    request = nodes_request(["full", *names], preemptor(2, name="late"))
    assert ask(extender, "filter", request)["NodeNames"] == names
    assert looked == []


def test_replicas_find_each_node_as_it_was_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make_cache(full_node())
    extender, looked = make_extender(cache), list[Any]()

    def counted(*about: Any) -> int:
        looked.append(about)
        return alignment_level(*about)

    monkeypatch.setattr(decider, "alignment_level", counted)
    for i in range(3):
        request = nodes_request(["n0"], preemptor(2, name=f"r{i}"))
        assert ask(extender, "filter", request)["NodeNames"] == []
    assert len(looked) == 1
    for gpus in range(1, 9):
        for cores in range(gpus, 9 * gpus, gpus):
            ask(extender, "filter", nodes_request(["n0"], preemptor(gpus, cpu=str(cores))))
    assert len(cache.nodes.states["n0"].alignments) <= decider.MOST_SHAPES
    for name in ("n0-b0", "n0-b1"):
        cache.remove(read(pod(name, "n0")))
    assert ask(extender, "filter", request)["NodeNames"] == ["n0"]


@pytest.mark.parametrize("gone", ["ahead", "b0", ""])
def test_no_place_is_kept_where_its_pod_or_who_is_to_leave_it_hangs_for_ever(gone: str) -> None:
    """A finalizer keeps a pod that was deleted before it was bound, or a victim long after its time."""
    held = {"b4": [4, 5], "b0": [0, 1]}
    cache = with_a_place_kept(held, 4)
    late = nodes_request(["n0"], preemptor(1, "none", name="late", priority=500))
    at = {name: "2027-01-15T08:00:20Z" for name in ("b0",)}
    at |= {gone: "2027-01-15T07:58:00Z"} if gone else {}
    for name, time_s in at.items():
        meta = {"deletionTimestamp": time_s}
        if name == "ahead":
            nominated = {"nominatedNodeName": "n0"}
            cache.put(read(preemptor(4, name="ahead", meta=meta, status=nominated)))
        else:
            cache.put(read(pod(name, "n0", gpus=2, cpu="14", meta=meta)))
    assert ask(make_extender(cache), "filter", late)["NodeNames"] == (["n0"] if gone else [])


def test_nothing_is_remembered_for_ever_of_pods_that_are_gone_when_they_are_asked_about() -> None:
    now = [0.0]
    cache = with_a_place_kept({"b0": [0], "b4": [4]}, 2)
    cache.reservations._clock = lambda: now[0]
    extender, late = make_extender(cache), preemptor(4, name="late", priority=500)
    cache.remove(read(late))
    ask(extender, "filter", nodes_request(["n0"], late))
    assert cache.reservations.refused("uid-late")
    cache.reservations.hold_back("uid-late")
    cache.reservations.may_wait("uid-late", "room", 40)
    now[0] = 601.0
    cache.refresh()
    about = vars(cache.reservations).values()
    assert not any(isinstance(each, dict) and "uid-late" in each for each in about)


def test_of_nodes_that_too_few_gpus_leave_nothing_more_is_worked_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a drain of 900 nodes each preemption took 17 ms."""
    held = {f"old{i}": [i] for i in range(8)}
    old = [pod(f"old{i}", "n1", priority=1000, meta=LEAVING if i == 0 else {}) for i in range(8)]
    cache = make_cache([*full_node(), node("n1"), flextopo("n1", held), *old])
    looked: list[Any] = []
    monkeypatch.setattr(decider, "fits_later", lambda *about: looked.append(about))
    for gpus in (2, 1):
        body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, preemptor(gpus, name=f"p{gpus}"))
        ask(make_extender(cache), "preempt", body)
        assert len(looked) == 2 - gpus
