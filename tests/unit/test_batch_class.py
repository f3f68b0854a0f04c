"""Batch classes of served pods: from bands of priority, and with the effect that training knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from kube_objects import NOW_S, RTX4090, full_node, pod, preemptor, read, read_record

from flextopo.cli import serving
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import (
    CANDIDATE_FEATURES,
    Observation,
    empty_observation,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.pods import Pod, TopologyRequirement
from flextopo.cluster.state.schema import Field, Snapshot, record_dtype
from flextopo.cluster.workload.tape import BATCH_PRIORITIES
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.node_rows import RowPacker
from flextopo.policies.serving.records import (
    CLASS_BANDS,
    PodRecord,
    batch_class,
    check_bands,
)
from flextopo.policies.serving.view import ClusterView
from flextopo.policies.snapshot import build_state, decode

LOW, MIDDLE = BATCH_PRIORITIES
PRIORITIES = (LOW, LOW, MIDDLE, LOW, MIDDLE, MIDDLE, LOW, MIDDLE)
"""Of the one-card pods on GPUs 0 to 7 of one server."""


def serve_them(bands: tuple[int, ...] = CLASS_BANDS) -> ClusterView:
    """Return the pods as they are served, asked for by a pod of two cards."""
    cache = ClusterCache(lambda: NOW_S, bands)
    for document in full_node(count=8)[:2]:
        cache.put(read(document))
    for i, priority in enumerate(PRIORITIES):
        cache.put(read(pod(f"n0-b{i}", "n0", priority=priority)))
    return cache.view(read_record(preemptor(2)), dict(cache.nodes.states), worst_case=False)


def simulate_them(weights: tuple[int, ...]) -> ClusterState:
    """Return a state of the same pods, of the given classes."""
    online = TopologyRequirement.GUARANTEED
    pods = [Pod(0, "batch/online", 2, 14, 1000, online, online=True)]
    pods += [
        Pod(i, f"batch/n0-b{i - 1}", 1, 7, PRIORITIES[i - 1], batch_class=weights[i - 1])
        for i in range(1, 9)
    ]
    state = ClusterState.from_pods([RTX4090], [0], pods, now_s=NOW_S)
    for i in range(1, 9):
        state.start(i, 0, (i - 1,))
        state.arrays.live[i]["since_s"] = NOW_S - 3600
    state.arrays.live[0]["queued_s"] = serve_them().arrays.live[0]["queued_s"]
    return state


def look(state: ClusterState) -> tuple[dict[tuple[str, ...], float], dict[str, list[float]]]:
    """Return the loss of each victim set, and every feature of the candidates by its name."""
    found, count = state.find(state.pod(0), True, 64)
    seen: Observation = empty_observation(64)
    observe(state.arrays, state.costs, 0, found, count, seen)
    candidates = [state.candidate_at(found, i, state.pod(0)) for i in range(count)]
    sets = [tuple(sorted(map(state.name, candidate.victims))) for candidate in candidates]
    order = sorted(range(count), key=lambda i: sets[i])
    costs = {sets[i]: candidates[i].cost_gpu_s for i in order}
    rows = zip(CANDIDATE_FEATURES, seen.candidates[order].T.tolist(), strict=True)
    return costs, dict(rows)


def test_a_served_pod_of_the_middle_class_is_what_it_is_in_training() -> None:
    classes = tuple(BATCH_PRIORITIES.index(priority) for priority in PRIORITIES)
    served, simulated = look(serve_them()), look(simulate_them(classes))
    assert served[0] == simulated[0]
    assert served[1] == simulated[1]
    assert set(served[1]["middle_class"]) == {0.0, 0.5, 1.0}


def test_lost_work_of_the_middle_class_weighs_twice() -> None:
    middle, (flat, _) = ("batch/n0-b4", "batch/n0-b5"), look(serve_them(()))
    costs, _ = look(serve_them())
    # An hour and the restart for each of two cards; all else is equal.
    assert costs[middle] - flat[middle] == pytest.approx(2 * (3600 + 60))
    assert flat == look(simulate_them((0,) * 8))[0]


@pytest.mark.parametrize(
    ("priority", "online", "bands", "expected"),
    [
        (LOW, False, CLASS_BANDS, 0), (MIDDLE, False, CLASS_BANDS, 1),
        (MIDDLE - 1, False, CLASS_BANDS, 0), (MIDDLE, True, CLASS_BANDS, 0),
        (2**31 - 1, False, CLASS_BANDS, 1), (-5, False, CLASS_BANDS, 0),
        (10, False, (10, 20), 1), (20, False, (10, 20), 2), (99, False, (), 0),
    ],
)  # fmt: skip
def test_a_pod_is_of_the_class_of_the_last_band_that_it_reaches(
    priority: int, online: bool, bands: tuple[int, ...], expected: int
) -> None:
    assert batch_class(priority, online, bands) == expected


@pytest.mark.parametrize("bands", [(2, 1), (1, 1), (2**31,), tuple(range(9))])
def test_bands_that_are_none(bands: tuple[int, ...]) -> None:
    with pytest.raises(FlextopoError, match=r"class bands .*; legal: up to 8 ascending"):
        check_bands(bands)


def document(**more: Any) -> dict[str, Any]:
    """Return a snapshot with a batch pod of the middle priority."""
    batch = {"name": "b", "gpus": 8, "cores": 56, "priority": MIDDLE, "node": "n", **more}
    asking = {"name": "p", "gpus": 8, "cores": 56, "priority": 1000, "online": True}
    servers = [{"name": "n", "model": "rtx4090"}]
    return {"servers": servers, "pods": [batch, asking], "preemptor": "p"}


@pytest.mark.parametrize(
    ("more", "bands", "expected"),
    [
        ({}, CLASS_BANDS, 1), ({"priority": LOW}, CLASS_BANDS, 0), ({"online": True}, CLASS_BANDS, 0),
        ({"batch_class": 0}, CLASS_BANDS, 0), ({"batch_class": 3}, CLASS_BANDS, 3), ({}, (), 0),
    ],
)  # fmt: skip
def test_a_snapshot_states_a_class_or_its_bands_tell(
    more: dict[str, Any], bands: tuple[int, ...], expected: int
) -> None:
    state, _ = build_state(decode(msgspec.json.encode(document(**more))), bands)
    assert state.pod(0).batch_class == expected


def test_the_option_reaches_the_snapshot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps(document()))
    with pytest.raises(SystemExit) as stop:
        main(["decide", str(path), "--class-bands", "100,500", "--json"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["victims"] == ["b"]


@pytest.mark.parametrize("text", ["high", "500,100", "500,500", "1.5", str(2**31)])
@pytest.mark.parametrize("command", ["decide", "serve"])
def test_a_wrong_option_is_one_sentence(
    text: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps(document()))
    arguments = [str(path)] if command == "decide" else []
    with pytest.raises(SystemExit) as stop:
        main([command, *arguments, "--class-bands", text])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --class-bands {text!r}; legal: ascending priorities")
    assert said.count("\n") == 1


def test_the_option_s_default_is_the_simulated_workload_s() -> None:
    assert serving.read_bands(serving.CLASS_BANDS) == CLASS_BANDS == (MIDDLE,)


FIELDS = {
    "gpus": Field("i4", "", "asked for"),
    "checked": Field("i1", "", "given"),
    "past": Field("i8", "s", "constant", snapshot=Snapshot(7, "no past")),
    "priority": Field("i4", "", "asked for"),
}


@pytest.mark.parametrize(
    ("given", "record", "odd"),
    [
        ((), PodRecord, "checked"),  # no record has it
        (("checked",), None, "gpus, priority"),
        (("checked", "past"), PodRecord, "past"),  # the table says what it is
        (("checked", "shoe_size"), PodRecord, "shoe_size"),
    ],
)
def test_a_packer_names_every_field(
    given: tuple[str, ...], record: type[Any] | None, odd: str
) -> None:
    with pytest.raises(ValueError, match=f"fields {odd}; legal: each given, of the record, or"):
        RowPacker(FIELDS, given, record)


def test_a_packer_puts_fields_where_they_belong() -> None:
    pack = RowPacker(FIELDS, ("checked",), PodRecord)
    record = read_record(preemptor(2))
    [row] = np.frombuffer(pack(record, 5), record_dtype(FIELDS))
    assert row.tolist() == (2, 5, 7, 1000)
