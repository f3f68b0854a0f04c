"""Where GPUs of AMD are, by `rocm-smi --showtopo`."""

from collections.abc import Sequence

import pytest
from captured import Save

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server


def table(title: str, cells: Sequence[Sequence[str]]) -> str:
    names = [f"GPU{gpu}" for gpu in range(len(cells))]
    lines = [f"{f' {title} ':=^88}", "       " + "".join(f"{name:<13}" for name in names)]
    lines += [
        f"{name:<7}" + "".join(f"{cell:<13}" for cell in row)
        for name, row in zip(names, cells, strict=True)
    ]
    return "\n".join(lines) + "\n"


def showtopo(nodes: Sequence[object], joined: Sequence[int] = ()) -> str:
    """Write `rocm-smi --showtopo` of GPUs on NUMA nodes; XGMI joins those of equal `joined`."""
    gpus = range(len(nodes))
    links = [
        ["0" if a == b else "XGMI" if joined and joined[a] == joined[b] else "PCIE" for b in gpus]
        for a in gpus
    ]
    weights = [["0" if a == b else "15" for b in gpus] for a in gpus]
    text = f"\n\n{' ROCm System Management Interface ':=^88}\n"
    text += table("Weight between two GPUs", weights) + "\n"
    text += table("Link Type between two GPUs", links) + "\n"
    text += f"{' Numa Nodes ':=^88}\n"
    for gpu, node in enumerate(nodes):
        text += f"GPU[{gpu}]\t\t: (Topology) Numa Node: {node}\n"
        text += f"GPU[{gpu}]\t\t: (Topology) Numa Affinity: {node}\n"
    return text + f"{' End of ROCm SMI Log ':=^88}\n"


CORES = "".join(f"{cpu},{cpu},{cpu // 8},{cpu // 4}\n" for cpu in range(16))


def test_gpus_go_where_rocm_smi_puts_them(save: Save) -> None:
    cores = save("cores", CORES)
    model, warnings = load_server(cores, save("gpus", showtopo([3, 3, 1, 1, 0, 0, 2, 2])))
    assert (model.gpu_numa, model.numa_socket) == ((3, 3, 1, 1, 0, 0, 2, 2), (0, 0, 1, 1))
    assert warnings == []
    with pytest.raises(TopologyError, match="GPU1 is on NUMA node 4; legal: 0, 1, 2, 3"):
        load_server(cores, save("gpus", showtopo([0, 4])))


def test_gpus_that_xgmi_joins_are_islands(save: Save) -> None:
    cores = save("cores", CORES)
    gpus = save("gpus", showtopo([0, 0, 1, 1], joined=(0, 0, 1, 1)))
    assert load_server(cores, gpus, islands=True)[0].gpu_island == (0, 0, 1, 1)
    for joined in ((0, 0, 0, 0), ()):
        gpus = save("gpus", showtopo([0, 0, 1, 1], joined))
        with pytest.raises(TopologyError, match="tells no islands of its 4 GPUs"):
            load_server(cores, gpus, islands=True)


def test_one_number_stands_in_for_the_other(save: Save) -> None:
    text = showtopo([1, 0]).replace("Numa Affinity: 1", "Numa Affinity: 2")
    assert load_server(save("cores", CORES), save("gpus", text))[0].gpu_numa == (1, 0)
    text = showtopo([1, 0]).replace("Numa Node: 1", "Numa Node: -1")
    assert load_server(save("cores", CORES), save("gpus", text))[0].gpu_numa == (1, 0)


def test_a_machine_without_numa(save: Save) -> None:
    cores = save("cores", "0,0,0,0\n1,1,0,0\n")
    assert load_server(cores, save("gpus", showtopo([-1, -1])))[0].gpu_numa == (0, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (showtopo([0]), "gpus: tells of no CPU; legal: a capture that lists CPUs"),
        (showtopo([0] * 17), "gpus: 17 GPUs; legal: 0 to 16"),
        (showtopo([5000]), r"gpus: GPU\[0\]: Numa Node 5000; legal: 0 to 1023"),
        (showtopo([0, 0]).replace("GPU[0]", "GPU[2]"), r"of GPUs \[1, 2\]; legal: of GPU 0, 1"),
        (showtopo([0]).partition("= Numa")[0], r"of GPUs \[\]; legal: of GPU 0, 1, ... as rocm"),
    ],
)
def test_broken_output(
    text: str, message: str, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save("gpus", text).parent)
    with pytest.raises(TopologyError, match=message):
        load_server("gpus")
