"""What lscpu prints: lists of CPUs with other columns and CPUs off line, and its plain text."""

import json
from pathlib import Path

import pytest
from capture_texts import matrix
from captured import Save

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.captures.load import load_server
from flextopo.cluster.topology.model import ServerModel

TWO_SOCKETS = ServerModel("server", (), (0, 1), (2, 2))

LISTS = {
    "off-line-empty": "# CPU,Core,Socket,Node\n0,0,0,0\n1,1,0,0\n2,2,1,1\n3,3,1,1\n4,,,\n5,,,\n",
    "off-line-dash": "# CPU,Core,Socket,Node\n0,0,0,0\n1,1,0,0\n2,2,1,1\n3,3,1,1\n4,-,-,-\n",
    "off-line-with-caches": (
        "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n0,0,0,0,,0,0,0,0\n1,1,0,0,,1,1,1,0\n"
        "2,2,1,1,,2,2,2,1\n3,3,1,1,,3,3,3,1\n4,,,,,,,,\n5,-,-,-,,-,-,-,-\n"
    ),
    "off-line-in-the-middle": "0,0,0,0\n1,-,-,-\n2,1,0,0\n3,,,\n4,2,1,1\n5,3,1,1\n",
    "off-line-by-column": (
        "# CPU,Core,Socket,Node,Online\n0,0,0,0,Y\n1,1,0,0,Y\n2,2,1,1,Y\n3,3,1,1,Y\n4,0,0,0,N\n"
    ),
    "another-order": "# Node,Socket,Core,CPU\n0,0,0,0\n0,0,1,1\n1,1,2,2\n1,1,3,3\n",
    "socket-first": "# Socket,CPU,Core,Node\n0,0,0,0\n0,1,1,0\n1,2,2,1\n1,3,3,1\n",
    "upper-case": "# CPU,NODE,SOCKET,CORE\n0,0,0,0\n1,0,0,1\n2,1,1,2\n3,1,1,3\n",
    "lower-case": "#cpu,node,socket,core\n0,0,0,0\n1,0,0,1\n2,1,1,2\n3,1,1,3\n",
    "without-hash": "CPU,NODE,SOCKET,CORE\n0,0,0,0\n1,0,0,1\n2,1,1,2\n3,1,1,3\n",
    "more-columns": "# Online,Core,CPU,MHz,Node,Socket\nY,0,0,9.5,0,0\nY,1,1,,0,0\nY,2,2,,1,1\nY,3,3,,1,1\n",
    "table": (
        "CPU NODE SOCKET CORE L1d:L1i:L2:L3 ONLINE    MAXMHZ\n"
        "  0    0      0    0 0:0:0:0          yes 3800.0000\n"
        "  1    0      0    1 1:1:1:0          yes 3800.0000\n"
        "  2    1      1    2 2:2:2:1          yes 3800.0000\n"
        "  3    1      1    3 3:3:3:1          yes 3800.0000\n"
        "  4    -      -    - -                 no 3800.0000\n"
    ),
}


@pytest.mark.parametrize("case", LISTS)
def test_columns_go_by_name_and_cpus_off_line_are_left_out(case: str, save: Save) -> None:
    model, warnings = load_server(save("server", LISTS[case]))
    assert model == TWO_SOCKETS
    assert any("off line and left out" in warning for warning in warnings) == (
        "off-line" in case or case == "table"
    )


CACHES = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n"


@pytest.mark.parametrize(
    "text",
    [
        CACHES + "0,0,0,0,,0,0,0,0\n1,1,0,0,,1,1,0,0\n2,0,0,0,,2,2,1,0\n3,1,0,0,,3,3,1,0\n",
        "# CPU,Core,Socket,Node,L1d:L1i\n0,0,0,0,0:0\n1,1,0,0,1:1\n2,0,0,0,2:2\n3,1,0,0,3:3\n",
        # Two cores of two threads, and two of one.
        CACHES
        + "".join(f"{i},{i // 2},0,0,,{i // 2},{i // 2},0,0\n" for i in range(4))
        + "4,0,0,0,,2,2,1,0\n5,1,0,0,,3,3,1,0\n",
    ],
    ids=["a-column-each", "one-column", "two-threads-and-one"],
)
def test_core_numbers_that_start_again_for_another_type_of_cpu(text: str, save: Save) -> None:
    model, warnings = load_server(save("server", text))
    assert model == ServerModel("server", (), (0,), (4,))
    assert "4 cores by their L1d caches, 2 by the column Core" in warnings[0]


def test_caches_that_are_not_told_tell_no_cores_apart(save: Save) -> None:
    for cache in ("", "-"):
        text = CACHES + "".join(f"{i},{i % 2},0,0,,{cache or ''},,,\n" for i in range(4))
        assert load_server(save("server", text))[0].numa_cores == (2,)


