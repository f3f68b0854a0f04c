"""Where GPUs of AMD are, by `amd-smi topology` and `amd-smi static --numa`."""

import json
from collections.abc import Sequence

import pytest
from capture_texts import amd_static, amd_static_entries, amd_tables
from captured import Save

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server

CORES = "".join(f"{cpu},{cpu},{cpu // 8},{cpu // 4}\n" for cpu in range(16))
JOINED = (0, 0, 1, 1)
NODES = [(1, "4-7"), (1, "4-7"), (2, "8-11"), (3, "12-15")]
LINKS = [["SELF" if a == b else "XGMI" if JOINED[a] == JOINED[b] else "PCIE" for b in range(4)]
         for a in range(4)]  # fmt: skip


def topology_json(links: Sequence[Sequence[str]], by_name: bool = False) -> str:
    """Write `amd-smi topology --json`, also as it was until 6.1."""
    entries: list[dict[str, object]] = []
    for gpu, row in enumerate(links):
        told: dict[str, object] = {
            "links": [{"gpu": i, "link_type": link, "num_hops": 1} for i, link in enumerate(row)]
        }
        if by_name:
            told = {"link_type": {f"gpu_{i}": link for i, link in enumerate(row)}}
        entries.append({"gpu": gpu, "bdf": f"0000:{gpu:02x}:00.0", **told})
    return json.dumps(entries, indent=4)


@pytest.mark.parametrize(
    "text",
    [
        amd_static(NODES),
        json.dumps(amd_static_entries(NODES), indent=4),
        json.dumps({"gpu_data": amd_static_entries(NODES)}),
        f"{amd_tables(LINKS)}\n{amd_static(NODES)}",
        amd_static([(f"{node}", "") for node, _ in NODES]),
        amd_static(NODES).replace("        NODE: 1", "        NODE: 2"),
        amd_static(NODES).replace("AFFINITY: 1\n", "AFFINITY: N/A\n"),
    ],
)
def test_gpus_go_where_amd_smi_puts_them(text: str, save: Save) -> None:
    model, warnings = load_server(save("cores", CORES), save("gpus", text))
    assert (model.gpu_numa, model.numa_socket) == ((1, 1, 2, 3), (0, 0, 1, 1))
    assert warnings == []


def test_what_it_tells_of_cpus_does_alone(save: Save) -> None:
    """Bits count, and not the ranges beside them: these go over the gaps."""
    text = amd_static([(0, "0-23,96-119"), (1, "24-47,120-143"), (2, "48-71,144-167"),
                       (3, "72-95,168-191")])  # fmt: skip
    assert "CPU_CORES_AFFINITY: 96-119" in text
    model, (warning,) = load_server(save("gpus", text))
    assert (model.numa_cores, model.gpu_numa) == ((24,) * 4, (0, 1, 2, 3))
    assert "2 hardware thread(s) a core, since CPUs 96 apart" in warning


