"""ResourceSlices, ResourceClaims and pods that have them, for tests."""

from __future__ import annotations

from typing import Any

from kube_objects import node, pod

Document = dict[str, Any]
NUMA = "resource.kubernetes.io/numaNode"


def slice_of(
    name: str = "n0",
    numas: tuple[Any, ...] = (0, 0, 0, 0, 1, 1, 1, 1),
    *,
    generation: int = 1,
    count: int = 1,
    part: str = "",
    first: int = 0,
    taints: dict[int, str] | None = None,
) -> Document:
    """Return a ResourceSlice of a node's GPUs, as NVIDIA's driver writes it."""

    def device(i: int, numa: Any) -> Document:
        kind = "ints" if isinstance(numa, list) else "int"
        attributes: Document = {
            "uuid": {"string": f"GPU-{name}-{i}"},
            "type": {"string": "gpu"},
            "driverVersion": {"version": "1.0.0"},
        }
        if numa is not None:
            attributes[NUMA] = {kind: numa}
        found: Document = {"name": f"gpu-{i}", "attributes": attributes}
        if i in (taints or {}):
            found["taints"] = [{"key": "sick", "effect": (taints or {})[i]}]
        return found

    return {
        "kind": "ResourceSlice",
        "metadata": {"name": f"{name}-gpus{part}", "uid": f"uid-{name}-{part}"},
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": name,
            "pool": {"name": name, "generation": generation, "resourceSliceCount": count},
            "devices": [device(first + i, numa) for i, numa in enumerate(numas)],
        },
    }


def claim(
    name: str,
    count: int = 1,
    gpus: tuple[int, ...] | None = None,
    users: tuple[str, ...] = (),
    where: str = "n0",
    **more: Any,
) -> Document:
    exactly = {"deviceClassName": "gpu.nvidia.com", "count": count, "allocationMode": "ExactCount"}
    document: Document = {
        "kind": "ResourceClaim",
        "metadata": {"name": name, "namespace": "batch", "uid": f"uid-{name}"},
        "spec": {"devices": {"requests": [{"name": "g", "exactly": exactly}], **more}},
        "status": {"reservedFor": [{"resource": "pods", "uid": uid} for uid in users]},
    }
    if gpus is not None:
        document["status"]["allocation"] = {
            "devices": {
                "results": [
                    {
                        "request": "g",
                        "driver": "gpu.nvidia.com",
                        "pool": where,
                        "device": f"gpu-{gpu}",
                    }
                    for gpu in gpus
                ]
            }
        }
    return document


def claiming(name: str, where: str = "", claims: tuple[str, ...] = (), **more: Any) -> Document:
    named = [{"name": one, "resourceClaimName": one} for one in claims or (name,)]
    return pod(name, where, gpus=0, cpu="4", spec={"resourceClaims": named}, **more)


NODE = node("n0", gpus=0)


def full(numas: tuple[Any, ...] = (0, 0, 0, 0, 1, 1, 1, 1)) -> list[Document]:
    """Return a node of 8 GPUs, each claimed by a pod of its own."""
    documents = [NODE, slice_of(numas=numas)]
    for i in range(len(numas)):
        documents += [claim(f"b{i}", gpus=(i,), users=(f"uid-b{i}",)), claiming(f"b{i}", "n0")]
    return documents
