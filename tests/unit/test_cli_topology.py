"""The commands of `flextopo topology`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flextopo.cli.topology import app
from flextopo.cli.topology_drawing import POD_COLOURS, draw_png, format_cpu_list
from flextopo.cluster.errors import FlextopoError, TopologyError, UnknownNameError
from flextopo.cluster.topology.flextopo import build_graph, mark_used
from flextopo.cluster.topology.model import PRESETS, ServerModel, preset
from flextopo.cluster.topology.model_from_graph import server_model_from_graph
from flextopo.cluster.topology.resource import read_resource, write_resource

RUNNER = CliRunner()
SMALL = ServerModel("small", (1, 0, 1), (0, 1), (2, 3), gpu_name="T4")


def run(*arguments: object) -> tuple[str, str]:
    """Run a command; return standard output and standard error."""
    result = RUNNER.invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """Write a resource whose GPU 0 has no edge, with a pod and a daemon on it."""
    graph = build_graph(SMALL, "node-1")
    mark_used(graph, "node-exporter-1", range(5), [])
    mark_used(graph, "llm", [0, 1, 2], [1])
    graph.remove_edges_from([("numa-1", "gpu-0")])
    write_resource(graph, tmp_path / "used.yaml")
    return tmp_path / "used.yaml"


def test_show_prints_a_tree_and_pods(used: Path) -> None:
    output, errors = run("show", used)
    assert output.splitlines() == [
        "node-1: 2 sockets, 2 NUMA nodes, 5 cores, 3 GPUs",
        "socket-0",
        "└─ numa-0   cores 0-1  gpu-0  gpu-1",
        "socket-1",
        "└─ numa-1   cores 2-4  gpu-2",
        "pods",
        "   llm: cores 0-2, GPUs 1, NUMA 0-1, socket 0-1",
    ]
    assert errors.startswith("warning: node 'node-1': no edge locates gpu-0; spreading in order")


def test_show_draws_a_picture(used: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the report extra")
    picture = tmp_path / "server.png"
    assert run("show", used, "--png", picture)[0] == ""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    run("show", "rtx4090", "--png", picture)
    assert picture.read_bytes() != data
    run("show", "rtx4090", "--png", tmp_path / "new" / "server.png")
    assert (tmp_path / "new" / "server.png").read_bytes() == picture.read_bytes()
    for place, words in [
        (picture / "server.png", "cannot be made"),
        (tmp_path, "is a folder"),
        (tmp_path / "server.pdf", r"file ending '\.pdf'; legal: \.png"),
    ]:
        with pytest.raises(FlextopoError, match=words):
            run("show", "a100", "--png", place)


def test_a_pod_keeps_the_colour_that_is_asked_for(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="drawing needs the report extra")
    graph = build_graph(SMALL, "node-1")
    mark_used(graph, "alone", [3], [0])
    mark_used(graph, "llm", [0, 1, 2], [1])

    def has(colour: str) -> bool:
        pixels = (255 * image.imread(tmp_path / "server.png")[..., :3]).round()
        return bool((pixels == list(bytes.fromhex(colour[1:]))).all(-1).any())

    draw_png(graph, tmp_path / "server.png")
    assert has(POD_COLOURS[0])
    assert has(POD_COLOURS[1])
    draw_png(graph, tmp_path / "server.png", {"llm": "#123456"})
    assert has(POD_COLOURS[0])
    assert has("#123456")
    assert not has(POD_COLOURS[1])


def test_drawing_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(FlextopoError, match=r"legal: pip install flextopo\[report\]"):
        run("show", "a100", "--png", tmp_path / "server.png")


def test_commands_load_no_matplotlib() -> None:
    code = "import sys, flextopo.cli.topology; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_export_writes_to_standard_output_and_to_a_file(tmp_path: Path) -> None:
    output, errors = run("export", "rtx4090", "--name", "node-2")
    assert yaml.safe_load(output)["metadata"]["name"] == "node-2"
    assert errors == ""
    run("export", "rtx4090", "-o", tmp_path / "node.json")
    graph = read_resource(tmp_path / "node.json")
    assert server_model_from_graph(graph) == (preset("rtx4090"), [])
    with pytest.raises(FlextopoError, match="cannot be made"):
        run("export", "rtx4090", "-o", tmp_path / "node.json" / "node.yaml")
    for name in ("A B", "node_1", "-a"):
        with pytest.raises(TopologyError, match=f"--name '{name}'; legal: as in Kubernetes"):
            run("export", "rtx4090", f"--name={name}")


def test_import_joins_captures(tmp_path: Path) -> None:
    cores, gpus = tmp_path / "host.csv", tmp_path / "topo.txt"
    cores.write_text("0,0,0,0\n1,1,1,1\n")
    gpus.write_text("\tGPU0\tCPU Affinity\tNUMA Affinity\nGPU0\tX\t1\t1\n")
    run("import", cores, gpus, "-o", tmp_path / "node.yaml", "--name", "node")
    model, _ = server_model_from_graph(read_resource(tmp_path / "node.yaml"))
    assert model == ServerModel("node", (1,), (0, 1), (1, 1))
    with pytest.raises(TopologyError, match="is a folder; legal: a file to write"):
        run("import", cores, "-o", tmp_path)


def test_import_writes_gpu_places_and_keeps_pods(used: Path, tmp_path: Path) -> None:
    gpus = tmp_path / "topo.txt"
    rows = [f"GPU{i}\t" + "\t".join("X" if i == j else "SYS" for j in range(3)) for i in range(3)]
    places = ["0-1\t0", "0-1\t0", "2-4\t1"]
    table = [f"{row}\t{place}" for row, place in zip(rows, places, strict=True)]
    gpus.write_text("\n".join(["\tGPU0\tGPU1\tGPU2\tCPU Affinity\tNUMA Affinity", *table]))
    _, errors = run("import", used, gpus, "-o", tmp_path / "node.yaml")
    assert "topo.txt' puts the GPUs on NUMA nodes 0 0 1" in errors
    graph = read_resource(tmp_path / "node.yaml")
    assert server_model_from_graph(graph)[0].gpu_numa == (0, 0, 1)
    assert graph.nodes["gpu-1"]["attributes"]["usedBy"] == "llm"


def test_detect_shows_and_writes_this_machine(tmp_path: Path) -> None:
    assert run("detect")[0].startswith("this-machine: ")
    run("detect", "-o", tmp_path / "node.yaml", "--name", "here")
    assert read_resource(tmp_path / "node.yaml").graph["name"] == "here"
    assert yaml.safe_load(run("export", "detect")[0])["metadata"]["name"] == "this-machine"


def test_presets_are_listed() -> None:
    lines = run("presets")[0].splitlines()
    assert lines[0].startswith("rtx4090    2 sockets, 8 NUMA nodes, 64 cores, 8 x NVIDIA GeForce")
    assert lines[7] == "@leaf8     a network above servers: 8 on a leaf, 4 leaves a block"
    found = json.loads(run("presets", "--json")[0])
    assert [row["name"] for row in found["servers"]] == list(PRESETS)
    assert found["servers"][0]["gpu_numa"] == [3, 2, 1, 0, 7, 6, 5, 4]
    assert found["networks"][1] == {"name": "leaf8", "servers_a_leaf": 8, "leaves_a_block": 4}


MIXED = "17*a100,3*rtx4090@"
TWO_BLOCKS = "blocks: {b1: {rack-1: 4, rack-2: 4, rack-3: 4}, b2: {rack-1: [x, y], rack-9: 6}}"


def test_show_prints_the_network_above_servers(tmp_path: Path) -> None:
    network = tmp_path / "network.yaml"
    network.write_text(TWO_BLOCKS)
    assert run("show", f"{MIXED}{network}")[0].splitlines() == [
        "2 blocks, 5 leaves, 17 a100 + 3 rtx4090, 160 GPUs",
        "b1: 3 leaves, 12 a100, 96 GPUs",
        "└─ rack-1 ... rack-3  3 leaves of 4 a100 (servers 0-11)",
        "b2: 2 leaves, 5 a100 + 3 rtx4090, 64 GPUs",
        "├─ rack-1  2 a100 (servers 12-13)",
        "└─ rack-9  3 a100 + 3 rtx4090 (servers 14-19)",
    ]
    found = json.loads(run("show", f"{MIXED}{network}", "--json")[0])
    assert (found["servers"], found["gpus"]) == (20, 160)
    assert found["kinds"] == {"a100": 17, "rtx4090": 3}
    assert [[leaf["name"] for leaf in block["leaves"]] for block in found["blocks"]] == [
        ["rack-1", "rack-2", "rack-3"],
        ["rack-1", "rack-9"],
    ]
    assert found["blocks"][1]["leaves"][1] == {
        "name": "rack-9",
        "servers": [14, 15, 16, 17, 18, 19],
        "kinds": {"a100": 3, "rtx4090": 3},
    }


def test_a_thousand_servers_stay_readable() -> None:
    lines = run("show", "600*a100,400*rtx4090@leaf8")[0].splitlines()
    assert lines[0] == "32 blocks, 125 leaves, 600 a100 + 400 rtx4090, 8000 GPUs"
    assert len(lines) < 70
    assert max(map(len, lines)) < 80


def test_show_draws_the_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="drawing needs the report extra")
    network, picture = tmp_path / "network.yaml", tmp_path / "network.png"
    network.write_text(TWO_BLOCKS.replace("rack-9", "nn-" + "0" * 60))
    assert run("show", f"{MIXED}{network}", "--png", picture)[0] == ""
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(TopologyError, match=r"--png: 5000 servers; legal: up to 4096, or --json"):
        run("show", "5000*a100@leaf32", "--png", picture)
    with pytest.raises(UnknownNameError, match="unknown network 'leaf5'"):
        run("show", "8*a100@leaf5")


def test_unknown_sources() -> None:
    with pytest.raises(UnknownNameError, match="unknown server 'h100'; legal: a100, detect, dgx-"):
        run("show", "h100")
    with pytest.raises(TopologyError, match=r"h100\.xml: no such file"):
        run("export", "h100.xml")
    assert RUNNER.invoke(app, ["import"]).exit_code == 2


def test_cpu_lists_are_written_in_runs() -> None:
    assert format_cpu_list([5, 0, 1, 2, 9, 8]) == "0-2,5,8-9"
    assert format_cpu_list([]) == ""
