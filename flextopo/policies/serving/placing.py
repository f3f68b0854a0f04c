"""What a pod says of where it may go, beside the resources that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flextopo.policies.serving.objects import (
    NodeSelector,
    PodAffinityTerm,
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
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    nodes: NodeSelector | None = None
    tolerations: Sequence[Toleration] = ()
    near: Sequence[PodAffinityTerm] = ()
    far: Sequence[PodAffinityTerm] = ()
    spread: Sequence[Spread] = ()
    ports: frozenset[HostPort] = frozenset()


ANYWHERE = Placing()


def read_placing(spec: PodSpec) -> Placing:
    """Return what a pod says of where it may go; of a pod that is bound, what keeps others away."""
    affinity = spec.affinity
    far = affinity.podAntiAffinity if affinity else None
    terms = (far.requiredDuringSchedulingIgnoredDuringExecution or ()) if far else ()
    ports = _host_ports(spec)
    if spec.nodeName:
        return Placing(far=terms, ports=ports) if terms or ports else ANYWHERE
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
