"""A policy within its training ranges, and a rule outside of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kube_objects import full_node, make_cache, preemptor, read_record

from flextopo.baselines.registry import make_selector
from flextopo.baselines.rollout import Lookahead, Rollout
from flextopo.baselines.wait_limit import WaitLimit
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.observation.features import Observation
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.decision import Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.model import Fleet, ServerModel, preset
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import VALIDATION
from flextopo.policies.hub import FILES
from flextopo.policies.in_range import InRange, load_in_range
from flextopo.policies.ranges import FILE, MAX_BYTES, Ranges, layout_of, read_ranges
from flextopo.policies.runtime import ArtifactError, load_policy
from flextopo.policies.selectors import find_selector, find_served
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.telemetry import Telemetry
from flextopo.policies.shipped import ZOO, zoo_names
from flextopo.policies.snapshot import decide
from flextopo.policies.snapshot_format import Server, Snapshot, SnapshotPod
from flextopo.train.config import RangesConfig
from flextopo.train.demonstrations import tape_for
from flextopo.train.fit_ranges import fit_ranges

NAME = "deepset-imitation"
UNEVEN = ServerModel("uneven", (0, 0, 0, 0, 0, 0, 1, 1), (0, 1), (64, 64))
ASKING = read_record(preemptor(2))


def decided(
    selector: InRange, fleet: Fleet, seed: int = VALIDATION[0]
) -> Iterator[tuple[Simulator, Pod, Candidate | None, list[str]]]:
    """Yield the decisions of a day: where, who, what, and why the rule decided."""
    sim = tape_for(fleet, WorkloadConfig(), seed)
    while (pod := sim.next_decision()) is not None:
        told: list[str] = []
        sim.state.out_of_range = told  # type: ignore[attr-defined]
        chosen = selector.select(sim.state, pod)
        yield sim, pod, chosen, told
        sim.apply(chosen)


def narrow(ranges: Ranges, part: str, name: str, *bounds: float) -> Ranges:
    """Return ranges with another range of one feature."""
    own = {**ranges.features[part], name: (bounds[0], bounds[1])}
    return replace(ranges, features={**ranges.features, part: own})


def everything(selector: InRange) -> InRange:
    """Return the selector with ranges that nothing is outside of."""
    wide = {
        part: dict.fromkeys(names, (-9.0, 9.0)) for part, names in selector.policy.names.items()
    }
    ranges = replace(selector.ranges, features=wide, servers=(1, 10**6))
    return replace(selector, ranges=ranges)


@pytest.mark.parametrize("name", zoo_names())
def test_shipped_policies_have_small_ranges_that_travel_with_them(name: str) -> None:
    path = ZOO / name / FILE
    assert path.stat().st_size < MAX_BYTES
    assert FILE in FILES
    ranges = read_ranges(path, load_policy(name).names)
    assert max(ranges.about["false_alarms"].values()) <= 0.01
    for server in ("rtx4090", "a100"):
        assert layout_of(preset(server)) in ranges.layouts


def test_within_its_ranges_the_policy_decides() -> None:
    selector = load_in_range(NAME)
    days = decided(selector, parse_servers("16*rtx4090"))
    found = [
        (chosen, selector.policy.select(sim.state, pod), why) for sim, pod, chosen, why in days
    ]
    assert found
    assert all(chosen == own for chosen, own, _ in found)
    assert not any(why for *_, why in found)


@pytest.mark.parametrize(
    ("part", "feature", "bounds"),
    [("preemptor", "gpus", (2.0, 3.0)), ("cluster", "free", (-2.0, -1.0)),
     ("candidates", "cost", (-2.0, -1.0))],
)  # fmt: skip
def test_outside_of_them_the_rule_does(
    part: str, feature: str, bounds: tuple[float, float]
) -> None:
    selector = load_in_range(NAME)
    selector = replace(selector, ranges=narrow(selector.ranges, part, feature, *bounds))
    seen = 0
    for sim, pod, chosen, why in decided(selector, parse_servers("4*rtx4090")):
        expected = selector.rule.select(sim.state, pod)
        assert (chosen is None) == (expected is None)
        if chosen is None or expected is None:
            assert not why  # nobody to preempt: nothing was decided
            continue
        assert (chosen.node, chosen.victims) == (expected.node, expected.victims)
        assert len(why) == 1
        assert why[0].startswith("requeue-aware decided: ")
        assert feature in why[0]
        seen += 1
    assert seen


def test_servers_of_another_kind_and_clusters_of_another_size_are_outside() -> None:
    selector = load_in_range(NAME)
    uneven = [why for *_, why in decided(selector, Fleet((UNEVEN,), (0,) * 16)) if why]
    assert uneven
    assert {why[0] for why in uneven} == {"requeue-aware decided: servers of another kind (uneven)"}
    few = replace(selector, ranges=replace(selector.ranges, servers=(17, 99)))
    small = [why for *_, why in decided(few, parse_servers("16*rtx4090")) if why]
    assert {why[0] for why in small} == {"requeue-aware decided: 16 servers; in range: 17 to 99"}


def test_how_sockets_and_numa_nodes_are_numbered_makes_no_other_kind() -> None:
    turned = ServerModel("turned", (1, 0, 1, 0, 1, 0, 1, 0), (1, 0), (64, 64))
    assert layout_of(turned) == layout_of(preset("a100")) == ((4,), (4,))
    assert layout_of(UNEVEN) == ((2,), (6,))


def test_many_decisions_at_once_count_as_each_alone() -> None:
    selector = load_in_range(NAME)
    ranges = narrow(selector.ranges, "candidates", "victims", 0.2, 0.5)
    ranges = narrow(ranges, "cluster", "free", 0.0, 0.01)
    sim = tape_for(parse_servers("16*rtx4090"), WorkloadConfig(), VALIDATION[1])
    seen: list[Observation] = []
    while (pod := sim.next_decision()) is not None:
        _, count, o = selector.policy.look(sim.state, pod)
        if count:
            copied: list[Any] = [np.copy(array) for array in o]
            seen.append(Observation(*copied))
        sim.apply(selector.policy.select(sim.state, pod))
    stacked: list[Any] = [np.stack(arrays) for arrays in zip(*seen, strict=True)]
    together = ranges.count(Observation(*stacked))
    alone = [int(ranges.count(o)) for o in seen]
    assert together.tolist() == alone == [len(ranges.outside(o)) for o in seen]
    assert len(set(alone)) > 1


def test_empty_places_are_not_looked_at() -> None:
    selector = load_in_range(NAME)
    sim = tape_for(parse_servers("16*rtx4090"), WorkloadConfig(), VALIDATION[0])
    pod = sim.next_decision()
    assert pod is not None
    _, count, o = selector.policy.look(sim.state, pod)
    assert count > 0
    before = int(selector.ranges.count(o))
    o.mask[count - 1 : -1] = 0
    o.candidates[count - 1 :] = 77.0
    assert int(selector.ranges.count(o)) == before == 0


def test_features_may_be_allowed_to_lie_outside() -> None:
    selector = load_in_range(NAME)
    ranges = narrow(selector.ranges, "cluster", "free", -2.0, -1.0)
    for allowed, told in ((0, True), (1, False)):
        one = replace(selector, ranges=replace(ranges, allowed=allowed))
        *_, why = next(each for each in decided(one, parse_servers("16*rtx4090")) if each[2])
        assert bool(why) == told


def test_the_name_goes_with_the_other_suffixes() -> None:
    limited = find_selector(f"{NAME}+in-range@300")
    assert isinstance(limited, WaitLimit)
    assert isinstance(limited.selector, InRange)
    assert limited.max_wait_s == 300
    planned = find_selector(f"{NAME}+in-range+plan@16")
    assert isinstance(planned, Rollout)
    assert isinstance(planned.base, InRange)
    ahead = find_selector(f"lookahead+{NAME}+in-range")
    assert isinstance(ahead, Lookahead)
    assert isinstance(ahead.base, InRange)
    with pytest.raises(UnknownNameError):
        find_selector("greedy-cost+in-range")


def served(selector: InRange) -> tuple[Any, str]:
    """Return a served decision about a full node, and the metrics and log of the service."""
    lines: list[bytes] = []
    cache = make_cache(full_node())
    telemetry = Telemetry(cache, write=lines.append)
    limited = WaitLimit(selector, selector.name, 0)
    found = Decider(cache, limited, make_selector("flextopo-best-effort"), 60.0).decide(
        ASKING, ["n0"]
    )
    telemetry.decided("preempt", ASKING, found)
    return found, (b"\n".join(lines) + telemetry.metrics()).decode()


def test_a_served_decision_tells_of_it() -> None:
    selector = load_in_range(NAME)
    found, told = served(selector)
    assert found.victims
    assert (found.selector, found.fallback) == (f"{NAME}+in-range", "")
    assert found.out_of_range == "requeue-aware decided: 1 servers; in range: 4 to 1000"
    assert found.out_of_range in found.reasons
    assert "flextopo_out_of_range_total 1.0" in told
    assert '"out_of_range":"requeue-aware' in told
    found, told = served(everything(selector))
    assert found.victims
    assert found.out_of_range == ""
    assert "flextopo_out_of_range_total 0.0" in told
    assert '"out_of_range":null' in told


def test_a_decision_about_a_snapshot_tells_of_it() -> None:
    pods = [SnapshotPod(f"b{i}", 1, 7, 100, node="n0") for i in range(8)]
    pods.append(SnapshotPod("llm", 2, 14, 1000, online=True, requirement="guaranteed"))
    snapshot = Snapshot(servers=[Server("n0", "rtx4090")], pods=pods, preemptor="llm")
    fallback = make_selector("flextopo-best-effort")
    found = decide(snapshot, find_served(f"{NAME}+in-range"), fallback)
    assert found["victims"]
    assert "requeue-aware decided: 1 servers; in range: 4 to 1000" in found["reasons"]
    assert not any(
        "decided" in each for each in decide(snapshot, find_served(NAME), fallback)["reasons"]
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"servers": [4]}, "FEWEST, MOST"),
        ({"servers": [4, 3]}, "FEWEST, MOST"),
        ({"servers": [4.5, 9]}, "FEWEST, MOST"),
        ({"allowed": -1}, "0 or more"),
        ({"allowed": True}, "0 or more"),
        ({"layouts": [[4, 4]]}, "by socket"),
        ({"layouts": 3}, "by socket"),
        ({"features": {}}, "features of preemptor"),
        ({"features": None}, "features of preemptor"),
        ("[]", "no JSON object"),
        ("{", "not JSON"),
        ("{}", "no 'allowed'"),
        (" " * (MAX_BYTES + 1), "bytes"),
        (None, "fit-ranges"),
    ],
)
def test_damaged_ranges_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / NAME, folder)
    path = folder / FILE
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.write_text(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=match):
        find_selector(f"{folder}+in-range")
    assert load_policy(folder)  # which needs none


@pytest.mark.parametrize("value", [[1, 0], [0], "much", [0, float("nan")], [None, 1]])
def test_a_range_that_is_none_is_refused(value: Any, tmp_path: Path) -> None:
    given = json.loads((ZOO / NAME / FILE).read_text())
    given["features"]["cluster"]["free"] = value
    path = tmp_path / FILE
    path.write_text(json.dumps(given))
    with pytest.raises(ArtifactError, match="free = "):
        read_ranges(path, load_policy(NAME).names)


SMALL = RangesConfig(("4*rtx4090", "4*a100"), tapes=6, validation_tapes=4)


def test_ranges_are_found_and_read_back(tmp_path: Path) -> None:
    found = fit_ranges(NAME, SMALL)
    path = tmp_path / FILE
    path.write_text(json.dumps(found.document()))
    again = read_ranges(path, load_policy(NAME).names)
    assert again.document() == found.document()
    assert max(found.about["false_alarms"].values()) <= SMALL.false_alarms
    assert found.layouts == {layout_of(preset("rtx4090")), layout_of(preset("a100"))}
    low, high = found.features["preemptor"]["gpus"]
    assert low <= 1 / 16 < 8 / 16 <= high


def test_stricter_ranges_allow_more_features_outside() -> None:
    tight = fit_ranges(NAME, replace(SMALL, quantile=0.2, margin=0.0))
    assert tight.allowed > fit_ranges(NAME, replace(SMALL, quantile=0.0)).allowed


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / NAME, folder)
    options = ["--servers", "4*rtx4090", "--tapes", "3", "--set", "validation_tapes=3"]
    with pytest.raises(SystemExit) as ended:
        main(["fit-ranges", str(folder), *options, "--workers", "1"])
    assert not ended.value.code
    assert f"next: flextopo evaluate {folder}+in-range" in capsys.readouterr().out
    assert load_in_range(folder).ranges.about["tapes"] == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [({"quantile": 0.6}, "quantile"), ({"sizes": (3, 2)}, "sizes"), ({"servers": ()}, "servers")],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(FlextopoError, match=match):
        RangesConfig(**change)
