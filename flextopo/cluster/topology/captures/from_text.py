"""Importers of text that tells where GPUs are: `nvidia-smi topo -m` and MLPerf `numa_config`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.capture import Capture, GpuPlace
from flextopo.cluster.topology.model import MAX_GPUS

# Linux supports at most 8192 CPUs on any architecture; the margin costs nothing.
MAX_CPU = 65535
MAX_NUMA_ID = 1023

# Terminal codes such as those for underlining; what copies them often loses the ESC byte, or
# writes it out.
_ESCAPE = re.compile(
    r"\x1b\[[0-9;]*[A-Za-z]|\x1b\([AB0]"
    r"|(?:\^\[|\u241b|\ufffd|\\e|\\033|\\x1b|\\u001b)?\[[0-9;]*[mK]",
    re.IGNORECASE,
)
_HEADING = re.compile(r"(?:CPU|NUMA) +Affinity|GPU +NUMA +ID|\S+")
_LINK = re.compile(r"X|SYS|SOC|NODE|PHB|PXB|PIX|PSB|C2C|NV[0-9]{1,3}")


def parse_cpu_list(text: str) -> tuple[int, ...]:
    """Parse a list of CPU or NUMA node numbers as Linux and Kubernetes write it.

    Args:
        text: such as `0-2,4,6-8`; spaces are ignored; empty means none.

    Returns:
        The numbers, ascending, each once.

    Raises:
        TopologyError: an item is no number or ascending range, or above 65535.

    References:
        kubernetes v1.36, k8s.io/utils/cpuset, Parse; it also returns the empty set for no text.
    """
    numbers: set[int] = set()
    if not text.strip():
        return ()
    for item in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*(?:-\s*([0-9]{1,9})\s*)?", item)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else -1
        if not first <= last <= MAX_CPU:
            raise TopologyError(
                f"item {item.strip()[:40]!r} of a CPU list; legal: a number or an ascending range "
                f"up to {MAX_CPU}, such as 0-2,4"
            )
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def is_gpu_matrix(text: str) -> bool:
    """Tell whether a text looks like the output of `nvidia-smi topo -m`."""
    text = _ESCAPE.sub("", text)
    return re.search(r"^[ \t]*GPU[0-9]+\s", text, re.MULTILINE) is not None


def is_numa_config(text: str) -> bool:
    """Tell whether a text holds one `numa_config` string, perhaps among other settings."""
    return len(_numa_configs(text)) == 1


def _numa_configs(text: str) -> dict[str, int]:
    """Return the distinct `numa_config` strings of a text, and the line that each stands on."""
    lines = _content_lines(text)
    found: dict[str, int] = {}
    for number, line in lines:
        _, key, value = line.lower().rpartition("numa_config")
        if not key and len(lines) > 1:
            continue
        # A colon at the beginning is the setting's, or else a NUMA node's without GPU.
        string = value.strip("\"' \t,;{}").lstrip("\"' \t=:" if key else "")
        if ":" in string and re.fullmatch(r"[0-9,&: \t-]+", string):
            found.setdefault(string, number)
    return found


def read_gpu_matrix(text: str, source: str) -> Capture:
    """Read the output of `nvidia-smi topo -m`: which CPUs and NUMA node each GPU is near.

    Network cards, the legend and terminal escapes are skipped. A NUMA Affinity that is no single
    number (`N/A`, `0-1`) is ignored in favour of the CPU Affinity. Link classes tell islands, and
    nothing of NUMA nodes: there they are not reliable.

    Args:
        text: the matrix, its cells separated by tabs or spaces.
        source: the file's name for messages.

    Returns:
        A capture with GPUs, and with the CPUs of the NUMA nodes that have GPUs.

    Raises:
        TopologyError: names the line that is malformed, or the row that is missing.
    """
    lines = _content_lines(_ESCAPE.sub("", text))
    start = next((i for i, (_, line) in enumerate(lines) if _is_header(line)), None)
    if start is None:
        raise TopologyError(
            f"{source}: has no heading; legal: a first line such as GPU0 GPU1 CPU Affinity"
        )
    number, header = lines[start]
    headings = [re.sub(" +", " ", heading) for heading in _HEADING.findall(header)]
    gpus = [heading for heading in headings if re.fullmatch("GPU[0-9]+", heading)]
    if gpus != [f"GPU{i}" for i in range(len(gpus))]:
        raise TopologyError(
            f"{source}:{number}: GPU columns {' '.join(gpus)}; legal: GPU0 GPU1 ..."
        )
    check_gpus(len(gpus), source)
    if "CPU Affinity" not in headings:
        raise TopologyError(f"{source}:{number}: has no column CPU Affinity; legal: one")
    rows: dict[str, GpuPlace] = {}
    # The memory of a GPU is a NUMA node only beside NVIDIA Grace, of which each has its own.
    node_is_socket = False
    links: dict[str, list[str]] = {}
    for number, line in lines[start + 1 :]:
        label = line.split(maxsplit=1)[0]
        if not re.fullmatch("GPU[0-9]+", label):
            continue
        where = f"{source}:{number}"
        if label not in gpus or label in rows:
            problem = "is listed twice" if label in rows else "has no column"
            raise TopologyError(f"{where}: row {label} {problem}; legal: one row a GPU column")
        rows[label], links[label], memory = _gpu_row(line, "\t" in header, headings, where)
        node_is_socket |= "GPU NUMA ID" in headings and memory.isdecimal()
    missing = [gpu for gpu in gpus if gpu not in rows]
    if missing:
        raise TopologyError(f"{source}: row {missing[0]} is missing; legal: one row a GPU column")
    capture = gpu_capture([rows[gpu] for gpu in gpus], source)
    islands = join_islands([links[gpu] for gpu in gpus], ("NV[0-9]+", "PIX|PXB"))
    return replace(capture, islands=islands, node_is_socket=node_is_socket)


def check_gpus(count: int, source: str) -> None:
    """Refuse more GPUs than a server may have, before anybody looks at the links between them.

    Raises:
        TopologyError: names the number.
    """
    if count > MAX_GPUS:
        raise TopologyError(f"{source}: {count} GPUs; legal: 0 to {MAX_GPUS}")


def _is_header(line: str) -> bool:
    """Tell the heading from a row: a row starts with a label and goes on with links."""
    cells = line.split()
    return cells[0] == "GPU0" and (len(cells) == 1 or not _LINK.fullmatch(cells[1]))


def join_islands(links: Sequence[Sequence[str]], kinds: Sequence[str]) -> tuple[int, ...] | None:
    """Return the island of each GPU; None = none is told.

    Where one kind of link joins all GPUs, as NVLink through an NVSwitch, it tells none apart.

    Args:
        links: of each GPU to each.
        kinds: patterns of links that join an island, the first that tells some apart counts.
    """
    for kind in kinds:
        island = list(range(len(links)))
        for gpu, row in enumerate(links):
            for other, link in enumerate(row):
                if re.fullmatch(kind, link):
                    joined = {island[gpu], island[other]}
                    island = [min(joined) if i in joined else i for i in island]
        if 1 < len(set(island)) < len(links):
            return tuple(island)
    return None


def _gpu_row(
    line: str, tabs: bool, headings: Sequence[str], where: str
) -> tuple[GpuPlace, list[str], str]:
    """Return the GPU of a row, its links to all GPUs, and what stands behind NUMA Affinity."""
    affinity = headings.index("CPU Affinity")
    cells = [cell.strip() for cell in line.split("\t")] if tabs else line.split()
    label, links, rest = cells[0], cells[1 : 1 + affinity], [*cells[1 + affinity :], "", ""]
    for heading, link in zip(headings[:affinity], [*links, *[""] * affinity], strict=False):
        if not _LINK.fullmatch(link) or (link == "X") != (heading == label):
            raise TopologyError(
                f"{where}: link of {label} to {heading} is {link[:40]!r}; legal: X to itself, else "
                "NV#, PIX, PXB, PHB, NODE or SYS"
            )
    has_numa = "NUMA Affinity" in headings
    numa_node = int(rest[1]) if has_numa and re.fullmatch("[0-9]{1,9}", rest[1]) else None
    if numa_node is not None and numa_node > MAX_NUMA_ID:
        raise TopologyError(f"{where}: NUMA Affinity {numa_node}; legal: 0 to {MAX_NUMA_ID}")
    try:
        cpus = frozenset(parse_cpu_list("" if rest[0] == "N/A" else rest[0]))
    except TopologyError as error:
        raise TopologyError(f"{where}: CPU Affinity of {label}: {error}") from None
    to_gpus = [
        link for heading, link in zip(headings, links, strict=False) if heading.startswith("GPU")
    ]
    return GpuPlace(label, numa_node, cpus), to_gpus, "".join(rest[2:])


def gpu_capture(gpus: Sequence[GpuPlace], source: str) -> Capture:
    """Collect the CPUs of the NUMA nodes; they serve where no other capture tells of CPUs."""
    numa_cpus: dict[int, tuple[int, ...]] = {}
    told = all(gpu.numa_node is not None for gpu in gpus)
    if all(gpu.cpus for gpu in gpus):
        if told:
            for gpu in gpus:
                known = numa_cpus.get(gpu.numa_node or 0, ())
                numa_cpus[gpu.numa_node or 0] = tuple(sorted({*known, *gpu.cpus}))
        else:
            # Each distinct list is one NUMA node; the ids told for some GPUs may disagree.
            numa_cpus = dict(enumerate(sorted({tuple(sorted(gpu.cpus)) for gpu in gpus})))
            gpus = [gpu._replace(numa_node=None) for gpu in gpus]
    return Capture(source, numa_cpus=numa_cpus, lists_all_nodes=not told, gpus=tuple(gpus))


def read_numa_config(text: str, source: str) -> Capture:
    """Read an MLPerf `numa_config` string: `GPU list:CPU list` for each NUMA node, joined by `&`.

    Args:
        text: such as `1:0-7&0:8-15`, or one setting `numa_config = "..."`; a NUMA node without GPU
            is its CPU list alone.
        source: the file's name for messages.

    Returns:
        A capture with GPUs and the CPUs of NUMA nodes, which are numbered by their first CPU.

    Raises:
        TopologyError: an item is malformed or GPUs are not numbered 0, 1, ...
    """
    ((string, number),) = _numa_configs(text).items()
    where = f"{source}:{number}"
    try:
        nodes = sorted(_config_node(item) for item in string.split("&"))
    except TopologyError as error:
        raise TopologyError(f"{where}: {error}") from None
    places = sorted((gpu, node) for node, (_, gpus) in enumerate(nodes) for gpu in gpus)
    if [gpu for gpu, _ in places] != list(range(len(places))):
        raise TopologyError(
            f"{where}: GPUs {[gpu for gpu, _ in places]}; legal: 0, 1, ... once each"
        )
    gpus = tuple(GpuPlace(f"GPU{gpu}", node, frozenset(nodes[node][0])) for gpu, node in places)
    numa_cpus = {i: cpus for i, (cpus, _) in enumerate(nodes)}
    return Capture(source, numa_cpus=numa_cpus, lists_all_nodes=True, gpus=gpus)


def _config_node(item: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the CPUs and the GPUs of a NUMA node."""
    gpus, _, cpus = item.rpartition(":")
    found = parse_cpu_list(cpus)
    if not found or ":" in gpus:
        raise TopologyError(
            f"item {item.strip()[:40]!r} of a numa_config; legal: GPUs:CPUs, or the CPUs alone"
        )
    return found, parse_cpu_list(gpus)


def _content_lines(text: str) -> list[tuple[int, str]]:
    """Return the numbered lines without comments, blank lines and the blanks around them."""
    lines = ((i, line.partition("#")[0].rstrip()) for i, line in enumerate(text.splitlines(), 1))
    return [(i, line) for i, line in lines if line.strip()]
