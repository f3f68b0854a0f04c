"""The agent's own process, with nothing of the command line in it: `flextopo agent` becomes it.

A process on every node should be small: without the modules of all the other commands it has a third
less memory.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.agent.apiserver import Apiserver, find_access
from flextopo.policies.agent.loop import Agent
from flextopo.policies.agent.machine import read_machine
from flextopo.policies.agent.observer import Observer
from flextopo.policies.agent.options import AgentOptions
from flextopo.policies.agent.pod_resources import Kubelet
from flextopo.policies.agent.publishers import AnnotationPublisher, ObjectPublisher, Publisher


def make_observer(options: AgentOptions) -> Observer:
    """Return what looks at this node."""
    namespace, name = (os.environ.get(f"POD_{part}", "") for part in ("NAMESPACE", "NAME"))
    own = f"{namespace}/{name}" if namespace and name else ""
    root = Path(options.root)
    return Observer(Kubelet(Path(options.socket)), lambda: read_machine(root), own_pod=own)


def run(options: AgentOptions) -> None:
    """Write what pods hold until SIGTERM or SIGINT.

    Raises:
        FlextopoError: there is no cluster.
    """
    apiserver = Apiserver(find_access())
    publishers: list[Publisher] = []
    if options.write != "annotations":
        publishers.append(ObjectPublisher(apiserver, options.node_name))
    if options.write != "object":
        publishers.append(AnnotationPublisher(apiserver, options.node_name))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    agent = Agent(
        options.node_name,
        make_observer(options),
        publishers,
        with_islands=options.islands,
        alive=Path(options.alive) if options.alive else None,
        log=_log,
    )
    agent.run(options.interval_s, stop)


def _log(event: str, **fields: Any) -> None:
    """Write one line of JSON to standard error, as the service does."""
    line = msgspec.json.encode({"time": round(time.time(), 3), "event": event, **fields})
    sys.stderr.buffer.write(line + b"\n")
    sys.stderr.buffer.flush()


if __name__ == "__main__":
    try:
        run(msgspec.json.decode(sys.argv[1], type=AgentOptions))
    except (FlextopoError, OSError) as error:
        sys.exit(f"error: {error}")
