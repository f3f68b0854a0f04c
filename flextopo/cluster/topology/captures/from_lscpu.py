"""Importers of `lscpu`: its lists (`lscpu -p`, `lscpu -e`), and what it prints without an option."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, CpuRow, are_virtual
from flextopo.cluster.topology.captures.from_text import MAX_CPU, MAX_NUMA_ID, parse_cpu_list
from flextopo.cluster.topology.model import MAX_SOCKETS


class CpuColumn(StrEnum):
    """The columns of `lscpu -p` that are read."""

    CPU = "CPU"
    CORE = "Core"
    SOCKET = "Socket"
    NODE = "Node"


Line = Mapping[str, str]

_ADVICE = "legal: the output of lscpu -p=CPU,CORE,SOCKET,NODE"


def is_lscpu(text: str) -> bool:
    """Tell whether a text looks like the output of `lscpu -p` or `lscpu -e`."""
    first_row = re.search(r"^[0-9]+,[0-9-]*,[0-9-]*(,|\s*$)", text, re.MULTILINE)
    return first_row is not None or any(_headings(line) for line in text.splitlines()[:100])


def read_lscpu(text: str, source: str) -> Capture:
    """Read the output of `lscpu -p=CPU,Core,Socket,Node`, of `lscpu -p` or of `lscpu -e`.

    CPUs that are off line, of which it tells no core, are left out. Where cores of one number have
    L1d caches of their own, they are several: core numbers may start again for each type of CPU.

    Args:
        text: comment lines, a heading that names the columns in any order, and one line a CPU;
            without a heading they are CPU, Core, Socket, Node. Without NUMA nodes, each socket
            counts as one.
        source: the file's name for messages.

    Returns:
        A capture without GPUs.

    Raises:
        TopologyError: names the line that is malformed, or that there is none.
    """
    columns: list[str] = [column.lower() for column in CpuColumn]
    table: dict[int, Line] = {}
    for number, line in enumerate(text.splitlines(), 1):
        found = _headings(line)
        if found or line.startswith("#") or not line.strip():
            columns = found or columns
            continue
        cells = [cell.strip() for cell in (line.split(",") if "," in line else line.split())]
        if len(cells) != len(columns):
            raise TopologyError(
                f"{source}:{number}: {len(cells)} columns; legal: {len(columns)} "
                f"({','.join(_written(column) for column in columns)})"
            )
        table[number] = dict(zip(columns, cells, strict=True))
    # A column that is blank on every line is a level the machine lacks; blank on some, a defect.
    present = {c for c in CpuColumn if any(_known(line, c) for line in table.values())}
    online = {i: line for i, line in table.items() if _is_online(line, present)}
    if not online:
        raise TopologyError(f"{source}: lists no CPU; legal: a line such as 0,0,0,0 for each CPU")
    read = [(_cpu_row(line, present, f"{source}:{i}"), line) for i, line in online.items()]
    rows, warnings = _split_cores(read, source)
    if len(online) < len(table):
        warnings.append(f"{source}: {len(table) - len(online)} CPUs are off line and left out")
    if CpuColumn.NODE not in present:
        rows, warning = _without_nodes(rows, source)
        warnings.append(warning)
    return Capture(source, rows=rows, warnings=tuple(warnings))


def _headings(line: str) -> list[str]:
    """Return the columns that a heading names, in lower case; none if the line is no heading."""
    line = line.lstrip("# ").lower()
    parts = line.split(",") if "," in line else line.split()
    words = [(part.split() or [""])[0] for part in parts]
    # Caches stand in one column, as L1d:L1i:L2:L3, where columns were asked for.
    words = ["l1d" if word.startswith("l1d:") else word for word in words]
    names = {column.lower() for column in CpuColumn}
    is_heading = {"cpu", "core"} <= set(words) or ("cpu" in words and set(words) <= names)
    return words if is_heading else []


def _written(column: str) -> str:
    return {c.lower(): str(c) for c in CpuColumn}.get(column, column)


def _known(line: Line, column: CpuColumn) -> bool:
    return line.get(column.lower(), "") not in ("", "-")


def _is_online(line: Line, present: set[CpuColumn]) -> bool:
    """Tell a CPU that is off line by its column, or as of no core and no socket."""
    if line.get("online", "").lower() in ("n", "no"):
        return False
    told = present & {CpuColumn.CORE, CpuColumn.SOCKET}
    return not told or any(_known(line, column) for column in told)


def _cpu_row(line: Line, present: set[CpuColumn], where: str) -> CpuRow:
    numbers: dict[CpuColumn, int] = {CpuColumn.SOCKET: 0, CpuColumn.NODE: 0}
    for column in CpuColumn:
        if column not in present and column in (CpuColumn.SOCKET, CpuColumn.NODE):
            continue
        cell = line.get(column.lower(), "")
        if not re.fullmatch("[0-9]{1,9}", cell) or int(cell) > MAX_CPU:
            raise TopologyError(f"{where}: {column} is {cell[:40]!r}; legal: 0 to {MAX_CPU}")
        numbers[column] = int(cell)
    return CpuRow(*(numbers[column] for column in CpuColumn))


def _split_cores(
    read: list[tuple[CpuRow, Line]], source: str
) -> tuple[tuple[CpuRow, ...], list[str]]:
    """Give cores of one number that have L1d caches of their own numbers of their own."""
    caches = [line.get("l1d", "").partition(":")[0].strip("-") for _, line in read]
    keys = [(row[1:], cache) for (row, _), cache in zip(read, caches, strict=True)]
    cores = len({row for row, _ in keys})
    if len(set(keys)) == cores or not all(caches):
        return tuple(row for row, _ in read), []
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    rows = (row._replace(core=numbers[key]) for (row, _), key in zip(read, keys, strict=True))
    warning = f"{source}: {len(numbers)} cores by their L1d caches, {cores} by the column Core"
    return tuple(rows), [warning]


def _without_nodes(rows: tuple[CpuRow, ...], source: str) -> tuple[tuple[CpuRow, ...], str]:
    """Count each socket as a NUMA node, or all as one where those are a virtual machine's."""
    cores = Counter(socket for socket, _ in {(row.socket, row.core) for row in rows})
    if len(cores) > MAX_SOCKETS or are_virtual(len(cores), max(cores.values())):
        return rows, f"{source}: tells no NUMA nodes; counted as one"
    rows = tuple(row._replace(numa_node=row.socket) for row in rows)
    return rows, f"{source}: tells no NUMA nodes; each socket counts as one NUMA node"


