"""Make a wheel with machine code of the wheel without: what people use first need not be compiled then.

    python deploy/machine_code.py dist/flextopo-0.2.0-py3-none-any.whl

The wheel is installed into an environment of its own, plays there with an empty cache, and what was compiled
goes into a copy of the wheel, for this version of Python and the processors of `shipped.TARGETS`.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ENVIRONMENTS = """
import gymnasium, flextopo
for name in ("RTX4090", "A100", "Mixed", "Gang"):
    env = gymnasium.make(f"flextopo/Preempt-{name}-v0")
    env.reset(seed=0)
    env.step(0)
    many = gymnasium.make_vec(f"flextopo/Preempt-{name}-v0", num_envs=2)
    many.reset(seed=0)
    many.step(many.action_space.sample() * 0)
"""

PLANNERS = "rollout,requeue-aware+plan@2,deepset-imitation+plan@2"

BUSY = "--seeds 1 --oracle-seeds 1 --peak 0.95 --workers 1"
"""A day on which everybody preempts."""

COMMANDS = (
    f"compare {BUSY} --selectors all",
    f"compare {BUSY} --selectors {PLANNERS}",
    f"compare {BUSY} --selectors all --servers 16*a100@leaf8 --set gang_share=0.25",
    "replay --servers 2*rtx4090 -s greedy-cost -s requeue-aware -o replay.html",
)
"""Of `flextopo`, beside the first step of the environments and the start of the service."""

PACK = "import sys; from pathlib import Path; from flextopo.cluster.jit import shipped; print(shipped.pack(*map(Path, sys.argv[1:])), 'kernels')"

PLATFORMS = {"x86_64": "manylinux_2_17_x86_64", "aarch64": "manylinux_2_17_aarch64"}


def main() -> None:
    """Make the wheel that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path, help="without machine code; the other is put beside it")
    wheel = parser.parse_args().wheel.resolve()
    if sys.platform != "linux" or platform.machine() not in PLATFORMS:
        where = f"{sys.platform} on {platform.machine()}"
        parser.error(f"{where}: no target; legal: linux on {', '.join(PLATFORMS)}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        python = install(wheel, work)
        cache = work / "cache"
        compile_all(python, cache, work)
        made = put_together(wheel, python, cache, work)
    print(
        f"{made}: {made.stat().st_size / 2**20:.1f} MiB, {wheel.stat().st_size / 2**20:.1f} without"
    )


def install(wheel: Path, work: Path) -> Path:
    """Install a wheel into an environment of its own; return the interpreter."""
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    python = work / "venv" / "bin" / "python"
    constraints = Path(__file__).parents[1] / "constraints.txt"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*pip, f"{wheel}[serve]"], check=True)
    return python


def compile_all(python: Path, cache: Path, work: Path) -> None:
    """Play what people do first, for the processors that the code is to be for."""
    target = "import platform; from flextopo.cluster.jit.shipped import TARGETS; print(TARGETS[platform.machine()].cpu)"
    told = subprocess.run(
        [python, "-c", target], check=True, capture_output=True, text=True, cwd=work
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_CPU_NAME": told.stdout.strip(),
        "NUMBA_CPU_FEATURES": "",
        "OMP_NUM_THREADS": "1",
    }
    programs: list[Sequence[str | Path]] = [
        ["-c", ENVIRONMENTS],
        [Path(__file__).with_name("warm_up.py").resolve()],
        *(["-m", "flextopo", *command.split()] for command in COMMANDS),
    ]
    for program in programs:
        subprocess.run([python, *program], check=True, cwd=work, env=environment, stdout=sys.stderr)


def put_together(wheel: Path, python: Path, cache: Path, work: Path) -> Path:
    """Write the wheel with the code; return its path."""
    tools = [sys.executable, "-m", "wheel"]
    subprocess.run([*tools, "unpack", wheel, "--dest", work / "wheel"], check=True)
    (unpacked,) = (work / "wheel").iterdir()
    package = unpacked / "flextopo"
    into = package / "cluster" / "jit" / "machine_code"
    subprocess.run([python, "-c", PACK, cache, into, package], check=True, cwd=work)
    (work / "packed").mkdir()
    subprocess.run([*tools, "pack", unpacked, "--dest-dir", work / "packed"], check=True)
    (packed,) = (work / "packed").iterdir()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    tags = ["--python-tag", tag, "--abi-tag", tag, "--platform-tag", PLATFORMS[platform.machine()]]
    told = subprocess.run(
        [*tools, "tags", "--remove", *tags, packed], check=True, capture_output=True, text=True
    )
    made = work / "packed" / told.stdout.split()[-1]
    return Path(shutil.move(made, wheel.with_name(made.name)))


if __name__ == "__main__":
    main()
