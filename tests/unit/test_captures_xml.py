"""XML captures of servers (hwloc, NCCL) of odd, broken and hostile shapes."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from capture_texts import nccl, pci

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.from_xml import parse_cpu_mask
from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.model import ServerModel

Save = Callable[[str], Path]

C2C = '<gpu dev="{}" sm="90"><c2c bw="12500" count="1"/></gpu>'
NO_GPU_PCI = '<object type="PCIDev" pci_busid="0000:05:00.0" pci_type="0200 [15b3:1021] [] 00"/>'


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(text: str) -> Path:
        path = tmp_path / "host.xml"
        path.write_text(text)
        return path

    return write


def gpu(bus_id: str, name: str = "GA100") -> str:
    return (
        '<object type="Bridge"><object type="PCIDev" pci_type="0302 [10de:20b0] [10de:134f] a1" '
        f'pci_busid="{bus_id}"><info name="PCIDevice" value="{name}"/></object></object>'
    )


def numa(index: int, cpus: range | None = None) -> str:
    mask = f"0x{sum(1 << cpu for cpu in cpus or ()):08x}"
    return f'<object type="NUMANode" os_index="{index}" cpuset="{mask}"/>'


def cores(cpus: range, threads: int = 1, offset: int = 0) -> str:
    """Write cores whose threads are `cpus` and as many CPUs again after them."""
    text = ""
    for cpu in cpus:
        units = [f'<object type="PU" os_index="{cpu + offset * t}"/>' for t in range(threads)]
        text += f'<object type="Core" os_index="{cpu}">{"".join(units)}</object>'
    return text


def part(kind: str, index: int, cpus: range, content: str) -> str:
    mask = f"0x{sum(1 << cpu for cpu in cpus):08x}"
    return f'<object type="{kind}" os_index="{index}" cpuset="{mask}">{content}</object>'


def machine(content: str) -> str:
    document = '<?xml version="1.0"?>\n<!DOCTYPE topology SYSTEM "hwloc2.dtd">\n'
    return f'{document}<topology version="2.0"><object type="Machine">{content}</object></topology>'


def two_packages() -> str:
    first = numa(0, range(4)) + gpu("0000:90:00.0") + NO_GPU_PCI + cores(range(4))
    second = numa(1, range(4, 8)) + gpu("0000:10:00.0") + cores(range(4, 8))
    return part("Package", 0, range(4), first) + part("Package", 1, range(4, 8), second)


@pytest.mark.parametrize(
    ("mask", "cpus"),
    [
        ("0x0000000f", {0, 1, 2, 3}),
        ("0x1,,0x80000000", {31, 64}),
        ("00000001,00000000", {32}),
        ("", set()),
        ("0x0", set()),
    ],
)
def test_cpu_masks(mask: str, cpus: set[int]) -> None:
    assert parse_cpu_mask(mask) == cpus


@pytest.mark.parametrize("mask", ["0xg", "0xf...f", "123456789", "-1", "," * 5000])
def test_bad_cpu_masks(mask: str) -> None:
    with pytest.raises(TopologyError, match=r"of a CPU mask; legal|words; legal"):
        parse_cpu_mask(mask)


def test_hwloc_gpus_are_numbered_by_bus_id(save: Save) -> None:
    model, warnings = load_server(save(machine(two_packages())))
    assert model == ServerModel("host", (1, 0), (0, 1), (4, 4), gpu_name="GA100")
    assert warnings == []


def test_hwloc_version_1_and_its_hardware_threads(save: Save) -> None:
    text = ""
    for i in (0, 1):
        cpus = range(2 * i, 2 * i + 2)
        both = range(4)
        mask = f"0x{sum(1 << cpu | 1 << cpu + 4 for cpu in cpus):08x}"
        inner = part("Socket", i, both, cores(cpus, threads=2, offset=4))
        text += f'<object type="NUMANode" os_index="{i}" cpuset="{mask}">{inner}</object>'
    assert load_server(save(machine(text)))[0] == ServerModel("host", (), (0, 1), (2, 2))


def test_hwloc_two_levels_of_groups_in_a_numa_node(save: Save) -> None:
    groups = ""
    for start in (0, 4):
        half = range(start, start + 4)
        inner = "".join(
            part("L3Cache", 0, range(s, s + 2), cores(range(s, s + 2))) for s in (start, start + 2)
        )
        groups += part("Group", start, half, inner)
    text = machine(part("Package", 0, range(8), numa(0, range(8)) + groups))
    assert load_server(save(text))[0] == ServerModel("host", (), (0,), (8,))


def test_hwloc_core_numbers_that_start_again_in_each_package(save: Save) -> None:
    text = two_packages()
    for core in range(4, 8):
        text = text.replace(f'"Core" os_index="{core}"', f'"Core" os_index="{core - 4}"')
    assert load_server(save(machine(text)))[0].cores == ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize("cpus", [range(4, 8), None], ids=["cpuset-of-the-package", "no-cpuset"])
def test_hwloc_memory_only_numa_node(cpus: range | None, save: Save) -> None:
    text = two_packages().replace(numa(1, range(4, 8)), numa(1, range(4, 8)) + numa(2, cpus))
    model, _ = load_server(save(machine(text)))
    assert (model.numa_socket, model.numa_cores) == ((0, 1, 1), (4, 4, 0))
    assert model.gpu_numa == (1, 0)


def test_many_memory_only_numa_nodes_are_left_out(save: Save) -> None:
    extra = "".join(numa(i) for i in range(2, 40))
    model, warnings = load_server(save(machine(two_packages() + extra)))
    assert (model.numa_socket, model.gpu_numa) == ((0, 1), (1, 0))
    assert "NUMA nodes that have neither cores nor GPUs are left out" in warnings[0]


def test_hwloc_without_numa_nodes_and_without_cores(save: Save) -> None:
    text = machine('<object type="PU" os_index="0"/><object type="PU" os_index="1"/>')
    assert load_server(save(text))[0] == ServerModel("host", (), (0,), (2,))


def test_nccl_gpus_behind_switches_by_bus_id(save: Save) -> None:
    nic = pci("0000:02:00.0", kind="0x020000", vendor="0x15b3")
    video = pci("0000:00:02.0", kind="0x030000", vendor="0x1a03")
    switch = pci("0000:01:00.0", pci("3000:90:00.0") + nic + video, kind="0x060400")
    other = pci("2000:0a:00.0", kind="0x030000") + pci("10000:01:00.0", vendor="")
    model, warnings = load_server(save(nccl(("0", "0000000f", switch), ("1", "000000f0", other))))
    assert model == ServerModel("host", (1, 0, 1), (0, 1), (4, 4))
    assert "assumed 2 socket(s) and 1 hardware thread(s) a core" in warnings[0]


def test_nccl_gpus_by_device_number(save: Save) -> None:
    first = pci("0000:01:00.0", '<gpu dev="1" sm="80"/>')
    second = pci("0000:02:00.0", '<gpu dev="0" sm="80"/>')
    text = nccl(("0", "0000000f", first), ("1", "000000f0", second))
    assert load_server(save(text))[0].gpu_numa == (1, 0)
    with pytest.raises(TopologyError, match=r"gpu dev numbers \[1, 1\]; legal: each once"):
        load_server(save(text.replace('dev="0"', 'dev="1"')))


def test_nccl_hardware_threads_and_memory_only_node(save: Save) -> None:
    text = nccl(("0", "00000303", ""), ("1", "00000c0c", ""), ("2", "0", pci("0000:01:00.0")))
    model, _ = load_server(save(text))
    assert (model.numa_cores, model.numa_socket, model.gpu_numa) == ((2, 2, 0), (0, 1, 0), (2,))


def host(hash_: str, *bus_ids: str) -> str:
    told = f' host_hash="{hash_}"' if hash_ else ""
    return "".join(
        f'<cpu{told} numaid="{i}" affinity="{0xF << 4 * i:08x}">{pci(bus_id)}</cpu>'
        for i, bus_id in enumerate(bus_ids)
    )


def test_nccl_of_several_hosts(save: Save) -> None:
    """The first counts, and a warning says so; hashes are hexadecimal numbers, 0 where none is told."""
    first, second = host("0x0A1", "0000:01:00.0", "0000:02:00.0"), host("0x2b", "0000:01:00.0")
    text = '<system version="1">%s</system>'
    model, warnings = load_server(save(text % (first + second)))
    assert (model.gpu_numa, model.numa_cores) == ((0, 1), (4, 4))
    assert (
        "cpu elements of 2 hosts; the first is read, host_hash '0x0A1', and not '0x2b': to read "
        "another, leave only its cpu elements"
    ) in warnings[0]
    assert load_server(save(text % (second + first)))[0].gpu_numa == (0,)
    for same in (first.replace("0x0A1", "a1", 1), host("", "0000:01:00.0", "0000:02:00.0")):
        model, warnings = load_server(save(text % same))
        assert model.num_gpus == 2
        assert "host_hash" not in "".join(warnings)
    many = "".join(host(f"0x{i}", "0000:01:00.0") for i in range(1, 19))
    assert "'0x2', '0x3', '0x4' and 14 more" in load_server(save(text % many))[1][0]
    with pytest.raises(TopologyError, match="NUMA node 0 is listed twice"):
        load_server(save(text % (second + second)))


def test_more_sockets_than_a_server_may_have(save: Save) -> None:
    nodes = range(9)
    packages = [one_numa_package(i, i, range(3 * i, 3 * i + 3)) for i in nodes]
    with pytest.raises(TopologyError, match="9 sockets; legal: 1 to 8"):
        load_server(save(machine("".join(packages))))
    grace = [(f"{i}", f"{0x7 << 3 * i:08x}", pci(f"000{i}:01:00.0", C2C.format(i))) for i in nodes]
    with pytest.raises(TopologyError, match="9 sockets; legal: 1 to 8"):
        load_server(save(nccl(*grace)))


def test_nccl_of_a_virtual_machine_without_numa(save: Save) -> None:
    text = nccl(("-1", "0000000f", pci("0000:01:00.0")))
    assert load_server(save(text))[0] == ServerModel("host", (0,), (0,), (4,))


def test_cores_of_hwloc_and_gpus_of_nccl(save: Save, tmp_path: Path) -> None:
    other = tmp_path / "nccl.xml"
    other.write_text(nccl(("0", "0f", pci("0000:01:00.0")), ("1", "f0", pci("0000:02:00.0"))))
    bare = re.sub(r'<object type="Bridge">.*?</object></object>', "", two_packages())
    model, warnings = load_server(save(machine(bare.replace(NO_GPU_PCI, ""))), other)
    assert (model.gpu_numa, model.num_sockets, warnings) == ((0, 1), 2, [])


def one_numa_package(index: int, numa_node: int, cpus: range) -> str:
    return part("Package", index, cpus, numa(numa_node, cpus) + cores(cpus))


@pytest.mark.parametrize(
    ("packages", "nodes", "sockets"),
    [
        ((0, 2, 1, 3), (0, 2, 1, 3), (0, 1, 2, 3)),
        ((1, 0), (1, 0), (0, 1)),
        ((3612, 36), (1, 0), (0, 1)),
        ((36, 3612), (0, 1), (0, 1)),
        ((0, 3, 1, 2), (0, 1, 2, 3), (0, 3, 1, 2)),
        ((0, 0), (0, 1), (0, 1)),
    ],
)
def test_hwloc_packages_go_by_their_numbers(
    packages: tuple[int, ...], nodes: tuple[int, ...], sockets: tuple[int, ...], save: Save
) -> None:
    places = enumerate(zip(packages, nodes, strict=True))
    text = "".join(one_numa_package(*ids, range(2 * i, 2 * i + 2)) for i, ids in places)
    model, _ = load_server(save(machine(text)))
    assert (model.numa_socket, model.numa_cores) == (sockets, (2,) * len(nodes))
    first_cpus = sorted((node, 2 * i) for i, node in enumerate(nodes))
    assert [ids[0] for ids in model.cores] == [cpu for _, cpu in first_cpus]


def test_hwloc_core_numbers_that_start_again_within_a_package(save: Save) -> None:
    first = '<object type="Core" os_index="{0}"><object type="PU" os_index="{1}"/></object>'
    dies = "".join(
        part(
            "Die",
            die,
            range(2 * die, 2 * die + 2),
            first.format(0, 2 * die) + first.format(1, 2 * die + 1),
        )
        for die in (0, 1)
    )
    text = machine(part("Package", 0, range(4), numa(0, range(4)) + dies))
    assert load_server(save(text))[0] == ServerModel("host", (), (0,), (4,))


def test_hwloc_of_a_virtual_machine_whose_cpus_are_sockets(save: Save) -> None:
    packages = (
        part("Package", cpu, range(cpu, cpu + 1), cores(range(cpu, cpu + 1))) for cpu in range(12)
    )
    model, warnings = load_server(save(machine(numa(0, range(12)) + "".join(packages))))
    assert model == ServerModel("host", (), (0,), (12,))
    assert "12 sockets counted as 1, since NUMA nodes span them" in warnings[0]


def in_cgroup(content: str, info: str = "", **masks: str) -> str:
    written = " ".join(f'{name}="{mask}"' for name, mask in masks.items())
    return machine(content + info).replace('type="Machine"', f'type="Machine" {written}')


CGROUP = '<info name="LinuxCgroup" value="/kubepods/pod"/>'


@pytest.mark.parametrize(
    ("masks", "info", "message"),
    [
        (
            {"cpuset": "0xff", "complete_cpuset": "0x0000ffff"},
            CGROUP,
            "only part of the machine is seen, 8 of 16 CPUs; its cgroup hides the others",
        ),
        (
            {"cpuset": "0xff", "complete_cpuset": "0xffff", "allowed_cpuset": "0xff"},
            "",
            "8 of 16 CPUs; a cgroup or being off line hides the others",
        ),
        (
            {"cpuset": "0xff", "complete_cpuset": "0xff", "allowed_cpuset": "0x3"},
            "",
            "its cgroup allows 2 of 8 CPUs; the machine is counted whole",
        ),
        ({"cpuset": "0xff", "complete_cpuset": "0xff", "allowed_cpuset": "0xff"}, CGROUP, ""),
        ({"cpuset": "0xff"}, "", ""),
    ],
)
def test_hwloc_inside_a_cgroup(masks: dict[str, str], info: str, message: str, save: Save) -> None:
    model, warnings = load_server(save(in_cgroup(two_packages(), info, **masks)))
    assert model.numa_cores == (4, 4)
    assert len(warnings) == bool(message)
    assert message in "".join(warnings)


def test_hwloc_numa_nodes_that_a_cgroup_hides(save: Save) -> None:
    hidden = two_packages().replace(numa(1, range(4, 8)), "")
    named = re.sub(r'type="PU" os_index="([4-7])"', r'\g<0> complete_nodeset="0x2"', hidden)
    model, _ = load_server(save(machine(named)))
    assert (model.numa_socket, model.numa_cores, model.gpu_numa) == ((0, 1), (4, 4), (1, 0))
    with pytest.raises(TopologyError, match=r"CPU 4 is in no NUMANode's cpuset; legal: one"):
        load_server(save(machine(hidden)))


def test_rccl_is_read_as_nccl_is(save: Save) -> None:
    kind, vendor = "0x120000", "0x1002"
    first = pci("0000:c1:00.0", '<gpu dev="1" gcn="gfx942" arch="3328"/>', kind, vendor)
    second = pci("0000:05:00.0", '<gpu dev="0" gcn="gfx942" arch="3328"/>', kind, vendor)
    idle = pci("0000:e1:00.0", "", "0x038000", vendor)
    masks = ("000f000f", "00f000f0")
    model, _ = load_server(save(nccl(("0", masks[0], second), ("1", masks[1], first))))
    assert model.gpu_numa == (0, 1)
    model, _ = load_server(save(nccl(("0", masks[0], second), ("1", masks[1], first + idle))))
    assert model.gpu_numa == (0, 1, 1)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE topology [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><topology>&i;</topology>"
)

BAD_XML = {
    "bomb": (BOMB, "f: defines entities (EntitiesForbidden); legal: XML without entities"),
    "external": (
        '<!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><system>&a;</system>',
        "f: defines entities",
    ),
    "truncated": (machine(two_packages())[:-40], "f:3: "),
    "root": ("<html><body/></html>", "f: root element 'html'; legal: topology (hwloc) or system"),
    "encoding": ('<?xml version="1.0" encoding="x-no"?><system/>', "f"),
    "no-units": (machine(numa(0)), "f: has no object of type PU; legal: one for each CPU"),
    "unit-index": (
        machine('<object type="Package"><object type="PU"/></object>'),
        "f: topology/Machine/Package/PU: os_index is ''; legal: 0 to 65535",
    ),
    "core-index": (
        machine('<object type="Core" os_index="x"><object type="PU" os_index="0"/></object>'),
        "f: topology/Machine/Core[x]: os_index is 'x'; legal: 0 to 65535",
    ),
    "unit-twice": (machine(cores(range(2)) + cores(range(1))), "f: CPU 0 is listed twice"),
    "numa-twice": (
        machine(numa(0, range(2)) + numa(0) + cores(range(2))),
        "f: topology/Machine/NUMANode[0]: NUMA node 0 is listed twice",
    ),
    "numa-index": (machine(numa(5000)), "NUMANode[5000]: os_index is '5000'; legal: 0 to 1023"),
    "homeless": (
        machine(numa(0, range(1)) + cores(range(2))),
        "Core[1]/PU[1]: CPU 1 is in no NUMANode's cpuset; legal: one",
    ),
    "cpuset": (
        machine(numa(0).replace("0x00000000", "0xzz")),
        "f: topology/Machine/NUMANode[0]: cpuset: word '0xzz' of a CPU mask",
    ),
    "bus-id": (
        machine(gpu("0000:01:00.0") * 2 + cores(range(1))),
        "PCIDev: pci_busid is '0000:01:00.0'; legal: one of its own",
    ),
    "deep": (
        '<topology version="2.0">' + "<object>" * 9999 + "</object>" * 9999 + "</topology>",
        "f: nested 100 deep; legal: a server's topology",
    ),
    "nccl-empty": ("<system/>", "f: has no cpu element; legal: one for each NUMA node"),
    "nccl-no-cpus": (nccl(("0", "0", "")), "f: tells of no CPU; legal: a capture that lists CPUs"),
    "nccl-id": (nccl(("x", "1", "")), "f: system/cpu[x]: numaid is 'x'; legal: 0 to 1023"),
    "nccl-range": (nccl(("2000", "1", "")), "numaid is '2000'; legal: 0 to 1023"),
    "nccl-twice": (nccl(("0", "1", ""), ("0", "2", "")), "NUMA node 0 is listed twice"),
    "nccl-mask": (nccl(("0", "0-3", "")), "f: system/cpu[0]: affinity: word '0-3' of a CPU mask"),
    "nccl-overlap": (nccl(("0", "3", ""), ("1", "2", "")), "f: CPU 1 is on NUMA nodes 0 and 1"),
    "nccl-outside": (
        '<system version="1">' + pci("0000:01:00.0") + "</system>",
        "f: system/pci[0000:01:00.0]: a GPU outside of cpu; legal: inside",
    ),
    "nccl-bus-id": (
        nccl(("0", "3", pci("0000:01:00.0") * 2)),
        "f: system/cpu[0]/pci[0000:01:00.0]: busid is '0000:01:00.0'; legal: one of its own",
    ),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_a_broken_document_is_named_with_its_place(
    case: str, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = BAD_XML[case]
    path = save(text)
    monkeypatch.chdir(path.parent)
    path.rename("f")
    with pytest.raises(TopologyError, match=re.escape(message)) as caught:
        load_server("f")
    assert str(caught.value).startswith("f:")
    assert "\n" not in str(caught.value)
