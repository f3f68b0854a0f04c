"""Machine code that a wheel brings, so that the first step of a fresh installation compiles nothing.

`deploy/machine_code.py` fills a folder beside this module when a wheel is built, for one kind of processor and
one version of Python. Where it does not fit, kernels are compiled as from a source tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import caching

from flextopo.cluster.jit.sources import SOURCES

FOLDER = Path(__file__).parent / "machine_code"
"""Filled in wheels of a platform, absent from a source tree."""

DESCRIPTION = "target.json"


@dataclass(frozen=True)
class Target:
    """Processors that machine code is made for.

    Attributes:
        cpu: name that LLVM knows them by.
        features: what each of them must have, in LLVM's words.
    """

    cpu: str
    features: tuple[str, ...] = ()


TARGETS = {
    "x86_64": Target(
        "x86-64-v3",
        ("avx", "avx2", "bmi", "bmi2", "cx16", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sahf",
         "sse3", "sse4.1", "sse4.2", "ssse3", "xsave"),
    ),
    "aarch64": Target("generic"),
}  # fmt: skip
"""By `platform.machine()`. x86-64-v3 is every server processor since 2013 (Haswell) and 2017 (Zen)."""


def describe(target: Target, triple: str) -> dict[str, Any]:
    """Return what must be equal where the code is to be used, and what a processor must have."""
    return {
        "sources": SOURCES,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "machine": platform.machine(),
        "features": list(target.features),
        "magic": [triple, target.cpu, ""],
    }


class _Codegen:
    """Stands for numba's code generator of the target, in keys."""

    def __init__(self, magic: tuple[str, ...]) -> None:
        self._magic = magic

    def magic_tuple(self) -> tuple[str, ...]:
        """Return triple, processor and features, as numba's own."""
        return self._magic


@cache
def made_by(features: str, folder: Path) -> _Codegen | None:
    """Return what the code in the folder was made by, None where there is none that runs here.

    Args:
        features: of this processor in LLVM's words, such as "+avx2,-avx512f".
        folder: of the code.
    """
    try:
        told = json.loads((folder / DESCRIPTION).read_bytes())
        here = describe(Target("", tuple(told["features"])), "")
        magic = tuple(map(str, told["magic"]))
        fits = {**told, "magic": here["magic"]} == here and len(magic) == len(here["magic"])
        has = {word[1:] for word in features.split(",") if word.startswith("+")}
        # Who names a processor to numba wants code for that one.
        fits = fits and has.issuperset(told["features"]) and not os.environ.get("NUMBA_CPU_NAME")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return _Codegen(magic) if fits else None


@cache
def stamp_of(source: Path) -> str:
    """Return what must be equal for a kernel of a file to be the same: that file, and `SOURCES`."""
    return f"{SOURCES}-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"


def file_of(source: Path, name: str, folder: Path) -> caching.IndexDataCacheFile:
    """Return where the code of a kernel is kept.

    Args:
        source: file of the kernel.
        name: that numba gives its files.
        folder: of the code.
    """
    return caching.IndexDataCacheFile(str(folder / source.parent.name), name, stamp_of(source))  # type: ignore[no-untyped-call]


def pack(compiled: Path, into: Path, package: Path) -> int:
    """Copy a cache that was filled for a target to where `file_of` looks; return how many kernels.

    Args:
        compiled: the `NUMBA_CACHE_DIR` of processes that ran with the target's `NUMBA_CPU_NAME`, and with
            `NUMBA_CPU_FEATURES` empty.
        into: the folder to fill.
        package: folder of the package that was compiled.

    Raises:
        RuntimeError: there is code of another processor, or none of these sources.
    """
    target, packed = TARGETS[platform.machine()], 0
    sources = {(path.parent.name, path.stem): path for path in sorted(package.rglob("*.py"))}
    for index in sorted(compiled.glob(f"*/flextopo-{SOURCES}/*.nbi")):
        parent = re.sub(r"_[0-9a-f]{32,}$", "", index.parents[1].name)
        module = index.name.partition(".")[0]
        with index.open("rb") as file:
            pickle.load(file)
            _, overloads = pickle.loads(file.read())
        kept = file_of(sources[parent, module], index.name.removesuffix(".nbi"), into)
        Path(kept._cache_path).mkdir(parents=True, exist_ok=True)
        for key, data in overloads.items():
            _, (triple, cpu, features), _ = key
            if (cpu, features) != (target.cpu, ""):
                raise RuntimeError(f"{index}: compiled for {cpu} {features!r}")
            content = pickle.loads((index.parent / data).read_bytes())
            kept.save(key, content)  # type: ignore[no-untyped-call]
            told, packed = describe(target, triple), packed + 1
    if not packed:
        raise RuntimeError(f"{compiled}: no code of these sources")
    (into / DESCRIPTION).write_text(json.dumps(told))
    return packed
