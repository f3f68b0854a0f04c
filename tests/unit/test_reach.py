"""Where a pending pod may go, beside resources: as kube-scheduler filters nodes."""

from typing import Any

import pytest
from kube_objects import make_cache, node, pod, read_record

Document = dict[str, Any]


def nodes(**labels: dict[str, str]) -> list[Document]:
    return [
        node(name, labels={"kubernetes.io/hostname": name, **of}) for name, of in labels.items()
    ]


def reachable(spec: Document, documents: list[Document], **more: Any) -> set[str]:
    """Return the nodes that a pending pod may go to."""
    cache = make_cache(documents)
    reach = cache.reach_of(read_record(pod("p", spec=spec, **more)))
    return {name for name in cache.hosts.traits if not reach.why_not(name)}


def required(*expressions: Document, **more: Any) -> Document:
    terms = [{"matchExpressions": list(expressions), **more}]
    rule = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": rule}}


THREE = nodes(a={"zone": "x", "gen": "4"}, b={"zone": "y", "gen": "5"}, c={"gen": "six"})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "abc"),
        ({"nodeSelector": {"zone": "x"}}, "a"),
        ({"nodeSelector": {"zone": "nowhere"}}, ""),
        (required({"key": "zone", "operator": "In", "values": ["x", "y"]}), "ab"),
        (required({"key": "zone", "operator": "NotIn", "values": ["x"]}), "bc"),
        (required({"key": "zone", "operator": "Exists"}), "ab"),
        (required({"key": "zone", "operator": "DoesNotExist"}), "c"),
        (required({"key": "gen", "operator": "Gt", "values": ["4"]}), "b"),
        (required({"key": "gen", "operator": "Lt", "values": ["5"]}), "a"),
        (required({"key": "zone", "operator": "Near", "values": ["x"]}), ""),
        (required(), ""),
        (
            required(matchFields=[{"key": "metadata.name", "operator": "In", "values": ["c"]}]),
            "c",
        ),
    ],
)
def test_selectors_and_affinity_to_nodes(spec: Document, expected: str) -> None:
    assert reachable(spec, THREE) == set(expected)


def tainted(*taints: Document, **more: Any) -> list[Document]:
    document = node("n0")
    document["spec"] = {"taints": list(taints), **more}
    return [document]


TAINT = {"key": "pool", "value": "infer", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("documents", "tolerations", "passes"),
    [
        (tainted(TAINT), [], False),
        (tainted(TAINT | {"effect": "PreferNoSchedule"}), [], True),
        (tainted(TAINT | {"effect": "NoExecute"}), [], False),
        (tainted(TAINT), [{"key": "pool", "value": "infer"}], True),
        (tainted(TAINT), [{"key": "pool", "value": "train"}], False),
        (tainted(TAINT), [{"key": "pool", "operator": "Exists"}], True),
        (tainted(TAINT), [{"operator": "Exists"}], True),
        (tainted(TAINT), [{"operator": "Exists", "effect": "NoExecute"}], False),
        (tainted(TAINT, TAINT | {"key": "other"}), [{"key": "pool", "operator": "Exists"}], False),
        (tainted(unschedulable=True), [], False),
        (
            tainted(unschedulable=True),
            [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}],
            True,
        ),
    ],
)
def test_taints_and_cordons(documents: list[Document], tolerations: Any, passes: bool) -> None:
    assert reachable({"tolerations": tolerations}, documents) == ({"n0"} if passes else set())


@pytest.mark.parametrize(
    ("ready", "passes"), [("True", True), ("False", False), ("Unknown", False)]
)
def test_a_node_that_is_not_ready(ready: str, passes: bool) -> None:
    document = node("n0")
    document["status"]["conditions"] = [{"type": "Ready", "status": ready}]
    assert bool(reachable({}, [document])) is passes


def term(key: str = "kubernetes.io/hostname", **more: Any) -> Document:
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"app": "db"}}, **more}


def affinity(kind: str, *terms: Document) -> Document:
    return {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}}}


DB = pod("db", "a", meta={"labels": {"app": "db"}})


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (affinity("podAntiAffinity", term()), "bc"),
        (affinity("podAntiAffinity", term("zone")), "bc"),
        (affinity("podAntiAffinity", term(namespaces=["other"])), "abc"),
        (affinity("podAntiAffinity", term(namespaceSelector={})), "bc"),
        (affinity("podAffinity", term()), "a"),
        (affinity("podAffinity", term("zone")), "a"),
        (affinity("podAffinity", term(), term("gen")), "a"),
        (affinity("podAffinity", term(namespaces=["other"])), ""),
    ],
)
def test_affinity_to_pods(spec: Document, expected: str) -> None:
    assert reachable(spec, [*THREE, DB]) == set(expected)


def test_a_pod_may_start_a_group_of_its_own() -> None:
    spec = affinity("podAffinity", term("zone"))
    assert reachable(spec, THREE, meta={"labels": {"app": "db"}}) == set("ab")
    assert reachable(spec, THREE) == set()


def test_others_may_not_want_the_pod() -> None:
    shy = pod("shy", "a", spec=affinity("podAntiAffinity", term("zone")))
    assert reachable({}, [*THREE, shy], meta={"labels": {"app": "db"}}) == set("bc")
    assert reachable({}, [*THREE, shy]) == set("abc")
    done = pod("shy", "a", spec=affinity("podAntiAffinity", term()), status={"phase": "Succeeded"})
    assert reachable({}, [*THREE, done], meta={"labels": {"app": "db"}}) == set("abc")


def ports(*pairs: tuple[int, str]) -> Document:
    told = [{"hostPort": port, "protocol": protocol} for port, protocol in pairs]
    return {"containers": [{"name": "c", "ports": told}]}


def test_ports_of_the_host() -> None:
    documents = [*THREE, pod("web", "b", spec=ports((80, "TCP")))]
    assert reachable(ports((80, "TCP")), documents) == set("ac")
    assert reachable(ports((80, "UDP"), (81, "TCP")), documents) == set("abc")


@pytest.mark.parametrize(
    ("skew", "here", "expected"),
    [(1, {"a": 1, "b": 0}, "b"), (2, {"a": 1, "b": 0}, "ab"), (1, {"a": 1, "b": 1}, "ab")],
)
def test_spread(skew: int, here: dict[str, int], expected: str) -> None:
    spread = {
        "maxSkew": skew,
        "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }
    web = {"labels": {"app": "web"}}
    pods = [pod(f"{n}{i}", n, meta=web) for n, count in here.items() for i in range(count)]
    documents = [*THREE, *pods]
    # c has no zone, so it can never be even.
    assert reachable({"topologySpreadConstraints": [spread]}, documents, meta=web) == set(expected)
    loose = spread | {"whenUnsatisfiable": "ScheduleAnyway"}
    assert reachable({"topologySpreadConstraints": [loose]}, documents, meta=web) == set("abc")