def is_lscpu_summary(text: str) -> bool:
    """Tell whether a text looks like what `lscpu` or `lscpu -J` prints."""
    first = r"^[ \t]*(CPU|Thread|Socket)\(s\)[^:\n]*:"
    return '"lscpu"' in text[:100] or re.search(first, text, re.MULTILINE) is not None


def read_lscpu_summary(text: str, source: str) -> Capture:
    """Read what `lscpu` prints without an option, or `lscpu -J`, where that tells enough.

    It does where each socket has its own NUMA nodes, which are dealt out in order, and where CPUs
    form the cores that it counts; perhaps fewer, where it tells which CPUs are off line.

    Args:
        text: lines such as `Socket(s): 2`, in English.
        source: the file's name for messages.

    Returns:
        A capture without GPUs, with a warning of what was assumed.

    Raises:
        TopologyError: it does not tell enough; asks for `lscpu -p`.
    """
    text = re.sub(r'"field":\s*"([^"]*)",\s*"data":\s*"([^"]*)"', r"\n\1 \2\n", text)
    pairs = [line.partition(":") for line in text.splitlines()]
    fields: dict[str, set[str]] = {}
    for name, _, value in pairs:
        fields.setdefault(name.strip(), set()).add(value.strip())
    nodes = _summary_nodes(fields, source)
    used = {node: cpus for node, cpus in nodes.items() if cpus}
    core_of = _summary_cores(used, fields, source)
    sockets = 1 if fields.get("Socket(s)") == {"-"} else _count(fields, "Socket(s)", source)
    socket_of = _summary_sockets(list(used), sockets, len(set(core_of.values())), source)
    rows = tuple(
        CpuRow(cpu, core_of[cpu], socket_of[node], node)
        for node, cpus in used.items()
        for cpu in cpus
    )
    memory = {node: 0 for node in nodes if node not in used} if sockets == 1 else {}
    left_out = " and those without CPUs left out" if len(used) + len(memory) < len(nodes) else ""
    warning = (
        f"{source}: tells neither the threads of a core nor the NUMA nodes of a socket; "
        f"{len(used)} NUMA node(s) dealt out to {len(set(socket_of.values()))} socket(s) in order"
        f"{left_out} (lscpu -p tells)"
    )
    return Capture(source, rows=rows, memory_nodes=memory, warnings=(warning,))


