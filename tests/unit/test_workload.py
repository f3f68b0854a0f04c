"""The generator: the documented figures, the rules of scaling, and determinism."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.state.schema import NEVER_S
from flextopo.cluster.workload.batch_jobs import (
    BatchJobs,
    generate_jobs,
    hourly_factors,
    jobs_in_progress,
    mean_duration_s,
    nearest_prefix,
)
from flextopo.cluster.workload.batch_pods import draw_attributes
from flextopo.cluster.workload.config import CHECKPOINT_S, SPOT_HOUR_FACTORS
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.cluster.workload.online_demand import (
    common_n_max,
    desired_replicas,
    num_services,
    replica_pods,
    service_rates,
)
from flextopo.cluster.workload.tape import BATCH_PRIORITIES, ONLINE_PRIORITY, Tape

DEFAULT = WorkloadConfig()
SMOOTH = WorkloadConfig(residual_sd=0.34, residual_phi=0.93)
FLAT = WorkloadConfig(warmup_h=0.0, horizon_h=2.0)


def generators(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, i]) for i in range(count)]


def arrays(tape: Tape) -> dict[str, npt.NDArray[Any]]:
    columns = {name: tape.pods[name] for name in tape.pods.dtype.names or ()}
    return {**columns, "pdb_allowed": tape.pdb_allowed}


def online_peak(tape: Tape) -> int:
    """Return the most GPUs that online pods ask for at any second of the account."""
    online = tape.pods["online"]
    times = np.concatenate((tape.pods["arrive_s"][online], tape.pods["depart_s"][online]))
    change = np.concatenate((tape.pods["gpus"][online], -tape.pods["gpus"][online]))
    order = np.lexsort((change, times))
    times, gpus = times[order], np.cumsum(change[order])
    begin = np.searchsorted(times, 0, side="right") - 1
    return int(gpus[begin : np.searchsorted(times, tape.end_s)].max())


def day_figures(config: WorkloadConfig, seeds: int = 60) -> tuple[float, float, float]:
    """Return replicas added a service and day, occupancy, and the share added from 8 to 11."""
    hour = np.arange(144) / 6
    morning = (hour >= 8) & (hour < 11)
    added, early, occupancy = [], [], []
    for seed in range(seeds):
        rates = service_rates(config, 6, generators(2, seed))
        replicas = desired_replicas(rates, 8.0, config.scale_down_s)
        up = np.clip(np.diff(replicas[:, 71:], axis=1), 0, None)
        added.append(up.sum() / 6)
        early.append(up[:, morning].sum() / 6)
        occupancy.append(replicas[:, 72:].mean() / 8)
    return float(np.mean(added)), float(np.mean(occupancy)), float(np.sum(early) / np.sum(added))


def test_smooth_residuals_give_the_figures_measured_on_the_service_traces() -> None:
    # Measured on the 34 services: 11.7 (median) and 12.9 (mean) replicas added, 0.42-0.45, 0.27.
    added, occupancy, morning = day_figures(SMOOTH)
    assert added == pytest.approx(13, abs=2)
    assert occupancy == pytest.approx(0.44, abs=0.03)
    assert morning == pytest.approx(0.26, abs=0.03)


def test_default_residuals_scale_more_often_than_the_service_traces() -> None:
    # An AR(1) residual of sd 0.56 and coefficient 0.76 moves by 0.39 in 10 min at every hour; the
    # recorded services move by 0.24, and by 0.14 at their peak, where a replica is a small step.
    added, occupancy, morning = day_figures(DEFAULT)
    assert added == pytest.approx(21.7, abs=1.5)
    assert occupancy == pytest.approx(0.375, abs=0.02)
    assert morning == pytest.approx(0.20, abs=0.02)


def test_default_day_on_16_servers() -> None:
    added, peaks = [], []
    for seed in range(60):
        tape = generate_tape(DEFAULT, 128, seed)
        in_day = tape.pods["online"] & (tape.pods["arrive_s"] >= 0)
        added.append(in_day.sum() / (tape.pods["service"].max() + 1))
        peaks.append(online_peak(tape) / 128)
    assert np.mean(added) == pytest.approx(14.5, abs=1.5)
    assert max(peaks) <= 0.6
    assert np.mean(peaks) > 0.56


@pytest.mark.parametrize("num_gpus", [8, 16, 128, 1000])
@pytest.mark.parametrize("share", [0.4, 0.9])
def test_online_demand_never_exceeds_its_share(num_gpus: int, share: float) -> None:
    config = replace(DEFAULT, online_peak_share=share)
    for seed in range(5):
        tape = generate_tape(config, num_gpus, seed)
        assert 0 < online_peak(tape) <= share * num_gpus


def test_rates_become_replicas_up_at_once_and_down_after_the_wait() -> None:
    rates = np.array([[1.0, 8.0, 2.0, 2.0, 2.0, 4.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    capacity = np.quantile(rates, 0.995) / 8
    at_once = np.maximum(np.ceil(rates / capacity), 1)
    assert at_once[0].tolist() == [2, 9, 3, 3, 3, 5, 2, 2, 2, 2, 1]
    np.testing.assert_array_equal(desired_replicas(rates, 8.0, 0), at_once)
    # The burst is held for two steps of 10 min more, then the highest wish of the window counts.
    held = [2, 9, 9, 9, 3, 5, 5, 5, 2, 2, 2]
    np.testing.assert_array_equal(desired_replicas(rates, 8.0, 1200), [held])
    np.testing.assert_array_equal(desired_replicas(rates, 8.0, 601), [held])


def test_a_service_without_requests_keeps_one_replica() -> None:
    np.testing.assert_array_equal(desired_replicas(np.zeros((2, 4)), 8.0, 600), np.ones((2, 4)))


def test_common_factor_is_the_largest_that_fits() -> None:
    rates = np.array([[1.0, 2.0, 4.0, 3.0] * 3, [4.0, 1.0, 1.0, 2.0] * 3])
    gpus = np.array([2, 1])
    config = replace(FLAT, scale_down_s=0)
    n_max = common_n_max(rates, gpus, 30.0, config)

    def peak(factor: float) -> int:
        held = desired_replicas(rates, factor, 600)
        return int((gpus @ held).max())

    assert peak(n_max) <= 30 < peak(n_max * 1.0001)


def test_newest_replica_leaves_first() -> None:
    rates = np.array([[1.0, 3.0, 2.0, 3.0, 1.0, 1.0, 3.0, 3.0, 2.0, 2.0, 1.0, 1.0]])
    config = replace(FLAT, scale_down_s=0, replica_gpu_mix=(1.0, 0.0, 0.0, 0.0))
    pods = replica_pods(rates, config, 5, 8, generators(6))
    step = np.where(pods.depart_s == NEVER_S, -1, pods.depart_s // 600)
    spans = sorted(zip((pods.arrive_s // 600).tolist(), step.tolist(), strict=True))
    # Wanted are 1, 3, 2, 3, 1, 1, 3, ...: the share allows 3 GPUs, that is 3 replicas of one.
    assert spans == [(0, -1), (1, 2), (1, 4), (3, 4), (6, 8), (6, 10)]
    together = pods.arrive_s[pods.arrive_s // 600 == 6]
    assert len(together) == 2
    assert len(set(together.tolist())) == 1


def test_number_of_services_follows_the_rule() -> None:
    assert [num_services(DEFAULT, gpus) for gpus in (1, 2, 4, 8, 128, 1280)] == [0, 1, 2, 3, 6, 60]
    assert num_services(replace(DEFAULT, services=4), 128) == 4
    with pytest.raises(WorkloadError, match=r"services = 4 .* legal: 1 to 2"):
        num_services(replace(DEFAULT, services=4), 4)


def test_services_share_their_requirements_exactly() -> None:
    tape = generate_tape(DEFAULT, 128, 3)
    kind = {
        int(s): int(r)
        for s, r in zip(tape.pods["service"], tape.pods["requirement"], strict=True)
        if s >= 0
    }
    assert sorted(kind.values()) == [1, 1, 1, 2, 2, 2]
    config = replace(DEFAULT, guaranteed_share=0.0, none_share=1.0)
    assert set(generate_tape(config, 128, 3).pods["requirement"].tolist()) == {0}


def test_start_up_times_have_the_documented_quantiles() -> None:
    tape = generate_tape(replace(DEFAULT, start_factor=2.0), 16000, 0)
    start = tape.pods["start_s"][tape.pods["online"]]
    assert np.quantile(start, [0.5, 0.9]) == pytest.approx([180, 480], rel=0.03)
    assert not tape.pods["start_s"][~tape.pods["online"]].any()


def test_residuals_have_the_documented_moments() -> None:
    config = replace(DEFAULT, daily_amplitude=0.0, half_daily_amplitude=0.0, burst_share=0.0)
    config = replace(config, warmup_h=0.0, horizon_h=8000.0)
    log_rate = np.log(service_rates(config, 2, generators(2)))
    assert log_rate.std() == pytest.approx(0.56, rel=0.03)
    assert np.corrcoef(log_rate[0, 1:], log_rate[0, :-1])[0, 1] == pytest.approx(0.76, abs=0.02)
    assert np.corrcoef(log_rate)[0, 1] == pytest.approx(0.3, abs=0.03)


def test_batch_load_is_the_documented_one_on_average() -> None:
    # A hundred days, since a thousandth of the jobs holds a third of the load.
    config = replace(DEFAULT, warmup_h=0.0, horizon_h=2400.0, initial_jobs=False)
    capacity = 128 * 2400 * 3600
    runs = [generate_jobs(config, 128, 8, 0, 8640000, generators(4, seed)) for seed in range(60)]
    loads = np.array([jobs.gpu_s.sum() / capacity for jobs in runs])
    error = loads.std(ddof=1) / math.sqrt(len(loads))
    assert error < 0.02
    assert loads.mean() == pytest.approx(0.65, abs=3 * error)
    grouped = sum(int(jobs.gpu_s[jobs.pods > 1].sum()) for jobs in runs)
    assert grouped / sum(int(jobs.gpu_s.sum()) for jobs in runs) == pytest.approx(0.1, abs=0.03)


def test_jobs_in_progress_fill_the_load_from_the_first_second() -> None:
    filled = []
    for seed in range(40):
        tape = generate_tape(DEFAULT, 128, seed)
        first = ~tape.pods["online"] & (tape.pods["arrive_s"] == -tape.warmup_s)
        filled.append(tape.pods["gpus"][first].sum() / 128)
    assert np.mean(filled) == pytest.approx(0.65, abs=0.02)
    empty = generate_tape(replace(DEFAULT, initial_jobs=False), 128, 0)
    assert not (~empty.pods["online"] & (empty.pods["arrive_s"] == -empty.warmup_s)).any()


def test_jobs_in_progress_are_length_biased_and_partly_done() -> None:
    count = 1000
    ones = np.ones(count, np.int64)
    duration = np.where(np.arange(count) % 2, 1000, 9000)
    pool = BatchJobs(0 * ones, duration, ones, ones, 0 * ones)
    running = jobs_in_progress(pool, 20_000.0, -600, np.random.default_rng(0))
    assert len(running) == 20_000
    assert set(running.submit_s.tolist()) == {-600}
    assert running.duration_s.min() >= 1
    # Nine of ten GPUs are held by the long jobs, each uniformly far from its end.
    left = running.duration_s
    assert np.mean(left > 1000) == pytest.approx(0.9 * 8 / 9, abs=0.01)
    assert left.mean() == pytest.approx(0.9 * 4500 + 0.1 * 500, rel=0.02)


@pytest.mark.parametrize(("mu", "sigma"), [(7.65, 1.83), (9.12, 2.76), (3.5, 1.0), (6.0, 0.0)])
def test_mean_of_cut_durations_is_exact(mu: float, sigma: float) -> None:
    draws = np.exp(mu + sigma * np.random.default_rng(0).standard_normal(1_000_000))
    for longest, error in ((86400, 0.005), (2592000, 0.015)):
        expected = np.clip(draws, 60, longest).mean()
        assert mean_duration_s(mu, sigma, 60, longest) == pytest.approx(expected, rel=error)


@pytest.mark.parametrize("shape", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("correlation", [0.0, 0.4])
def test_hourly_factors_are_gamma_with_the_asked_correlation(
    shape: float, correlation: float
) -> None:
    (factors,) = hourly_factors(shape, correlation, 200_000, np.random.default_rng(1))
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert factors.var() == pytest.approx(1 / shape, rel=0.05)
    skewness = ((factors - factors.mean()) ** 3).mean() / factors.std() ** 3
    assert skewness == pytest.approx(2 / math.sqrt(shape), rel=0.1)
    lag_one = np.corrcoef(factors[1:], factors[:-1])[0, 1]
    assert lag_one == pytest.approx(correlation, abs=0.015)


def test_arrivals_follow_the_hour_of_day() -> None:
    config = replace(DEFAULT, warmup_h=0.0, horizon_h=4800.0, batch_load=4.0, initial_jobs=False)
    jobs = generate_jobs(config, 128, 8, 0, 4800 * 3600, generators(4))
    hour = np.bincount(jobs.submit_s // 3600 % 24, minlength=24)
    assert hour / hour.mean() == pytest.approx(SPOT_HOUR_FACTORS, rel=0.25)
    assert np.corrcoef(hour, SPOT_HOUR_FACTORS)[0, 1] > 0.85


def test_attributes_have_the_documented_shares() -> None:
    pods = np.ones(100_000, np.int64)
    pods[::10] = 3
    ones = np.ones(100_000, np.int64)
    jobs = BatchJobs(0 * ones, 3600 * ones, ones, pods, 0 * ones)
    drawn = draw_attributes(DEFAULT, jobs, generators(5))
    low = drawn.batch_class == 0
    assert low.mean() == pytest.approx(0.6, abs=0.01)
    assert drawn.preemptible[~low].all()
    assert drawn.preemptible[low].mean() == pytest.approx(0.9, abs=0.01)
    shares = [np.mean(drawn.checkpoint_s == interval) for interval in CHECKPOINT_S]
    assert shares == pytest.approx([0.4, 0.25, 0.15, 0.2], abs=0.01)
    assert (drawn.pdb[pods > 1] == -1).all()
    assert (drawn.pdb[pods == 1] >= 0).mean() == pytest.approx(0.1, abs=0.01)
    sizes = np.bincount(drawn.pdb[drawn.pdb >= 0], minlength=drawn.num_pdbs)
    assert set(sizes.tolist()) <= {9, 10}


@pytest.mark.parametrize(
    ("num_gpus", "per_server", "cores"), [(128, 8, 7), (64, 4, 16), (40, 16, 3)]
)
def test_table_is_consistent(num_gpus: int, per_server: int, cores: int) -> None:
    config = replace(DEFAULT, group_share=0.5)
    tape = generate_tape(config, num_gpus, 5, gpus_per_server=per_server, cores_per_gpu=cores)
    online = tape.pods["online"]
    assert (np.diff(tape.pods["arrive_s"]) >= 0).all()
    assert tape.pods["arrive_s"][0] == -12 * 3600
    assert tape.pods["arrive_s"][-1] < tape.end_s == 24 * 3600
    assert tape.pods["gpus"].min() >= 1
    assert tape.pods["gpus"].max() <= per_server
    np.testing.assert_array_equal(tape.pods["cores"], tape.pods["gpus"] * cores)
    assert (tape.pods["priority"][online] == ONLINE_PRIORITY).all()
    low_middle = np.array(BATCH_PRIORITIES)
    np.testing.assert_array_equal(
        tape.pods["priority"][~online], low_middle[tape.pods["batch_class"][~online]]
    )
    assert (tape.pods["depart_s"][~online] == NEVER_S).all()
    assert (tape.pods["depart_s"] > tape.pods["arrive_s"]).all()
    new = ~online & (tape.pods["arrive_s"] > -tape.warmup_s)
    assert tape.pods["duration_s"][new].min() >= 60
    assert tape.pods["duration_s"].max() <= 30 * 86400
    assert tape.pods["service"][online].min() == 0
    assert (tape.pods["service"][~online] == -1).all()
    assert (tape.pdb_allowed == 1).all()


def test_group_members_are_adjacent_and_alike() -> None:
    tape = generate_tape(replace(DEFAULT, group_share=0.5), 1024, 1)
    groups = np.unique(tape.pods["group"][tape.pods["group"] >= 0])
    np.testing.assert_array_equal(groups, np.arange(len(groups)))
    assert len(groups) > 20
    same = ("arrive_s", "duration_s", "priority", "preemptible", "checkpoint_s")
    for group in groups:
        rows = np.flatnonzero(tape.pods["group"] == group)
        assert len(rows) in (2, 3, 4)
        np.testing.assert_array_equal(np.diff(rows), 1)
        assert all(len(set(tape.pods[name][rows].tolist())) == 1 for name in same)
        assert (tape.pods["gpus"][rows] == 8).all()
        assert (tape.pods["pdb"][rows] == -1).all()


def test_small_clusters_have_no_groups() -> None:
    config = replace(DEFAULT, group_share=1.0)
    assert (generate_tape(config, 31, 0).pods["group"] == -1).all()
    assert (generate_tape(config, 32, 0).pods["group"] >= 0).any()


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not() -> None:
    first, again = (arrays(generate_tape(DEFAULT, 128, 7)) for _ in range(2))
    assert first.keys() == again.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    other = generate_tape(DEFAULT, 128, 8)
    assert first["arrive_s"].tolist() != other.pods["arrive_s"].tolist()


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"batch_load": 1.2}, "online"),
        ({"arrival_shape": 0.5, "group_share": 0.0}, "online"),
        ({"residual_sd": 1.0, "burst_share": 0.1}, "batch"),
        ({"start_factor": 5.0}, "batch"),
        ({"deadline_max_s": 900, "sensitivity_mix": (0.0, 0.0, 1.0, 0.0)}, "batch"),
        ({"deadline_max_s": 900, "sensitivity_mix": (0.0, 0.0, 1.0, 0.0)}, "online"),
        ({"spot_share": 1.0}, "batch"),
        ({"elastic_share": 1.0}, "online"),
    ],
)
def test_one_purpose_does_not_shift_another(change: dict[str, float], kept: str) -> None:
    tapes = [generate_tape(config, 128, 2) for config in (DEFAULT, replace(DEFAULT, **change))]  # type: ignore[arg-type]
    names = ("arrive_s", "depart_s", "duration_s", "gpus", "start_s", "checkpoint_s", "batch_class")
    for name in names:
        first, second = (
            tape.pods[name][tape.pods["online"] if kept == "online" else ~tape.pods["online"]]
            for tape in tapes
        )
        np.testing.assert_array_equal(first, second)


def test_a_load_of_nothing_gives_no_jobs() -> None:
    assert generate_tape(replace(DEFAULT, batch_load=0.0), 128, 0).pods["online"].all()


def test_a_cluster_too_small_for_services_has_jobs_only() -> None:
    assert not generate_tape(DEFAULT, 1, 0).pods["online"].any()


def test_window_is_rounded_up_to_ten_minutes() -> None:
    tape = generate_tape(replace(DEFAULT, warmup_h=0.25, horizon_h=1.01), 16, 0)
    assert (tape.warmup_s, tape.end_s) == (1200, 4200)


@pytest.mark.parametrize(
    ("num_gpus", "seed", "per_server", "cores", "message"),
    [
        (0, 0, 8, 7, "num_gpus = 0; legal: 1 to"),
        (8, -1, 8, 7, "seed = -1; legal: 0 or more"),
        (8, 0, 17, 7, "gpus_per_server = 17; legal: 1 to 16"),
        (8, 0, 8, 0, "cores_per_gpu = 0; legal: 1 to"),
    ],
)
def test_illegal_clusters_are_named(
    num_gpus: int, seed: int, per_server: int, cores: int, message: str
) -> None:
    with pytest.raises(WorkloadError) as caught:
        generate_tape(DEFAULT, num_gpus, seed, gpus_per_server=per_server, cores_per_gpu=cores)
    assert message in str(caught.value)


def test_nearest_prefix_stops_on_either_side_of_the_target() -> None:
    sums = np.array([2, 4, 10])
    assert [nearest_prefix(sums, t) for t in (0.0, 1.5, 4.0, 6.9, 7.1, 99.0)] == [0, 1, 2, 2, 3, 3]
    assert nearest_prefix(sums[:0], 5.0) == 0
