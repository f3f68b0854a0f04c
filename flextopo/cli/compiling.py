"""The first command of a fresh machine says why it is silent for so long.

Looks at files alone: numba is not imported for it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import typer

SAID = "compiling kernels: about a minute, once on this machine for this version"

KERNELS = "simulation"
"""The folder of `cluster/` whose kernels take longest."""

_armed = False


def arm() -> None:
    """Let this process say it: it is a command, and not called from Python."""
    global _armed
    _armed = True


def say_if_compiling(as_event: bool = False) -> None:
    """Say once on standard error that kernels are about to be compiled, if they are.

    Args:
        as_event: as a line of JSON, where standard error is a log of such lines.
    """
    global _armed
    if _armed and not is_compiled():
        event = {"time": round(time.time(), 3), "event": "compiling", "detail": SAID}
        typer.echo(json.dumps(event) if as_event else SAID, err=True)
    _armed = False


def is_compiled() -> bool:
    """Say whether kernels of this version are kept where numba looks for them, or none are to be.

    Machine code that came with a wheel counts: whether it fits the processor is not looked at.

    References:
        `flextopo.cluster.jit.cache`, which chooses the folders; `flextopo.cluster.jit.shipped`.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return True
    from flextopo.cluster.jit.sources import CLUSTER, SOURCES

    if (CLUSTER / "jit" / "machine_code").is_dir():
        return True
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given:
        found = Path(given).glob(f"{KERNELS}_*/flextopo-{SOURCES}/*.nbi")
        return any(found)
    beside = CLUSTER / KERNELS / "__pycache__" / f"flextopo-{SOURCES}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    users = (home / "numba").glob(f"{KERNELS}_*/flextopo-{SOURCES}/*.nbi")
    return any(beside.glob("*.nbi")) or any(users)
