"""Machine code that a wheel brings is used where it fits, and nowhere else."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import flextopo
from flextopo.cluster.jit import shipped

PACKAGE = Path(flextopo.__file__).parent
LOOK = """
import sys
from pathlib import Path
from flextopo.cluster.jit import shipped
shipped.FOLDER = Path(sys.argv[1])
from flextopo.cluster.jit import tuned
tuned.check_itself()
"""
"""Compiles four small kernels, or finds them; it fails where they do something else."""


def look(folder: Path, cache: Path, **more: str) -> set[str]:
    """Run kernels in a process with an empty cache; return which of them it compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **more}
    subprocess.run([sys.executable, "-W", "error", "-c", LOOK, folder], check=True, env=environment)
    return {path.name for path in cache.rglob("*.nbc")}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder as a wheel has it."""
    work = tmp_path_factory.mktemp("shipped")
    cpu = shipped.TARGETS[platform.machine()].cpu
    compiled = look(work / "none", work / "cache", NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")
    assert shipped.pack(work / "cache", work / "code", PACKAGE) == len(compiled) > 0
    return work / "code"


def changed(code: Path, to: Path, **what: object) -> Path:
    """Return a copy of the code that is described otherwise."""
    to.mkdir()
    for path in code.iterdir():
        (to / path.name).symlink_to(path)
    (to / shipped.DESCRIPTION).unlink()
    told = json.loads((code / shipped.DESCRIPTION).read_bytes())
    (to / shipped.DESCRIPTION).write_text(json.dumps({**told, **what}))
    return to


def test_nothing_is_compiled_where_it_fits(code: Path, tmp_path: Path) -> None:
    assert look(code, tmp_path / "cache") == set()


def test_without_it_everything_is(code: Path, tmp_path: Path) -> None:
    assert look(tmp_path / "nowhere", tmp_path / "cache")


@pytest.mark.parametrize(
    "what",
    [
        {"features": ["of-no-processor"]},
        {"sources": "of another version"},
        {"numba": "0.1"},
        {"llvmlite": "0.1"},
        {"machine": "z80"},
    ],
    ids=lambda what: next(iter(what)),
)
def test_what_does_not_fit_is_not_used(code: Path, tmp_path: Path, what: dict[str, object]) -> None:
    assert look(changed(code, tmp_path / "code", **what), tmp_path / "cache")


def test_a_changed_file_is_compiled_anew(code: Path, tmp_path: Path) -> None:
    """The stamp tells of the kernel's own file, too, which may lie outside of `cluster/`."""
    file = tmp_path / "kernels.py"
    file.write_text("one")
    before = shipped.stamp_of(file)
    shipped.stamp_of.cache_clear()
    file.write_text("two")
    assert shipped.stamp_of(file) != before


def test_code_of_another_processor_is_not_packed(tmp_path: Path) -> None:
    look(tmp_path / "none", tmp_path / "cache")
    with pytest.raises(RuntimeError, match="compiled for"):
        shipped.pack(tmp_path / "cache", tmp_path / "code", PACKAGE)