def test_threads_that_share_a_cache_are_one_core(save: Save) -> None:
    text = CACHES + "".join(f"{i},{i % 2},0,0,,{i % 2},{i % 2},0,0\n" for i in range(4))
    model, warnings = load_server(save("server", text))
    assert (model.numa_cores, len(warnings)) == ((2,), 1)


@pytest.mark.parametrize("sockets", [3, 4, 8, 16, 24, 32])
def test_a_virtual_machine_whose_cpus_are_sockets(sockets: int, save: Save, tmp_path: Path) -> None:
    gpus = tmp_path / "gpus"
    gpus.write_text(matrix([(f"0-{sockets - 1}", "0")] * 2))
    lines = [f"{i},{i},{i},0\n" for i in range(sockets)]
    for text in ("".join(lines), "".join(line.replace(",", ",0", 1) for line in lines)):
        model, warnings = load_server(save("server", text), gpus)
        assert model == ServerModel("server", (0, 0), (0,), (sockets,))
        assert f"{sockets} sockets counted as 1, since NUMA nodes span them" in warnings[0]


def test_core_numbers_that_start_again_in_each_socket_of_a_virtual_machine(save: Save) -> None:
    text = "".join(f"{cpu},0,{cpu // 2},{cpu // 8}\n" for cpu in range(16))
    model, warnings = load_server(save("server", text))
    assert model == ServerModel("server", (), (0, 1), (4, 4))
    assert "8 sockets counted as 2" in warnings[0]


@pytest.mark.parametrize("sockets", [4, 16])
def test_a_virtual_machine_without_numa(sockets: int, save: Save) -> None:
    model, warnings = load_server(
        save("server", "".join(f"{i},{i},{i},\n" for i in range(sockets)))
    )
    assert (model.numa_socket, model.numa_cores) == ((0,), (sockets,))
    assert "tells no NUMA nodes; counted as one" in warnings[0]


def test_more_sockets_than_a_model_holds(save: Save) -> None:
    rows = [f"{cpu},{cpu},{cpu // 2},{cpu // 12}\n" for cpu in range(24)]
    assert load_server(save("server", "".join(rows)))[0].numa_cores == (12, 12)
    rows = [f"{cpu},{cpu},{cpu // 2},{cpu // 2}\n" for cpu in range(24)]
    with pytest.raises(TopologyError, match="12 sockets; legal: 1 to 8"):
        load_server(save("server", "".join(rows)))


@pytest.mark.parametrize(("sockets", "cores"), [(2, 1), (2, 16), (4, 2), (8, 4)])
def test_a_node_over_sockets_of_a_real_server_is_cut(sockets: int, cores: int, save: Save) -> None:
    rows = [f"{cpu},{cpu},{cpu // cores},0\n" for cpu in range(sockets * cores)]
    model, warnings = load_server(save("server", "".join(rows)))
    assert (model.numa_socket, model.numa_cores) == (tuple(range(sockets)), (cores,) * sockets)
    assert any("NUMA node 0 spans several sockets; cut into one" in text for text in warnings)


def summary(threads: int, cores: int, sockets: int, *nodes: str, online: str = "") -> str:
    lines = [
        "Architecture:            x86_64",
        "  CPU op-mode(s):        32-bit, 64-bit",
        f"CPU(s):                  {threads * cores * sockets}",
        f"  On-line CPU(s) list:   {online or ','.join(node for node in nodes if node)}",
        "  Model name:            A CPU @ 2.00GHz",
        f"  Thread(s) per core:    {threads}",
        f"  Core(s) per socket:    {cores}",
        f"  Socket(s):             {sockets}",
        "NUMA:                    ",
        f"  NUMA node(s):          {len(nodes)}",
    ]
    lines += [f"  NUMA node{i} CPU(s):     {cpus}" for i, cpus in enumerate(nodes)]
    return "\n".join([*lines, "Vulnerabilities:", "  Spectre v2: Mitigation; IBRS"]) + "\n"


