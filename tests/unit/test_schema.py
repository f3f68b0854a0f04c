"""One table of the state: whatever is added to it arrives everywhere by itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tapes

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state import schema
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.schema import Field, blank, pod_table, record_dtype
from flextopo.cluster.state.storage import Kind, arrays_of


def test_every_array_says_when_it_changes() -> None:
    kinds = {name: array.kind for name, array in arrays_of(Cluster).items()}
    assert kinds["models"] == Kind.HARDWARE
    assert kinds["pods"] == Kind.GIVEN
    assert kinds["scratch"] == Kind.SCRATCH
    assert kinds["network"] == Kind.HARDWARE
    known = {"models", "network", "pods", "scratch"}
    others = {name: kind for name, kind in kinds.items() if name not in known}
    assert {kind for name, kind in others.items() if name.startswith("gang_")} == {Kind.SCRATCH}
    assert {kind for name, kind in others.items() if not name.startswith("gang_")} == {Kind.STATE}


def test_a_field_that_is_added_reaches_tapes_simulations_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {**schema.POD_FIELDS, "tenant": Field("i4", "", "who pays", 3, (0, 9))}
    dtype = record_dtype(fields)
    monkeypatch.setattr(schema, "POD_FIELDS", fields)
    monkeypatch.setattr(schema, "POD_DTYPE", dtype)
    monkeypatch.setattr(schema, "_FIELDS_OF", {dtype: fields})
    table = pod_table(2, gpus=[1, 2], tenant=[4, 5])
    assert table["tenant"].tolist() == [4, 5]
    assert pod_table(2, gpus=1)["tenant"].tolist() == [3, 3]
    with pytest.raises(WorkloadError, match="pod 1: tenant = 10; legal: whole numbers from 0 to 9"):
        pod_table(2, gpus=1, tenant=[1, 10])


def test_records_begin_as_the_table_says() -> None:
    live = blank(2, schema.LIVE_DTYPE)
    assert live["node"].tolist() == live["heap_at"].tolist() == live["tried"].tolist() == [-1, -1]
    assert live["since_s"].tolist() == [schema.NEVER_PLACED_S] * 2
    assert not live["evictions"].any()
    assert (schema.POD_DTYPE.itemsize, schema.LIVE_DTYPE.itemsize) == (88, 88)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("cores", 2**40, "cores = 1099511627776; legal: whole numbers from 0 to 2147483647"),
        ("requirement", 3, "requirement = 3; legal: whole numbers from 0 to 2"),
        ("gpus", [1.0, float("nan")], "pod 0: gpus = 1.0"),
        ("gpus", [1, 1.5], "pod 1: gpus = 1.5; legal: whole numbers"),
        ("group", -2, "group = -2; legal: whole numbers from -1"),
        ("shoe_size", 1, "pod column 'shoe_size'; legal: gpus, "),
        ("priority", [1, 2, 3], r"priority has shape \(3,\); legal: \(2,\)"),
    ],
)
def test_illegal_columns_are_named(column: str, value: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        pod_table(2, **{column: value})


def test_a_simulation_knows_the_service_of_a_replica() -> None:
    tape, fleet = tapes.make_tape("2*a100", 0)
    sim = Simulator(tape, fleet)
    np.testing.assert_array_equal(sim.state.arrays.pods["service"], tape.pods["service"])
