"""Whatever comes as a body: an answer within the guards or one clear error, and no crash."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kube_objects import (
    RTX4090,
    budget,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
)

from flextopo.baselines.registry import make_selector
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.budgets import violations
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.telemetry import Telemetry

FALLBACK = make_selector("flextopo-best-effort")
SELECTORS = ("greedy-cost", "flextopo", "kubernetes", "random")
RUBBISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def extender(cache: ClusterCache, selector: str = "greedy-cost") -> Extender:
    decider = Decider(cache, make_selector(selector), FALLBACK, budget_s=60)
    return Extender(decider, Telemetry(cache, write=lambda _: None))


def body() -> dict[str, Any]:
    victims = {"Pods": [{"UID": "uid-n0-b0"}, {"UID": "uid-n0-b1"}], "NumPDBViolations": 0}
    return {
        "Pod": preemptor(2),
        "NodeNameToVictims": None,
        "NodeNameToMetaVictims": {"n0": victims},
        "Nodes": None,
        "NodeNames": ["n0"],
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], what: Any) -> Any:
    if not path:
        return what
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = what
    return None


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(["preempt", "filter", "prioritize"]))
def test_wrong_types_anywhere_give_an_answer_or_a_clear_error(data: Any, verb: str) -> None:
    document = body()
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        changed = put(document, path, data.draw(RUBBISH))
        document = document if path else changed
        if not isinstance(document, dict):
            break
    check(verb, json.dumps(document).encode())


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2000), st.sampled_from(["preempt", "filter"]), st.binary(max_size=3))
def test_bodies_that_are_cut_off_or_broken(cut: int, verb: str, rubbish: bytes) -> None:
    whole = json.dumps(body()).encode()
    check(verb, whole[:cut])
    check(verb, whole[:cut] + rubbish + whole[cut + len(rubbish) :])


def check(verb: str, content: bytes) -> None:
    serving = extender(make_cache(full_node()))
    try:
        answer = json.loads(getattr(serving, verb)(content))
    except FlextopoError as error:
        words = str(error)
        assert "\n" not in words
        return
    if verb == "preempt":
        for name, victims in answer["NodeNameToMetaVictims"].items():
            for victim in victims["Pods"]:
                # What is no pod with GPUs is handed back as it came.
                known = serving.decider.cache.pods.get(victim["UID"])
                assert known is None or known.node == name or b"nvidia.com/gpu" not in content


PRIORITIES = (1, 50, 100, 999, 1000, 1001)


@st.composite
def clusters(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw one or two servers with all kinds of pods, some of unknown placement."""
    documents: list[dict[str, Any]] = []
    for n in range(draw(st.integers(1, 2))):
        name = f"n{n}"
        documents.append(node(name, gpus=draw(st.sampled_from((8, 8, 7)))))
        held: dict[str, list[int]] = {}
        free = draw(st.permutations(range(8)))[: draw(st.integers(5, 8))]
        while free:
            size = min(draw(st.sampled_from((1, 1, 1, 2, 4))), len(free))
            gpus, free = free[:size], free[size:]
            pod_name = f"{name}-{gpus[0]}"
            documents.append(draw(residents(pod_name, name, size)))
            if draw(st.integers(0, 9)):
                held[pod_name] = list(gpus)
        if draw(st.integers(0, 9)):
            documents.append(flextopo(name, held, RTX4090))
    allowed = draw(st.integers(-1, 3))
    return [*documents, budget("b", allowed, {"app": "a"})]


@st.composite
def residents(draw: st.DrawFn, name: str, where: str, gpus: int) -> dict[str, Any]:
    annotations: dict[str, str] = {}
    meta: dict[str, Any] = {}
    kind = draw(st.integers(0, 15))
    if kind == 0:
        annotations["godel.bytedance.com/can-be-preempted"] = "false"
    elif kind == 1:
        annotations["godel.bytedance.com/protection-duration-from-preemption"] = "7200"
    elif kind == 2:
        annotations["kubernetes.io/config.mirror"] = "x"
    elif kind == 3:
        meta["ownerReferences"] = [{"kind": "DaemonSet"}]
    elif kind == 4:
        meta["deletionTimestamp"] = "2027-01-15T07:59:00Z"
    meta["labels"] = {"app": draw(st.sampled_from("aab"))}
    return pod(
        name,
        where,
        gpus=gpus,
        cpu=str(7 * gpus),
        priority=draw(st.sampled_from(PRIORITIES)),
        annotations=annotations,
        meta=meta,
    )


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    clusters(),
    st.sampled_from((1, 2, 3, 4, 8)),
    st.sampled_from(("none", "best-effort", "guaranteed")),
    st.sampled_from(SELECTORS),
    st.data(),
)
def test_no_cluster_gets_a_wrong_victim(
    documents: list[dict[str, Any]], gpus: int, requirement: str, selector: str, data: Any
) -> None:
    cache = make_cache(documents)
    serving = extender(cache, selector)
    proposed = {}
    for name in cache.nodes.states:
        here = [p.uid for p in cache.book.on(name)]
        uids = data.draw(st.lists(st.sampled_from(here), unique=True)) if here else []
        proposed[name] = {"Pods": [{"UID": uid} for uid in uids], "NumPDBViolations": 0}
    asking = preemptor(gpus, requirement)
    request = {"Pod": asking, "NodeNameToMetaVictims": proposed}
    answer = json.loads(serving.preempt(json.dumps(request).encode()))["NodeNameToMetaVictims"]
    states = dict(make_cache(documents).nodes.states)
    for name, found in answer.items():
        victims = [cache.pods[victim["UID"]] for victim in found["Pods"]]
        state = states[name]
        assert victims or not proposed[name]["Pods"]
        for victim in victims:
            assert victim.node == name
            assert victim.priority < 1000
            assert not victim.terminating
            assert not victim.is_protected(cache.clock())
            assert not victim.static
            assert not victim.daemon
        priorities = [victim.priority for victim in victims]
        if found["Pods"] != proposed[name]["Pods"]:
            assert priorities == sorted(priorities, reverse=True)
            assert found["NumPDBViolations"] == violations(
                victims, list(cache.budgets.by_key.values())
            )
        # By counts it fits, and with any of them back it would not: unless alignment asks for more.
        leaving = sum(p.gpus for p in cache.book.on(name) if p.terminating)
        freed = state.counted.num_gpus + leaving + sum(victim.gpus for victim in victims)
        assert freed >= gpus
        if requirement != "guaranteed" and found["Pods"] != proposed[name]["Pods"]:
            assert all(freed - victim.gpus < gpus for victim in victims)
