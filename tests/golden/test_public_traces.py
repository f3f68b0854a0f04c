"""The public traces themselves, where a checkout has them beside the repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flextopo.cluster.topology.model import preset
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.cluster.workload.trace_convert import convert_traces
from flextopo.cluster.workload.traces import read_jobs, read_services, tape_from_traces

DATA = Path(__file__).parents[2].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason="the public traces are not beside the repository"
)

# File, services and 10-min windows as its publisher describes them.
SERVICES = [
    ("servegen_services34_10min.csv.gz", 34, 7 * 144),
    ("servegen_total_10min.csv.gz", 3, 7 * 144),
    ("azure2023_conv_requests.csv.gz", 1, 3),
    ("azure2023_code_requests.csv.gz", 1, 3),
    ("azure2023_conv_per_minute.csv", 1, 3),
    ("azure2023_code_per_minute.csv", 1, 3),
    ("mooncake_conversation_requests.csv.gz", 1, 3),
]

# File, batch jobs with a GPU by source, largest job in GPUs.
JOBS = [
    ("batch_jobs_unified.csv.gz", {"openb": 1727, "philly": 54770}, 8),
    ("philly_jobs.csv.gz", {"philly_jobs": 54870}, 32),
    ("openb_pods.csv", {"openb": 1727}, 8),
    ("acme_kalos_sample.csv", {"acme_kalos_sample": 159}, 1024),
]


@pytest.mark.parametrize(("name", "services", "windows"), SERVICES)
def test_services_are_read_whole(name: str, services: int, windows: int) -> None:
    read = read_services(DATA / "online" / name)
    assert read.rates.shape == (services, windows)
    assert np.isfinite(read.rates).all()
    assert (read.rates.mean(axis=1) > 0).all()
    assert read.aligned == (windows >= 144)


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_minutes_and_requests_of_azure_agree(kind: str) -> None:
    requests = read_services(DATA / "online" / f"azure2023_{kind}_requests.csv.gz")
    minutes = read_services(DATA / "online" / f"azure2023_{kind}_per_minute.csv")
    np.testing.assert_allclose(requests.rates[:, :-1], minutes.rates[:, :-1], rtol=1e-9)


@pytest.mark.parametrize(("name", "counts", "largest"), JOBS)
def test_jobs_are_read_whole(name: str, counts: dict[str, int], largest: int) -> None:
    jobs = read_jobs(DATA / "batch" / name)
    found = np.bincount(jobs.source, minlength=len(jobs.sources)).tolist()
    assert dict(zip(jobs.sources, found, strict=True)) == counts
    assert (jobs.gpus * jobs.pods).max() == largest


def test_openb_as_published_and_unified_are_the_same_jobs() -> None:
    published = read_jobs(DATA / "batch" / "openb_pods.csv")
    unified = read_jobs(DATA / "batch" / "batch_jobs_unified.csv.gz")
    openb = unified.take(unified.source == unified.sources.index("openb"))
    assert sorted(published.duration_s.tolist()) == sorted(openb.duration_s.tolist())


@pytest.mark.parametrize("server", ["rtx4090", "a100"])
@pytest.mark.parametrize("servers", [4, 16])
def test_services_and_jobs_fill_a_cluster(server: str, servers: int) -> None:
    services = read_services(DATA / "online" / "servegen_services34_10min.csv.gz")
    jobs = read_jobs(DATA / "batch" / "batch_jobs_unified.csv.gz")
    model = preset(server)
    num_gpus = servers * model.num_gpus
    cores = model.num_cores // model.num_gpus - 1
    config = WorkloadConfig()
    # Jobs count with their source's mean, and the load ends at a whole one.
    half_job = 0.5 * 32_000 / (num_gpus * 36 * 3600)
    occupancy, added, batch = [], [], []
    for seed in range(20):
        tape, report = tape_from_traces(
            services, jobs, config, num_gpus, seed, model.num_gpus, cores
        )
        assert report.load == pytest.approx(0.65, abs=half_job)
        assert len(report.jobs) == 2
        np.testing.assert_array_equal(tape.pods["cores"], tape.pods["gpus"] * cores)
        online, begin = tape.pods["online"], tape.pods["arrive_s"]
        leaves = np.where(online, tape.pods["depart_s"], begin + tape.pods["duration_s"])
        span = np.minimum(leaves, tape.end_s) - np.maximum(begin, 0)
        gpu_s = np.clip(span, 0, None) * tape.pods["gpus"] / (num_gpus * tape.end_s)
        occupancy.append(gpu_s[online].sum())
        batch.append(gpu_s[~online].sum())
        added.append(
            (online & (tape.pods["arrive_s"] >= 0)).sum() / (tape.pods["service"].max() + 1)
        )
    # The peak is 0.6 of the GPUs, and the services' mean is 0.4-0.6 of their common peak.
    assert 0.2 < np.mean(occupancy) < 0.5
    assert 3 < np.mean(added) < 15
    # What the jobs would hold in the account if none had to wait.
    assert np.mean(batch) == pytest.approx(0.65, abs=3 * np.std(batch) / 20**0.5)


@pytest.mark.parametrize("name", [name for name, *_ in SERVICES])
def test_converted_services_play_the_same(tmp_path: Path, name: str) -> None:
    path, made = DATA / "online" / name, tmp_path / "made.csv"
    made.write_text(convert_traces([path]).text)
    np.testing.assert_array_equal(read_services(made).rates, read_services(path).rates)


@pytest.mark.parametrize("name", [name for name, *_ in JOBS])
def test_converted_jobs_play_the_same(tmp_path: Path, name: str) -> None:
    path, made = DATA / "batch" / name, tmp_path / "made.csv"
    made.write_text(convert_traces([path]).text)
    for field in ("submit_s", "duration_s", "gpus", "pods", "rest", "source"):
        ours, theirs = getattr(read_jobs(made), field), getattr(read_jobs(path), field)
        np.testing.assert_array_equal(ours, theirs)
