"""The network above servers from a file: nodes with labels, Volcano's HyperNodes, or plain leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import TopologyError
from flextopo.cluster.files import decode_input, read_input
from flextopo.cluster.topology.documents import (
    check_name,
    list_field,
    mapping,
    parse_documents,
    show,
    text_field,
)
from flextopo.cluster.topology.hypernodes import places_by_hypernodes
from flextopo.cluster.topology.levels import TIERS, NetworkLevel
from flextopo.cluster.topology.network import (
    MAX_SERVERS,
    Labels,
    Network,
    Place,
    check_count,
    network_of,
)

FORMS = "Node or HyperNode objects as kubectl writes them, or a map of leaves or blocks"

_LEAF_KEYS, _BLOCK_KEYS = TIERS[NetworkLevel.LEAF].keys, TIERS[NetworkLevel.BLOCK].keys
_PAIRS = tuple(zip(_LEAF_KEYS, _BLOCK_KEYS, strict=False))
_ELSE_BLOCK = _BLOCK_KEYS[-1]


def read_network(path: str | Path, servers: int) -> tuple[Network, list[str]]:
    """Read which leaf and block each server hangs on; server 0 is the file's first node.

    Args:
        path: YAML, several documents too, or JSON of at most 64 MiB, told apart by content:
            `Node` objects, whose labels tell (`TIERS`); Volcano's `HyperNode` objects, tier 1 = leaf
            and 2 = block, with or without the Nodes; or `leaves: {NAME: COUNT or [NODE, ...]}`, or
            `blocks: {NAME: {LEAF: COUNT or [NODE, ...]}}`.
        servers: how many nodes the file must have.

    Returns:
        The network, and one warning for each assumption. A leaf is told by its name and its block:
        two blocks may have leaves of one name. Where no node has a block, all are in one. A node
        without a leaf is a leaf of its own, a leaf without a block a block of its own.

    Raises:
        TopologyError: the file cannot be read, is of no known form, tells nothing of any node,
            names a node twice, or has more or fewer nodes than there are servers.
    """
    source = str(path)
    documents = parse_documents(decode_input(read_input(path), source), source)
    if len(documents) == 1 and isinstance(documents[0], Mapping) and "kind" not in documents[0]:
        places = _plain(documents[0], source)
    else:
        places = _from_objects(documents, source)
    if len(places) != servers:
        raise TopologyError(f"{source}: {len(places)} nodes for {servers} servers; legal: as many")
    return network_of(places, source)


def _plain(document: Mapping[Any, Any], source: str) -> list[Place]:
    """Read the form that is written by hand."""
    if set(document) not in ({"leaves"}, {"blocks"}):
        fields = ", ".join(sorted(show(key) for key in list(document)[:4])) or "none"
        raise TopologyError(f"{source}: fields {fields}; legal: leaves or blocks; {FORMS}")
    if "leaves" in document:
        blocks: list[tuple[str, object]] = [("", document["leaves"])]
    else:
        found = mapping(document["blocks"], f"{source}: blocks")
        blocks = [(check_name(name, f"{source}: blocks"), each) for name, each in found.items()]
    places: list[Place] = []
    for block, leaves in blocks:
        where = f"{source}: blocks.{block}" if block else f"{source}: leaves"
        for name, members in mapping(leaves, where).items():
            leaf = check_name(name, where)
            for node in _members(members, f"{where}.{leaf}"):
                places.append(Place(node, leaf, block))
                check_count(len(places), "nodes", source)
    _check_once(places, source)
    return places


def _members(members: object, where: str) -> list[str]:
    """Return the nodes of a leaf, "" for each that is only counted."""
    if isinstance(members, list) and members:
        return [check_name(node, where) for node in members[: MAX_SERVERS + 1]]
    if isinstance(members, bool) or not isinstance(members, int) or members < 1:
        raise TopologyError(
            f"{where}: {show(members)}; legal: a count from 1 on, or names of nodes"
        )
    return [""] * min(members, MAX_SERVERS + 1)


def _check_once(places: Sequence[Place], source: str) -> None:
    seen: dict[str, Place] = {}
    for place in places:
        known = seen.setdefault(place.node, place)
        if place.node and known is not place:
            raise TopologyError(
                f"{source}: node {place.node!r} is on leaf {known.leaf!r} and on leaf "
                f"{place.leaf!r}; legal: on one, once"
            )


def _from_objects(documents: Sequence[object], source: str) -> list[Place]:
    """Read objects of the Kubernetes API."""
    nodes: dict[str, Labels] = {}
    hypernodes: dict[str, Mapping[Any, Any]] = {}
    for kind, entry, where in _objects(documents, source):
        metadata = mapping(entry.get("metadata"), f"{where}.metadata")
        name = check_name(metadata.get("name"), f"{where}.metadata.name")
        if name in (nodes if kind == "Node" else hypernodes):
            raise TopologyError(f"{where}: {kind} {name!r} is listed twice; legal: once")
        if kind == "Node":
            nodes[name] = mapping(metadata.get("labels") or {}, f"{where}.metadata.labels")
        else:
            hypernodes[name] = entry
        check_count(max(len(nodes), len(hypernodes)), "objects of a kind", source)
    if not nodes and not hypernodes:
        raise TopologyError(f"{source}: no objects; legal: {FORMS}")
    if hypernodes:
        return places_by_hypernodes(hypernodes, nodes, source)
    return _places_by_labels(nodes, source)


def _objects(
    documents: Sequence[object], source: str
) -> Iterator[tuple[str, Mapping[Any, Any], str]]:
    """Yield kind, object and place of each Node and HyperNode, those in lists included."""
    for number, document in enumerate(documents):
        if document is None:
            continue
        where = f"{source}: document {number + 1}" if len(documents) > 1 else f"{source}: it"
        fields = mapping(document, where)
        kind = text_field(fields, "kind", where)
        entries: list[object] = [fields]
        if kind.endswith("List"):
            entries = list_field(fields, "items", where)
        for i, entry in enumerate(entries):
            place = f"{where}.items[{i}]" if kind.endswith("List") else where
            each = mapping(entry, place)
            # The API leaves the kind out of what is in a list of it.
            own = each.get("kind", kind.removesuffix("List"))
            if own not in ("Node", "HyperNode"):
                raise TopologyError(f"{place}.kind: {show(own)}; legal: Node, HyperNode")
            yield own, each, place


def _places_by_labels(nodes: Mapping[str, Labels], source: str) -> list[Place]:
    """Read the labels of that pair in `TIERS` that most nodes have."""

    def known(pair: tuple[str, str]) -> tuple[int, int]:
        leaf, block = (sum(bool(labels.get(key)) for labels in nodes.values()) for key in pair)
        return leaf, block

    leaf_key, block_key = max(_PAIRS, key=known)

    def value(node: str, key: str) -> str:
        found = nodes[node].get(key)
        return check_name(found, f"{source}: node {node!r}: label {key}") if found else ""

    places = [
        Place(node, value(node, leaf_key), value(node, block_key) or value(node, _ELSE_BLOCK))
        for node in nodes
    ]
    if not any(place.leaf or place.block for place in places):
        raise TopologyError(
            f"{source}: none of {len(places)} nodes has a label of its leaf or block; legal: "
            f"{' or '.join(dict.fromkeys(chain(*_PAIRS, _BLOCK_KEYS)))}"
        )
    return places
