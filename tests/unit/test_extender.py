"""The verbs of kube-scheduler, on recorded bodies and on hand-made ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from extenders import ask, make_extender, meta_victims, nodes_request
from kube_objects import (
    NOW_S,
    REQUIREMENT,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
)

from flextopo.policies.selectors import find_selector, find_served
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import ObjectError

RECORDED = Path(__file__).parents[3] / "shared" / "cases" / "extender"


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
     json.dumps({"Pod": preemptor(2), "NodeNameToMetaVictims": {"n0": 3}}).encode()],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["preempt", "filter", "prioritize"])
def test_bad_bodies_are_one_sentence(verb: str, body: bytes) -> None:
    with pytest.raises(ObjectError) as error:
        ask(make_extender(make_cache(full_node())), verb, body)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("more", [{"cpu": "-1"}, {"cpu": "8Ei"}, {"priority": 2**31}])
def test_nobody_goes_for_a_pod_that_cannot_be_read(more: dict[str, Any]) -> None:
    """An error had kube-scheduler evict whom it had chosen, protected pods among them."""
    lines = list[bytes]()
    extender = make_extender(make_cache(full_node()), lines)
    asking = preemptor(2, **more)
    body = meta_victims({"n0": ["uid-n0-b0", "uid-n0-b1"]}, asking)
    assert ask(extender, "preempt", body)["NodeNameToMetaVictims"] == {}
    assert b"undecidable" in lines[-1]
    found = ask(extender, "filter", nodes_request(["n0"], asking))
    assert found["NodeNames"] == []
    assert "batch/online" in found["FailedNodes"]["n0"]
    scores = ask(extender, "prioritize", nodes_request(["n0"], asking))
    assert scores == [{"Host": "n0", "Score": 0}]


def test_a_shadow_changes_nothing_for_a_pod_that_cannot_be_read() -> None:
    extender = make_extender(make_cache(full_node()), shadow=True)
    asking = preemptor(2, priority=2**31)
    sent = {"n0": ["uid-n0-b0", "uid-n0-b1"]}
    found = ask(extender, "preempt", meta_victims(sent, asking))["NodeNameToMetaVictims"]
    assert {name: [one["UID"] for one in entry["Pods"]] for name, entry in found.items()} == sent
    passed = ask(extender, "filter", nodes_request(["n0", "n9"], asking))
    assert (passed["NodeNames"], passed["FailedNodes"]) == (["n0", "n9"], {})


@pytest.mark.parametrize(
    "told",
    [
        {REQUIREMENT: "Guaranteed"},
        {"godel.bytedance.com/protection-duration-from-preemption": "1h"},
        {"flextopo/checkpoint-interval-s": "600.0"},
        {"flextopo/gpus": "all"},
    ],
)
def test_a_slip_in_the_preemptors_annotations_protects_nobody_less(told: dict[str, str]) -> None:
    documents = full_node()
    for i in range(4):
        kept = {"godel.bytedance.com/can-be-preempted": "false"}
        documents[2 + i] = pod(f"n0-b{i}", "n0", annotations=kept)
    cache = make_cache(documents)
    asking = preemptor(2, annotations=told)
    found = ask(make_extender(cache), "preempt", meta_victims({"n0": ["uid-n0-b0"]}, asking))
    victims = [one["UID"] for one in found["NodeNameToMetaVictims"]["n0"]["Pods"]]
    assert len(victims) == 2
    assert set(victims) <= {f"uid-n0-b{i}" for i in range(4, 8)}
    cache.put(read(asking))
    assert "Pod uid-online" in cache.problems


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
