"""Where compiled kernels are kept, and that what changes makes them anew."""

from __future__ import annotations

import gc
import os
import re
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
from flextopo.cluster.jit import compiler, sources
from flextopo.cluster.jit.kernels import (
    fetch_and_add,
    kernel,
    lowest_bit,
    popcount,
    prefetch,
    stage,
)
from flextopo.cluster.jit.plain import SWITCH
from flextopo.cluster.state.arrays import index_by_free

INTERPRETED = bool(getattr(config, "DISABLE_JIT", 0))
PACKAGE = Path(flextopo.__file__).parent

CALL = """
import sys
sys.path.insert(0, {root!r})
{before}
import flextopo
from flextopo.cluster.state.placement import alignment_level
from flextopo.cluster.topology.levels import AlignmentLevel, NO_FIT
from flextopo.cluster.topology.model import compile_models, preset
models = compile_models([preset("a100")])
no_gpu = 0
level = alignment_level(models, 0, no_gpu, models[0]["numa_cores"], 1, 1)
print(flextopo.__file__, "no-fit" if level == NO_FIT else AlignmentLevel(level).name)
"""


def call(root: Path, cache: str = "", *, before: str = "", **variables: str) -> str:
    """Run a kernel of a copy of the package in a fresh interpreter; return what it says."""
    done = _run(root, CALL.format(root=str(root), before=before), cache, variables)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.split()[-1]


def warned(root: Path, *, before: str = "", **variables: str) -> str:
    """Do the same where that is warned of once; return the warning."""
    done = _run(root, CALL.format(root=str(root), before=before), "", variables)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "no-fit"
    assert done.stderr.count("Warning") == 1
    return done.stderr


def _run(
    root: Path, code: str, cache: str, more: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    ours = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", SWITCH)
    environment = {name: os.environ[name] for name in os.environ if name not in ours}
    environment["HOME"] = str(root)
    if cache:
        environment["NUMBA_CACHE_DIR"] = cache
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **more},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "flextopo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def read_only(package: Path) -> Path:
    """Return the package where no folder takes compiled kernels, for root neither."""
    for folder in {source.parent for source in (package / "flextopo").rglob("*.py")}:
        (folder / "__pycache__").write_text("in the way")
    return package


compiled_only = pytest.mark.skipif(INTERPRETED, reason="nothing is compiled")


@compiled_only
def test_a_change_anywhere_makes_kernels_anew_and_very_old_ones_go(package: Path) -> None:
    cluster = package / "flextopo" / "cluster"
    kept = cluster / "state" / "__pycache__"
    assert call(package) == "no-fit"
    [before] = kept.glob("flextopo-*")
    assert list(before.glob("*.nbi"))
    # `alignment_level` calls `popcount`, which stands in another file: numba's own cache would not
    # look there.
    source = cluster / "jit" / "kernels.py"
    source.write_text(source.read_text().replace("_ctpop(mask)", "_ctpop(mask) + 1"))
    assert call(package) == "NUMA"
    assert before.exists()  # another process may be using it
    os.utime(before, (0, 0))
    source.write_text(source.read_text() + "\n")
    assert call(package) == "NUMA"
    assert not before.exists()
    assert len(list(kept.glob("flextopo-*"))) == 2


@compiled_only
def test_an_installation_that_takes_no_files_keeps_them_with_the_user(read_only: Path) -> None:
    assert call(read_only) == "no-fit"
    assert list((read_only / ".cache").rglob("flextopo-*/*.nbi"))


@compiled_only
@pytest.mark.parametrize("plainly", ["0", "1"])
def test_where_nothing_takes_files_kernels_are_compiled_each_time(
    read_only: Path, plainly: str
) -> None:
    said = warned(read_only, HOME="/dev/null", **{SWITCH: plainly})
    assert "KernelWarning: compiled kernels cannot be kept" in said
    assert not list(read_only.rglob("*.nbi"))


@compiled_only
def test_a_folder_that_was_given_is_used(package: Path, tmp_path: Path) -> None:
    given = tmp_path / "given"
    assert call(package, str(given)) == "no-fit"
    assert list(given.rglob("flextopo-*/*.nbi"))
    assert not list((package / "flextopo").rglob("flextopo-*"))


@pytest.mark.parametrize("changed", ["a.py", "b.py", "inner/c.py", "inner/most/d.py"])
def test_the_hash_covers_every_source(changed: str, tmp_path: Path) -> None:
    (tmp_path / "inner" / "most").mkdir(parents=True)
    for name in ("a.py", "b.py", "inner/c.py", "inner/most/d.py"):
        (tmp_path / name).write_text("1")
    first = sources.hash_sources(tmp_path)
    assert sources.hash_sources(tmp_path) == first
    (tmp_path / changed).write_text("2")
    assert sources.hash_sources(tmp_path) != first


def test_the_hash_is_of_the_whole_of_cluster() -> None:
    assert sources.CLUSTER == PACKAGE / "cluster"
    assert sources.hash_sources(PACKAGE / "cluster") == sources.SOURCES


