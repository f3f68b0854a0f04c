"""Load the extender with `preempt`, and with `filter`, at a fixed rate and print the latencies.

A snapshot of full servers is served by a process of its own; the client sends on one connection,
as kube-scheduler does, at fixed times whether or not the answer before has come.

    python benchmarks/serving.py --nodes 1000 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.model import PRESETS
from flextopo.cluster.topology.resource import to_resource

SERVER = PRESETS["rtx4090"]
PODS = SERVER.num_gpus
CORES = 7
CANDIDATES = 100


GROUPED = 4
"""Members of a PodGroup, on one node or two."""


def make_snapshot(num_nodes: int, groups: float = 0.0) -> list[dict[str, Any]]:
    """Return nodes full of pods with one GPU and seven cores each, all placements known.

    Args:
        num_nodes: how many.
        groups: share of the pods that are in PodGroups of `GROUPED`.
    """
    base = to_resource(build_graph(SERVER, "node"))["spec"]
    objects: list[dict[str, Any]] = []
    for n in range(num_nodes):
        allocatable = {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": "8", "pods": "110"}
        node = {"kind": "Node", "metadata": {"name": f"node-{n}"}}
        objects.append({**node, "status": {"allocatable": allocatable}})
        vertices = [_used(vertex, n) for vertex in base["nodes"]]
        spec = {"nodes": vertices, "edges": base["edges"]}
        objects.append({"kind": "FlexTopo", "metadata": {"name": f"node-{n}"}, "spec": spec})
        objects += [make_pod(n, i) for i in range(PODS)]
    pods = [one for one in objects if one["kind"] == "Pod"]
    for at in range(0, len(pods), GROUPED):
        if (at // GROUPED + 1) * groups // 1 > at // GROUPED * groups // 1:
            for one in pods[at : at + GROUPED]:
                one["metadata"]["labels"]["scheduling.x-k8s.io/pod-group"] = f"group-{at}"
    return objects


def _used(vertex: dict[str, Any], n: int) -> dict[str, Any]:
    attributes, number = dict(vertex["attributes"]), int(vertex["id"].rpartition("-")[2])
    if vertex["type"] == "GPU":
        attributes |= {"status": "used", "usedBy": f"batch-{n}-{number}"}
    if vertex["type"] == "CPUCore" and number % 8 < CORES:
        gpu = SERVER.gpu_numa.index(number // 8)
        attributes |= {"status": "used", "usedBy": f"batch-{n}-{gpu}"}
    return {**vertex, "attributes": attributes}


def make_pod(n: int, i: int) -> dict[str, Any]:
    """Return a batch pod, about as the apiserver sends it."""
    requests = {"cpu": str(CORES), "memory": "32Gi", "nvidia.com/gpu": "1"}
    container = {
        "name": "train",
        "image": "registry.example/train:1",
        "resources": {"limits": requests, "requests": requests},
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    }
    return {
        "kind": "Pod",
        "metadata": {
            "name": f"batch-{n}-{i}",
            "namespace": "batch",
            "uid": f"00000000-0000-4000-8000-{n:08d}{i:04d}",
            "labels": {"app": "train", "job": f"job-{n % 50}"},
        },
        "spec": {"nodeName": f"node-{n}", "priority": 100, "containers": [container]},
        "status": {"phase": "Running", "startTime": f"2026-11-{1 + n % 28:02d}T00:00:00Z"},
    }


UID = b"00000000-0000-4000-9000-000000000000"
"""Of the preemptor in a body; each request is for another one."""


def make_preemptor(k: int) -> dict[str, Any]:
    """Return a pending pod of k GPUs."""
    requests = {"cpu": str(CORES * k), "memory": "64Gi", "nvidia.com/gpu": str(k)}
    return {
        "metadata": {
            "name": "online",
            "namespace": "serving",
            "uid": UID.decode(),
            "annotations": {"godel.bytedance.com/flextopo-requirement": "guaranteed"},
        },
        "spec": {"priority": 1000, "containers": [{"resources": {"requests": requests}}]},
        "status": {"phase": "Pending"},
    }


def make_filter_body(k: int, num_nodes: int) -> bytes:
    """Return a `filter` body for all nodes by name."""
    names = [f"node-{n}" for n in range(num_nodes)]
    return json.dumps({"Pod": make_preemptor(k), "NodeNames": names}).encode()


def make_body(node_cache: bool, k: int, first: int) -> bytes:
    """Return a `preempt` body for CANDIDATES nodes, with uids or with whole pods."""
    victims: dict[str, Any] = {}
    for n in range(first, first + CANDIDATES):
        pods = [make_pod(n, i) for i in range(PODS)]
        if node_cache:
            pods = [{"UID": pod["metadata"]["uid"]} for pod in pods]
        victims[f"node-{n}"] = {"Pods": pods, "NumPDBViolations": 0}
    full, meta = (None, victims) if node_cache else (victims, None)
    body = {"Pod": make_preemptor(k), "NodeNameToVictims": full, "NodeNameToMetaVictims": meta}
    return json.dumps(body).encode()


async def load(
    port: int, requests: Sequence[bytes], expected: bytes, rate: float, seconds: float
) -> tuple[list[float], int]:
    """Send requests in turn at a fixed rate; return seconds from when each was due, and the errors."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    latencies, errors = [], 0
    begin = time.perf_counter() + 0.1
    for i in range(int(rate * seconds)):
        request = requests[i % len(requests)].replace(UID, UID[:-12] + b"%012d" % i)
        due = begin + i / rate
        await asyncio.sleep(max(due - time.perf_counter() - 0.002, 0.0))
        while time.perf_counter() < due:  # a timer alone is late by up to a millisecond
            pass
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        latencies.append(time.perf_counter() - due)
        errors += not answer.startswith(b"HTTP/1.1 200") or expected not in content
    writer.close()
    return sorted(latencies), errors


