"""`flextopo agent`: what pods hold on this node, for the service to know."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flextopo.cli.terminal import needing
from flextopo.policies.agent.options import AgentOptions

DEFAULTS = AgentOptions()


def agent(
    node_name: Annotated[
        str, typer.Option(envvar="NODE_NAME", help="Name of this machine's Node.")
    ] = DEFAULTS.node_name,
    socket: Annotated[Path, typer.Option(help="Socket of kubelet's pod-resources.")] = Path(
        DEFAULTS.socket
    ),
    root: Annotated[Path, typer.Option(help="Folder that holds sys and proc.")] = Path(
        DEFAULTS.root
    ),
    write: Annotated[
        str, typer.Option(help="What to write: object, annotations of pods, or both.")
    ] = DEFAULTS.write,
    islands: Annotated[
        bool, typer.Option("--islands", help="Tell GPUs apart by PCIe switch, too.")
    ] = DEFAULTS.islands,
    interval_s: Annotated[
        float, typer.Option(help="Seconds between two looks.")
    ] = DEFAULTS.interval_s,
    alive: Annotated[
        Path | None, typer.Option(help="File to touch after each look, for a liveness probe.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the FlexTopo object, and write nothing.")
    ] = False,
) -> None:
    """Tell the service which GPUs and CPUs pods of this node hold.

    Reads kubelet's pod-resources and the machine; writes the node's FlexTopo object, until it is
    stopped.

    Examples:
        flextopo agent --node-name node-1 --dry-run
        flextopo agent --node-name node-1
        flextopo agent --node-name node-1 --write both
    """
    options = AgentOptions(
        node_name, str(socket), str(root), write, islands, interval_s, str(alive or "")
    )
    options.check()
    with needing("agent"):
        from flextopo.policies.agent.__main__ import make_observer
        from flextopo.policies.agent.apiserver import find_access
    if dry_run:
        observer = make_observer(options)
        document, _ = observer.observe().build(node_name, islands)
        observer.kubelet.close()
        typer.echo(_yaml(document), nl=False)
        return
    find_access()
    # The same process from here on, by its id, without all that the other commands have loaded.
    python = [sys.executable, "-P", "-m", "flextopo.policies.agent"]
    os.execv(sys.executable, [*python, json.dumps(asdict(options))])


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(document, Dumper=dumper, sort_keys=False))