PLAIN = {
    "two-threads": (summary(2, 4, 2, "0-3,8-11", "4-7,12-15"), (0, 1), (4, 4)),
    "one-thread": (summary(1, 4, 2, "0-3", "4-7"), (0, 1), (4, 4)),
    "two-nodes-a-socket": (summary(1, 4, 2, "0-1", "2-3", "4-5", "6-7"), (0, 0, 1, 1), (2,) * 4),
    "one-socket": (summary(2, 4, 1, "0-7"), (0,), (4,)),
    "neighbours": (summary(2, 4, 2, "0-7", "8-15"), (0, 1), (4, 4)),
    "every-other": (summary(2, 4, 2, "0,2,4,6,8,10,12,14", "1,3,5,7,9,11,13,15"), (0, 1), (4, 4)),
    "four-threads": (summary(4, 4, 2, "0-15", "16-31"), (0, 1), (4, 4)),
    "memory-nodes": (summary(1, 72, 1, "0-71", "", ""), (0, 0, 0), (72, 0, 0)),
    "without-numa": (summary(2, 4, 1, online="0-7"), (0,), (4,)),
    "virtual": (summary(1, 1, 8, "0-7"), (0,), (8,)),
    "virtual-16": (summary(1, 1, 16, "0-7", "8-15"), (0, 1), (8, 8)),
    "off-line": (
        summary(2, 4, 2, "0-3,8-11", "4-7,12-14") + "Off-line CPU(s) list:  15\n",
        (0, 1),
        (4, 4),
    ),
    "cores-of-one-and-of-two-threads": (summary(2, 16, 1, "0-23"), (0,), (16,)),
    "two-types": (
        summary(1, 10, 1, "0-19") + "  Model name: Another\n  Core(s) per socket: 8\n",
        (0,),
        (20,),
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_text_that_tells_enough(case: str, save: Save) -> None:
    text, sockets, cores = PLAIN[case]
    pairs = [line.partition(":") for line in text.splitlines()]
    fields = [{"field": f"{name.strip()}:", "data": value.strip()} for name, _, value in pairs]
    for written in (text, json.dumps({"lscpu": fields}), json.dumps({"lscpu": fields}, indent=3)):
        model, warnings = load_server(save("server", written))
        assert (model.numa_socket, model.numa_cores) == (sockets, cores)
        assert "in order" in warnings[0]
        assert "(lscpu -p tells)" in warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (summary(2, 4, 2, "0-15"), "2 sockets and 1 NUMA nodes with CPUs, which does not tell"),
        (summary(1, 4, 2, "0-2", "3-5", "6-7"), "2 sockets and 3 NUMA nodes with CPUs"),
        (summary(2, 8, 1, "0-19"), "20 CPUs on line, 8 cores and 2 threads a core"),
        (summary(2, 4, 2, "0-3,8-11", "4-7,12-14").replace("2\n", "x\n"), "per core is 'x'"),
        ("CPU(s):  8\nOn-line CPU(s) list: 0-7\n", "Thread\\(s\\) per core is ''"),
        ("CPU(s):  8\nThread(s) pro Kern: 2\n", "tells no CPUs of NUMA nodes 0 to 1023"),
        ("CPU(s):  8\nNUMA node0 CPU(s): 3-1\n", "item '3-1' of a CPU list"),
    ],
)
def test_plain_text_that_tells_too_little(text: str, message: str, save: Save) -> None:
    with pytest.raises(TopologyError, match=message) as caught:
        load_server(save("server", text))
    assert "lscpu -p=CPU,CORE,SOCKET,NODE" in str(caught.value) or "3-1" in message


def test_plain_text_beside_a_matrix_or_with_it(save: Save, tmp_path: Path) -> None:
    gpus = matrix([("0-3,8-11", "0"), ("4-7,12-15", "1")])
    plain = summary(2, 4, 2, "0-3,8-11", "4-7,12-15")
    other = tmp_path / "gpus"
    other.write_text(gpus)
    expected = ServerModel("server", (0, 1), (0, 1), (4, 4))
    assert load_server(save("server", plain), other)[0] == expected
    model, warnings = load_server(save("server", f"$ lscpu\n{plain}\n$ nvidia-smi topo -m\n{gpus}"))
    assert model == expected
    assert "dealt out to 2 socket(s) in order" in warnings[0]
    listed = "".join(f"{i},{i % 8},{i % 8 // 4},{i % 8 // 4}\n" for i in range(16))
    model, warnings = load_server(
        save("server", f"$ lscpu -p\n# CPU,Core,Socket,Node\n{listed}$ topo\n{gpus}")
    )
    assert (model, warnings) == (expected, [])
    model, warnings = load_server(save("server", f"0,0,0,0\n1,x,0,0\n{gpus}"))
    assert model == expected
    assert "server:2: Core is 'x'; legal: 0 to 65535; what lscpu printed is not used" in warnings[0]
    model, warnings = load_server(save("server", summary(2, 4, 2, "0-15") + gpus))
    assert model == expected
    assert "what lscpu printed is not used" in warnings[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# CPU,Core,Socket,Node\n0,0,0,0\n1,1,,0\n", "server:3: Socket is ''; legal: 0 to 65535"),
        ("# CPU,Node\n0,0\n1,0\n", "server:2: Core is ''; legal: 0 to 65535"),
        ("Node,CPU,Core\n0,0,0\n0,1\n", r"server:3: 2 columns; legal: 3 \(Node,CPU,Core\)"),
        ("# CPU,Core,Socket,Node\n0,,,\n1,-,-,-\n", "server:2: Core is ''"),
    ],
)
def test_broken_lists(text: str, message: str, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(save("server", text).parent)
    with pytest.raises(TopologyError, match=message):
        load_server("server")
