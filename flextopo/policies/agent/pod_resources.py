"""kubelet's pod-resources service, v1: which pod was given which devices and CPUs.

The messages are described here in place of generated code; what is not read, such as memory, is
left out and skipped by the parser.

References:
    kubernetes v1.36, staging/src/k8s.io/kubelet/pkg/apis/podresources/v1/api.proto.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from flextopo.policies.agent.errors import KubeletError

MAX_MESSAGE_BYTES = 16 * 2**20
"""kubelet's own limit of an answer."""
TIMEOUT_S = 5.0
_PACKAGE = "v1"
_SERVICE = f"/{_PACKAGE}.PodResourcesLister/"

# Message to its fields: name, number, and type; `*` behind it = repeated.
_MESSAGES = {
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources*"),),
    "AllocatableResourcesRequest": (),
    "AllocatableResourcesResponse": (
        ("devices", 1, "ContainerDevices*"),
        ("cpu_ids", 2, "int64*"),
    ),
    "PodResources": (
        ("name", 1, "string"),
        ("namespace", 2, "string"),
        ("containers", 3, "ContainerResources*"),
    ),
    "ContainerResources": (
        ("devices", 2, "ContainerDevices*"),
        ("cpu_ids", 3, "int64*"),
        ("dynamic_resources", 5, "DynamicResource*"),
    ),
    "ContainerDevices": (
        ("resource_name", 1, "string"),
        ("device_ids", 2, "string*"),
        ("topology", 3, "TopologyInfo"),
    ),
    "TopologyInfo": (("nodes", 1, "NUMANode*"),),
    "NUMANode": (("ID", 1, "int64"),),
    "DynamicResource": (("claim_resources", 4, "ClaimResource*"),),
    "ClaimResource": (
        ("driver_name", 2, "string"),
        ("device_name", 4, "string"),
        ("share_id", 5, "string"),
    ),
}


class Device(NamedTuple):
    """A device of a device plugin, or of a DRA driver, as a pod was given it.

    Attributes:
        source: the resource's name such as `nvidia.com/gpu`, or the DRA driver's.
        name: the plugin's device id, or the DRA device's name.
        part: it was given with a share id: others may be given the same.
    """

    source: str
    name: str
    part: bool = False


class Holding(NamedTuple):
    """What one pod was given: CPUs for it alone, and devices; both in order, each once."""

    cpus: tuple[int, ...]
    devices: tuple[Device, ...]


class Allocatable(NamedTuple):
    """What kubelet may give to pods.

    Attributes:
        cpus: CPUs that a pod may get for itself; empty where kubelet pins nobody.
        numa_nodes: device id to the first NUMA node that its plugin tells.
    """

    cpus: tuple[int, ...]
    numa_nodes: Mapping[str, int | None]


def _describe() -> Mapping[str, type[message.Message]]:
    """Return a class for each message."""
    file = descriptor_pb2.FileDescriptorProto(
        name="podresources.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    scalars = {"string": kinds.TYPE_STRING, "int64": kinds.TYPE_INT64}
    for name, fields in _MESSAGES.items():
        described = file.message_type.add(name=name)
        for field, number, kind in fields:
            one = kind.rstrip("*")
            added = described.field.add(
                name=field,
                number=number,
                type=scalars.get(one, kinds.TYPE_MESSAGE),
                label=kinds.LABEL_REPEATED if kind != one else kinds.LABEL_OPTIONAL,
            )
            if one not in scalars:
                added.type_name = f".{_PACKAGE}.{one}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


MESSAGES = _describe()
"""Class of each message by name."""


class Kubelet:
    """A connection to the pod-resources service, made anew after every error but a rate limit's.

    Args:
        socket: its unix socket.

    Attributes:
        connections: how many were made; it grows with every restart of kubelet that shows.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.connections = 0
        self._channel: Any = None
        self._inode: tuple[int, int] | None = None

    def list(self) -> dict[str, Holding]:
        """Return what every pod of the node holds by `namespace/name`; most hold nothing.

        Raises:
            KubeletError: kubelet does not answer, or with something else.
        """
        found: dict[str, Holding] = {}
        for pod in self._call("List", "ListPodResources").pod_resources:
            if not pod.name or not pod.namespace:
                raise KubeletError(
                    f"{self.socket}: lists a pod {pod.namespace[:40]!r}/{pod.name[:40]!r}; "
                    "legal: a namespace and a name"
                )
            cpus: set[int] = set()
            devices: set[Device] = set()
            for container in pod.containers:
                cpus.update(container.cpu_ids)
                for given in container.devices:
                    devices.update(Device(given.resource_name, name) for name in given.device_ids)
                for claim in container.dynamic_resources:
                    devices.update(
                        Device(given.driver_name, given.device_name, bool(given.share_id))
                        for given in claim.claim_resources
                    )
            found[f"{pod.namespace}/{pod.name}"] = Holding(
                tuple(sorted(cpus)), tuple(sorted(devices))
            )
        return found

    def allocatable(self) -> Allocatable:
        """Return what kubelet may give to pods; nothing is told by one that does not know the call.

        Raises:
            KubeletError: kubelet does not answer, or with something else.
        """
        answer = self._call("GetAllocatableResources", "AllocatableResources")
        if answer is None:
            return Allocatable((), {})
        numa_nodes: dict[str, int | None] = {}
        for given in answer.devices:
            near = min((node.ID for node in given.topology.nodes), default=None)
            numa_nodes |= dict.fromkeys(given.device_ids, near)
        return Allocatable(tuple(sorted(set(answer.cpu_ids))), numa_nodes)

    def _call(self, method: str, messages: str) -> Any:
        """Call a method; None where kubelet has none of that name."""
        request, response = MESSAGES[f"{messages}Request"](), MESSAGES[f"{messages}Response"]()
        try:
            # As bytes, since grpc would log a traceback of an answer that cannot be parsed.
            call = self._connected().unary_unary(_SERVICE + method)
            response.ParseFromString(call(request.SerializeToString(), timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED and method != "List":
                return None
            about = f"{error.code().name}: {str(error.details()).partition(chr(10))[0][:200]}"
            # Refused by the rate limit that all clients share: the same kubelet, soon to be asked again.
            keep = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            raise self._failed(f"{method} fails ({about})", keep) from None
        except message.DecodeError:
            raise self._failed(f"{method} answers with something else") from None
        return response

    def _failed(self, about: str, keep: bool = False) -> KubeletError:
        if not keep:
            self.close()
        return KubeletError(
            f"{self.socket}: {about}; legal: the socket of kubelet's pod-resources service"
        )

    def _connected(self) -> Any:
        """Return a channel to the socket that is there now."""
        try:
            found = self.socket.stat()
        except OSError as error:
            raise self._failed(str(error.strerror)) from None
        inode = found.st_ino, found.st_ctime_ns
        if self._channel is None or inode != self._inode:
            self.close()
            self._inode = inode
            self.connections += 1
            # With channels of their own, one that has failed does not slow the next one down.
            options = [
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_http_proxy", 0),
            ]
            self._channel = grpc.insecure_channel(f"unix:{self.socket.absolute()}", options)
        return self._channel

    def close(self) -> None:
        """End the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
