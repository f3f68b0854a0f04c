"""Captures of made-up servers, written as the tools print them."""

from collections.abc import Sequence


def matrix(rows: Sequence[tuple[str, str]], links: str = "SYS") -> str:
    """Write an `nvidia-smi topo -m` table from (CPU affinity, NUMA affinity) of each GPU."""
    names = [f"GPU{i}" for i in range(len(rows))]
    lines = ["\t" + "\t".join([*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"])]
    for i, (cpus, numa) in enumerate(rows):
        cells = [" X " if i == j else links for j in range(len(rows))]
        lines.append("\t".join([names[i], *cells, cpus, numa, "", "N/A"]))
    return "\n".join(lines) + "\n"


def nccl(*nodes: tuple[str, str, str]) -> str:
    cpus = "".join(
        f'<cpu numaid="{i}" affinity="{mask}" arch="x86_64">{inner}</cpu>'
        for i, mask, inner in nodes
    )
    return f'<system version="1">{cpus}</system>'


def pci(bus_id: str, inner: str = "", kind: str = "0x030200", vendor: str = "0x10de") -> str:
    return f'<pci busid="{bus_id}" class="{kind}" vendor="{vendor}">{inner}</pci>'
