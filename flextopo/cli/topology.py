"""`flextopo topology`: import captures of servers, look at them, write custom resources."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flextopo.cli import completion
from flextopo.cli.commands import Command
from flextopo.cli.terminal import JsonPath, results_to
from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.files import make_folder
from flextopo.cluster.topology.model import ISLANDS, PRESETS, ServerModel, preset
from flextopo.cluster.topology.network import LEAVES_A_BLOCK, NETWORKS

if TYPE_CHECKING:
    import networkx as nx

app = typer.Typer(no_args_is_help=True, help="Show, import and export the topology of servers.")

Source = Annotated[
    str,
    typer.Argument(
        help="A preset, a file, or `detect` for this machine.", autocompletion=completion.sources
    ),
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write: .yaml, .yml or .json.")
]


def _check_name(name: str) -> str:
    if name and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
        raise TopologyError(
            f"--name {name!r}; legal: as in Kubernetes, of a to z, 0 to 9, - and . inside"
        )
    return name


Name = Annotated[
    str, typer.Option("--name", help="Name of the node in the resource.", callback=_check_name)
]


@app.command(cls=Command)
def presets(json_path: JsonPath = None) -> None:
    """List the servers that are known by name, and the networks.

    Examples:
        flextopo topology presets
        flextopo topology presets --json
    """
    with results_to(json_path) as write:
        networks = [
            {"name": name, "servers_a_leaf": size, "leaves_a_block": LEAVES_A_BLOCK}
            for name, size in NETWORKS.items()
        ]
        write({"servers": [_describe(model) for model in PRESETS.values()], "networks": networks})
        for model in PRESETS.values():
            typer.echo(
                f"{model.name:<10} {model.num_sockets} sockets, {model.num_numa_nodes} NUMA nodes, "
                f"{model.num_cores} cores, {model.num_gpus} x {model.gpu_name} on NUMA nodes "
                f"{' '.join(map(str, model.gpu_numa))}"
            )
        for name, size in NETWORKS.items():
            typer.echo(
                f"@{name:<9} a network above servers: {size} on a leaf, {LEAVES_A_BLOCK} leaves a "
                "block"
            )


@app.command(cls=Command)
def show(
    source: Annotated[
        str,
        typer.Argument(
            help="A preset, a file, `detect` for this machine, or SERVERS@NETWORK for the network "
            "above servers: `64*a100@leaf8`, or a file of nodes, HyperNodes or leaves behind the @.",
            autocompletion=completion.sources,
        ),
    ],
    png: Annotated[Path | None, typer.Option("--png", help="Draw to this PNG file.")] = None,
    json_path: JsonPath = None,
) -> None:
    """Print a server, or the network above servers, as a tree, or draw it.

    Examples:
        flextopo topology show rtx4090
        flextopo topology show node.yaml --png node.png
        flextopo topology show detect --json
        flextopo topology show "32*a100,32*rtx4090@leaf8"
    """
    if "@" in source and not Path(source).exists():
        return _show_network(source, png, json_path)
    from flextopo.cli.topology_drawing import draw_png
    from flextopo.cluster.topology.resource import to_resource

    graph = _open(source, "")
    with results_to(json_path) as write:
        write(to_resource(graph))
        if png is None:
            _print_tree(graph)
        else:
            draw_png(graph, _place(png, ".png"))


@app.command(cls=Command)
def detect(output: Output = None, name: Name = "", json_path: JsonPath = None) -> None:
    """Read this machine; print it, or write its resource.

    Examples:
        flextopo topology detect
        flextopo topology detect -o node.yaml --name node-1
    """
    from flextopo.cluster.topology.resource import to_resource, write_resource

    graph = _open("detect", name)
    with results_to(json_path) as write:
        write(to_resource(graph))
        if output is None:
            _print_tree(graph)
        else:
            write_resource(graph, _place(output))


@app.command("import", cls=Command)
def import_captures(
    files: Annotated[list[Path], typer.Argument(help="Files of one server, of any known kind.")],
    output: Output = None,
    name: Name = "",
    islands: Annotated[
        bool, typer.Option("--islands", help="Tell PCIe switches or NVLink islands apart, too.")
    ] = False,
    json_path: JsonPath = None,
) -> None:
    """Read captures of a server; write its resource.

    Kinds: FlexTopo resource, lscpu, `nvidia-smi topo -m`, `rocm-smi --showtopo`, `amd-smi
    topology` and `static --numa`, hwloc XML, NCCL and RCCL XML, MLPerf numa_config. Give lscpu and nvidia-smi together for cores and GPUs.

    Examples:
        flextopo topology import lscpu.csv topo.txt -o node.yaml --name node-1
        flextopo topology import machine.xml
        flextopo topology import lscpu.csv topo.txt --islands -o node.yaml
    """
    _emit(_load(files, name, islands), output, json_path)


@app.command(cls=Command)
def export(
    source: Source, output: Output = None, name: Name = "", json_path: JsonPath = None
) -> None:
    """Write a server's FlexTopo resource, as YAML by default.

    Examples:
        flextopo topology export rtx4090
        flextopo topology export a100 -o node.json --name node-1
    """
    _emit(_open(source, name), output, json_path)


def _describe(model: ServerModel) -> dict[str, str | int | list[int]]:
    return {
        "name": model.name,
        "sockets": model.num_sockets,
        "numa_nodes": model.num_numa_nodes,
        "cores": model.num_cores,
        "gpus": model.num_gpus,
        "gpu_name": model.gpu_name,
        "gpu_memory_mib": model.gpu_memory_mib,
        "gpu_numa": list(model.gpu_numa),
        "gpu_island": list(model.gpu_island),
        "numa_socket": list(model.numa_socket),
        "numa_cores": list(model.numa_cores),
    }


def _show_network(servers: str, png: Path | None, json_path: Path | None) -> None:
    from flextopo.cli.network_drawing import draw_network_png, network_document, network_text
    from flextopo.cluster.topology.servers import parse_servers

    fleet = parse_servers(servers)
    if fleet.network is None:  # the text has an @
        raise TopologyError(f"{servers}: no network; legal: SERVERS@NETWORK")
    with results_to(json_path) as write:
        write(network_document(fleet, fleet.network))
        if png is None:
            typer.echo(network_text(fleet, fleet.network), nl=False)
        else:
            draw_network_png(fleet, fleet.network, _place(png, ".png"))


def _print_tree(graph: nx.DiGraph) -> None:
    from flextopo.cli.topology_drawing import tree_text

    typer.echo(tree_text(graph), nl=False)


def _open(source: str, name: str) -> nx.DiGraph:
    """Return the graph of a preset, of this machine or of a file."""
    if source == "detect":
        from flextopo.cluster.topology.detect import detect as detect_machine

        return _build(*detect_machine(), name)
    if source.removesuffix(ISLANDS) in PRESETS:
        return _build(preset(source), [], name or source.removesuffix(ISLANDS))
    if not Path(source).exists() and not {".", "/"} & set(source):
        legal = [*PRESETS, "detect", "the path of a file"]
        raise UnknownNameError("server", source, legal)
    return _load([Path(source)], name)


def _load(files: list[Path], name: str, islands: bool = False) -> nx.DiGraph:
    """Return the graph of a server in files; a resource keeps what its pods hold."""
    import networkx as nx

    from flextopo.cluster.topology.captures.load import load_server, read_capture
    from flextopo.cluster.topology.model_from_graph import (
        localize_gpus,
        server_model_from_graph,
        write_islands,
    )

    found = [read_capture(path) for path in files]
    graphs = [each for each in found if isinstance(each, nx.DiGraph)]
    if not graphs:
        return _build(*load_server(*files, islands=islands), name)
    if len(files) > 1:
        model, warnings = load_server(*files, islands=islands)
    else:
        model, warnings = server_model_from_graph(graphs[0])
    _warn(warnings)
    localize_gpus(graphs[0], model)
    write_islands(graphs[0], model)
    graphs[0].graph["name"] = name or graphs[0].graph["name"]
    return graphs[0]


def _build(model: ServerModel, warnings: list[str], name: str) -> nx.DiGraph:
    from flextopo.cluster.topology.flextopo import build_graph

    _warn(warnings)
    return build_graph(model, name or model.name)


def _place(path: Path, ending: str = "") -> Path:
    """Return the path of a file that is to be written; its folder is made where it is missing."""
    if path.is_dir():
        raise TopologyError(f"{path}: is a folder; legal: a file to write")
    if ending and path.suffix != ending:
        raise TopologyError(f"{path}: file ending {path.suffix!r}; legal: {ending}")
    make_folder(path.parent)
    return path


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _emit(graph: nx.DiGraph, output: Path | None, json_path: Path | None) -> None:
    from flextopo.cluster.topology.resource import format_resource, to_resource, write_resource

    with results_to(json_path) as write:
        if output is not None:
            write_resource(graph, _place(output))
        write(to_resource(graph))
        if output is None:
            typer.echo(format_resource(graph), nl=False)
