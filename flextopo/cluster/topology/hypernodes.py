"""Volcano's HyperNode objects as leaves (tier 1) and blocks (tier 2) of nodes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.topology.documents import (
    check_name,
    list_field,
    mapping,
    show,
    text_field,
)
from flextopo.cluster.topology.network import Labels, Place, check_count

LEAF_TIER, BLOCK_TIER = 1, 2

MAX_PATTERN = 253
MAX_REPEATS = 2
"""Repeats in a pattern: each multiplies the steps that Python may take by the length of a name."""
MAX_STEPS = 10**9
"""Steps of all matches of a file: a second for patterns, half a minute for labels."""

# Characters, classes of them and their repeats: what takes no exponential number of steps.
_PATTERN = re.compile(
    r"\^?((\\[.dw-]|\[\^?[A-Za-z0-9_.-]+\]|[A-Za-z0-9_.-])([*+?]|\{\d{1,3}(,\d{0,3})?\})?)*\$?"
)
_SELECTORS = ("exactMatch", "regexMatch", "labelMatch")
_OPERATORS: dict[str, Callable[[str | None, list[object]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}

Objects = Mapping[str, Mapping[Any, Any]]


def places_by_hypernodes(
    hypernodes: Objects, nodes: Mapping[str, Labels], source: str
) -> list[Place]:
    """Find the leaf and block of each node.

    Args:
        hypernodes: the objects by name; tiers above 2 are not looked at.
        nodes: labels of the nodes by name; none = the nodes are those that `exactMatch` names, and
            patterns and labels choose among them. A node that is named but not here is left out.
        source: the file's name for messages.

    Returns:
        One place a node, in the order of `nodes`, or in which they are named.

    Raises:
        TopologyError: an object is malformed, a node is on two leaves, a leaf in two blocks, or a
            member chooses no node that is known.

    References:
        volcano.sh/apis, topology/v1alpha1/hypernode_types.go: one selector a member; volcano v1.13,
        pkg/scheduler/api/hyper_node_info.go: patterns match anywhere in a name, an empty labelMatch
        matches nothing, HyperNodes are members by exactMatch alone, and have one parent. Patterns
        here are simpler than Go's: no groups and no alternatives.
    """
    leaves, blocks = (
        _of_tier(hypernodes, LEAF_TIER, source),
        _of_tier(hypernodes, BLOCK_TIER, source),
    )
    if not leaves:
        raise TopologyError(f"{source}: no HyperNode of tier {LEAF_TIER}; legal: one at least")
    chosen = list(_selectors(leaves, "Node", source))
    known = dict(nodes) or {
        check_name(exact, where): {} for _, _, exact, where in _named(chosen) if exact
    }
    finder = _Finder(known, source)
    leaf_of: dict[str, str] = {}
    for leaf, kind, selector, where in chosen:
        found = finder.find(kind, selector, where)
        if not found and not nodes:
            raise TopologyError(
                f"{where}: {kind} matches no node that the file names; legal: the Nodes beside the "
                "HyperNodes, as kubectl get nodes,hypernodes writes them"
            )
        for node in found:
            _put(leaf_of, node, leaf, f"{source}: node {node!r} is on leaf")
    block_of: dict[str, str] = {}
    for block, _, name, where in _named(_selectors(blocks, "HyperNode", source)):
        if not name:
            raise TopologyError(f"{where}: no exactMatch; legal: exactMatch for HyperNodes")
        _put(block_of, name, block, f"{source}: leaf {name!r} is in block")
    return [
        Place(node, leaf_of.get(node, ""), block_of.get(leaf_of.get(node, ""), ""))
        for node in known
    ]


def _of_tier(hypernodes: Objects, tier: int, source: str) -> dict[str, Mapping[Any, Any]]:
    """Return the `spec` of each HyperNode of a tier."""
    found = {}
    for name, entry in hypernodes.items():
        where = f"{source}: HyperNode {name!r}: spec"
        spec = mapping(entry.get("spec"), where)
        own = spec.get("tier")
        if isinstance(own, bool) or not isinstance(own, int) or own < LEAF_TIER:
            raise TopologyError(f"{where}.tier: {show(own)}; legal: {LEAF_TIER} or more")
        if own == tier:
            found[name] = spec
    return found


def _selectors(
    specs: Objects, member_type: str, source: str
) -> Iterator[tuple[str, str, Mapping[Any, Any], str]]:
    """Yield HyperNode, kind of selector, selector and place of each member."""
    count = 0
    for name, spec in specs.items():
        for i, entry in enumerate(
            list_field(spec, "members", f"{source}: HyperNode {name!r}: spec")
        ):
            count += 1
            check_count(count, "members of HyperNodes", source)
            where = f"{source}: HyperNode {name!r}: spec.members[{i}]"
            member = mapping(entry, where)
            if text_field(member, "type", where) != member_type:
                raise TopologyError(f"{where}.type: {show(member['type'])}; legal: {member_type}")
            selector = mapping(member.get("selector"), f"{where}.selector")
            kinds = [kind for kind in _SELECTORS if selector.get(kind) is not None]
            if len(kinds) != 1:
                raise TopologyError(
                    f"{where}.selector: {len(kinds)} kinds of match; legal: one of "
                    f"{', '.join(_SELECTORS)}"
                )
            yield name, kinds[0], mapping(selector[kinds[0]], f"{where}.{kinds[0]}"), where


def _named(
    selectors: Sequence[tuple[str, str, Mapping[Any, Any], str]]
    | Iterator[tuple[str, str, Mapping[Any, Any], str]],
) -> Iterator[tuple[str, str, str, str]]:
    """Yield selectors with the name that an exactMatch gives, "" where it is another one."""
    for name, kind, selector, where in selectors:
        exact = text_field(selector, "name", f"{where}.{kind}") if kind == "exactMatch" else ""
        yield name, kind, exact, where


def _put(places: dict[str, str], member: str, parent: str, what: str) -> None:
    known = places.setdefault(member, parent)
    if known != parent:
        raise TopologyError(f"{what} {known!r} and {parent!r}; legal: one")


class _Finder:
    """Find nodes by selectors, within a bounded number of steps."""

    def __init__(self, nodes: Mapping[str, Labels], source: str) -> None:
        self.nodes, self.source, self.steps = nodes, source, 0

    def find(self, kind: str, selector: Mapping[Any, Any], where: str) -> list[str]:
        """Return the nodes that a selector chooses."""
        if kind == "exactMatch":
            name = text_field(selector, "name", where)
            return [name] if name in self.nodes else []
        if kind == "regexMatch":
            pattern, repeats = _compile(text_field(selector, "pattern", where), where)
            self._spend(sum((len(name) + 1) ** repeats for name in self.nodes))
            return [name for name in self.nodes if pattern.search(name)]
        tests = _label_tests(selector, where)
        self._spend(10 * sum(1 + len(values) for *_, values in tests) * len(self.nodes))
        if not tests:
            return []
        return [
            name
            for name, labels in self.nodes.items()
            if all(_OPERATORS[operator](labels.get(key), values) for key, operator, values in tests)
        ]

    def _spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise TopologyError(
                f"{self.source}: regexMatch and labelMatch of too many HyperNodes and nodes; legal: "
                f"{MAX_STEPS:.0e} comparisons, or exactMatch"
            )


def _compile(pattern: str, where: str) -> tuple[re.Pattern[str], int]:
    """Compile a pattern; also return by what power of a name's length it may take steps."""
    repeats = sum(pattern.count(character) for character in "*+?{")
    if len(pattern) > MAX_PATTERN or not _PATTERN.fullmatch(pattern) or repeats > MAX_REPEATS:
        raise TopologyError(
            f"{where}: pattern {show(pattern)}; legal: characters, classes such as [0-9], ^, $, and "
            f"{MAX_REPEATS} repeats, up to {MAX_PATTERN} characters"
        )
    try:
        return re.compile(pattern), repeats + (not pattern.startswith("^"))
    except re.error as error:
        raise TopologyError(f"{where}: pattern {show(pattern)} ({error}); legal: a regex") from None


def _label_tests(selector: Mapping[Any, Any], where: str) -> list[tuple[str, str, list[object]]]:
    """Return key, operator and values of each requirement; all must hold."""
    equal = mapping(selector.get("matchLabels") or {}, f"{where}.matchLabels")
    tests: list[tuple[str, str, list[object]]] = [(k, "In", [v]) for k, v in equal.items()]
    expressions = selector.get("matchExpressions") or []
    for entry in list_field({"matchExpressions": expressions}, "matchExpressions", where):
        fields = mapping(entry, f"{where}.matchExpressions")
        operator = text_field(fields, "operator", where)
        if operator not in _OPERATORS:
            raise TopologyError(
                f"{where}.operator: {show(operator)}; legal: {', '.join(_OPERATORS)}"
            )
        values = fields.get("values") or []
        tests.append(
            (
                text_field(fields, "key", where),
                operator,
                list_field({"values": values}, "values", where),
            )
        )
    return tests
