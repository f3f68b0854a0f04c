import random
from typing import Any

import msgspec
import pytest
from kube_objects import NOW_S, budget, pod, read, read_record

from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.policies.serving import budgets
from flextopo.policies.serving.budgets import BudgetBook, covers, matches, violations
from flextopo.policies.serving.objects import (
    MAX_QUANTITY,
    BudgetObject,
    LabelSelector,
    ObjectError,
    PodObject,
    PriorityClassObject,
    parse_quantity,
)
from flextopo.policies.serving.records import parse_time, parse_version, read_pod


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        (2, 2000),
        ("2", 2000),
        (1.5, 1500),
        ("500m", 500),
        ("0.1", 100),
        ("1.0005", 1001),
        ("100u", 1),
        ("1n", 1),
        ("0", 0),
        ("2k", 2_000_000),
        ("1Ki", 1_024_000),
        ("1.5Ki", 1_536_000),
        ("1e3", 1_000_000),
        ("12E2", 1_200_000),
        ("1E-3", 1),
        ("512Gi", 512 * 2**30 * 1000),
        (".5", 500),
        ("+5", 5000),
        ("5.", 5000),
        ("1e003", 1_000_000),
        ("7Ei", 7 * 2**60 * 1000),
        ("8Ei", MAX_QUANTITY),
        ("9" * 25, MAX_QUANTITY),
        ("1e999999999", MAX_QUANTITY),
        ("1e-999999999", 1),
    ],
)
def test_quantities(text: str | float, thousandths: int) -> None:
    assert parse_quantity(text, "x") == thousandths


@pytest.mark.parametrize("text", ["", "-1", "one", "1 Gi", "1GB", "1e", ".", "+", "1E", "5EE"])
def test_no_quantities(text: str) -> None:
    if text == "1E":  # a suffix of its own: 10^18
        assert parse_quantity(text, "x") == 10**21
        return
    with pytest.raises(ObjectError, match="x: "):
        parse_quantity(text, "x")


def test_requests_follow_the_kubelet() -> None:
    def container(cpu: str, **more: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **more}

    document = pod(
        "p",
        spec={
            "containers": [container("1"), {"resources": {"limits": {"cpu": "2", "x/y": "3"}}}],
            "initContainers": [
                container("4"),
                container("500m", restartPolicy="Always"),
                container("3200m"),
            ],
            "overhead": {"cpu": "100m"},
        },
    )
    record = read_record(document)
    # Together 3 + 0.5; the init containers peak at 4, and at 3.2 beside the sidecar.
    assert record.requests == {"cpu": 4100, "x/y": 3000}
    assert (record.gpus, record.cores) == (0, 5)


def test_annotations_and_owners_are_read() -> None:
    record = read_record(
        pod(
            "p",
            "n0",
            annotations={
                "godel.bytedance.com/flextopo-requirement": "best-effort",
                "godel.bytedance.com/can-be-preempted": "false",
                "godel.bytedance.com/protection-duration-from-preemption": "60",
                "flextopo/gpus": "0,3",
                "flextopo/cores": "0-6",
                "flextopo/checkpoint-interval-s": "900",
            },
            meta={
                "ownerReferences": [{"kind": "DaemonSet"}],
                "labels": {"scheduling.x-k8s.io/pod-group": "g"},
                "resourceVersion": "77",
            },
        )
    )
    assert record.requirement == TopologyRequirement.BEST_EFFORT
    assert record.online
    assert not record.preemptible
    assert record.daemon
    assert not record.static
    assert (record.protection_s, record.checkpoint_s) == (60, 900)
    assert (record.held.gpus, record.held.cores) == ((0, 3), (0, 1, 2, 3, 4, 5, 6))
    assert (record.group, record.version, record.start_s) == ("batch/g", 77, NOW_S - 3600)


@pytest.mark.parametrize(
    "meta",
    [
        {"annotations": {"kubernetes.io/config.mirror": "x"}},
        {"annotations": {"kubernetes.io/config.source": "file"}},
        {"ownerReferences": [{"kind": "Node"}]},
    ],
)
def test_static_pods_are_known(meta: dict[str, Any]) -> None:
    assert read_record(pod("p", "n0", meta=meta)).static


