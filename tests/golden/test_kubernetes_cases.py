"""The published unit-test cases of kube-scheduler's default preemption, replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from default_preemption import (
    DefaultPreemption,
    DisruptionBudget,
    ExtenderError,
    ExtenderRule,
    KubeNode,
    KubePod,
    call_extenders,
    insufficient,
    parse_quantity,
    under_budgets,
)

from flextopo.baselines.scores import KUBERNETES_SCORES, choose
from flextopo.baselines.search import CandidateLimit, split_by_budget

CASES = Path(__file__).parents[3] / "shared" / "cases" / "k8s_preemption_cases.json"
Case = dict[str, Any]


def load(kind: str) -> list[Any]:
    if not CASES.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{CASES.name} is not here"))]
    found = []
    for case in json.loads(CASES.read_text())["cases"]:
        if case["kind"] == kind:
            source = case["source"]
            name = f"{Path(source['file']).name}::{source['test']}::{case['source']['case']}"
            found.append(pytest.param(case, id=name))
    return found


def test_every_kind_of_case_is_replayed() -> None:
    if not CASES.is_file():
        pytest.skip(f"{CASES.name} is not here")
    known = {
        *("post_filter", "dry_run", "select_best", "preempt", "custom_order"),
        *("custom_eligible", "preemptor_eligible", "pdb_split", "call_extenders"),
    }
    assert {case["kind"] for case in json.loads(CASES.read_text())["cases"]} <= known


def budgets(case: Case) -> list[DisruptionBudget]:
    return [
        DisruptionBudget(
            pdb["namespace"],
            pdb["match_labels"] or {},
            pdb["disruptions_allowed"],
            frozenset(pdb["disrupted_pods"]),
        )
        for pdb in case["pdbs"]
    ]


def amounts(spec: dict[str, str]) -> dict[str, Any]:
    return {name: parse_quantity(text) for name, text in spec.items()}


def pod(spec: dict[str, Any], pdbs: list[DisruptionBudget] | None = None) -> KubePod:
    start = spec["start_time_ns"]
    return KubePod(
        name=spec["name"],
        namespace=spec["namespace"],
        priority=spec["priority"] or 0,
        requests=amounts(spec["requests"]),
        labels=spec["labels"],
        start_s=float("inf") if start is None else float(start),
        node=spec["node"] or "",
        preemption_policy=spec.get("preemption_policy") or "PreemptLowerPriority",
        nominated_node=spec.get("nominated_node") or "",
        terminating=bool(spec.get("terminating")),
        preempted=bool(spec.get("terminating_by_preemption") or spec.get("disruption_target")),
        pdbs=under_budgets(pdbs or [], spec["namespace"], spec["name"], spec["labels"]),
    )


def cluster(case: Case, **options: Any) -> DefaultPreemption:
    pdbs = budgets(case)
    nodes = [
        KubeNode(node["name"], {"pods": parse_quantity("32"), **amounts(node["capacity"])})
        for node in case["nodes"]
    ]
    return DefaultPreemption(nodes, [pod(p, pdbs) for p in case["pods"]], pdbs, **options)


def extenders(case: Case) -> list[ExtenderRule]:
    def rule(spec: dict[str, Any]) -> ExtenderRule:
        allows = spec["allows_nodes"]

        def process(victims: dict[str, list[KubePod]]) -> dict[str, list[KubePod]]:
            if allows == "error":
                raise ExtenderError("the extender failed")
            return {n: pods for n, pods in victims.items() if allows == "*" or n in allows}

        return ExtenderRule(process, spec.get("ignorable", False), spec.get("interested", True))

    return [rule(spec) for spec in case["extenders"]]


@pytest.mark.parametrize("case", load("dry_run"))
def test_dry_run(case: Case) -> None:
    calls = 0

    def counted(*arguments: Any) -> list[str]:
        nonlocal calls
        calls += 1
        return insufficient(*arguments)

    args = case["args"]
    limit = CandidateLimit(
        args["min_candidate_nodes_percentage"], args["min_candidate_nodes_absolute"]
    )
    preemption = cluster(case, limit=limit, fits=counted)
    for cycle in case["cycles"]:
        calls = 0
        options = preemption.dry_run(pod(cycle["preemptor"]), scan_offset=cycle["scan_offset"] or 0)
        found = [
            {
                "node": preemption.nodes[option.node].name,
                "victims": sorted(victim.name for victim in option.victims),
                "num_pdb_violations": option.pdb_violations,
            }
            for option in options
        ]
        assert sorted(found, key=lambda c: str(c["node"])) == cycle["candidates"]
        assert calls == cycle["filter_calls"]


@pytest.mark.parametrize("case", load("select_best"))
def test_select_best(case: Case) -> None:
    preemption = cluster(case)
    best = choose(preemption.dry_run(pod(case["preemptor"])), KUBERNETES_SCORES)
    assert best is not None
    assert preemption.nodes[best.node].name in case["expected"]["node_any_of"]


@pytest.mark.parametrize("case", load("preempt"))
def test_preempt(case: Case) -> None:
    result = cluster(case).preempt(pod(case["preemptor"]), extenders=extenders(case))
    assert (result.node or None) == case["expected"]["nominated_node"]
    assert sorted(result.victims) == sorted(case["expected"]["victims"])


@pytest.mark.parametrize("case", load("post_filter"))
def test_post_filter(case: Case) -> None:
    result = cluster(case).preempt(
        pod(case["preemptor"]), case["node_filter_status"], extenders(case)
    )
    expected = case["expected"]
    assert (result.node or None) == expected["nominated_node"]
    assert ("Success" if result.node else "Unschedulable") == expected["status"]
    assert result.message == expected["message"]


ORDERS: dict[str, Callable[[KubePod], object]] = {
    "oldest start first": lambda victim: victim.start_s,
    "name ascending": lambda victim: victim.name,
}


@pytest.mark.parametrize("case", load("custom_order"))
def test_custom_order(case: Case) -> None:
    importance = ORDERS[case["order"].partition(" = ")[0]]
    options = cluster(case, importance=importance).dry_run(pod(case["preemptor"]))
    assert [[v.name for v in option.victims] for option in options] == [case["expected"]["victims"]]


ELIGIBLE: dict[str, Callable[..., Callable[[KubeNode, KubePod, KubePod], bool]]] = {
    "nodeNameIsEligible": lambda name: lambda node, victim, preemptor: node.name == name,
    "podLabelIsEligible": lambda key, value: (
        lambda node, victim, preemptor: victim.labels.get(key) == value
    ),
    "priorityAboveThresholdCannotBePreempted": lambda most: (
        lambda node, victim, preemptor: victim.priority <= most
    ),
    "priorityBelowThresholdCannotPreempt": lambda least: (
        lambda node, victim, preemptor: preemptor.priority >= least
    ),
}


@pytest.mark.parametrize("case", load("custom_eligible"))
def test_custom_eligible(case: Case) -> None:
    eligible = ELIGIBLE[case["eligible"]["fn"]](*case["eligible"]["args"])
    preemption = cluster(case, eligible=eligible)
    found = {
        preemption.nodes[option.node].name: [victim.name for victim in option.victims]
        for option in preemption.dry_run(pod(case["preemptor"]))
    }
    assert found == case["expected"]["candidates"]


@pytest.mark.parametrize("case", load("preemptor_eligible"))
def test_preemptor_eligible(case: Case) -> None:
    why = cluster(case).ineligible(pod(case["preemptor"]), case["nominated_node_filter_status"])
    assert (why == "") == case["expected"]["eligible"]


@pytest.mark.parametrize("case", load("pdb_split"))
def test_pdb_split(case: Case) -> None:
    pdbs = budgets(case)
    units = []
    for name in case["order"]:
        members = case["victim_units"][name]
        used = [under_budgets(pdbs, m["namespace"], m["name"], m["labels"]) for m in members]
        units.append(KubePod(name, pdbs=sum(used, ())))
    split = split_by_budget(units, [pdb.disruptions_allowed for pdb in pdbs])
    violating, others = ([unit.name for unit in part] for part in split)
    expected = case["expected"]
    assert (violating, others) == (expected["violating"], expected["non_violating"])


@pytest.mark.parametrize("case", load("call_extenders"))
def test_call_extenders(case: Case) -> None:
    def rule(spec: dict[str, Any]) -> ExtenderRule:
        def process(victims: dict[str, list[KubePod]]) -> dict[str, list[KubePod]]:
            returns = spec["returns"]
            if returns == "error":
                raise ExtenderError("the extender failed")
            if returns == "same":
                return victims
            return {node: [KubePod(name) for name in names] for node, names in returns.items()}

        return ExtenderRule(process, spec["ignorable"], spec.get("interested", True))

    victims = {node: [KubePod(name) for name in names] for node, names in case["input"].items()}
    rules = [rule(spec) for spec in case["extenders"]]
    expected = case["expected"]
    if expected["error"]:
        with pytest.raises(ExtenderError, match=expected["error"]):
            call_extenders(victims, rules)
        return
    kept = call_extenders(victims, rules)
    names = {node: [victim.name for victim in pods] for node, pods in kept.items()}
    assert names == expected["candidates"]


def test_victims_that_terminate_by_preemption_block_the_preemptor() -> None:
    node = KubeNode("a", {"pods": parse_quantity("8")})
    preemptor = KubePod("p", priority=10, nominated_node="a")

    def why(**spec: Any) -> str:
        victim = KubePod("v", node="a", terminating=True, preempted=True, **spec)
        return DefaultPreemption([node], [victim]).ineligible(preemptor)

    assert "terminating pod" in why(priority=9)
    assert why(priority=10) == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("300m", "3/10"),
        ("1.5Gi", "1610612736"),
        ("2e3", "2000"),
        (".5", "1/2"),
        ("2E", str(2 * 10**18)),
    ],
)
def test_quantities(text: str, value: str) -> None:
    assert str(parse_quantity(text)) == value


@pytest.mark.parametrize("text", ["", "m", "1 Gi", "1ki", "--1", "1e", "0x1"])
def test_bad_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity(text)
