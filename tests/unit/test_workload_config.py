"""The workload's parameters: legal ranges, and the draws for randomised training."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape, randomised

DEFAULT = WorkloadConfig()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_load": -0.1}, "batch_load = -0.1; legal: 0 to 10"),
        ({"online_peak_share": 1.5}, "online_peak_share = 1.5; legal: 0.01 to 1"),
        ({"min_duration_s": -60}, "min_duration_s = -60; legal: a whole number 1 to"),
        ({"max_duration_s": 30}, "max_duration_s = 30; legal: min_duration_s = 60"),
        ({"scale_down_s": 1.5}, "scale_down_s = 1.5; legal: a whole number"),
        ({"grace_s": True}, "grace_s = True; legal: a whole number"),
        ({"residual_sd": math.nan}, "residual_sd = nan; legal: 0 to 5"),
        ({"residual_phi": "0.7"}, "residual_phi = '0.7'; legal: 0 to 0.999"),
        ({"services": 0}, "services = 0; legal: a whole number 1 to"),
        ({"start_p90_s": 10.0}, "start_p90_s = 10.0; legal: start_p50_s = 90.0 or more"),
        ({"deadline_min_s": 301}, "deadline_max_s = 300; legal: deadline_min_s = 301+"),
        ({"backoff_s": 361}, "backoff_s = 361; legal: a whole number 0 to 360"),
        ({"sensitivity_mix": (1.0,)}, "legal: 4 numbers, 0 or more, of sum 1"),
        ({"none_share": 0.6}, "none_share = 0.6; legal: 0 to 0.5"),
        ({"replica_gpu_mix": (0.5, 0.5)}, "legal: 4 numbers, 0 or more, of sum 1"),
        ({"replica_gpu_mix": (2.0, -1.0, 0.0, 0.0)}, "legal: 4 numbers, 0 or more, of sum 1"),
        ({"batch_gpu_mix": ("a", 1, 0, 0)}, "legal: 4 numbers, 0 or more, of sum 1"),
        ({"hour_factors": (2.0,) * 24}, "legal: 24 numbers, 0 or more, of sum 24"),
    ],
)
def test_illegal_parameters_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        WorkloadConfig(**change)
    assert message in str(caught.value)


def test_lists_from_configuration_files_become_tuples() -> None:
    config = WorkloadConfig(replica_gpu_mix=[0.4, 0.3, 0.2, 0.1])  # type: ignore[arg-type]
    assert config == DEFAULT
    assert hash(config) == hash(DEFAULT)


def test_every_field_says_what_it_is() -> None:
    assert all(spec.metadata.get("doc") for spec in fields(WorkloadConfig))


def test_randomised_draws_each_range_and_keeps_the_rest() -> None:
    base = replace(DEFAULT, horizon_h=6.0, pdb_share=0.3)
    drawn = [randomised(seed, base) for seed in range(200)]
    assert drawn[:3] == [randomised(seed, base) for seed in range(3)]
    mixes = ("batch_gpu_mix", "replica_gpu_mix", "sensitivity_mix")
    for spec in fields(base):
        values = [getattr(config, spec.name) for config in drawn]
        train = spec.metadata.get("train")
        if train is not None:
            low, high = train
            assert low <= min(values) < low + 0.1 * (high - low), spec.name
            assert high - 0.1 * (high - low) < max(values) <= high, spec.name
        elif spec.name in mixes:
            assert len(set(values)) == 200
        else:
            assert set(values) == {getattr(base, spec.name)}
    ones = [config.batch_gpu_mix[0] for config in drawn]
    assert 0.75 <= min(ones) < 0.77
    assert 0.93 < max(ones) <= 0.947


@pytest.mark.parametrize("seed", range(12))
def test_randomised_workloads_generate(seed: int) -> None:
    assert generate_tape(randomised(seed), 64, seed).num_pods > 20
