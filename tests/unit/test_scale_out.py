"""Jobs fan out over processes or Ray, and come back as if they had been done here."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lost_worker
import pytest

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.workload.generator import WorkloadConfig
from flextopo.train import compare as comparing
from flextopo.train import scale_out
from flextopo.train.config import ComparisonConfig
from flextopo.train.results import load_results
from flextopo.train.scale_out import run_jobs

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed (extra `ray`)"
)
quiet = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files open
SMALL = ComparisonConfig(
    servers="2*rtx4090",
    selectors=("godel", "greedy-cost"),
    policies=(),
    seeds=3,
    workload=WorkloadConfig(horizon_h=14.0, online_peak_share=0.9),
)


@pytest.fixture(autouse=True)
def _workers_find_these_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_job_is_done_once(workers: int) -> None:
    jobs = list(range(9))
    found = list(run_jobs(lost_worker.square, jobs, workers))
    assert sorted(found) == [(i, i * i) for i in jobs]


def test_the_jobs_of_a_lost_process_are_done_again(tmp_path: Path) -> None:
    jobs = [(i, str(tmp_path / "marker")) for i in range(6)]
    assert sorted(run_jobs(lost_worker.dies_once, jobs, 2)) == [(i, i * i) for i in range(6)]
    assert (tmp_path / "marker").exists()


def test_processes_that_die_again_and_again_are_a_mistake() -> None:
    with pytest.raises(FlextopoError, match="lost 3 times"):
        list(run_jobs(lost_worker.always_dies, [1, 2], 2))


def test_a_mistake_in_a_job_is_said_as_it_is() -> None:
    with pytest.raises(FlextopoError, match="number 1; legal: none"):
        list(run_jobs(lost_worker.mistake, [1], 2))
    with pytest.raises(UnknownNameError, match="unknown server 'lathe'; legal: a100"):
        list(run_jobs(lost_worker.unknown, ["lathe"], 2))


def test_ray_that_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(scale_out, "import_module", missing)
    with pytest.raises(FlextopoError, match=r"pip install 'flextopo\[ray\]'"):
        list(run_jobs(lost_worker.square, [1], 1, "local"))
    with pytest.raises(FlextopoError, match="legal: local"):
        list(run_jobs(lost_worker.square, [1], 1, ""))


def test_the_page_names_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "scale-out.md").read_text()
    commands = re.findall(r"flextopo (compare|sweep|train) ([^`\n#]*)", page)
    assert {command for command, _ in commands} == {"compare", "sweep", "train"}
    for command, options in commands:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(option in shown for option in re.findall(r"--[a-z-]+", options))


@pytest.mark.slow
@needs_ray
@quiet
def test_ray_plays_the_same_numbers() -> None:
    here, _ = comparing.play_all(SMALL, workers=1)
    there, interrupted = comparing.play_all(SMALL, workers=2, ray="local")
    assert not interrupted
    assert comparing.summarise(SMALL, there) == comparing.summarise(SMALL, here)


@pytest.mark.slow
@needs_ray
@quiet
def test_the_jobs_of_a_lost_ray_worker_are_done_again(tmp_path: Path) -> None:
    jobs = [(i, str(tmp_path / "marker")) for i in range(6)]
    found = run_jobs(lost_worker.dies_once, jobs, 2, "local")
    assert sorted(found) == [(i, i * i) for i in range(6)]
    assert (tmp_path / "marker").exists()
    with pytest.raises(FlextopoError, match="lost 3 times"):
        list(run_jobs(lost_worker.always_dies, [1], 2, "local"))
    with pytest.raises(FlextopoError, match="number 1; legal: none"):
        list(run_jobs(lost_worker.mistake, [1], 2, "local"))


@pytest.mark.slow
@needs_ray
@quiet
def test_a_network_is_trained_to_the_same_bits_over_ray(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from flextopo.policies.runtime import load_policy
    from flextopo.train.config import ImitationConfig
    from flextopo.train.imitation import train_imitation

    config = ImitationConfig(
        servers=("4*rtx4090",), networks=1, members=1, tapes=4, rounds=2, improvements=1,
        last_tapes=4, epochs=1, k=8, horizon_s=3600, hidden=8, validation_tapes=3,
    )  # fmt: skip
    here = train_imitation(config, tmp_path / "here", 1, lambda _: None)
    with scale_out.connected(2, "local") as ray:
        there = train_imitation(config, tmp_path / "there", 2, lambda _: None, ray="local")
        assert ray.is_initialized()  # one connection for all rounds
    assert not ray.is_initialized()
    ours, theirs = load_policy(here).weights, load_policy(there).weights
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert (here / "meta.json").read_bytes() == (there / "meta.json").read_bytes()


@needs_ray
@quiet
def test_a_cluster_that_does_not_answer_is_one_sentence() -> None:
    with pytest.raises(FlextopoError, match=r"ray '127\.0\.0\.1:1': "):
        list(run_jobs(lost_worker.square, [1], 1, "127.0.0.1:1"))


@pytest.mark.slow
@needs_ray
@quiet
def test_the_jobs_of_a_lost_node_are_done_again_and_commands_reach_a_cluster(
    tmp_path: Path,
) -> None:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    try:
        found = run_jobs(lost_worker.slow_square, list(range(12)), 2, cluster.address)
        first = [next(found), next(found)]
        cluster.remove_node(other, allow_graceful=False)
        rest = list(found)
        assert len(rest) == 10
        assert sorted(first + rest) == [(i, i * i) for i in range(12)]
        options = ["--servers", "2*rtx4090", "--selectors", "godel,greedy-cost", "--seeds", "3"]
        options += ["--policies", "none", "--hours", "14", "--peak", "0.9"]
        command = [sys.executable, "-m", "flextopo", "compare", *options, "--out", str(tmp_path)]
        subprocess.run([*command, "--ray", cluster.address], check=True, capture_output=True)
    finally:
        cluster.shutdown()
    here, _ = comparing.play_all(SMALL, workers=1)
    found_there = load_results(tmp_path / "compare.json")
    assert found_there["selectors"] == comparing.summarise(SMALL, here)["selectors"]
