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


def amd_tables(links: Sequence[Sequence[str]], title: str = "LINK TYPE") -> str:
    """Write two tables of `amd-smi topology`: hops, and links of GPUs 0000:00:00.0, 0000:01:00.0, ..."""
    names = [f"0000:{gpu:02x}:00.0" for gpu in range(len(links))]
    hops = [["0" if a == b else "1" for b in range(len(links))] for a in range(len(links))]
    text = ""
    for name, cells in {"HOPS": hops, title: links}.items():
        text += f"\n{name} TABLE:\n{'':13}{' '.join(names)}\n"
        for label, row in zip(names, cells, strict=True):
            text += f"{label} " + "".join(f"{cell:<13}" for cell in row).rstrip() + "\n"
        text += "\n"
    return text


def amd_static_entries(nodes: Sequence[tuple[object, str]]) -> list[dict[str, object]]:
    """Return `amd-smi static --numa --json` from (NUMA node, CPUs or "") of each GPU."""
    return [
        {
            "gpu": gpu,
            "numa": {
                "node": node,
                "affinity": node,
                "cpu_affinity": _affinity(cpus) if cpus else "N/A",
                "socket_affinity": "N/A",
            },
        }
        for gpu, (node, cpus) in enumerate(nodes)
    ]


def _affinity(cpus: str) -> dict[str, dict[str, str]]:
    ranges = [tuple(map(int, part.split("-"))) for part in cpus.split(",")]
    mask = sum(1 << cpu for first, last in ranges for cpu in range(first, last + 1))
    lists = {}
    for i in range((mask.bit_length() + 63) // 64):
        word = mask >> 64 * i & (1 << 64) - 1
        ends = (word & -word).bit_length() - 1 + 64 * i, word.bit_length() - 1 + 64 * i
        lists[f"cpu_list_{i}"] = {
            "bitmask": f"{word:016X}",
            "cpu_cores_affinity": f"{ends[0]}-{ends[1]}" if word else "N/A",
        }
    return lists


def amd_static(nodes: Sequence[tuple[object, str]]) -> str:
    """Write the same as text."""
    lines: list[str] = []

    def write(entry: object, depth: int) -> None:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            key = f"{'':{4 * depth}}{name.upper()}:"
            lines.append(key if isinstance(value, dict) else f"{key} {value}")
            write(value, depth + (0 if name == "gpu" else 1))

    for entry in amd_static_entries(nodes):
        lines.append(f"GPU: {entry.pop('gpu')}")
        write(entry, 1)
        lines.append("")
    return "\n".join(lines)
