"""Load a server from any capture of it: the kind of each file is told by its content.

Kinds: the FlexTopo custom resource, lscpu, `nvidia-smi topo -m`, `rocm-smi --showtopo`, `amd-smi
topology` and `static --numa`, MLPerf `numa_config`, hwloc XML, and NCCL or RCCL XML. Several files of
one server may be given together, such as the cores from lscpu and the GPUs from nvidia-smi.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import networkx as nx

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.files import decode_input, read_input
from flextopo.cluster.topology.captures.capture import (
    Capture,
    CpuRow,
    GpuPlace,
    assemble,
    check_cores,
    with_islands,
)
from flextopo.cluster.topology.captures.from_amd_smi import is_amd_smi, read_amd_smi
from flextopo.cluster.topology.captures.from_lscpu import (
    is_lscpu,
    is_lscpu_summary,
    read_lscpu,
    read_lscpu_summary,
)
from flextopo.cluster.topology.captures.from_nccl import read_nccl
from flextopo.cluster.topology.captures.from_rocm import is_rocm_smi, read_rocm_smi
from flextopo.cluster.topology.captures.from_text import (
    is_gpu_matrix,
    is_numa_config,
    parse_cpu_list,
    read_gpu_matrix,
    read_numa_config,
)
from flextopo.cluster.topology.captures.from_xml import parse_xml, read_hwloc
from flextopo.cluster.topology.documents import parse_document
from flextopo.cluster.topology.model import ServerModel
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import graph_from_resource

__all__ = [
    "KINDS",
    "Capture",
    "CpuRow",
    "GpuPlace",
    "TopologyWarning",
    "assemble",
    "load_server",
    "parse_cpu_list",
    "read_capture",
    "read_gpu_matrix",
    "read_lscpu",
    "read_numa_config",
]

KINDS = (
    "FlexTopo resource (YAML, JSON), lscpu -p, lscpu, nvidia-smi topo -m, rocm-smi --showtopo, "
    "amd-smi topology, amd-smi static --numa, MLPerf numa_config, hwloc XML, NCCL or RCCL XML"
)


_GPU_KINDS = (
    (is_amd_smi, read_amd_smi),
    (is_rocm_smi, read_rocm_smi),
    (is_gpu_matrix, read_gpu_matrix),
)


class TopologyWarning(UserWarning):
    """Tell what was assumed of a server that its files do not tell."""


def read_capture(path: str | Path) -> Capture | nx.DiGraph:
    """Read one file of a server, whatever its kind.

    Args:
        path: at most 64 MiB; its name and ending do not matter.

    Returns:
        The graph of a FlexTopo resource, or what another capture tells.

    Raises:
        TopologyError: the file cannot be read, is of no known kind, or is malformed.
    """
    source = str(path)
    data = read_input(path)
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        root = parse_xml(data, source)
        if root.tag not in ("topology", "system"):
            raise TopologyError(
                f"{source}: root element {root.tag[:40]!r}; legal: topology (hwloc) or system (NCCL)"
            )
        return read_hwloc(root, source) if root.tag == "topology" else read_nccl(root, source)
    text = decode_input(data, source)
    if re.search('apiVersion"?:|^spec:', text, re.MULTILINE):
        return graph_from_resource(parse_document(text, source), source)
    read_gpus = next((read for tells, read in _GPU_KINDS if tells(text)), None)
    if read_gpus is not None:
        return _with_pasted_lscpu(read_gpus(text, source), text, source)
    if is_lscpu_summary(text):
        return read_lscpu_summary(text, source)
    if is_numa_config(text):
        return read_numa_config(text, source)
    if text.lstrip().startswith("{"):
        return graph_from_resource(parse_document(text, source), source)
    if is_lscpu(text):
        return read_lscpu(text, source)
    raise TopologyError(f"{source}: of no known kind; legal: {KINDS}")


def _with_pasted_lscpu(gpus: Capture, text: str, source: str) -> Capture:
    """Add what lscpu printed, if that is pasted beside where GPUs are."""
    try:
        cpus = _read_pasted_lscpu(text, source)
    except TopologyError as error:
        return replace(gpus, warnings=(*gpus.warnings, f"{error}; what lscpu printed is not used"))
    if cpus is None:
        return gpus
    return replace(gpus, rows=cpus.rows, memory_nodes=cpus.memory_nodes, warnings=cpus.warnings)


def _read_pasted_lscpu(text: str, source: str) -> Capture | None:
    """Read what lscpu printed, if it is there, from among other lines."""
    if is_lscpu(text):
        # The other lines stay, empty, so that messages count right.
        lines = (line if re.match("#|[0-9]+,", line) else "" for line in text.splitlines())
        return read_lscpu("\n".join(lines), source)
    return read_lscpu_summary(text, source) if is_lscpu_summary(text) else None


def load_server(
    path: str | Path, *others: str | Path, islands: bool = False
) -> tuple[ServerModel, list[str]]:
    """Load a server from one or more files.

    Args:
        path: a FlexTopo resource or a capture.
        others: captures of the same server that tell what the first does not. Beside a resource,
            they tell only where the GPUs are, and their islands.
        islands: tell GPUs apart by PCIe switch or NVLink island, too.

    Returns:
        The model, named after the first file or, for a resource, after its node; and one warning
        for each assumption.

    Raises:
        TopologyError: a file cannot be read or is malformed, or the files contradict each other.
    """
    paths = (path, *others)
    found = [read_capture(each) for each in paths]
    graphs = [each for each in found if isinstance(each, nx.DiGraph)]
    captures = [each for each in found if isinstance(each, Capture)]
    if len(graphs) > 1:
        raise TopologyError(
            f"{', '.join(map(str, paths))}: {len(graphs)} FlexTopo resources; legal: one server"
        )
    if not graphs:
        return assemble(captures, Path(path).name.partition(".")[0] or "server", islands)
    (graph,) = graphs
    if all(capture.gpus is None for capture in captures):
        model, warnings = server_model_from_graph(graph)
        check_cores(model, str(path))
        unused = [f"{capture.source}: lists no GPU and is not used" for capture in captures]
        if islands and not model.gpu_island:
            with_islands(model, None, str(path))
        return model, warnings + unused
    if not any(capture.rows for capture in captures):
        # The graph knows the cores and sockets that a listing of GPUs only lets guess.
        captures.insert(0, _cores_of(graph))
    listing = next(capture.source for capture in captures if capture.gpus is not None)
    located, warnings = assemble(captures, listing, islands)
    model, assumed = server_model_from_graph(graph, located)
    check_cores(model, str(path))
    return replace(model, gpu_island=located.gpu_island or model.gpu_island), warnings + assumed


def _cores_of(graph: nx.DiGraph) -> Capture:
    model, _ = server_model_from_graph(graph)
    rows = [
        CpuRow(core, core, model.numa_socket[numa_node], numa_node)
        for numa_node, cores in enumerate(model.cores)
        for core in cores
    ]
    return Capture(model.name, rows=tuple(rows))
