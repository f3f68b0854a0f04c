"""What a pod says of where it may go, beside the resources that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flextopo.policies.serving.objects import (
    NodeSelector,
    PodAffinityTerm,
    PodObject,
    PodSpec,
    Spread,
    Toleration,
)

HostPort = tuple[str, str, int]
"""Protocol, address, port."""


@dataclass(frozen=True, slots=True)
class Placing:
    """What a pod says of where it may go.

    Attributes:
        labels: that its node must have.
        nodes: alternatives, one of which its node must match; None = any node.
        tolerations: of taints.
        near: pods that must share its domain, as terms.
        far: pods that must not.
        spread: how evenly pods like it are to lie, `DoNotSchedule` alone.
        ports: of the host.
        volumes: `namespace/name` of the PersistentVolumeClaims behind its volumes.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    nodes: NodeSelector | None = None
    tolerations: Sequence[Toleration] = ()
    near: Sequence[PodAffinityTerm] = ()
    far: Sequence[PodAffinityTerm] = ()
    spread: Sequence[Spread] = ()
    ports: frozenset[HostPort] = frozenset()
    volumes: tuple[str, ...] = ()


ANYWHERE = Placing()


def read_placing(pod: PodObject) -> Placing:
    """Return what a pod says of where it may go; of a pod that is bound, what keeps others away."""
    spec, affinity = pod.spec, pod.spec.affinity
    far = affinity.podAntiAffinity if affinity else None
    terms = (far.requiredDuringSchedulingIgnoredDuringExecution or ()) if far else ()
    ports, volumes = _host_ports(spec), _volumes(pod)
    if spec.nodeName:
        if not terms and not ports and not volumes:
            return ANYWHERE
        return Placing(far=terms, ports=ports, volumes=volumes)
    near = affinity.podAffinity if affinity else None
    nodes = affinity.nodeAffinity if affinity else None
    return Placing(
        labels=spec.nodeSelector or {},
        nodes=nodes.requiredDuringSchedulingIgnoredDuringExecution if nodes else None,
        tolerations=spec.tolerations or (),
        near=(near.requiredDuringSchedulingIgnoredDuringExecution or ()) if near else (),
        far=terms,
        spread=[
            one
            for one in spec.topologySpreadConstraints or ()
            if one.whenUnsatisfiable == "DoNotSchedule"
        ],
        ports=ports,
        volumes=volumes,
    )


def _host_ports(spec: PodSpec) -> frozenset[HostPort]:
    containers = [*(spec.containers or ())]
    containers += [one for one in spec.initContainers or () if one.restartPolicy == "Always"]
    return frozenset(
        (port.protocol or "TCP", port.hostIP or "0.0.0.0", port.hostPort)
        for container in containers
        for port in container.ports or ()
        if port.hostPort
    )


def _volumes(pod: PodObject) -> tuple[str, ...]:
    namespace, found = pod.metadata.namespace or "", []
    for volume in pod.spec.volumes or ():
        if volume.persistentVolumeClaim is not None:
            found.append(f"{namespace}/{volume.persistentVolumeClaim.claimName}")
        elif volume.ephemeral is not None:
            found.append(f"{namespace}/{pod.metadata.name}-{volume.name}")
    return tuple(found)