@pytest.mark.parametrize(
    "text",
    [amd_tables(LINKS), topology_json(LINKS), topology_json(LINKS, by_name=True)],
)
def test_gpus_that_xgmi_joins_are_islands(text: str, save: Save) -> None:
    cores, numa = save("cores", CORES), save("numa", amd_static([(n // 2, "") for n in range(4)]))
    for order in ((cores, numa, save("links", text)), (cores, save("links", text), numa)):
        model, warnings = load_server(*order, islands=True)
        assert (model.gpu_island, model.gpu_numa) == ((0, 0, 1, 1), (0, 0, 1, 1))
        assert warnings == []
    model, warnings = load_server(cores, save("links", text))
    assert model.gpu_numa == (0, 1, 2, 3)
    (warning,) = warnings
    assert "GPU0, GPU1, GPU2, GPU3 may be on NUMA nodes 0, 1, 2, 3; counted as on 0" in warning


def test_links_of_one_kind_tell_no_islands(save: Save) -> None:
    every = [["SELF" if a == b else "XGMI" for b in range(4)] for a in range(4)]
    for text in (amd_tables(every), topology_json(every), amd_tables(LINKS, "ACCESS")):
        with pytest.raises(TopologyError, match=r"tells no islands of its 4 GPUs; .*amd-smi"):
            load_server(save("cores", CORES), save("gpus", text), islands=True)


def test_a_machine_without_numa(save: Save) -> None:
    cores = save("cores", "0,0,0,0\n1,1,0,0\n")
    for node in ("N/A", "-1", "NONE"):
        gpus = save("gpus", amd_static([(node, ""), (node, "")]))
        assert load_server(cores, gpus)[0].gpu_numa == (0, 0)


TABLES = amd_tables(LINKS)
STATIC = amd_static(NODES)
BROKEN = {
    "no-cpus": (TABLES, "gpus: tells of no CPU; legal: a capture that lists CPUs"),
    "row-missing": (
        TABLES[: TABLES.index("0000:02:00.0 PCIE")],
        "gpus:14: row '' of 0 cells; legal: 0000:02:00.0 with 4",
    ),
    "cell-missing": (
        TABLES.replace("XGMI         PCIE         PCIE", "XGMI         PCIE", 1),
        "gpus:12: row '0000:00:00.0' of 3 cells; legal: 0000:00:00.0 with 4",
    ),
    "self": (
        TABLES.replace("SELF         XGMI", "XGMI         SELF", 1),
        "gpus: link of 0000:00:00.0 to 0000:00:00.0 is 'XGMI'; legal: SELF to itself, else XGMI",
    ),
    "heading": (
        TABLES.replace("0000:01:00.0 0000:02:00.0", "0000:01:00.0 0000:01:00.0", 1),
        "gpus:3: heading of 4 GPUs, 3 different; legal: each GPU once",
    ),
    "title-alone": ("HOPS TABLE:", "gpus:2: heading of 0 GPUs, 0 different; legal: each GPU once"),
    "two-servers": (TABLES * 2, "gpus: HOPS TABLE is there twice; legal: of one server"),
    "other-server": (
        TABLES + amd_tables([["SELF"]], "ACCESS").partition("\n\n")[2],
        "gpus: tables of different GPUs; legal: of one server",
    ),
    "counts": (
        TABLES + amd_static(NODES[:3]),
        "gpus: links of 4 GPUs and NUMA nodes of 3; legal: equal",
    ),
    "one-gpu": (
        STATIC.replace("GPU: 0", "GPU: 9"),
        "gpus: tells of GPUs [1, 2, 3, 9]; legal: of GPU 0, 1, ... as amd-smi prints them",
    ),
    "gpu-twice": (STATIC.replace("GPU: 0", "GPU: 1"), "gpus: GPU number '1'; legal: whole"),
    "numa-range": (amd_static([(5000, "")]), "gpus: GPU 0: NUMA node 5000; legal: 0 to 1023"),
    "mask": (
        STATIC.replace("BITMASK: 00000000000000F0", "BITMASK: 4-7", 1),
        "gpus: GPU 0: word '4-7' of a CPU mask; legal: up to 16 hex digits",
    ),
    "list-missing": (
        STATIC.replace("CPU_LIST_0", "CPU_LIST_3", 1),
        "gpus: GPU 0: lists of CPUs 'cpu_list_3'; legal: cpu_list_0, cpu_list_1, ...",
    ),
    "json": (topology_json(LINKS)[:-9], "; legal: JSON"),
    "links": (
        '[{"gpu": 0, "links": {"gpu": 0}}]',
        "gpus: links of GPU 0; legal: a list, an object a link",
    ),
    "partitions": (amd_static([(0, "")] * 64), "gpus: 64 GPUs; legal: 0 to 16"),
    "partition-links": (amd_tables([["SELF"] * 64] * 64), "gpus: 64 GPUs; legal: 0 to 16"),
    "no-list": ('{"gpu": 0}', "gpus: tells of GPUs []; legal: of GPU 0, 1, ..."),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_output(case: str, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message = BROKEN[case]
    monkeypatch.chdir(save("gpus", text).parent)
    with pytest.raises(TopologyError) as caught:
        load_server("gpus")
    assert message in str(caught.value)
    assert str(caught.value).startswith("gpus:")
    assert "\n" not in str(caught.value)