def test_priority_comes_from_the_class_and_else_is_zero() -> None:
    document = pod("p", priority=None, spec={"priorityClassName": "high"})
    kind = read(
        {
            "kind": "PriorityClass",
            "metadata": {
                "name": "high",
                "annotations": {"godel.bytedance.com/can-be-preempted": "false"},
            },
            "value": 7,
            "preemptionPolicy": "Never",
        }
    )
    assert isinstance(kind, PriorityClassObject)
    record = read_pod(msgspec.convert(document, PodObject), {"high": kind})
    assert (record.priority, record.preemptible, record.never_preempts) == (7, False, True)
    assert read_record(document).priority == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"priority": 2**31}, "32 bits"),
        ({"status": {"startTime": "noon"}}, "time 'noon'"),
        ({"cpu": "much"}, "cpu: 'much'"),
        ({"meta": {"uid": ""}}, "without name or uid"),
    ],
)
def test_what_cannot_be_read_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ObjectError, match=words):
        read_record(pod("p", "n0", **change))


PROTECTION = "godel.bytedance.com/protection-duration-from-preemption"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("godel.bytedance.com/flextopo-requirement", "Best-Effort", "best-effort"),
        ("flextopo/gpus", "3-1", "flextopo/gpus"),
        ("flextopo/checkpoint-interval-s", "-1", "whole seconds"),
        (PROTECTION, "1h", "whole seconds"),
        (PROTECTION, "1" * 10, "9 digits"),
    ],
)
def test_annotations_that_cannot_be_read_are_told_of_and_harm_nobody(
    name: str, text: str, words: str
) -> None:
    record = read_record(pod("p", "n0", annotations={name: text}))
    (fault,) = record.faults
    assert "pod 'batch/p'" in fault
    assert words in fault
    plain = read_record(pod("p", "n0"))
    assert record.held == plain.held
    assert record.guaranteed == name.endswith("requirement")
    assert record.checkpoint_s == 0
    # Its protection does not end.
    assert record.is_protected(NOW_S + 10**8) == (name == PROTECTION)


def test_times_and_versions() -> None:
    assert parse_time("2027-01-15T09:00:00+01:00", "x") == NOW_S
    assert [parse_version(text) for text in (None, "", "12", "x", "9" * 30)] == [0, 0, 12, 0, 0]


def budget_of(allowed: int, labels: dict[str, str], **status: Any) -> BudgetObject:
    found = read(budget("b", allowed, labels, **status))
    assert isinstance(found, BudgetObject)
    return found


def test_budgets_cover_their_namespace_and_selector() -> None:
    record = read_record(pod("p", "n0", meta={"labels": {"app": "a"}}))
    assert covers(budget_of(0, {"app": "a"}), record)
    assert not covers(budget_of(0, {"app": "b"}), record)
    assert not covers(budget_of(0, {}), record)
    assert not covers(budget_of(0, {"app": "a"}, disruptedPods={"p": "t"}), record)
    elsewhere = budget_of(0, {"app": "a"})
    elsewhere.metadata.namespace = "other"
    assert not covers(elsewhere, record)


def test_a_pod_is_compared_with_few_budgets_and_covered_by_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    book, compared = BudgetBook(lambda: NOW_S, list), list[LabelSelector]()
    rng = random.Random(0)
    pods = [
        read_record(pod(f"p{i}", "n0", meta={"labels": {"app": "a", "job": f"j{i}"}}))
        for i in range(20)
    ]

    def put(i: int) -> None:
        document = budget(f"b{i}", i % 3, {"app": "a", "job": f"j{i % 20}"})
        if i % 40 == 0:
            values = [f"j{i // 40}", "x"]
            expression = {"key": "job", "operator": "In", "values": values}
            document["spec"]["selector"] = {"matchExpressions": [expression]}
        document["status"]["disruptedPods"] = {f"p{i}": "t"} if i % 7 == 0 else None
        found = read(document)
        assert isinstance(found, BudgetObject)
        book.put(found)

    for i in range(200):
        put(i)
        if i % 5 == 4:
            book.remove(f"batch/b{rng.randrange(i)}")
            put(rng.randrange(i))
    assert 150 < len(book.by_key) < 200
    left = book.left()
    for record in pods:
        covering = [one for one in book.by_key.values() if covers(one, record)]
        assert sorted(map(id, book.of([record]))) == sorted(map(id, covering))
        least = min((one.status.disruptionsAllowed for one in covering), default=None)
        assert (left[book.index_of(record)] if covering else None) == least

    def compare(selector: LabelSelector, labels: dict[str, str]) -> bool:
        compared.append(selector)
        return matches(selector, labels)

    monkeypatch.setattr(budgets, "matches", compare)
    for record in pods:
        book.index_of(record)
    assert len(compared) < 25 * len(pods)  # of over 150 for each


