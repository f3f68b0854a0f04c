"""`flextopo topology`: import captures of servers, look at them, write custom resources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import networkx as nx
import typer

from flextopo.cli.topology_drawing import draw_png, tree_text
from flextopo.cluster.captures import load_server, read_capture
from flextopo.cluster.detect import detect as detect_machine
from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.server_model import PRESETS, ServerModel
from flextopo.cluster.topology import (
    build_graph,
    format_resource,
    localize_gpus,
    server_model_from_graph,
    write_resource,
)

app = typer.Typer(no_args_is_help=True, help="Import, show and export the topology of servers.")

Source = Annotated[str, typer.Argument(help="A preset, a file, or `detect` for this machine.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File to write: .yaml, .yml or .json.")
]
Name = Annotated[str, typer.Option("--name", help="Name of the node in the resource.")]


@app.command("import")
def import_captures(
    files: Annotated[list[Path], typer.Argument(help="Files of one server, of any known kind.")],
    output: Output = None,
    name: Name = "",
) -> None:
    """Read captures of one server and write its FlexTopo resource.

    Kinds: FlexTopo resource, `lscpu -p`, `nvidia-smi topo -m`, hwloc XML, NCCL XML, MLPerf
    numa_config. Give lscpu and nvidia-smi together for cores and GPUs.
    """
    _emit(_load(files, name), output)


@app.command()
def show(
    source: Source,
    png: Annotated[Path | None, typer.Option("--png", help="Draw to this PNG file.")] = None,
) -> None:
    """Print a server as a tree, or draw it."""
    graph = _open(source, "")
    if png is None:
        typer.echo(tree_text(graph), nl=False)
    else:
        draw_png(graph, png)


@app.command()
def export(source: Source, output: Output = None, name: Name = "") -> None:
    """Write a server's FlexTopo resource, as YAML to standard output by default."""
    _emit(_open(source, name), output)


@app.command()
def detect(output: Output = None, name: Name = "") -> None:
    """Read this machine; print it as a tree, or write its FlexTopo resource."""
    graph = _open("detect", name)
    if output is None:
        typer.echo(tree_text(graph), nl=False)
    else:
        write_resource(graph, output)


@app.command()
def presets(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the servers that are known by name."""
    if as_json:
        typer.echo(json.dumps([_describe(model) for model in PRESETS.values()], indent=2))
        return
    for model in PRESETS.values():
        typer.echo(
            f"{model.name:<10} {model.num_sockets} sockets, {model.num_numa_nodes} NUMA nodes, "
            f"{model.num_cores} cores, {model.num_gpus} x {model.gpu_name} on NUMA nodes "
            f"{' '.join(map(str, model.gpu_numa))}"
        )


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
        "numa_socket": list(model.numa_socket),
        "numa_cores": list(model.numa_cores),
    }


def _open(source: str, name: str) -> nx.DiGraph:
    """Return the graph of a preset, of this machine or of a file."""
    if source == "detect":
        return _build(*detect_machine(), name)
    if source in PRESETS:
        return _build(PRESETS[source], [], name)
    if not Path(source).exists() and not {".", "/"} & set(source):
        legal = [*PRESETS, "detect", "the path of a file"]
        raise UnknownNameError("server", source, legal)
    return _load([Path(source)], name)


def _load(files: list[Path], name: str) -> nx.DiGraph:
    """Return the graph of a server in files; a resource keeps what its pods hold."""
    found = [read_capture(path) for path in files]
    graphs = [each for each in found if isinstance(each, nx.DiGraph)]
    if not graphs:
        return _build(*load_server(*files), name)
    if len(files) > 1:
        model, warnings = load_server(*files)
    else:
        model, warnings = server_model_from_graph(graphs[0])
    _warn(warnings)
    localize_gpus(graphs[0], model)
    graphs[0].graph["name"] = name or graphs[0].graph["name"]
    return graphs[0]


def _build(model: ServerModel, warnings: list[str], name: str) -> nx.DiGraph:
    _warn(warnings)
    return build_graph(model, name or model.name)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def _emit(graph: nx.DiGraph, output: Path | None) -> None:
    if output is None:
        typer.echo(format_resource(graph), nl=False)
    elif output.is_dir():
        raise TopologyError(f"{output}: is a folder; legal: a file to write")
    else:
        write_resource(graph, output)
