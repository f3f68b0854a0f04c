"""Kubernetes objects for tests: small servers, pods on known GPUs, and a cache of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from flextopo.cluster.topology.flextopo import build_graph, mark_used
from flextopo.cluster.topology.model import PRESETS, ServerModel
from flextopo.cluster.topology.resource import to_resource
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import KINDS, KubeObject, PodObject
from flextopo.policies.serving.records import PodRecord, read_pod

NOW_S = 1_800_000_000
"""2027-01-15T08:00:00Z."""
REQUIREMENT = "godel.bytedance.com/flextopo-requirement"
RTX4090 = PRESETS["rtx4090"]


def node(name: str, gpus: int = 8, cpu: int = 64, **more: Any) -> dict[str, Any]:
    """Return a Node."""
    allocatable = {"cpu": str(cpu), "memory": "512Gi", "nvidia.com/gpu": str(gpus), "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", **more},
        "status": {"allocatable": allocatable},
    }


def pod(
    name: str,
    node: str = "",
    *,
    gpus: int = 1,
    cpu: str = "7",
    memory: str = "4Gi",
    priority: int | None = 100,
    annotations: Mapping[str, str] | None = None,
    meta: Mapping[str, Any] | None = None,
    spec: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a Pod of namespace `batch`, running where it has a node."""
    requests: dict[str, str] = {"cpu": cpu, "memory": memory}
    if gpus:
        requests["nvidia.com/gpu"] = str(gpus)
    document: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "batch",
            "uid": f"uid-{name}",
            "annotations": dict(annotations or {}),
            **(meta or {}),
        },
        "spec": {
            "containers": [{"name": "c", "resources": {"requests": requests}}],
            **({"priority": priority} if priority is not None else {}),
            **({"nodeName": node} if node else {}),
            **(spec or {}),
        },
        "status": {
            "phase": "Running" if node else "Pending",
            **({"startTime": "2027-01-15T07:00:00Z"} if node else {}),
            **(status or {}),
        },
    }
    return document


def preemptor(
    gpus: int = 2, requirement: str = "guaranteed", name: str = "online", **more: Any
) -> dict[str, Any]:
    """Return a pending pod of priority 1000."""
    annotations = {REQUIREMENT: requirement, **more.pop("annotations", {})}
    more = {"cpu": str(7 * gpus), "priority": 1000, **more}
    return pod(name, gpus=gpus, annotations=annotations, **more)


def flextopo(
    name: str, held: Mapping[str, Sequence[int]], server: ServerModel = RTX4090
) -> dict[str, Any]:
    """Return the FlexTopo of a node whose pods hold GPUs, each with 7 cores of its NUMA node."""
    graph = build_graph(server, name)
    for pod_name, gpus in held.items():
        cores = [8 * server.gpu_numa[gpu] + i for gpu in gpus for i in range(7)]
        mark_used(graph, pod_name, cores, gpus)
    return to_resource(graph)


def full_node(name: str = "n0", count: int = 8) -> list[dict[str, Any]]:
    """Return an RTX 4090 node with one-card pods b0, b1, ... on GPUs 0, 1, ..."""
    names = [f"{name}-b{i}" for i in range(count)]
    return [
        node(name),
        flextopo(name, {pod_name: [i] for i, pod_name in enumerate(names)}),
        *(pod(pod_name, name) for pod_name in names),
    ]


def read(document: Mapping[str, Any]) -> KubeObject:
    """Return the typed object of a document."""
    return msgspec.json.decode(msgspec.json.encode(document), type=KINDS[document["kind"]])


def read_record(document: Mapping[str, Any]) -> PodRecord:
    """Return what the service remembers of a pod."""
    return read_pod(msgspec.convert(document, PodObject), {})


def make_cache(documents: Iterable[Mapping[str, Any]]) -> ClusterCache:
    """Return a cache of the objects, at `NOW_S`."""
    cache = ClusterCache(lambda: NOW_S)
    for document in documents:
        cache.put(read(document))
    cache.refresh()
    assert not cache.problems, cache.problems
    return cache


def budget(name: str, allowed: int, labels: Mapping[str, str], **status: Any) -> dict[str, Any]:
    """Return a PodDisruptionBudget of namespace `batch`."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "batch", "uid": f"uid-{name}"},
        "spec": {"selector": {"matchLabels": dict(labels)}},
        "status": {"disruptionsAllowed": allowed, **status},
    }


def bound_claim(label: str, value: str) -> list[dict[str, Any]]:
    """Return the claim `batch/data`, and the volume it is bound to, on nodes of a label."""
    terms = [{"matchExpressions": [{"key": label, "operator": "In", "values": [value]}]}]
    bound = {"pv.kubernetes.io/bind-completed": "yes"}
    return [
        {
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "namespace": "batch", "annotations": bound},
            "spec": {"volumeName": "v"},
            "status": {"phase": "Bound"},
        },
        {
            "kind": "PersistentVolume",
            "metadata": {"name": "v"},
            "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
        },
    ]


def nominated(name: str, gpus: int, where: str, **more: Any) -> dict[str, Any]:
    """Return a pending pod that kube-scheduler has nominated for a node."""
    return preemptor(gpus, name=name, status={"nominatedNodeName": where}, **more)


def dying_pod(name: str, gone: str = "2027-01-15T08:00:20Z", **more: Any) -> dict[str, Any]:
    """Return a pod on n0 whose deletion has begun."""
    return pod(name, "n0", meta={"deletionTimestamp": gone}, **more)
