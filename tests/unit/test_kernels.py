"""Where compiled kernels are kept, and that what changes makes them anew."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import config
from numba.core import inline_closurecall
from numba.core.compiler import Flags
from numba.core.errors import TypingError

import flextopo
from flextopo.cluster.jit import compiler, kernels
from flextopo.cluster.jit.kernels import fetch_and_add, kernel, lowest_bit, popcount, stage
from flextopo.cluster.state.arrays import index_by_free

INTERPRETED = bool(getattr(config, "DISABLE_JIT", 0))
PACKAGE = Path(flextopo.__file__).parent

CALL = """
import sys
sys.path.insert(0, {root!r})
import flextopo
from flextopo.cluster.state.placement import alignment_level
from flextopo.cluster.topology.model import compile_models, preset
models = compile_models([preset("a100")])
no_gpu = 0
print(flextopo.__file__, alignment_level(models, 0, no_gpu, models[0]["numa_cores"], 1, 1))
"""


def call(root: Path, cache: str = "") -> str:
    """Run a kernel of a copy of the package in a fresh interpreter; return what it says."""
    environment = {name: os.environ[name] for name in os.environ if name != "NUMBA_CACHE_DIR"}
    environment["HOME"] = str(root)
    environment.pop("XDG_CACHE_HOME", None)
    if cache:
        environment["NUMBA_CACHE_DIR"] = cache
    done = subprocess.run(
        [sys.executable, "-c", CALL.format(root=str(root))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "flextopo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_a_change_anywhere_makes_kernels_anew_and_very_old_ones_go(package: Path) -> None:
    cluster = package / "flextopo" / "cluster"
    assert call(package) == "3"
    [before] = (cluster / "__pycache__").glob("flextopo-*")
    assert list(before.glob("*.nbi"))
    # `alignment_level` calls `popcount`, which stands in another file: numba's own cache would not
    # look there.
    source = cluster / "kernels.py"
    source.write_text(source.read_text().replace("_ctpop(mask)", "_ctpop(mask) + 1"))
    assert call(package) == "0"
    assert before.exists()  # another process may be using it
    os.utime(before, (0, 0))
    source.write_text(source.read_text() + "\n")
    assert call(package) == "0"
    assert not before.exists()
    assert len(list((cluster / "__pycache__").glob("flextopo-*"))) == 2


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_an_installation_that_takes_no_files_keeps_them_with_the_user(package: Path) -> None:
    cluster = package / "flextopo" / "cluster"
    (cluster / "__pycache__").write_text("in the way, for root too")
    assert call(package) == "3"
    assert list((package / ".cache").rglob("flextopo-*/*.nbi"))


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
def test_a_folder_that_was_given_is_used(package: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    assert call(package, str(given)) == "3"
    assert list(given.rglob("flextopo-*/*.nbi"))
    assert not list((package / "flextopo" / "cluster" / "__pycache__").glob("flextopo-*"))


def test_the_hash_covers_every_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    first = kernels._hash_sources()
    (tmp_path / "b.py").write_text("2")
    assert kernels._hash_sources() != first


@kernel
def _count(counter: npt.NDArray[np.int64], times: int) -> int:
    last = -1
    for _ in range(times):
        last = fetch_and_add(counter)
    return last


def test_fetch_and_add_inside_and_outside_kernels() -> None:
    counter = np.zeros(1, np.int64)
    assert [fetch_and_add(counter) for _ in range(3)] == [0, 1, 2]
    assert _count(counter, 4) == 6
    assert counter[0] == 7


@kernel
def _bits(mask: int) -> tuple[int, int]:
    return popcount(mask), lowest_bit(mask)


@pytest.mark.parametrize(
    ("mask", "count", "lowest"),
    [(1, 1, 0), (2, 1, 1), (0b1011000, 3, 3), (1 << 62, 1, 62), (-(1 << 63), 1, 63), (-1, 64, 0)],
)
def test_bits_inside_and_outside_kernels(mask: int, count: int, lowest: int) -> None:
    assert (popcount(mask), lowest_bit(mask)) == (count, lowest)
    assert _bits(mask) == (count, lowest)


@pytest.mark.parametrize("nodes", [1, 31, 32, 33, 64, 200])
def test_index_by_free(nodes: int) -> None:
    free = np.random.default_rng(nodes).integers(0, 17, nodes)
    index = index_by_free(free)
    for count in range(17):
        listed = [
            32 * word + bit
            for word in range(index.shape[1] - 1)
            for bit in range(64)
            if int(index[count, word]) >> bit & 1
        ]
        assert listed == np.flatnonzero(free == count).tolist()
        assert index[count, -1] == len(listed)


@kernel
def _move(numbers: npt.NDArray[np.int64], square: npt.NDArray[np.int64], at: int) -> int:
    numbers[0] = square[1, at]
    return int(numbers[at])


@pytest.mark.skipif(INTERPRETED, reason="Python counts negative indices from the end")
def test_computed_indices_do_not_wrap_around() -> None:
    numbers, square = np.arange(10), np.arange(100).reshape(10, 10)
    assert _move(numbers[2:5], square[2:5, 2:5], 1) == 3
    assert numbers[2] == 33
    assert _move(numbers[2:5], square[2:5, 2:5], -1) == 1
    assert numbers[2] == 31


CHECKED = (
    "conformance/test_vector.py", "property", "golden", "learning/test_learning.py",
    "unit/test_features.py", "unit/test_kube_cache.py", "unit/test_placement.py",
    "unit/test_rollout.py", "unit/test_simulator.py", "unit/test_workload.py",
)  # fmt: skip


@pytest.mark.slow
def test_no_index_of_a_kernel_is_out_of_bounds(tmp_path: Path) -> None:
    checked = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    tests = Path(__file__).parent.parent
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow"]
    command += [str(tests / name) for name in CHECKED]
    done = subprocess.run(
        command, env={**os.environ, **checked}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


@stage
def _twice(x: int) -> int:
    y = x + x
    return y


@stage
def _four_times(x: int) -> int:
    y = _twice(x)
    return _twice(y)


@kernel
def _sum_of_stages(x: int) -> int:
    y = _four_times(x) + _twice(x)
    for _ in range(2):
        y += _twice(y)
    return y


@kernel
def _mistaken(x: Any) -> Any:
    return x.nothing


def test_a_stage_is_compiled_into_every_place_that_it_is_called_from() -> None:
    assert _sum_of_stages(1) == 6 * 9
    assert _sum_of_stages(5) == 30 * 9


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")
@pytest.mark.parametrize("collects", [True, False])
def test_compiling_leaves_numba_and_the_collector_as_they_were(collects: bool) -> None:
    inliner = inline_closurecall.InlineWorker
    try:
        if not collects:
            gc.disable()
        with pytest.raises(TypingError):
            _mistaken(1)
        assert gc.isenabled() == collects
        assert inline_closurecall.InlineWorker is inliner
    finally:
        gc.enable()


def test_flags_are_equal_where_numbas_own_are() -> None:
    plain: Any = Flags()  # type: ignore[no-untyped-call]
    other: Any = Flags()  # type: ignore[no-untyped-call]
    other.forceinline = True
    for left in (plain, other):
        for right in (plain, other):
            quick = compiler._Flags(left)  # type: ignore[no-untyped-call]
            assert hash(quick) == hash(left)
            assert (quick == right) == (left == right) == (right == quick)
    said: Any = compiler._Flags(plain)  # type: ignore[no-untyped-call]
    said.forceinline = False  # the default
    assert said == plain
