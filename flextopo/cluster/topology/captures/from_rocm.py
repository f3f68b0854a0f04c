"""Importer of `rocm-smi --showtopo`: which NUMA node each GPU of AMD is on, and how GPUs are joined."""

from __future__ import annotations

import re

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, GpuPlace
from flextopo.cluster.topology.captures.from_text import MAX_NUMA_ID, check_gpus, join_islands

_PLACE = re.compile(r"GPU\[([0-9]{1,4})\][ \t]*:[ \t]*\(Topology\) Numa (Node|Affinity): *(\S*)")
_TITLE = re.compile(r"^=+ *Link Type between two GPUs *=+", re.MULTILINE)


def is_rocm_smi(text: str) -> bool:
    """Tell whether a text looks like the output of `rocm-smi --showtopo` or `--showtoponuma`."""
    return "(Topology) Numa " in text or _TITLE.search(text) is not None


def read_rocm_smi(text: str, source: str) -> Capture:
    """Read the output of `rocm-smi --showtopo`: it tells of GPUs, and nothing of CPUs.

    Args:
        text: with the lines `GPU[0] : (Topology) Numa Node: 0`; `Numa Affinity` serves where that
            is no number. A machine without NUMA says -1. The table of link types tells islands:
            GPUs that are joined by XGMI.
        source: the file's name for messages.

    Returns:
        A capture with GPUs alone.

    Raises:
        TopologyError: no GPU's NUMA node is told, or not that of GPU 0, 1, ...
    """
    found: dict[int, list[str]] = {}
    for gpu, _, value in sorted(_PLACE.findall(text), key=lambda told: told[1], reverse=True):
        found.setdefault(int(gpu), []).append(value)
    if sorted(found) != list(range(len(found))) or not found:
        raise TopologyError(
            f"{source}: tells the NUMA node of GPUs {sorted(found)[:16]}; legal: of GPU 0, 1, ... "
            "as rocm-smi --showtopo prints them"
        )
    check_gpus(len(found), source)
    places = tuple(
        GpuPlace(f"GPU{gpu}", _numa_node(found[gpu], f"{source}: GPU[{gpu}]"), frozenset())
        for gpu in range(len(found))
    )
    return Capture(source, gpus=places, islands=_islands(text, len(places)))


def _numa_node(values: list[str], where: str) -> int | None:
    numbers = [int(value) for value in values if re.fullmatch("[0-9]{1,9}", value)]
    if not numbers:
        return None
    if numbers[0] > MAX_NUMA_ID:
        raise TopologyError(f"{where}: Numa Node {numbers[0]}; legal: 0 to {MAX_NUMA_ID}")
    return numbers[0]


def _islands(text: str, gpus: int) -> tuple[int, ...] | None:
    """Return the island of each GPU, None where XGMI joins all or none, or no table tells."""
    title = _TITLE.search(text)
    links = [[""] * gpus for _ in range(gpus)]
    for line in text[title.end() :].splitlines() if title else ():
        if line.startswith("="):
            break
        label, *cells = line.split() or [""]
        match = re.fullmatch("GPU([0-9]{1,4})", label)
        if match and int(match[1]) < gpus and len(cells) == gpus and "GPU" not in cells[0]:
            links[int(match[1])] = cells
    return join_islands(links, ("XGMI",))