def _count(fields: Mapping[str, set[str]], name: str, source: str) -> int:
    values = sorted(fields.get(name, {""}))
    if len(values) > 1 or not re.fullmatch("[1-9][0-9]{0,5}", values[0]):
        raise TopologyError(f"{source}: {name} is {' and '.join(values)[:40]!r}; {_ADVICE}")
    return int(values[0])


def _summary_nodes(fields: Mapping[str, set[str]], source: str) -> dict[int, tuple[int, ...]]:
    """Return the CPUs of each NUMA node; without NUMA, all that are on line are on one."""
    lists = {
        int(match[1]): min(values)
        for name, values in fields.items()
        if (match := re.fullmatch(r"NUMA node([0-9]{1,4}) CPU\(s\)", name))
    }
    lists = lists or {0: min(fields.get("On-line CPU(s) list", {""}))}
    try:
        found = {node: parse_cpu_list(value) for node, value in sorted(lists.items())}
    except TopologyError as error:
        raise TopologyError(f"{source}: {error}") from None
    if max(found) > MAX_NUMA_ID or not any(found.values()):
        raise TopologyError(f"{source}: tells no CPUs of NUMA nodes 0 to {MAX_NUMA_ID}; {_ADVICE}")
    return found


def _summary_sockets(nodes: list[int], sockets: int, cores: int, source: str) -> dict[int, int]:
    if len(nodes) % sockets == 0:
        return {node: i * sockets // len(nodes) for i, node in enumerate(nodes)}
    if sockets > MAX_SOCKETS or are_virtual(sockets, -(-cores // sockets)):
        return {node: i for i, node in enumerate(nodes)}
    raise TopologyError(
        f"{source}: {sockets} sockets and {len(nodes)} NUMA nodes with CPUs, which does not tell "
        f"what is where; {_ADVICE}"
    )


def _summary_cores(
    nodes: Mapping[int, tuple[int, ...]], fields: Mapping[str, set[str]], source: str
) -> dict[int, int]:
    """Return the core of each CPU.

    Threads of a core are as far apart as there are cores, or else neighbours, whichever leaves no
    core on two NUMA nodes; where both do, the number of cores is the same.
    """
    node_of = {cpu: node for node, cpus in nodes.items() for cpu in cpus}
    threads = _count(fields, "Thread(s) per core", source)
    if threads == 1:
        return {cpu: cpu for cpu in node_of}
    cores = _count(fields, "Core(s) per socket", source) * _count(fields, "Socket(s)", source)
    apart = {cpu: cpu % cores for cpu in node_of}
    options = [apart, {cpu: cpu // threads for cpu in node_of}]
    for core_of in options:
        sizes = Counter(core_of.values())
        on_one = len({(core, node_of[cpu]) for cpu, core in core_of.items()}) == len(sizes)
        enough = len(sizes) == cores or (len(sizes) < cores and "Off-line CPU(s) list" in fields)
        if on_one and enough and max(sizes.values()) <= threads:
            return core_of
    raise TopologyError(
        f"{source}: {len(node_of)} CPUs on line, {cores} cores and {threads} threads a core, which "
        f"does not tell the threads of a core; {_ADVICE}"
    )
