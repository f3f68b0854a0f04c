"""Read the topology of the machine this runs on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, CpuRow, assemble, merge_sockets
from flextopo.cluster.topology.captures.from_lscpu import read_lscpu
from flextopo.cluster.topology.captures.from_text import parse_cpu_list, read_gpu_matrix
from flextopo.cluster.topology.model import ServerModel

Runner = Callable[[Sequence[str]], str | None]

# nvidia-smi takes seconds to start on a machine with many GPUs and no persistence daemon.
COMMAND_TIMEOUT_S = 60


def run_command(command: Sequence[str]) -> str | None:
    """Return what a command prints, None if it does not exist, fails or hangs."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            check=True,
            text=True,
            errors="replace",
            timeout=COMMAND_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def detect(root: str | Path = "/", run: Runner = run_command) -> tuple[ServerModel, list[str]]:
    """Read the topology of this machine.

    Cores come from `/sys/devices/system`, else from `lscpu -p`; GPUs from `nvidia-smi topo -m`.
    Without nvidia-smi the machine counts as without GPU.

    Args:
        root: the folder that holds `sys`.
        run: runs a command and returns its output, None on failure.

    Returns:
        The model, named `this-machine`, and one warning for each assumption.

    Raises:
        TopologyError: neither source tells of cores, or what they tell is contradictory.
    """
    system = Path(root) / "sys/devices/system"
    hardware = read_sys(system)
    if hardware is None:
        command = ("lscpu", "-p=CPU,Core,Socket,Node")
        listing = run(command)
        if listing is None:
            raise TopologyError(
                f"{system} has no CPU topology and lscpu gives none; legal: either of them"
            )
        hardware = read_lscpu(listing, " ".join(command))
    matrix = run(("nvidia-smi", "topo", "-m"))
    captures = [hardware]
    warnings = []
    if matrix is None or "GPU0" not in matrix:
        captures = [replace(hardware, gpus=())]
        warnings.append("nvidia-smi lists no GPU; the server counts as without GPU")
    else:
        captures.append(read_gpu_matrix(matrix, "nvidia-smi topo -m"))
    model, assumed = assemble(captures, "this-machine")
    if model.num_gpus:
        model = _with_gpu_kind(model, run)
    return model, warnings + assumed


def _with_gpu_kind(model: ServerModel, run: Runner) -> ServerModel:
    """Add the name and memory of the first GPU where nvidia-smi tells them."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    first = (run(query) or "").partition("\n")[0]
    match = re.fullmatch(r"\s*(\S.*?), *([0-9]{1,9})\s*", first)
    if match is None:
        return model
    return replace(model, gpu_name=match[1], gpu_memory_mib=int(match[2]))


def read_sys(system: Path) -> Capture | None:
    """Read cores and NUMA nodes from a `/sys/devices/system` folder, None if it has no cores.

    Raises:
        TopologyError: a file in it has another form.
    """
    node_of: dict[int, int] = {}
    without_cpus: list[int] = []
    for numa_node, folder in _numbered(system / "node", "node"):
        cpus = _cpu_list(folder / "cpulist")
        node_of |= dict.fromkeys(cpus, numa_node)
        without_cpus += [] if cpus else [numa_node]
    rows = []
    for cpu, folder in _numbered(system / "cpu", "cpu"):
        socket = _read(folder / "topology/physical_package_id")
        if socket is None:
            # An offline CPU keeps its folder, but has no topology.
            continue
        # Kernels before 5.6 know the list only by its older name.
        siblings = _cpu_list(folder / "topology/core_cpus_list")
        siblings = siblings or _cpu_list(folder / "topology/thread_siblings_list")
        # `core_id` starts again in each die; the first thread of a core is a number of its own.
        core = min(siblings, default=cpu)
        rows.append(CpuRow(cpu, core, _socket(socket, folder), node_of.get(cpu, 0)))
    if not rows:
        return None
    sockets = {row.numa_node: row.socket for row in rows}
    memory_nodes = {node: sockets[_nearest(system, node, sockets)] for node in without_cpus}
    ranks = {core: rank for rank, core in enumerate(sorted({row.core for row in rows}))}
    numbered = tuple(row._replace(core=ranks[row.core]) for row in rows)
    return merge_sockets(Capture(str(system), rows=numbered, memory_nodes=memory_nodes))


def _cpu_list(path: Path) -> tuple[int, ...]:
    try:
        return parse_cpu_list(_read(path) or "")
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from None


def _socket(text: str, folder: Path) -> int:
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise TopologyError(
            f"{folder}/topology/physical_package_id: {text[:40]!r}; legal: a number"
        )
    # Virtual machines without a socket in their tables say -1; `assemble` counts from 0 anyway.
    return int(text)


def _nearest(system: Path, numa_node: int, sockets: dict[int, int]) -> int:
    """Return the NUMA node with cores that is nearest by the kernel's distances, else the first."""
    nodes = [node for node, _ in _numbered(system / "node", "node")]
    distances = (_read(system / f"node/node{numa_node}/distance") or "").split()
    known = {
        node: int(distance)
        for node, distance in zip(nodes, distances, strict=False)
        if distance.isdecimal() and node in sockets
    }
    return min(known or sockets, key=lambda node: (known.get(node, 0), node))


def _numbered(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    """List the subfolders called prefix and number, such as `cpu7`, by number."""
    found = []
    for path in folder.glob(f"{prefix}[0-9]*"):
        number = path.name.removeprefix(prefix)
        if number.isdecimal():
            found.append((int(number), path))
    return sorted(found)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
