"""Machine code that a wheel brings is used where it fits, and nowhere else."""

from __future__ import annotations

import json
import os
import platform
import shutil
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


def look(folder: Path, cache: Path, warnings: str = "error", **more: str) -> set[str]:
    """Run kernels in a process with an empty cache; return which of them it compiled."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), **more}
    command = [sys.executable, "-W", warnings, "-c", LOOK, str(folder)]
    subprocess.run(command, check=True, env=environment)
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
        {"features": None},
        {"magic": []},
        {"sources": "of another version"},
        {"numba": "0.1"},
        {"llvmlite": "0.1"},
        {"machine": "z80"},
    ],
    ids=str,
)
def test_what_does_not_fit_is_not_used(code: Path, tmp_path: Path, what: dict[str, object]) -> None:
    assert look(changed(code, tmp_path / "code", **what), tmp_path / "cache")


@pytest.mark.parametrize("text", ["", "[]", "{}", "3"])
def test_a_description_that_is_none_is_not_used(code: Path, tmp_path: Path, text: str) -> None:
    folder = changed(code, tmp_path / "code")
    (folder / shipped.DESCRIPTION).write_text(text)
    assert look(folder, tmp_path / "cache")


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"no pickle", None], ids=["empty", "other", "cut"])
def test_damaged_files_are_compiled_anew(
    code: Path, tmp_path: Path, suffix: str, content: bytes | None
) -> None:
    folder = tmp_path / "code"
    shutil.copytree(code, folder)
    for path in folder.rglob(f"*.{suffix}"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert look(folder, tmp_path / "cache", warnings="default")


def test_who_names_a_processor_gets_code_for_it(code: Path, tmp_path: Path) -> None:
    assert look(code, tmp_path / "cache", NUMBA_CPU_NAME="generic")


def test_a_changed_file_is_compiled_anew(code: Path, tmp_path: Path) -> None:
    """The stamp tells of the kernel's own file, too, which may lie outside of `cluster/`."""
    file = tmp_path / "kernels.py"
    file.write_text("one")
    before = shipped.stamp_of(file)
    shipped.stamp_of.cache_clear()
    file.write_text("two")
    assert shipped.stamp_of(file) != before


def test_a_cache_without_code_is_not_packed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no code of these sources"):
        shipped.pack(tmp_path, tmp_path / "code", PACKAGE)


def test_code_of_another_processor_is_not_packed(tmp_path: Path) -> None:
    look(tmp_path / "none", tmp_path / "cache")
    with pytest.raises(RuntimeError, match="compiled for"):
        shipped.pack(tmp_path / "cache", tmp_path / "code", PACKAGE)
