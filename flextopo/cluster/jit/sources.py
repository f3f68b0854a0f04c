"""Which version of the kernels this is."""

from __future__ import annotations

import hashlib
from pathlib import Path

CLUSTER = Path(__file__).parents[1]


def hash_sources(folder: Path = CLUSTER) -> str:
    """Return a hash of every source in a folder and the folders in it: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


SOURCES = hash_sources()
"""Hash of the sources of `cluster/`: numba's own cache looks at a kernel's file, not at its callees'.

Kernels elsewhere call those of their own file and of `cluster/` alone.
"""