@pytest.mark.parametrize(
    ("key", "operator", "values", "expected"),
    [
        ("app", "In", ["a", "b"], True),
        ("app", "In", ["b"], False),
        ("app", "NotIn", ["b"], True),
        ("app", "NotIn", ["a"], False),
        ("x", "NotIn", ["a"], True),
        ("app", "Exists", None, True),
        ("x", "Exists", None, False),
        ("x", "DoesNotExist", None, True),
        ("app", "DoesNotExist", None, False),
        ("app", "Near", ["a"], False),
    ],
)
def test_selectors_match_as_kubernetes_does(
    key: str, operator: str, values: list[str] | None, expected: bool
) -> None:
    expressions = [{"key": key, "operator": operator, "values": values}]
    selector = msgspec.convert({"matchExpressions": expressions}, LabelSelector)
    assert matches(selector, {"app": "a"}) is expected


def test_violations_are_counted_by_importance() -> None:
    def labelled(name: str, label: str, priority: int) -> Any:
        return read_record(pod(name, "n0", priority=priority, meta={"labels": {label: "1"}}))

    victims = [labelled("p0", "x", 5), labelled("p1", "x", 9), labelled("p2", "y", 1)]
    one = [budget_of(1, {"x": "1"})]
    assert violations(victims, one) == 1
    assert violations(victims, [*one, budget_of(0, {"y": "1"})]) == 2
    assert violations(victims, [budget_of(2, {"x": "1"})]) == 0
    # Two budgets over the same pods count each victim once.
    assert violations(victims, [budget_of(0, {"x": "1"}), budget_of(0, {"x": "1"})]) == 2


def test_what_a_pod_asks_for_as_a_whole_stands_for_its_containers() -> None:
    small = {"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1", "x/y": "3"}}}
    whole = {"requests": {"cpu": "8", "memory": "2", "x/y": "9", "hugepages-2Mi": "4Mi"}}
    spec = {"containers": [small], "resources": whole, "overhead": {"cpu": "1"}}
    record = read_record(pod("p", spec=spec))
    assert record.cores == 9
    assert record.requests["memory"] == 2000
    assert record.requests["hugepages-2Mi"] == 4 * 2**20 * 1000
    assert record.requests["x/y"] == 3000  # only some resources can be asked for as a whole


@pytest.mark.parametrize(
    ("asked", "allocated", "actual", "infeasible", "cores"),
    [
        ("4", "8", "8", False, 8),  # shrinking: what it still has counts
        ("8", "4", "4", False, 8),  # growing
        ("8", "4", "4", True, 4),  # it will never be given
        ("4", "4", "6", False, 6),
    ],
)
def test_a_resize_counts_the_larger_of_asked_and_given(
    asked: str, allocated: str, actual: str, infeasible: bool, cores: int
) -> None:
    status: dict[str, Any] = {
        "containerStatuses": [
            {
                "name": "c",
                "allocatedResources": {"cpu": allocated},
                "resources": {"requests": {"cpu": actual}},
            }
        ]
    }
    if infeasible:
        status["conditions"] = [{"type": "PodResizePending", "reason": "Infeasible"}]
    assert read_record(pod("p", "n0", cpu=asked, status=status)).cores == cores


def test_the_lowest_priority_is_legal() -> None:
    assert read_record(pod("p", priority=-(2**31))).priority == -(2**31)
    with pytest.raises(ObjectError, match="32 bits"):
        read_record(pod("p", priority=-(2**31) - 1))


def test_a_start_in_the_future_does_not_protect_for_ever() -> None:
    created = {"creationTimestamp": "2027-01-15T06:00:00Z"}
    status = {"startTime": "2099-01-01T00:00:00Z"}
    record = read_record(pod("p", "n0", meta=created, status=status))
    assert record.age_s(NOW_S) == 7200
    protection = {"godel.bytedance.com/protection-duration-from-preemption": "3600"}
    record = read_record(pod("p", "n0", meta=created, status=status, annotations=protection))
    assert not record.is_protected(NOW_S)
    assert read_record(pod("p", "n0", status=status)).age_s(NOW_S) == 0


def test_a_gated_pod_was_not_refused() -> None:
    gated = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}
    assert not read_record(pod("p", status={"conditions": [gated]})).refused
