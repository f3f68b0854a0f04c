"""Decisions about gangs in snapshots: what is answered, what is refused, and who answers then."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rogues import Rogue, seats_on
from starlette.testclient import TestClient

from flextopo.baselines.policies import GreedyCost
from flextopo.baselines.registry import make_selector
from flextopo.cli.app import main
from flextopo.cluster.errors import PodError
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving.openapi import openapi_document
from flextopo.policies.serving.service import Service, make_app
from flextopo.policies.serving.telemetry import Telemetry
from flextopo.policies.snapshot import SnapshotError, build_state, decide, decode

FALLBACK = make_selector("flextopo-best-effort")


def member(name: str, gpus: int = 8, **fields: object) -> dict[str, Any]:
    asked = {"online": True, "requirement": "guaranteed", "group": "llm", "required_level": "block"}
    return {"name": name, "gpus": gpus, "cores": 2 * gpus, "priority": 1000, **asked, **fields}


def snapshot() -> dict[str, Any]:
    """Return 8 full servers on 4 racks in 2 halls, each with two pods of 4 GPUs; n6's started last.

    Half of the servers of the second hall hold pods that may not be evicted.
    """
    servers = [
        {"name": f"n{i}", "model": "a100", "leaf": f"rack-{i // 2}", "block": f"hall-{i // 4}"}
        for i in range(8)
    ]
    pods = [
        {
            "name": f"b{i}",
            "gpus": 4,
            "cores": 8,
            "priority": 100,
            "node": f"n{i // 2}",
            "start_s": 10 * i,
            "preemptible": i < 8 or i // 2 in (5, 6),
        }
        for i in range(16)
    ]
    gang = [member("g0"), member("g1")]
    return {"servers": servers, "pods": pods + gang, "preemptor": ["g0", "g1"], "now_s": 100_000}


def post(document: dict[str, Any]) -> Any:
    written: list[bytes] = []
    telemetry = Telemetry(None, write=written.append)
    service = Service(GreedyCost(), FALLBACK, telemetry, budget_s=60.0)
    return TestClient(make_app(service)).post("/v1/decide", content=json.dumps(document))


def answer_to(document: dict[str, Any], selector: Any = None) -> dict[str, Any]:
    return decide(decode(json.dumps(document).encode()), selector or GreedyCost(), FALLBACK)


@pytest.mark.parametrize("name", ["greedy-cost", "requeue-aware"])
def test_a_gang_gets_places_for_all_or_none(name: str) -> None:
    found = answer_to(snapshot(), make_selector(name))
    assert [member["name"] for member in found["members"]] == ["g0", "g1"]
    nodes = [member["node"] for member in found["members"]]
    assert found["node"] == nodes[0]
    assert len(set(nodes)) == 2
    for each in found["members"]:
        assert each["gpus"] == list(range(8))
        assert sum(each["cores"]) == 16
        assert len(each["cores"]) == 2
    victims = {f"b{2 * int(node[1:]) + i}" for node in nodes for i in range(2)}
    assert set(found["victims"]) == victims
    assert found["network_level"] in ("leaf", "block")
    assert found["wait_s"] == 30
    assert found["cost_gpu_s"] > 0
    assert found["cause"] == ""


def test_a_trained_policy_decides_about_a_gang_by_itself() -> None:
    found = answer_to(snapshot(), load_policy("deepset-imitation"))
    assert (found["selector"], found["fallback"]) == ("deepset-imitation", None)
    assert len(found["members"]) == (0 if found["node"] is None else 2)


def test_greedy_takes_the_cheapest_places_within_a_leaf() -> None:
    found = answer_to(snapshot())
    # The latest started lose least; in hall 1 no leaf has two servers that may be freed, and so one
    # block would do, at a price. Hall 0 has leaves, with more work to lose.
    assert found["selector"] == "greedy-cost"
    assert found["fallback"] is None
    assert found["network_level"] == "leaf"
    assert {member["node"] for member in found["members"]} == {"n2", "n3"}
    document = snapshot()
    for pod in document["pods"][-2:]:
        pod["preferred_level"] = "block"
    found = answer_to(document)
    assert found["network_level"] == "block"
    assert {member["node"] for member in found["members"]} == {"n5", "n6"}


def test_a_required_level_is_kept() -> None:
    document = snapshot()
    for pod in document["pods"][:8]:
        pod["preemptible"] = False
    for level, node in (("block", True), ("leaf", False), ("server", False)):
        for pod in document["pods"][-2:]:
            pod["required_level"] = level
        found = answer_to(document)
        assert (found["node"] is not None) == node
        assert (found["network_level"] is not None) == node
        assert len(found["members"]) == (2 if node else 0)
        assert node or found["victims"] == []


def test_two_sizes_and_sixteen_members() -> None:
    document = snapshot()
    for pod in document["pods"][:16]:
        pod["preemptible"] = True
    document["pods"][16:] = [
        member(f"g{i}", 4 if i < 12 else 2, required_level="cluster", group="") for i in range(16)
    ]
    document["preemptor"] = [f"g{i}" for i in range(16)]
    found = answer_to(document)
    assert len(found["members"]) == 16
    taken: set[tuple[str, int]] = set()
    for i, each in enumerate(found["members"]):
        assert len(each["gpus"]) == (4 if i < 12 else 2)
        assert not taken & {(each["node"], gpu) for gpu in each["gpus"]}
        taken |= {(each["node"], gpu) for gpu in each["gpus"]}
    assert len(found["victims"]) == 14  # 12 * 4 + 4 * 2 = 56 GPUs, 4 a victim


def test_levels_reach_the_state() -> None:
    state, preemptor = build_state(decode(json.dumps(snapshot()).encode()))
    assert preemptor.name == "g0"
    assert [state.name(pod) for pod in state.gang(preemptor)] == ["g0", "g1"]
    assert state.arrays.pods["required_tier"][16] == NetworkLevel.BLOCK
    assert state.arrays.pods["preferred_tier"][16] == NetworkLevel.LEAF


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: 1 / 0, "division by zero"),
        (lambda c: replace(c, seats=()), "places for 0 of 2 members"),
        (lambda c: replace(c, seats=c.seats[:1]), "places for 1 of 2 members"),
        (lambda c: replace(c, seats=(c.seats[0], c.seats[0])), "places for 2 of 2 members"),
        (seats_on(2, 99), "legal: 0 to 7"),
        (seats_on(2, -1), "legal: 0 to 7"),
        (seats_on(2, 4), "is on no node of the gang"),
        (seats_on(2, 2), "is on no node of the gang"),
        (lambda c: replace(c, victims=()), "does not fit"),
        (lambda c: replace(c, victims=c.victims[:3]), "does not fit"),
        (lambda c: replace(c, victims=(*c.victims, 0)), "is on no node of the gang"),
        (lambda c: replace(c, victims=(*c.victims, 8)), "may not be evicted"),
        (lambda c: replace(c, victims=(*c.victims, 16)), "may not be evicted"),
        (lambda c: replace(c, victims=(*c.victims, 999)), "may not be evicted"),
        (lambda c: replace(c, tier=NetworkLevel.SERVER), "than it says"),
        (
            lambda c: replace(c, seats=(replace(c.seats[0], gpu_mask=1), c.seats[1])),
            "than it says",
        ),
    ],
)
def test_a_wrong_answer_is_replaced_by_the_baselines(change: Any, why: str) -> None:
    found = answer_to(snapshot(), Rogue(change))
    assert found["selector"] == "greedy-cost"
    assert why in found["fallback"]
    assert {member["node"] for member in found["members"]} == {"n2", "n3"}


def test_a_victim_that_is_not_needed_is_refused() -> None:
    document = snapshot()
    document["pods"][7].update(gpus=2, cores=4)
    document["pods"].insert(8, {**document["pods"][7], "name": "small", "gpus": 2, "cores": 4})
    for pod in document["pods"][-2:]:
        pod.update(gpus=4, cores=8)
    found = answer_to(document, Rogue(lambda c: replace(c, victims=tuple(range(4, 9)))))
    assert found["cause"] == "guard"


@pytest.mark.parametrize("name", ["godel", "kubernetes", "flextopo", "kueue"])
def test_rules_of_schedulers_answer_for_gangs(name: str) -> None:
    found = answer_to(snapshot(), make_selector(name))
    assert found["selector"] == name
    assert len(found["members"]) == 2


def change(**fields: object) -> dict[str, Any]:
    return {**snapshot(), **fields}


def with_pod(index: int, **fields: object) -> dict[str, Any]:
    document = snapshot()
    document["pods"][index].update(fields)
    return document


def with_server(index: int, **fields: object) -> dict[str, Any]:
    document = snapshot()
    document["servers"][index].update(fields)
    return document


def without_network() -> dict[str, Any]:
    document = snapshot()
    for server in document["servers"]:
        del server["leaf"], server["block"]
    return document


WRONG = [
    (without_network(), "no server names its leaf"),
    (with_server(3, leaf=""), "server 'n3' has no leaf"),
    (with_server(0, block=""), "server 'n0' has no block"),
    (change(preemptor=["g0"]), "preemptor has 1 names of 1 pods; legal: 2 to 16"),
    (change(preemptor=[]), "legal: 2 to 16"),
    (change(preemptor=["g0", "g0"]), "legal: 2 to 16"),
    (change(preemptor=[f"x{i}" for i in range(17)]), "legal: 2 to 16"),
    (change(preemptor=["g0", "g1", "nobody"]), "pod 'nobody' is unknown"),
    (change(preemptor="g0"), "is one of 2 online pods of group 'llm'"),
    (change(preemptor=7), "preemptor"),
    (with_pod(17, node="n0"), "legal on node 0"),
    (with_pod(17, online=False), "'g1' is a batch pod"),
    (with_pod(17, priority=900), "differ in priority"),
    (with_pod(17, required_level="leaf"), "differ in required_level"),
    (with_pod(17, group="other"), "differ in group"),
    (with_pod(3, group="llm"), "pod 'b3' is of group 'llm', too"),
    (with_pod(3, required_level="rack"), "pods[3].required_level = 'rack'; legal: server, leaf"),
    (with_pod(3, required_level="leaf", preferred_level="block"), "pods[3] prefers 'block'"),
    (
        {
            **snapshot(),
            "pods": [*snapshot()["pods"], member("g2", 4), member("g3", 2)],
            "preemptor": ["g0", "g1", "g2", "g3"],
        },
        "preemptors of 3 sizes",
    ),
]


@pytest.mark.parametrize(("document", "why"), WRONG)
def test_what_is_no_gang_is_refused_in_a_sentence(document: dict[str, Any], why: str) -> None:
    with pytest.raises(Exception, match=r"legal|Expected") as error:
        answer_to(document)
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    answer = post(document)
    assert answer.status_code == 400
    assert why in answer.json()["error"]


def test_a_running_member_is_refused() -> None:
    document = snapshot()
    document["pods"] = document["pods"][2:]  # n0 is empty
    document["pods"][-1]["node"] = "n0"
    with pytest.raises(SnapshotError, match="'g1' runs already"):
        answer_to(document)


def test_the_service_and_the_command_line_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = post(snapshot())
    assert answer.status_code == 200
    known = openapi_document()["components"]["schemas"]["GangDecision"]
    assert set(answer.json()) == set(known["required"]) == set(known["properties"])
    assert answer.json()["network_level"] in known["properties"]["network_level"]["enum"]
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps(snapshot()))
    with pytest.raises(SystemExit) as stop:
        main(["decide", str(path), "--selector", "greedy-cost"])
    assert not stop.value.code
    assert len(json.loads(capsys.readouterr().out)["members"]) == 2
    path.write_text(json.dumps(without_network()))
    with pytest.raises(SystemExit) as stop:
        main(["decide", str(path)])
    assert stop.value.code == 2


def test_single_pods_are_answered_as_before() -> None:
    document = without_network()
    document["preemptor"] = "g0"
    document["pods"] = document["pods"][:-1]
    found = answer_to(document)
    hung = deepcopy(document)
    for i, server in enumerate(hung["servers"]):
        server["leaf"] = f"rack-{i}"
    again = answer_to(hung)
    del found["elapsed_ms"], again["elapsed_ms"]
    assert found == again
    assert "members" not in found


def test_a_group_that_need_not_all_run_loses_what_it_can_spare() -> None:
    """Two of four members run on a server each; the pods that start later are dearer."""
    document = snapshot()
    for pod in document["pods"]:
        if pod["name"] in ("b0", "b2", "b4", "b6"):
            pod.update(group="job", start_s=99_000)
        elif not pod.get("online"):
            pod["start_s"] = 98_000
    one = {**document, "preemptor": "p"}
    one["pods"] = [pod for pod in document["pods"] if not pod.get("online")]
    one["pods"].append({"name": "p", "gpus": 4, "cores": 8, "priority": 1000, "online": True})

    def victims(least: int | None) -> list[str]:
        for pod in one["pods"]:
            if pod.get("group"):
                pod["min_members"] = least
        found = decide(decode(json.dumps(one).encode()), GreedyCost(), FALLBACK)
        return list(found["victims"])

    assert victims(3)[0] in ("b0", "b2", "b4", "b6")
    assert victims(None)[0] not in ("b0", "b2", "b4", "b6")
    with pytest.raises(PodError, match="min_members = -1"):
        victims(-1)
    victims(3)
    one["pods"][0]["min_members"] = 2
    with pytest.raises(
        SnapshotError, match=r"min_members = .*legal: the same for all of group 'job'"
    ):
        build_state(decode(json.dumps(one).encode()))
    one["pods"][-1]["min_members"] = 1
    one["pods"][0]["min_members"] = 3
    with pytest.raises(SnapshotError, match="legal: none for online pods"):
        build_state(decode(json.dumps(one).encode()))
