"""Damaged files: what a reader accepts is sound, and what it refuses is one clear sentence.

The long runs are `make fuzz`, five minutes a reader; the same with a few inputs is part of all tests.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from mutations import damaged

from flextopo.cluster.errors import FlextopoError
from fuzz.targets import TARGETS, Target

FEW, MANY = 60, 2000
MAX_S, MAX_MIB = 5.0, 1024
"""Processor time of one input, which neighbours do not lengthen; memory of all inputs of a reader."""


def attempt(target: Target, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    begin = time.process_time()
    try:
        target.read(path)
    except FlextopoError as error:
        said = str(error)
        assert said
        assert "\n" not in said, said
        assert len(said) < 4100, said
    assert time.process_time() - begin < MAX_S


def fuzz(target: Target, path: Path, number: int, examples: int) -> None:
    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(target.seeds))
    def check(data: bytes) -> None:
        attempt(target, path, data)

    check()


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read(name: str, tmp_path: Path) -> None:
    for data in TARGETS[name].seeds:
        path = tmp_path / "input"
        path.write_bytes(data)
        TARGETS[name].read(path)


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_damaged_inputs(name: str, tmp_path: Path) -> None:
    fuzz(TARGETS[name], tmp_path / "input", 0, FEW)


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    test_good_inputs_are_read(name, tmp_path)  # what compiles does so now, untimed
    seconds = request.config.getoption("--fuzz-seconds", default=300.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin, number = time.monotonic(), 1
    while time.monotonic() - begin < seconds:
        fuzz(TARGETS[name], tmp_path / "input", number, MANY)
        number += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MAX_MIB