@compiled_only
@pytest.mark.parametrize("changed", ["policies/outside.py", "cluster/jit/kernels.py"])
@pytest.mark.parametrize("plainly", ["0", "1"])
def test_kernels_outside_of_cluster_are_made_anew_too(
    package: Path, changed: str, plainly: str
) -> None:
    # As `policies/continuation.py` has them.
    outside = package / "flextopo" / "policies" / "outside.py"
    outside.write_text(
        "from flextopo.cluster.jit.kernels import kernel, popcount\n\n\n"
        "@kernel\ndef bits(mask):\n    return 10 * popcount(mask)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(package)!r})\n"
    code += "from flextopo.policies.outside import bits; print(bits(3), bits.stats.cache_hits)"
    told = [_said(package, code, plainly) for _ in range(2)]
    source = package / "flextopo" / changed
    text = source.read_text().replace("10 * popcount", "20 * popcount")
    source.write_text(text.replace("_ctpop(mask)", "_ctpop(mask) * 2"))
    later = source.stat().st_mtime + 2  # Python's own cache tells sources apart by second and size
    os.utime(source, (later, later))
    told += [_said(package, code, plainly) for _ in range(2)]
    hit = "Counter({(int64,): 1})"
    assert told == ["20 Counter()", f"20 {hit}", "40 Counter()", f"40 {hit}"]


def _said(package: Path, code: str, plainly: str) -> str:
    done = _run(package, code, "", {SWITCH: plainly})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_files_with_kernels_outside_of_cluster_call_those_of_their_own_file_and_of_cluster() -> (
    None
):
    """Numba's cache looks at a kernel's own file, and its folder is named by what is in cluster/."""
    for source in PACKAGE.rglob("*.py"):
        text = source.read_text()
        if (
            "flextopo.cluster.jit.kernels import" in text
            and PACKAGE / "cluster" not in source.parents
        ):
            found = set(re.findall(r"^from flextopo\.(\S+) import", text, re.MULTILINE))
            compiled = {name for name in found if "jit.kernels import" in _source_of(name)}
            assert {name.partition(".")[0] for name in compiled} <= {"cluster"}, source


def _source_of(module: str) -> str:
    path = PACKAGE / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


@compiled_only
def test_numba_may_be_used_plainly(package: Path) -> None:
    assert call(package, **{SWITCH: "1"}) == "no-fit"
    assert list((package / "flextopo").rglob(f"*alignment_level*{sources.SOURCES}*.nbi"))
    assert not list((package / "flextopo").rglob("flextopo-*"))


CHANGED_SIGNATURE = """
from numba.core.inline_closurecall import InlineWorker
InlineWorker.inline_ir = lambda self, caller, block, i, callee: None
"""


@compiled_only
@pytest.mark.parametrize(
    ("before", "why"),
    [
        ("from numba.core import caching; del caching.UserProvidedCacheLocator", "AttributeError"),
        ("from numba.core import typed_passes; del typed_passes.NopythonRewrites", "ImportError"),
        (CHANGED_SIGNATURE, "TypeError"),
    ],
)
def test_where_numba_differs_inside_it_is_used_plainly(
    package: Path, before: str, why: str
) -> None:
    said = warned(package, before=before)
    assert "KernelWarning: numba " in said
    assert why in said
    assert f"{SWITCH}=1" in said
    assert call(package, before=before, **{SWITCH: "1"}) == "no-fit"  # which needs none of it


def test_another_value_of_the_switch_is_one_sentence(package: Path) -> None:
    command = ["compare", "--seeds", "1", "--selectors", "random"]
    code = f"from flextopo.cli.app import main; main({command})"
    done = _run(package, code, "", {SWITCH: "yes", "PYTHONPATH": str(package)})
    assert (done.returncode, done.stderr) == (2, f"error: {SWITCH} = 'yes'; legal: 0, 1\n")


STEPS = """
import hashlib
import gymnasium
import flextopo
env = gymnasium.make("flextopo/Preempt-A100-v0", servers="4*a100")
seen, _ = env.reset(seed=0)
digest = hashlib.sha256()
for step in range(40):
    seen, reward, ended, cut, _ = env.step(step % 3 * 5 % env.action_space.n)
    digest.update(repr((reward, ended, cut)).encode())
    for name in sorted(seen):
        digest.update(seen[name].tobytes())
    if ended or cut:
        seen, _ = env.reset(seed=step)
from flextopo.cluster.jit import kernels
print(digest.hexdigest(), kernels._tuned is None)
"""


@pytest.mark.slow
@compiled_only
def test_both_ways_give_the_same_bits(tmp_path: Path) -> None:
    root = PACKAGE.parent
    told = {}
    for plainly in ("0", "1"):
        more = {SWITCH: plainly, "PYTHONPATH": str(root)}
        done = _run(root, STEPS, str(tmp_path / plainly), more)
        assert done.returncode == 0, done.stderr
        told[plainly] = done.stdout.split()
    assert [said[1] for said in told.values()] == ["False", "True"]
    assert told["0"][0] == told["1"][0]


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
def _prefetch(array: npt.NDArray[np.int64], at: int) -> None:
    prefetch(array, at)


@pytest.mark.parametrize("at", [0, 8, 1 << 40, -(1 << 40)])
def test_prefetching_changes_nothing_wherever_it_is(at: int) -> None:
    array = np.arange(3)
    prefetch(array, at)
    _prefetch(array, at)
    assert array.tolist() == [0, 1, 2]


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


@compiled_only
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


DENIED = """
import os, tempfile
def denied(*_, **__):
    raise PermissionError
tempfile.TemporaryFile = os.replace = denied
os.access = lambda *_: False
"""


@compiled_only
def test_a_folder_that_was_given_may_only_be_read(package: Path, tmp_path: Path) -> None:
    given, empty = tmp_path / "given", tmp_path / "empty"
    assert call(package, str(given)) == "no-fit"
    kept = {path: path.stat().st_mtime_ns for path in given.rglob("*.nb?")}
    assert call(package, str(given), before=DENIED) == "no-fit"
    assert {path: path.stat().st_mtime_ns for path in given.rglob("*.nb?")} == kept
    assert call(package, str(empty), before=DENIED) == "no-fit"
    assert not list(empty.rglob("*.nbi"))
