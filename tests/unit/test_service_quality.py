"""What services ask of their place: deadlines, sensitivity, and for how long they need it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flextopo.cluster.scenario import SENSITIVITIES, LossWeights
from flextopo.cluster.state.schema import DEADLINE_S
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.cluster.workload.tape import Tape

DEFAULT = WorkloadConfig()
NAMES = list(SENSITIVITIES)


def by_service(tape: Tape, name: str) -> np.ndarray:
    """Return a field of each service, which must be the same for all of its replicas."""
    online = tape.pods[tape.pods["online"]]
    services, first = np.unique(online["service"], return_index=True)
    values: np.ndarray = online[name][first]
    np.testing.assert_array_equal(
        online[name], values[np.searchsorted(services, online["service"])]
    )
    return values


def test_deadlines_are_log_uniform_over_the_services() -> None:
    tape = generate_tape(replace(DEFAULT, batch_load=0.01), 16000, 0)
    deadline = by_service(tape, "deadline_s")
    assert len(deadline) == 750
    assert deadline.min() >= 30
    assert deadline.max() <= 300
    thirds = [30 * 10 ** (1 / 3), 30 * 10**0.5, 30 * 10 ** (2 / 3)]
    assert np.quantile(deadline, [1 / 3, 1 / 2, 2 / 3]) == pytest.approx(thirds, rel=0.12)
    assert (tape.pods["deadline_s"][~tape.pods["online"]] == DEADLINE_S).all()


@pytest.mark.parametrize("seed", range(3))
def test_sensitivities_have_their_shares_almost_exactly(seed: int) -> None:
    config = replace(DEFAULT, services=60, replica_gpu_mix=(0.0, 1.0, 0.0, 0.0))
    tape = generate_tape(config, 1280, seed)
    counts = np.bincount(by_service(tape, "sensitivity"), minlength=4)
    assert counts == pytest.approx(60 * np.array(DEFAULT.sensitivity_mix), abs=1)
    assert not tape.pods["sensitivity"][~tape.pods["online"]].any()


def test_a_replica_of_one_gpu_is_not_linked() -> None:
    config = replace(DEFAULT, sensitivity_mix=(0.0, 0.0, 1.0, 0.0))
    tape = generate_tape(config, 1280, 0)
    gpus, kind = by_service(tape, "gpus"), by_service(tape, "sensitivity")
    assert set(kind[gpus == 1].tolist()) == {NAMES.index("resident")}
    assert set(kind[gpus > 1].tolist()) == {NAMES.index("linked")}


def test_the_loss_expects_the_life_that_replicas_have() -> None:
    """The account is two days and replicas of the first are counted, so that none is cut short."""
    config = replace(DEFAULT, batch_load=0.0, horizon_h=48.0)
    life, gpus = [], []
    for seed in range(100):
        pods = generate_tape(config, 128, seed).pods
        added = pods[(pods["arrive_s"] >= 0) & (pods["arrive_s"] < 86400)]
        life.append((added["depart_s"] - added["arrive_s"]) / 3600)
        gpus.append(added["gpus"])
    hours, weight = np.concatenate(life), np.concatenate(gpus)
    assert hours.max() < 48
    expected = LossWeights().expected_service_h
    assert hours.mean() == pytest.approx(expected, rel=0.15)
    assert np.average(hours, weights=weight) == pytest.approx(expected, rel=0.15)
