"""What a comparison on traces says: each seed's stretch and load, and where nothing can be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import flextopo
from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.model import PRESETS
from flextopo.cluster.topology.resource import to_resource
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.train.compare import find_fleet, read_traces
from flextopo.train.config import ComparisonConfig
from flextopo.train.differences import nobody_preempted
from flextopo.train.results import paired_notes
from flextopo.train.trace_seeds import count_stretches

DAY = 86400
SERVERS, WORKLOAD = "2*rtx4090", {"warmup_h": 2.0, "horizon_h": 6.0}


@pytest.fixture
def jobs(tmp_path: Path) -> str:
    path = tmp_path / "jobs.csv"
    rows = [f"{600 * i},{1800 + i % 5 * 900},{1 + i % 2}\n" for i in range(6 * 144)]
    path.write_text("submit_s,duration_s,gpus\n" + "".join(rows))
    return str(path)


def services(folder: Path, steps: int) -> str:
    path = folder / "rates.csv"
    wave = 2 - np.cos(2 * np.pi * np.arange(steps) / 36)
    rows = [f"chat,{5 * DAY + 600 * i},{rate}\n" for i, rate in enumerate(wave.tolist())]
    path.write_text("service,t_s,rate_rps\n" + "".join(rows))
    return str(path)


def test_every_seed_is_told(tmp_path: Path, jobs: str) -> None:
    trace = (services(tmp_path, 5 * 144), jobs)
    found = flextopo.compare(
        ["godel", "greedy-cost"], seeds=3, trace=trace, servers=SERVERS, workload=WORKLOAD
    )
    tapes = found.results["config"]["tapes"]
    assert [row["seed"] for row in tapes] == found.results["config"]["seeds_used"]["godel"]
    for row in tapes:
        assert set(row["begins"]) == {"rates.csv", "jobs"}
        assert row["begins"]["rates.csv"] in {f"day {5 + day}" for day in range(5)}
        assert row["begins"]["jobs"] in {f"day {day}" for day in range(6)}
        assert row["load"] == pytest.approx(0.65, abs=0.05)
        assert row["scaling"].startswith(("thinned to", "repeated"))
        assert row["new_replicas"] > 0
    lines = found.summary().splitlines()
    at = lines.index("what each seed plays of the traces:")
    assert lines[at + 1].split() == [
        "seed",
        "rates.csv",
        "jobs",
        "load",
        "jobs",
        "load",
        "replicas",
    ]
    for row, line in zip(tapes, lines[at + 3 :], strict=False):
        assert line.split()[0] == str(row["seed"])
        assert row["scaling"] in line
    assert lines[0].startswith(f"2 servers, 16 GPUs; seed {tapes[0]['seed']}: rates.csv: ")
    assert "no verdict is given from fewer than 10 seeds; here are 3" in lines


@pytest.mark.parametrize(
    ("days", "horizon_h", "services_played", "disjoint", "trace"),
    [
        (5, 24, 1, 5, "rates.csv"),
        (20, 24, 3, 5, "jobs"),
        (5, 25, 1, 2, "rates.csv"),
        (5, 24, 3, 1, "rates.csv"),  # its one service is played three times, from different starts
    ],
)
def test_stretches_that_share_nothing_are_counted(
    tmp_path: Path,
    jobs: str,
    days: int,
    horizon_h: float,
    services_played: int,
    disjoint: int,
    trace: str,
) -> None:
    workload = WorkloadConfig(horizon_h=horizon_h, services=services_played)
    rates = services(tmp_path, days * 144)
    config = ComparisonConfig(SERVERS, services=rates, batch=jobs, workload=workload)
    found = count_stretches(config, find_fleet(SERVERS))
    assert found == {"hours": horizon_h, "disjoint": disjoint, "trace": trace}
    assert count_stretches(ComparisonConfig(SERVERS), find_fleet(SERVERS)) is None


def test_days_without_jobs_are_none_to_begin_on(tmp_path: Path) -> None:
    """Jobs on the first and the thirtieth day: every seed plays the first, which is one stretch."""
    path = tmp_path / "jobs.csv"
    rows = [f"{day * DAY + 600 * i},1800,1\n" for day in (0, 29) for i in range(20)]
    path.write_text("submit_s,duration_s,gpus\n" + "".join(rows))
    workload = WorkloadConfig(services=1)
    rates = services(tmp_path, 20 * 144)
    config = ComparisonConfig(SERVERS, services=rates, batch=str(path), workload=workload)
    found = count_stretches(config, find_fleet(SERVERS))
    assert found is not None
    assert (found["disjoint"], found["trace"]) == (1, "jobs")


def test_ten_seeds_of_five_days_give_no_verdict(tmp_path: Path, jobs: str) -> None:
    trace = (services(tmp_path, 5 * 144), jobs)
    found = flextopo.compare(
        ["godel", "greedy-cost"],
        seeds=10,
        trace=trace,
        servers=SERVERS,
        workload={**WORKLOAD, "services": 1},
    )
    assert found.results["config"]["stretches"] == {
        "hours": 6.0,
        "disjoint": 5,
        "trace": "rates.csv",
    }
    said = found.summary()
    assert (
        "\nstretches overlap: 10 seeds of 6 h, of which rates.csv has 5 that share nothing; "
        in said
    )
    assert "no claim: stretches overlap" in said


def test_half_an_hour_is_refused_before_playing(tmp_path: Path, jobs: str) -> None:
    trace = (services(tmp_path, 3), jobs)
    with pytest.raises(WorkloadError) as caught:
        flextopo.compare(
            ["godel", "greedy-cost"], seeds=3, trace=trace, servers=SERVERS, workload=WORKLOAD
        )
    assert str(caught.value) == (
        f"{trace[0]}: 0.5 h of demand, in which no replica is added on any of 3 seeds, so nothing would "
        "be preempted and there is nothing to compare; legal: demand that rises, of a day or more at best"
    )


def test_where_nobody_preempts_nothing_is_compared(tmp_path: Path, jobs: str) -> None:
    trace = (services(tmp_path, 5 * 144), jobs)
    idle = {**WORKLOAD, "batch_load": 0.01, "online_peak_share": 0.3, "initial_jobs": False}
    found = flextopo.compare(
        ["godel", "greedy-cost"], servers="2*rtx4090", seeds=2, workload=idle, trace=trace
    )
    assert nobody_preempted(found.results)
    said = found.summary()
    assert "\nnothing to compare: no selector preempted a pod on any of 2 seeds; higher" in said
    assert "verdict" not in said
    assert "better on" not in said


def test_ten_seeds_need_no_excuse() -> None:
    notes = [paired_notes({"paired": {"godel": {"seeds": seeds}}}) for seeds in (9, 10)]
    assert notes[0][1] == "no verdict is given from fewer than 10 seeds; here are 9"
    assert len(notes[1]) == 1
    assert not nobody_preempted({"selectors": {"godel": {"weighted_loss": {"per_seed": [0.0]}}}})


def test_files_that_were_changed_are_read_again(
    tmp_path: Path, jobs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process, as in a notebook: what is played is what the files say now, wherever that is."""
    rates = services(tmp_path, 144)
    assert read_traces(rates, jobs)[0] is read_traces(rates, jobs)[0]
    services(tmp_path, 288)
    assert read_traces(rates, jobs)[0].rates.shape[1] == 288
    for steps in (144, 288):
        folder = tmp_path / str(steps)
        folder.mkdir()
        services(folder, steps)
        monkeypatch.chdir(folder)
        assert read_traces("rates.csv", jobs)[0].rates.shape[1] == steps


def test_a_server_that_was_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    text = f"2*{path}"
    for name, gpus in (("rtx4090", 8), ("a100", 8), ("rtx4090", 8)):
        path.write_text(json.dumps(to_resource(build_graph(PRESETS[name], "own"))))
        fleet = find_fleet(text)
        assert find_fleet(text) is fleet
        assert fleet.num_gpus == 2 * gpus
        assert fleet.models[0].num_numa_nodes == PRESETS[name].num_numa_nodes
