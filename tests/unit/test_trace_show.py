"""What `flextopo trace show` tells and draws."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trace_texts as texts

from flextopo.cli.app import main
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.trace_rates import ServiceRates
from flextopo.cluster.workload.trace_summary import mean_day, occupancy, size_shares, times_s


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ("trace", "show", *arguments)])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


def make_jobs() -> BatchJobs:
    """Two jobs of 2 GPUs, then one of 20 that goes on beyond the last submission."""
    submit = np.array([86400, 87000, 88200])
    duration, gpus = np.array([1200, 600, 86400]), np.array([2, 2, 8])
    pods, rest = np.array([1, 1, 3]), np.array([0, 0, 4])
    return BatchJobs(submit, duration, gpus, pods, 0 * gpus, ("made",), ("",), rest=rest)


def test_occupancy_is_exact() -> None:
    found = occupancy(make_jobs())
    assert found.edges_s.tolist() == [86400, 87000, 87600, 88200, 88800]
    assert found.gpus.tolist() == [2, 4, 0, 20]
    assert found.mean_gpus == 6.5


def test_long_traces_have_few_points() -> None:
    count = 5000
    submit, ones = 6000 * np.arange(count), np.ones(count, np.int64)
    found = occupancy(BatchJobs(submit, 3000 * ones, ones, ones, 0 * ones))
    assert len(found.gpus) <= 1000
    assert found.mean_gpus == pytest.approx(0.5, rel=0.01)


def test_sizes_and_days() -> None:
    count, hours = size_shares(make_jobs())
    assert count.tolist() == pytest.approx([0, 2 / 3, 0, 0, 1 / 3])
    assert hours.tolist() == pytest.approx([0, 3600 / 1731600, 0, 0, 1728000 / 1731600])
    rates = np.vstack([np.tile(np.repeat(np.arange(24.0), 6), 2), np.zeros(288)])
    services = ServiceRates(("a", "b"), rates, True, "made.csv", first=144)
    day = mean_day(services)
    np.testing.assert_allclose(day[0], np.arange(24) / 11.5)
    assert day[1].tolist() == [1] * 24
    assert times_s(services)[[0, -1]].tolist() == [86400, 86400 * 3 - 600]


def test_text_tells_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demand, batch = tmp_path / "azure.csv", tmp_path / "cluster_job_log"
    demand.write_text(texts.AZURE_2024)
    batch.write_text(texts.PHILLY)
    code, said, _ = run(capsys, "--services", demand, "--batch", batch, "--servers", "2*a100")
    assert code == 0
    first, second = said.splitlines()
    assert first == (
        "azure.csv: 1 services over 48 h, 1.736e-05 requests/s on average, 0.003333 at most; the mean "
        "day is highest at 00:00, lowest at 01:00; day 0 is 2024-05-10."
    )
    assert second == (
        "philly: 3 jobs over 29.1 days, run time p50 600 s and p90 69288 s, up to 12 GPUs; they would "
        "hold 0.2757 GPUs on average, 0.0172 times those of 16; 3 never started or without times left "
        "out, 1 run over 24 h, 1 with attempts of other GPUs than the first, 1 "
        "attempts that end before they start left out, 1 with the id of another, day 0 is 2017-10-06."
    )


@pytest.mark.parametrize("given", [("services",), ("batch",), ("services", "batch")])
@pytest.mark.parametrize("name", sorted(texts.DEMAND))
def test_every_kind_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, given: tuple[str, ...]
) -> None:
    image = pytest.importorskip("matplotlib.image", reason="drawing needs the report extra")
    paths = {"services": tmp_path / "long.csv", "batch": tmp_path / "jobs.csv"}
    paths["services"].write_text(texts.DEMAND[name])
    paths["batch"].write_text(texts.JOBS)
    out = tmp_path / "made" / "trace.png"
    words = [word for part in given for word in (f"--{part}", paths[part])]
    code, said, _ = run(capsys, *words, "--out", out, "--json")
    assert code == 0
    assert json.loads(said)["picture"] == str(out)
    height, width, _ = image.imread(out).shape
    assert width == 1100
    assert 300 < height < 1000


def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = tmp_path / "jobs.csv"
    batch.write_text(texts.JOBS)
    assert run(capsys)[::2] == (2, "error: no trace; legal: --services, --batch or both\n")
    for place in (tmp_path, tmp_path / "a.svg"):
        code, _, error = run(capsys, "--batch", batch, "--out", place)
        assert (code, error) == (2, f"error: --out {place}; legal: a file to write, .png\n")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = run(capsys, "--batch", batch, "--out", tmp_path / "a.png")
    assert code == 2
    assert error == "error: the figures need matplotlib; legal: pip install 'flextopo[report]'\n"
    assert not (tmp_path / "a.png").exists()
    assert run(capsys, "--batch", batch)[0] == 0
