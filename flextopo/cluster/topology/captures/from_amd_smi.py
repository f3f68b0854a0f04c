"""Importer of `amd-smi topology` and `amd-smi static --numa`, each as text or with `--json`.

The first tells which GPUs of AMD are joined by XGMI, the second which NUMA node and CPUs each is near.

References:
    ROCm/amdsmi, amdsmi_cli/amdsmi_commands.py, topology and static_gpu (6.2 to 7.0); links by GPU
    (`gpu_0`) are what 6.1 and before wrote as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, GpuPlace
from flextopo.cluster.topology.captures.from_text import (
    MAX_NUMA_ID,
    check_gpus,
    gpu_capture,
    join_islands,
)
from flextopo.cluster.topology.captures.from_xml import parse_cpu_mask
from flextopo.cluster.topology.documents import parse_document

_TABLE = re.compile(r"[ \t]*(ACCESS|WEIGHT|HOPS|LINK TYPE|NUMA BW) TABLE:[ \t]*")
Entry = dict[str, Any]


def is_amd_smi(text: str) -> bool:
    """Tell whether a text looks like what amd-smi prints of topology or NUMA nodes."""
    if text.lstrip().startswith(("[", "{")):
        return re.search(r'"gpu" *: *[0-9]', text) is not None
    has_table = re.search(f"^{_TABLE.pattern}$", text, re.MULTILINE) is not None
    has_gpus = re.search(r"^[ \t]*GPU: *[0-9]", text, re.MULTILINE) is not None
    return has_table or (has_gpus and re.search(r"^[ \t]*NUMA:", text, re.MULTILINE) is not None)


def read_amd_smi(text: str, source: str) -> Capture:
    """Read what amd-smi prints: it tells of GPUs, and of CPUs only which are near them.

    Args:
        text: tables of `amd-smi topology`, of which that of link types tells islands (GPUs joined by
            XGMI), or the NUMA part of `amd-smi static`, or both, or one of them as JSON. Hops tell
            nothing of NUMA nodes where XGMI joins GPUs, and are not read. `AFFINITY` is the NUMA
            node; `NODE` serves where that is no number, as on a machine without NUMA.
        source: the file's name for messages.

    Returns:
        A capture with GPUs, on no NUMA node where the text does not tell, and with the CPUs of the
        NUMA nodes that have GPUs where it does.

    Raises:
        TopologyError: names the table, row or GPU that is malformed.
    """
    if text.lstrip().startswith(("[", "{")):
        entries = _entries(parse_document(text, source), source)
        links = _links(entries, source)
        told = any("numa" in entry for entry in entries)
        labels: Sequence[str] = [f"GPU{gpu}" for gpu in range(len(entries))]
    else:
        labels, links = _tables(text, source)
        entries = _entries(_numa_parts(text), source) if "NUMA:" in text else []
        told = bool(entries)
    if told and labels and len(labels) != len(entries):
        raise TopologyError(
            f"{source}: links of {len(labels)} GPUs and NUMA nodes of {len(entries)}; legal: equal"
        )
    places = [_place(entry, f"{source}: GPU {gpu}") for gpu, entry in enumerate(entries)]
    if not told:
        places = [GpuPlace(f"GPU{gpu}", None, frozenset()) for gpu in range(len(labels))]
    return replace(gpu_capture(places, source), islands=join_islands(links, ("XGMI",)))


def _tables(text: str, source: str) -> tuple[list[str], list[list[str]]]:
    """Return the names of GPUs and the types of their links, nothing where there is no table."""
    lines = text.splitlines()
    starts = [(match[1], i) for i, line in enumerate(lines) if (match := _TABLE.fullmatch(line))]
    titles = [title for title, _ in starts]
    for title in titles:
        if titles.count(title) > 1:
            raise TopologyError(f"{source}: {title} TABLE is there twice; legal: of one server")
    found = {title: _table(lines, start, source) for title, start in starts}
    if not found:
        return [], []
    names = [list(table) for table in found.values()]
    if any(other != names[0] for other in names):
        raise TopologyError(f"{source}: tables of different GPUs; legal: of one server")
    links = list(found.get("LINK TYPE", {}).values())
    for i, row in enumerate(links):
        for j, link in enumerate(row):
            if (link == "SELF") != (i == j):
                raise TopologyError(
                    f"{source}: link of {names[0][i]} to {names[0][j]} is {link[:40]!r}; "
                    "legal: SELF to itself, else XGMI, PCIE, UNKNOWN or N/A"
                )
    return names[0], links


def _table(lines: Sequence[str], start: int, source: str) -> dict[str, list[str]]:
    """Return the cells of each row of the table whose title is in line `start`."""
    names = lines[start + 1].split() if start + 1 < len(lines) else []
    if not names or len(set(names)) < len(names):
        raise TopologyError(
            f"{source}:{start + 2}: heading of {len(names)} GPUs, {len(set(names))} different; "
            "legal: each GPU once"
        )
    check_gpus(len(names), source)
    rows: dict[str, list[str]] = {}
    for i, name in enumerate(names, start + 2):
        label, *cells = lines[i].split() if i < len(lines) and lines[i].strip() else [""]
        # Errors of the driver stand in cells of bandwidths, in words; nobody reads these.
        if label != name or len(cells) < len(names):
            raise TopologyError(
                f"{source}:{i + 1}: row {label[:40]!r} of {len(cells)} cells; "
                f"legal: {name[:40]} with {len(names)}"
            )
        rows[name] = cells[: len(names)]
    return rows


def _numa_parts(text: str) -> list[Entry]:
    """Return what `amd-smi static` tells of NUMA nodes, in the form of its JSON."""
    entries: list[Entry] = []
    numa: Entry = {}
    lists: Entry = {}
    last: Entry = {}
    for line in text.splitlines():
        key, value = (part.strip() for part in (*line.split(":", 1), "")[:2])
        if key == "GPU":
            numa, lists, last = {}, {}, {}
            entries.append({"gpu": value, "numa": numa})
        elif key in ("NODE", "AFFINITY"):
            numa.setdefault(key.lower(), value)
        elif key in ("CPU_AFFINITY", "SOCKET_AFFINITY"):
            lists = {}
            numa.setdefault(key.lower(), lists)
        elif key.startswith("CPU_LIST_"):
            last = lists.setdefault(key.lower(), {})
        elif key == "BITMASK":
            last.setdefault("bitmask", value)
    return entries


def _entries(document: object, source: str) -> list[Entry]:
    """Return what is told of GPU 0, 1, ..., in this order."""
    found = document.get("gpu_data") if isinstance(document, dict) else document
    numbers: dict[int, Entry] = {}
    for entry in found if isinstance(found, list) else ():
        number = str(entry.get("gpu")) if isinstance(entry, dict) else ""
        if not re.fullmatch("[0-9]{1,4}", number) or int(number) in numbers:
            raise TopologyError(
                f"{source}: GPU number {number[:40]!r}; legal: whole numbers, each GPU once"
            )
        numbers[int(number)] = entry
    if sorted(numbers) != list(range(len(numbers))) or not numbers:
        raise TopologyError(
            f"{source}: tells of GPUs {sorted(numbers)[:16]}; legal: of GPU 0, 1, ... as amd-smi "
            "prints them without -g"
        )
    check_gpus(len(numbers), source)
    return [numbers[gpu] for gpu in range(len(numbers))]


def _links(entries: Sequence[Entry], source: str) -> list[list[str]]:
    """Return the types of the links that JSON tells, nothing of those it does not."""
    links = [[""] * len(entries) for _ in entries]
    for gpu, entry in enumerate(entries):
        told = entry.get("links", [])
        by_name = entry.get("link_type", {})
        if not isinstance(told, list) or not isinstance(by_name, dict):
            raise TopologyError(f"{source}: links of GPU {gpu}; legal: a list, an object a link")
        pairs = [(f"gpu_{link.get('gpu')}", link) for link in told if isinstance(link, dict)]
        types = {name: link.get("link_type") for name, link in pairs} or by_name
        for other in range(len(entries)):
            links[gpu][other] = str(types.get(f"gpu_{other}", ""))
    return links


def _place(entry: Entry, where: str) -> GpuPlace:
    """Return where one GPU is."""
    numa = entry.get("numa")
    numa = numa if isinstance(numa, dict) else {}
    told = (str(numa.get(name))[:40] for name in ("affinity", "node"))
    numbers = [int(value) for value in told if re.fullmatch("[0-9]{1,9}", value)]
    if numbers and numbers[0] > MAX_NUMA_ID:
        raise TopologyError(f"{where}: NUMA node {numbers[0]}; legal: 0 to {MAX_NUMA_ID}")
    lists = numa.get("cpu_affinity")
    cpus = _cpus(lists, where) if isinstance(lists, dict) else frozenset()
    return GpuPlace(f"GPU{entry['gpu']}", numbers[0] if numbers else None, cpus)


def _cpus(lists: Mapping[str, Any], where: str) -> frozenset[int]:
    """Return the CPUs of masks of 64 each; the ranges beside them span gaps, so nobody reads them."""
    names = [f"cpu_list_{i}" for i in range(len(lists))]
    words = [lists[name].get("bitmask") for name in names if isinstance(lists.get(name), dict)]
    if len(words) < len(names):
        raise TopologyError(
            f"{where}: lists of CPUs {', '.join(lists)[:80]!r}; legal: cpu_list_0, cpu_list_1, ..."
        )
    try:
        return parse_cpu_mask(",".join(map(str, reversed(words))), digits=16)
    except TopologyError as error:
        raise TopologyError(f"{where}: {error}") from None
