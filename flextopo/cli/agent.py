"""`flextopo agent`: what pods hold on this node, for the service to know."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flextopo.cli.terminal import needing
from flextopo.cluster.errors import FlextopoError

if TYPE_CHECKING:
    from flextopo.policies.agent.publishers import Publisher

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
WRITES = ("object", "annotations", "both")


def agent(
    node_name: Annotated[
        str, typer.Option(envvar="NODE_NAME", help="Name of this machine's Node.")
    ] = "",
    socket: Annotated[Path, typer.Option(help="Socket of kubelet's pod-resources.")] = SOCKET,
    root: Annotated[Path, typer.Option(help="Folder that holds sys and proc.")] = Path("/"),
    write: Annotated[
        str, typer.Option(help="What to write: object, annotations of pods, or both.")
    ] = "object",
    islands: Annotated[
        bool, typer.Option("--islands", help="Tell GPUs apart by PCIe switch, too.")
    ] = False,
    interval_s: Annotated[float, typer.Option(help="Seconds between two looks.")] = 1.0,
    alive: Annotated[
        Path | None, typer.Option(help="File to touch after each look, for a liveness probe.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the FlexTopo object, and write nothing.")
    ] = False,
) -> None:
    """Tell the service which pods hold which GPUs and CPUs of this node.

    Reads kubelet's pod-resources and the machine; writes the node's FlexTopo object, until it is
    stopped.

    Examples:
        flextopo agent --node-name node-1 --dry-run
        flextopo agent --node-name node-1
        flextopo agent --node-name node-1 --write both
    """
    _check(node_name, write, interval_s)
    with needing("agent"):
        from flextopo.policies.agent.machine import read_machine
        from flextopo.policies.agent.observer import Observer
        from flextopo.policies.agent.pod_resources import Kubelet
    own = "/".join(os.environ.get(f"POD_{part}", "") for part in ("NAMESPACE", "NAME"))
    observer = Observer(Kubelet(socket), lambda: read_machine(root), own_pod=own)
    if dry_run:
        document, _ = observer.observe().build(node_name, islands)
        observer.kubelet.close()
        typer.echo(_yaml(document), nl=False)
        return
    _run(node_name, observer, write, islands, interval_s, alive)


def _check(node_name: str, write: str, interval_s: float) -> None:
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", node_name):
        raise FlextopoError(
            f"--node-name {node_name!r}; legal: the name of a Node, here or in NODE_NAME"
        )
    if write not in WRITES:
        raise FlextopoError(f"--write {write!r}; legal: {', '.join(WRITES)}")
    if not 0.1 <= interval_s <= 60:
        raise FlextopoError(f"--interval-s {interval_s:g}; legal: 0.1 to 60")


def _run(
    node_name: str,
    observer: Any,
    write: str,
    islands: bool,
    interval_s: float,
    alive: Path | None,
) -> None:
    from flextopo.policies.agent.apiserver import Apiserver, find_access
    from flextopo.policies.agent.loop import Agent
    from flextopo.policies.agent.publishers import AnnotationPublisher, ObjectPublisher

    apiserver = Apiserver(find_access())
    publishers: list[Publisher] = []
    if write != "annotations":
        publishers.append(ObjectPublisher(apiserver, node_name))
    if write != "object":
        publishers.append(AnnotationPublisher(apiserver, node_name))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Agent(node_name, observer, publishers, islands, alive, _log).run(interval_s, stop)


def _log(event: str, **fields: Any) -> None:
    """Write one line of JSON to standard error, as the service does."""
    import json
    import time

    line = {"time": round(time.time(), 3), "event": event, **fields}
    typer.echo(json.dumps(line, separators=(",", ":")), err=True)


def _yaml(document: dict[str, Any]) -> str:
    import yaml

    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(document, Dumper=dumper, sort_keys=False))
