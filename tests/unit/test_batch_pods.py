"""What an eviction costs each job: long and elastic jobs, guaranteed durations, and what is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flextopo.cluster.workload.batch_jobs import BatchJobs, cut_notes
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.cluster.workload.tape import Tape

DEFAULT = WorkloadConfig()
DAY = 86400


def batch(tape: Tape) -> npt.NDArray[Any]:
    pods: npt.NDArray[Any] = tape.pods[~tape.pods["online"]]
    return pods


def test_a_few_long_jobs_hold_most_of_the_time_and_the_load_stays() -> None:
    asked, loads, lengths = [], [], []
    for seed in range(150):
        tape = generate_tape(DEFAULT, 128, seed)
        pods = batch(tape)
        begin, end = pods["arrive_s"], pods["arrive_s"] + pods["duration_s"]
        inside = np.clip(np.minimum(end, tape.end_s) - np.maximum(begin, 0), 0, None)
        loads.append((inside * pods["gpus"]).sum() / (128 * tape.end_s))
        new = pods["arrive_s"] > -tape.warmup_s
        asked.append((pods["duration_s"] * pods["gpus"])[new])
        lengths.append(pods["duration_s"][new])
    asked_s, length = np.concatenate(asked), np.concatenate(lengths)
    # Philly as a whole: 6 % of jobs run over 3 days and hold 78 % of the GPU time.
    assert asked_s[length > 3 * DAY].sum() / asked_s.sum() == pytest.approx(0.8, abs=0.08)
    assert np.mean(length > 3 * DAY) < 0.06
    assert np.mean(loads) == pytest.approx(DEFAULT.batch_load, abs=0.03)
    assert np.std(loads) < 0.15


def test_jobs_over_a_day_always_save_checkpoints() -> None:
    config = replace(DEFAULT, checkpoint_mix=(0.0, 0.0, 0.0, 1.0), elastic_share=0.0)
    saved = []
    for seed in range(20):
        pods = batch(generate_tape(config, 128, seed))
        long = pods["duration_s"] > DAY
        assert (pods["checkpoint_s"][long] == 3600).all()
        new = pods["arrive_s"] > pods["arrive_s"].min()
        assert not pods["checkpoint_s"][new & ~long].any()
        saved.append(pods["checkpoint_s"][~new & ~long] > 0)
    # Those in progress have less than a day left of more than one.
    assert np.concatenate(saved).any()


def test_what_is_cut_is_counted() -> None:
    config = replace(
        DEFAULT, max_duration_s=DAY, initial_jobs=False, elastic_share=0.0, group_share=0.0
    )
    tape = generate_tape(config, 1024, 0)
    pods = batch(tape)
    longest, shortest = ((pods["duration_s"] == end).sum() for end in (DAY, 60))
    assert longest > 10
    assert shortest > 10
    cut, lengthened = tape.notes.split(", ")
    assert cut == f"{longest} of {len(pods)} jobs cut at 1 day"
    assert lengthened.endswith(f" of {len(pods)} jobs lengthened to 60 s")
    # A job may be 60 s long without help.
    assert shortest - 3 <= int(lengthened.split()[0]) <= shortest


def test_nothing_cut_is_nothing_said() -> None:
    ones = np.ones(3, np.int64)
    jobs = BatchJobs(0 * ones, 600 * ones, ones, ones, 0 * ones)
    assert cut_notes(jobs, DEFAULT) == ""
    longer = replace(jobs, wanted_s=np.array([600, 2592001, 2592000]))
    assert cut_notes(longer, DEFAULT) == "1 of 3 jobs cut at 30 days"


def test_elastic_jobs_are_workers_without_group_or_budget() -> None:
    plain, elastic = (
        batch(generate_tape(replace(DEFAULT, elastic_share=share, pdb_share=1.0), 256, 1))
        for share in (0.0, 1.0)
    )
    single = plain["group"] < 0
    large = plain[single & np.isin(plain["gpus"], (4, 8))]
    assert len(large) > 20
    assert not np.isin(elastic["gpus"][elastic["group"] < 0], (4, 8)).any()
    workers = elastic[(elastic["group"] < 0) & (elastic["gpus"] == 2) & (elastic["pdb"] < 0)]
    assert len(workers) == large["gpus"].sum() // 2
    same = ("arrive_s", "duration_s", "batch_class", "preemptible", "checkpoint_s", "protection_s")
    for name in same:
        expected = np.repeat(large[name], large["gpus"] // 2)
        np.testing.assert_array_equal(workers[name], expected)
    np.testing.assert_array_equal(plain[~single]["gpus"], elastic[elastic["group"] >= 0]["gpus"])


def test_a_share_of_large_single_pods_is_elastic() -> None:
    config = replace(DEFAULT, batch_gpu_mix=(0.0, 0.0, 0.0, 1.0), group_share=0.0)
    pods = batch(generate_tape(replace(config, initial_jobs=False, batch_load=10.0), 8000, 0))
    workers, whole = (pods["gpus"] == 2).sum() / 4, (pods["gpus"] == 8).sum()
    assert whole > 1000
    assert workers / (workers + whole) == pytest.approx(0.1, abs=0.02)


def test_a_share_of_low_jobs_has_a_guaranteed_duration() -> None:
    config = replace(DEFAULT, spot_guaranteed_s=1800, elastic_share=0.0, group_share=0.0)
    pods = batch(generate_tape(config, 16000, 0))
    low = (pods["batch_class"] == 0) & pods["preemptible"]
    assert set(pods["protection_s"].tolist()) == {0, 1800}
    assert not pods["protection_s"][~low].any()
    assert np.mean(pods["protection_s"][low] > 0) == pytest.approx(0.2, abs=0.03)


def test_the_back_off_reaches_the_tape() -> None:
    assert generate_tape(DEFAULT, 32, 0).backoff_s == 10
    assert generate_tape(replace(DEFAULT, backoff_s=0), 32, 0).backoff_s == 0