def serve(snapshot: Path, selector: str) -> tuple[subprocess.Popen[bytes], int, float]:
    """Start a service; return it with its port and the seconds until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "flextopo", "serve", "--selector", selector]
    command += ["--snapshot", str(snapshot), "--port", str(port)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while True:
        if process.poll() is not None:
            raise SystemExit(f"the service ended with status {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return process, port, time.perf_counter() - begin
        except OSError:
            time.sleep(0.02)


def _post(verb: str, body: bytes) -> bytes:
    head = f"POST /{verb} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def memory_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, which neighbours hardly change."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--selector", default="deepset-imitation")
    parser.add_argument("--groups", type=float, default=0.0, help="share of pods in PodGroups")
    parser.add_argument("--gpus", type=int, default=4, help="GPUs that the preemptor asks for")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "snapshot.json"
        items = make_snapshot(options.nodes, options.groups)
        snapshot.write_text(json.dumps({"kind": "List", "items": items}))
        process, port, ready_s = serve(snapshot, options.selector)
        try:
            print(f"{platform.processor() or platform.machine()}, {options.selector}")
            print(f"{options.nodes} nodes of {PODS} pods; ready after {ready_s:.2f} s")
            bare = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
            rows = [("bare handler", [bare], b"ok")]  # what client, HTTP and neighbours cost
            for name, node_cache in (("nodeCacheCapable", True), ("full bodies", False)):
                # What was answered is remembered for seconds, so the nodes take turns.
                firsts = range(0, max(options.nodes - CANDIDATES, 0) + 1, CANDIDATES)
                bodies = [make_body(node_cache, options.gpus, first) for first in firsts]
                # Answers with an eviction.
                rows.append(
                    (name, [_post("preempt", body) for body in bodies], b'{"Pods":[{"UID":')
                )
            body = make_filter_body(options.gpus, options.nodes)
            rows.append(("filter", [_post("filter", body)], b'"FailedNodes"'))
            for name, requests, expected in rows:
                before = cpu_s(process.pid)
                found, errors = asyncio.run(
                    load(port, requests, expected, options.rate, options.seconds)
                )
                p50, p99 = found[len(found) // 2] * 1e3, found[len(found) * 99 // 100] * 1e3
                print(
                    f"{name:16} {len(requests[0]) / 1000:5.0f} kB, {len(found)} requests, {errors} errors: "
                    f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {found[-1] * 1e3:.2f} ms, "
                    f"processor {(cpu_s(process.pid) - before) / len(found) * 1e3:.2f} ms each"
                )
            print(f"memory {memory_mib(process.pid):.0f} MiB")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
