"""What can be told of cores and sockets from nothing but the CPUs of NUMA nodes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.model import MAX_NUMA_NODES

NodeCpus = Mapping[int, tuple[int, ...]]

# Lists of real servers need far fewer; a hostile file could ask for hours.
_MAX_CHECKS = 4_000_000


@dataclass(frozen=True)
class Inference:
    """Cores and sockets of a server of which only the CPUs of NUMA nodes are known.

    Attributes:
        cores: NUMA id to its cores, each the CPU numbers of its hardware threads, ascending.
        socket: NUMA id to socket number.
        reason: how this was decided, for a warning.
    """

    cores: Mapping[int, tuple[tuple[int, ...], ...]]
    socket: Mapping[int, int]
    reason: str


def infer_cores(numa_cpus: NodeCpus, complete: bool, node_is_socket: bool) -> Inference:
    """Tell cores and sockets from the CPUs of NUMA nodes.

    Two hardware threads a core are inferred where CPUs at one distance pair up within NUMA nodes
    (`_sibling_distance`), else each CPU counts as a core. NUMA nodes that are not listed are
    added where the others show which CPUs they have (`_unlisted`).

    Args:
        numa_cpus: NUMA id to its CPU numbers; NUMA nodes without CPUs have none.
        complete: no other NUMA node has CPUs.
        node_is_socket: each NUMA node with CPUs is a socket, as on servers whose GPUs' memory is
            a NUMA node; else two sockets are assumed, since few servers have another number.

    Raises:
        TopologyError: no CPU at all, or one CPU in two NUMA nodes.
    """
    listed = {node: cpus for node, cpus in sorted(numa_cpus.items()) if cpus}
    if not listed:
        raise TopologyError("tells of no CPU; legal: a capture that lists CPUs")
    owner: dict[int, int] = {}
    for node, cpus in listed.items():
        for cpu in cpus:
            if owner.setdefault(cpu, node) != node:
                raise TopologyError(
                    f"CPU {cpu} is on NUMA nodes {owner[cpu]} and {node}; legal: one"
                )
    distance = _sibling_distance(listed, owner)
    empty = set(numa_cpus) - set(listed)
    added = {} if complete else _unlisted(listed, distance, empty)
    nodes = dict(sorted((listed | added).items()))
    cores = {node: _cores(cpus, distance) for node, cpus in nodes.items()}
    socket = _sockets(list(nodes), node_is_socket)
    return Inference(cores, socket, _reason(cores, socket, distance, sorted(added)))


def _sibling_distance(listed: NodeCpus, owner: Mapping[int, int]) -> int:
    """Return the distance between the two threads of a core, 0 where nothing proves any.

    Linux numbers the first thread of all n cores, then the second, n further on: a NUMA node has
    two equal runs of CPUs n apart, between which those of other NUMA nodes lie. A run that goes on
    evenly (`0-7`; `0,2,4,6`), or would if all CPUs were on line, proves nothing. CPUs that are off
    line leave some without a partner; then a whole NUMA node must pair up, or all first threads be
    there and most have partners, or the only NUMA node listed be one of several equal ones.
    """
    highest = max(owner)
    checks = 0
    for distance in sorted(set(_distances(listed.values())), reverse=True):
        if not distance <= highest < 2 * distance or checks > _MAX_CHECKS:
            break
        if _is_proven(distance, listed, owner):
            return distance
        checks += len(owner)
    return 0


def _distances(lists: Iterable[tuple[int, ...]]) -> Iterator[int]:
    """Yield how far apart the runs of each list begin, and end."""
    for cpus in lists:
        stride = _stride(cpus)
        begins = [b for a, b in pairwise(cpus) if b - a > stride]
        ends = [a for a, b in pairwise(cpus) if b - a > stride]
        yield from (begin - cpus[0] for begin in begins)
        yield from (cpus[-1] - end for end in ends)


def _stride(cpus: Sequence[int]) -> int:
    return min((b - a for a, b in pairwise(cpus)), default=1)


def _is_even(cpus: Sequence[int]) -> bool:
    return cpus[-1] - cpus[0] == _stride(cpus) * (len(cpus) - 1)


def _is_proven(distance: int, listed: NodeCpus, owner: Mapping[int, int]) -> bool:
    """Tell whether the CPUs on line prove that threads of a core are so far apart."""
    partner = {cpu: owner.get(cpu + distance) for cpu in owner}
    if any(other not in (None, owner[cpu]) for cpu, other in partner.items()):
        return False
    filled = (
        {cpu % distance + d for cpu in cpus for d in (0, distance)} for cpus in listed.values()
    )
    if all(_is_even(sorted(cpus)) for cpus in filled):
        return False
    paired = sum(other is not None for other in partner.values())
    cores = len(owner) - paired
    whole = any(
        all(cpu + distance in owner or cpu - distance in owner for cpu in cpus)
        for cpus in listed.values()
    )
    all_first = len(listed) > 1 and all(cpu in owner for cpu in range(distance))
    if all_first and (whole or 2 * paired > cores):
        return True
    return 4 * paired > 3 * cores and (whole or _is_one_of_several(distance, listed))


def _is_one_of_several(distance: int, listed: NodeCpus) -> bool:
    """Tell whether first threads of the only NUMA node listed are one of several equal runs."""
    if len(listed) > 1:
        return False
    first = [cpu for cpus in listed.values() for cpu in cpus if cpu < distance]
    size = len(first)
    is_run = first[-1] - first[0] == size - 1
    return is_run and first[0] % size == 0 and distance % size == 0


def _unlisted(listed: NodeCpus, distance: int, empty: set[int]) -> dict[int, tuple[int, ...]]:
    """Return the CPUs of NUMA nodes that are not listed, since they have no GPU or network card.

    Only where those listed show the rule that the cores of node n are nk to nk+k-1; else the
    others stay unknown. Where cores have two threads, there are as many cores as threads are apart.
    """
    end = distance or max(map(max, listed.values())) + 1
    first = {node: [cpu for cpu in cpus if cpu < end] for node, cpus in listed.items()}
    size = max(map(len, first.values()))
    count = max(listed) + 1
    if distance and distance % size == 0:
        count = max(count, distance // size)
    follows = all(
        node * size <= cpu < (node + 1) * size for node, cpus in first.items() for cpu in cpus
    )
    if not follows or count > MAX_NUMA_NODES or empty & set(range(count)):
        return {}
    starts = (0, distance) if distance else (0,)
    return {
        node: tuple(start + node * size + i for start in starts for i in range(size))
        for node in range(count)
        if node not in listed
    }


def _cores(cpus: tuple[int, ...], distance: int) -> tuple[tuple[int, ...], ...]:
    threads: dict[int, list[int]] = defaultdict(list)
    for cpu in sorted(cpus):
        threads[cpu % distance if distance else cpu].append(cpu)
    return tuple(map(tuple, threads.values()))


def _sockets(nodes: list[int], node_is_socket: bool) -> dict[int, int]:
    if node_is_socket:
        return {node: i for i, node in enumerate(nodes)}
    if len(nodes) == 1:
        return {nodes[0]: 0}
    # By id, not by position: of nodes 1, 2 and 3, the first is alone on its socket.
    half = (max(nodes) + 2) // 2
    return {node: node // half - nodes[0] // half for node in nodes}


def _reason(
    cores: Mapping[int, tuple[tuple[int, ...], ...]],
    socket: Mapping[int, int],
    distance: int,
    added: list[int],
) -> str:
    sockets = len(set(socket.values()))
    reason = f"assumed {sockets} socket(s) and {2 if distance else 1} hardware thread(s) a core"
    if distance:
        reason += f", since CPUs {distance} apart share NUMA nodes"
        alone = sum(len(threads) == 1 for ids in cores.values() for threads in ids)
        reason += f"; {alone} core(s) with a thread off line" if alone else ""
    else:
        reason += ", since no equal runs of CPUs tell of two"
    if added:
        reason += f"; NUMA node(s) {', '.join(map(str, added))} without GPU follow from the others"
    return reason
