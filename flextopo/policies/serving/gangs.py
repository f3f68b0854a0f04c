"""Which pending pods start together, and how near to each other they must lie.

A gang is the pending online pods of one PodGroup of which several must start together. What it says of the
network becomes levels of it: `lay_out` hangs nodes so that the levels mean what the labels do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from flextopo.cluster.state.schema import MAX_MEMBERS
from flextopo.cluster.topology.levels import TIERS, NetworkLevel
from flextopo.cluster.topology.network import Place
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.reach import NodeTraits
from flextopo.policies.serving.records import PodRecord

Labels = Mapping[str, str]

HOST = TIERS[NetworkLevel.SERVER].keys[0]
PAIRS = tuple(zip(TIERS[NetworkLevel.LEAF].keys, TIERS[NetworkLevel.BLOCK].keys, strict=False))
"""Labels of leaf and block that go together."""
ELSE_BLOCK = TIERS[NetworkLevel.BLOCK].keys[-1]

INCOMPLETE, NOT_READY, UNLIKE = "incomplete", "not ready", "unlike"
"""Why a gang is not decided about: members are missing, or are not to be attended to yet, or it is of a kind
that nothing here decides about."""


@dataclass(frozen=True, slots=True, eq=False)
class Preemptors:
    """Pending pods that start together: the members of a gang, or one pod alone.

    Attributes:
        members: the leader first.
        group: `namespace/name` of their PodGroup, empty = none that they must start together with.
        size: pods of the group, pending or bound.
        need: how many of the group must run together.
        bound: those that have a node already.
        agree: labels of nodes in whose values all of the group must agree.
        prefer: a label in which they had better, empty = none.
    """

    members: tuple[PodRecord, ...]
    group: str = ""
    size: int = 1
    need: int = 1
    bound: tuple[PodRecord, ...] = ()
    agree: tuple[str, ...] = ()
    prefer: str = ""

    @property
    def leader(self) -> PodRecord:
        """Return the member that stands for all."""
        return self.members[0]

    @property
    def key(self) -> str:
        """Return what tells them from all others, over members that come and go."""
        return gang_key(self.group) if self.group else self.leader.uid

    @property
    def name(self) -> str:
        """Return what people call them."""
        return self.group or self.leader.key

    @property
    def order(self) -> tuple[int, int, str]:
        """Return the key that sorts by whose turn it is: the most important first, then the oldest."""
        return -self.leader.priority, self.leader.created_s, self.leader.key

    def why_not(self, asks: Callable[[PodRecord], bool]) -> tuple[str, str]:
        """Return why nothing is decided about a gang yet, a cause and its detail; two empty ones = it is.

        Args:
            asks: says whether a pod is pending, was refused, and is one to decide about.
        """
        if self.size < self.need:
            return INCOMPLETE, f"{self.size} of {self.need} members are there"
        others = [pod for pod in self.members if not asks(pod)]
        if others:
            why = f"{len(others)} of {len(self.members)} are not to be attended to, such as"
            return NOT_READY, f"{why} {others[0].key}: {others[0].refused or 'not refused so far'}"
        odd = _unlike(self.members)
        return (UNLIKE, odd) if odd else ("", "")

    def attempts(self) -> Iterator[Preemptors]:
        """Yield whom to find places for: all of them, then no more than must run together."""
        yield self
        least = self.need - len(self.bound)
        if 0 < least < len(self.members):
            yield replace(self, members=self.members[:least])

    def may_lie_on(self, name: str, nodes: Mapping[str, NodeTraits]) -> bool:
        """Say whether a node has the labels in which the group must agree, as those of bound members."""
        if not self.agree:
            return True
        values = _values(nodes[name].labels, self.agree)
        homes = [nodes[pod.node].labels for pod in self.bound if pod.node in nodes]
        return all(values) and all(_values(home, self.agree) == values for home in homes)


def gang_key(group: str) -> str:
    """Return what tells the gang of a group from all others, and from pods by uid."""
    return f"gang {group}"


def _unlike(members: Sequence[PodRecord]) -> str:
    """Return in what members differ who must not, empty for nothing."""
    first = members[0]
    for pod in members:
        for field in ("priority", "requirement"):
            if getattr(pod, field) != getattr(first, field):
                return f"{first.key} and {pod.key} differ in {field}; legal: the same for all"
    sizes = {(pod.gpus, pod.cores) for pod in members}
    if len(sizes) > 2:
        return f"members of {len(sizes)} sizes; legal: 1 or 2"
    if len(members) > MAX_MEMBERS:
        return f"{len(members)} members; legal: up to {MAX_MEMBERS}"
    return ""


def gather(cache: ClusterCache, pod: PodRecord) -> Preemptors:
    """Return with whom a pending pod starts.

    Args:
        cache: the cluster.
        pod: asks for GPUs.

    Returns:
        How many of a PodGroup must run together its object says, else an annotation of the pod, else all
        of the group do. Once as many are bound, each other one starts by itself.
    """
    if not pod.group:
        return Preemptors((pod,))
    pods, group = cache.book.in_group(pod.group), cache.group(pod.group)
    need = (group.least if group else None) or pod.group_size or len(pods)
    agree = (group.topology if group else ()) or tuple(filter(None, [pod.required_topology]))
    bound = tuple(one for one in pods if one.node)
    alone = Preemptors((pod,), bound=bound, agree=agree, prefer=pod.preferred_topology)
    if need <= 1 or len(bound) >= need:
        return alone
    pending = [one for one in pods if not one.node and one.gpus]
    members = tuple(sorted(pending, key=lambda one: (one.created_s, one.key)))
    return replace(alone, members=members, group=pod.group, size=len(pods), need=need)


def starts_with_others(cache: ClusterCache, pod: PodRecord) -> bool:
    """Say whether a pending pod is one of a gang that is decided about together: see `gather`."""
    gang = gather(cache, pod)
    if not pod.online or not gang.group:
        return False
    return not gang.members or gang.why_not(lambda _: True)[0] != UNLIKE


class Layout(NamedTuple):
    """Where nodes hang for one gang, and what it asks of that.

    Fields: `places` of the nodes, in their order; `required` and `preferred` levels.
    """

    places: list[Place]
    required: NetworkLevel
    preferred: NetworkLevel


def lay_out(gang: Preemptors, nodes: Mapping[str, Labels]) -> Layout:
    """Hang nodes on a network by their labels.

    The leaf and the block are told by that pair of labels in `TIERS` that most nodes have. A label in which
    a gang must agree and which is none of these stands in for the block.

    Args:
        gang: the gang.
        nodes: labels of nodes by name.
    """
    leaf, block = keys_in_use(nodes.values())
    level_of = {HOST: NetworkLevel.SERVER, leaf: NetworkLevel.LEAF, block: NetworkLevel.BLOCK}
    required = NetworkLevel.CLUSTER
    if gang.agree:
        alone = gang.agree[0] if len(gang.agree) == 1 else ""
        required = level_of.get(alone, NetworkLevel.BLOCK)
    preferred = min(required, level_of.get(gang.prefer, NetworkLevel.LEAF))
    agrees = gang.agree if required == NetworkLevel.BLOCK else ()

    def block_of(labels: Labels) -> str:
        if agrees:
            return "/".join(_values(labels, agrees))
        return labels.get(block) or labels.get(ELSE_BLOCK, "")

    places = [Place(name, labels.get(leaf, ""), block_of(labels)) for name, labels in nodes.items()]
    return Layout(places, required, preferred)


def keys_in_use(nodes: Iterable[Labels]) -> tuple[str, str]:
    """Return the labels of leaf and block that most nodes have."""
    every = list(nodes)

    def known(pair: tuple[str, str]) -> tuple[int, int]:
        leaf, block = (sum(bool(labels.get(key)) for labels in every) for key in pair)
        return leaf, block

    return max(PAIRS, key=known)


def _values(labels: Labels, keys: Sequence[str]) -> list[str]:
    return [labels.get(key, "") for key in keys]
