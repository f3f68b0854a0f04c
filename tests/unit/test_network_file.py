"""Networks from files: labels of nodes, HyperNodes, plain leaves; what is assumed, what is refused."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from flextopo.cluster.errors import FlextopoError, TopologyError, UnknownNameError
from flextopo.cluster.topology.captures.load import TopologyWarning
from flextopo.cluster.topology.levels import TIERS, NetworkLevel
from flextopo.cluster.topology.network import Network
from flextopo.cluster.topology.network_file import read_network
from flextopo.cluster.topology.servers import parse_servers

RACK, BLOCK = "cloud.provider.com/topology-rack", "cloud.provider.com/topology-block"
ZONE = "topology.kubernetes.io/zone"
PAIRS = list(zip(TIERS[NetworkLevel.LEAF].keys, TIERS[NetworkLevel.BLOCK].keys, strict=False))


def node(name: str, **labels: str) -> dict[str, Any]:
    """Return a Node; `rack` and `block` are labels of Kueue's."""
    keys = {"rack": RACK, "block": BLOCK, "zone": ZONE}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {keys.get(k, k): v for k, v in labels.items()}},
    }


def hypernode(name: str, tier: int, *members: Mapping[str, Any]) -> dict[str, Any]:
    kind = "Node" if tier == 1 else "HyperNode"
    return {
        "apiVersion": "topology.volcano.sh/v1alpha1",
        "kind": "HyperNode",
        "metadata": {"name": name},
        "spec": {"tier": tier, "members": [{"type": kind, "selector": m} for m in members]},
    }


def exact(name: str) -> dict[str, Any]:
    return {"exactMatch": {"name": name}}


def regex(pattern: str) -> dict[str, Any]:
    return {"regexMatch": {"pattern": pattern}}


def listed(*items: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(items)}


def read(folder: Path, *documents: object, servers: int, name: str = "network.yaml") -> Network:
    """Read documents as a file, of which nothing must be assumed."""
    network, assumed = read_network(write(folder, *documents, name=name), servers)
    assert assumed == []
    return network


def write(folder: Path, *documents: object, name: str = "network.yaml") -> Path:
    path = folder / name
    if name.endswith(".json"):
        path.write_text(json.dumps(documents[0]))
    else:
        path.write_text("---\n".join(yaml.safe_dump(each, sort_keys=False) for each in documents))
    return path


FOUR = [
    node("node-1", block="block-1", rack="rack-1"),
    node("node-2", block="block-1", rack="rack-2"),
    node("node-3", block="block-2", rack="rack-1"),
    node("node-4", block="block-2", rack="rack-3"),
]
"""The table in Kueue's documentation: two racks have one name."""


@pytest.mark.parametrize(
    ("documents", "name"),
    [
        ([listed(*FOUR)], "network.yaml"),
        (FOUR, "network.yaml"),
        ([{**listed(*FOUR), "kind": "NodeList"}], "network.yaml"),
        ([listed(*FOUR)], "network.json"),
    ],
)
def test_racks_are_named_within_their_block(
    tmp_path: Path, documents: Sequence[object], name: str
) -> None:
    network = read(tmp_path, *documents, servers=4, name=name)
    assert network.leaf == (0, 1, 2, 3)
    assert network.block == (0, 0, 1, 1)
    assert network.leaf_names == ("rack-1", "rack-2", "rack-1", "rack-3")
    assert network.block_names == ("block-1", "block-2")
    assert network.level_of([0, 2]) == NetworkLevel.CLUSTER


def test_a_list_of_the_api_leaves_the_kind_out(tmp_path: Path) -> None:
    bare = [{"metadata": each["metadata"]} for each in FOUR]
    assert read(tmp_path, {"kind": "NodeList", "items": bare}, servers=4).num_leaves == 4


@pytest.mark.parametrize(("leaf", "block"), PAIRS)
def test_every_pair_of_labels_is_read(tmp_path: Path, leaf: str, block: str) -> None:
    places = (("a", "x"), ("a", "x"), ("b", "x"), ("c", "y"))
    nodes = [
        node(f"n{i}", **{leaf: at, block: above, ZONE: "z"}) for i, (at, above) in enumerate(places)
    ]
    network = read(tmp_path, listed(*nodes), servers=4)
    assert network.leaf == (0, 0, 1, 2)
    assert network.block == (0, 0, 0, 1)
    assert network.leaf_names == ("a", "b", "c")
    assert network.block_names == ("x", "y")


def test_three_layers_of_eks_are_told_from_four(tmp_path: Path) -> None:
    key = "topology.k8s.aws/network-node-layer-{}"
    three = {key.format(1): "t", key.format(2): "m", key.format(3): "b"}
    network = read(tmp_path, listed(node("n", **three)), servers=1)
    assert (network.leaf_names, network.block_names) == (("b",), ("m",))
    network = read(tmp_path, listed(node("n", **three, **{key.format(4): "l"})), servers=1)
    assert (network.leaf_names, network.block_names) == (("l",), ("b",))


def test_the_labels_that_most_nodes_have_count(tmp_path: Path) -> None:
    gke = {
        "cloud.google.com/gce-topology-subblock": "s",
        "cloud.google.com/gce-topology-block": "b",
    }
    nodes = [node("a", rack="r", **gke), node("b", **gke), node("c", **gke)]
    assert read(tmp_path, listed(*nodes), servers=3).leaf_names == ("s",)


def test_without_a_block_all_are_in_one_or_in_their_zone(tmp_path: Path) -> None:
    racks = read(tmp_path, listed(node("a", rack="r"), node("b", rack="s")), servers=2)
    assert (racks.leaf, racks.block) == ((0, 1), (0, 0))
    assert racks.block_name(0) == "block 0"
    zones = [node("a", rack="r", zone="z"), node("b", rack="r", zone="y")]
    assert read(tmp_path, listed(*zones), servers=2).block_names == ("z", "y")


def test_nodes_without_labels_hang_alone(tmp_path: Path) -> None:
    nodes = [
        node("a", rack="r", block="b"),
        node("b"),
        node("c", block="b"),
        node("d", rack="d"),
        node("e", rack="d"),
    ]
    network, assumed = read_network(write(tmp_path, listed(*nodes)), 5)
    assert network.leaf == (0, 1, 2, 3, 3)
    assert network.block == (0, 1, 0, 2, 2)
    assert network.leaf_names == ("r", "b", "c", "d")
    assert network.block_names == ("b", "b", "d")
    where = tmp_path / "network.yaml"
    assert assumed == [
        f"{where}: 2 of 5 nodes have no leaf (b, c); each is one of its own",
        f"{where}: 3 of 5 nodes have no block (b, d, e); each of their leaves is one of its own",
    ]


def test_servers_name_the_file_of_their_network(tmp_path: Path) -> None:
    path = write(tmp_path, listed(*FOUR))
    fleet = parse_servers(f"3*a100,rtx4090@{path}")
    assert fleet.network is not None
    assert fleet.network.block_names == ("block-1", "block-2")
    path = write(tmp_path, listed(*FOUR[:1], node("x", block="b")))
    with pytest.warns(TopologyWarning, match=r"1 of 2 nodes have no leaf \(x\)"):
        parse_servers(f"2*a100@{path}")
    with pytest.raises(TopologyError, match="2 nodes for 3 servers; legal: as many"):
        parse_servers(f"3*a100@{path}")
    with pytest.raises(TopologyError, match=r"none\.yaml: no such file"):
        parse_servers("3*a100@none.yaml")
    with pytest.raises(UnknownNameError, match=r"unknown network 'none'; legal: .*path of a file"):
        parse_servers("3*a100@none")


def test_hypernodes_name_their_nodes(tmp_path: Path) -> None:
    objects = [
        hypernode("s4", 2, exact("s0"), exact("s1")),
        hypernode("s0", 1, exact("node-1"), exact("node-0")),
        hypernode("s1", 1, exact("node-2")),
        hypernode("s2", 1, exact("node-3")),
        hypernode("s5", 2, exact("s2"), exact("gone")),
        hypernode("s6", 3, exact("s4"), exact("s5")),
    ]
    for documents in ([listed(*objects)], objects):
        network = read(tmp_path, *documents, servers=4)
        assert network.leaf == (0, 0, 1, 2)
        assert network.block == (0, 0, 0, 1)
        assert network.leaf_names == ("s0", "s1", "s2")
        assert network.block_names == ("s4", "s5")


def test_hypernodes_choose_among_the_nodes_beside_them(tmp_path: Path) -> None:
    nodes = [node("gpu-a-0", tor="x"), node("gpu-b-0"), node("gpu-a-12"), node("other", tor="y")]
    not_y = {"key": "tor", "operator": "In", "values": ["x", "y"]}
    objects = [
        hypernode("a", 1, regex(r"^gpu-a-[0-9]+$")),
        hypernode("b", 1, regex("-b-"), exact("filtered-out")),
        hypernode(
            "c", 1, {"labelMatch": {"matchLabels": {"tor": "y"}, "matchExpressions": [not_y]}}
        ),
        hypernode("top", 2, exact("a"), exact("b"), exact("c")),
    ]
    network = read(tmp_path, listed(*nodes, *objects), servers=4)
    assert network.leaf == (0, 1, 0, 2)
    assert network.leaf_names == ("a", "b", "c")
    assert network.num_blocks == 1


@pytest.mark.parametrize(
    ("operator", "values", "found"),
    [
        ("In", ["x"], "a"),
        ("NotIn", ["x"], "bc"),
        ("Exists", None, "ab"),
        ("DoesNotExist", None, "c"),
    ],
)
def test_labels_are_matched_as_kubernetes_does(
    tmp_path: Path, operator: str, values: list[str] | None, found: str
) -> None:
    requirement = {"key": "tor", "operator": operator, **({"values": values} if values else {})}
    nodes = [node("a", tor="x"), node("b", tor="y"), node("c")]
    rest = [exact(name) for name in "abc" if name not in found]
    objects = [
        hypernode("chosen", 1, {"labelMatch": {"matchExpressions": [requirement]}}),
        hypernode("rest", 1, {"labelMatch": {}}, *rest),
    ]
    network = read(tmp_path, listed(*nodes, *objects), servers=3)
    chosen = [network.leaf_name(leaf) == "chosen" for leaf in network.leaf]
    assert chosen == [name in found for name in "abc"]


def test_plain_leaves_and_blocks(tmp_path: Path) -> None:
    network = read(tmp_path, {"leaves": {"r1": 2, "r2": ["n1"]}}, servers=3)
    assert (network.leaf, network.block) == ((0, 0, 1), (0, 0, 0))
    assert network.leaf_names == ("r1", "r2")
    document = {"blocks": {"b1": {"r1": 1, "r2": 2}, "b2": {"r1": ["n1", "n2"]}}}
    network = read(tmp_path, document, servers=5, name="network.json")
    assert network.leaf == (0, 1, 1, 2, 2)
    assert network.block == (0, 0, 0, 1, 1)
    assert network.leaf_names == ("r1", "r2", "r1")


NO_LABELS = (
    "none of 1 nodes has a label of its leaf or block; legal: cloud.provider.com/topology-rack"
)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([listed(node("a"))], NO_LABELS),
        ([listed()], "no objects; legal: Node or HyperNode objects"),
        (
            [listed(node("a", rack="r"), node("a", rack="s"))],
            "Node 'a' is listed twice; legal: once",
        ),
        ([listed({"kind": "Pod"})], r"items\[0\]\.kind: 'Pod'; legal: Node, HyperNode"),
        ([listed(node("a", rack="\x1b[31m"))], r"label cloud\.provider.*legal: a name of letters"),
        ([listed(node("a b", rack="r"))], r"metadata\.name: 'a b'; legal: a name of letters"),
        (
            [listed({"kind": "Node", "metadata": {"name": "a", "labels": 3}})],
            "labels: 3; legal: a map",
        ),
        ([{"kind": "List", "items": 3}], "items: 3; legal: a list"),
        ([{"kind": 3}], "kind: 3; legal: a text"),
        (["words"], "'words'; legal: a map of fields"),
        ([{}], "fields none; legal: leaves or blocks"),
        ([{"leafs": {}}], "fields 'leafs'; legal: leaves or blocks"),
        ([{"leaves": {"a": 1}, "blocks": {}}], "fields 'blocks', 'leaves'; legal: leaves or"),
        ([{"leaves": {"a": 0}}], r"leaves\.a: 0; legal: a count from 1 on, or names of nodes"),
        ([{"leaves": {"a": True}}], r"leaves\.a: True; legal: a count"),
        ([{"leaves": {"a": []}}], r"leaves\.a: a list; legal: a count"),
        ([{"leaves": {"a": 10**12}}], "more than 100000 nodes; legal: up to 100000"),
        ([{"leaves": {"a": ["n"], "b": ["n"]}}], "node 'n' is on leaf 'a' and on leaf 'b'; legal"),
        ([{"leaves": {1: 1}}], "leaves: 1; legal: a name"),
        ([{"blocks": {"b": {"a": 1}}}], "1 nodes for 2 servers; legal: as many"),
        ([{"blocks": {"b": 2}}], r"blocks\.b: 2; legal: a map of fields"),
        ([hypernode("s", 2, exact("n"))], "no HyperNode of tier 1; legal: one at least"),
        ([hypernode("s", 0, exact("n"))], "tier: 0; legal: 1 or more"),
        (
            [hypernode("s", 1, exact("n")), hypernode("t", 1, exact("n"))],
            "node 'n' is on leaf 's' and 't'; legal: one",
        ),
        (
            [
                hypernode("s", 1, exact("n")),
                hypernode("b", 2, exact("s")),
                hypernode("c", 2, exact("s")),
            ],
            "leaf 's' is in block 'b' and 'c'; legal: one",
        ),
        (
            [hypernode("s", 1, exact("n")), hypernode("t", 1, regex("^m"))],
            "regexMatch matches no node that the file names; legal: the Nodes beside",
        ),
        ([hypernode("s", 1, {})], "selector: 0 kinds of match; legal: one of exactMatch"),
        ([hypernode("s", 1, {**exact("n"), **regex("n")})], "2 kinds of match; legal: one of"),
        ([hypernode("s", 1, {"exactMatch": {}})], "name: missing; legal: a text"),
        (
            [hypernode("s", 1, exact("n")), hypernode("b", 2, regex("s"))],
            "no exactMatch; legal: exactMatch for HyperNodes",
        ),
        (
            [
                node("n"),
                hypernode("s", 1, {"labelMatch": {"matchExpressions": [{"operator": "Gt"}]}}),
            ],
            "operator: 'Gt'; legal: In, NotIn, Exists, DoesNotExist",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, documents: Sequence[object], message: str) -> None:
    path = write(tmp_path, *documents)
    with pytest.raises(TopologyError, match=message) as caught:
        read_network(path, 2)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "a|b",
        "[z-a]",
        "(?i)a",
        "a*b*c*",
        "[a-",
        r"\p{L}",
        "a" * 254,
        "a++",
        ".*" * 2 + "?",
    ],
)
def test_patterns_that_may_take_for_ever_are_refused(tmp_path: Path, pattern: str) -> None:
    path = write(tmp_path, listed(node("a" * 60), hypernode("s", 1, regex(pattern))))
    with pytest.raises(TopologyError, match=r"pattern .*; legal: "):
        read_network(path, 1)


def test_untrusted_files_end_soon(tmp_path: Path) -> None:
    """Aliases make little text much: of nodes, of members, and of matches."""
    path = tmp_path / "bomb.yaml"
    names = ", ".join(f"n{i}" for i in range(1000))
    laughs = ["leaves:", f"  l: &l [{names}]", *(f"  l{i}: *l" for i in range(20_000))]
    members = ", ".join(["*m"] * 2000)
    hypernodes = [
        "kind: List",
        "x: &m {type: Node, selector: {regexMatch: {pattern: '.*a.*'}}}",
        f"y: &s {{tier: 1, members: [{members}]}}",
        "items:",
        *(f"- {{kind: Node, metadata: {{name: {'a' * 250}{i}}}}}" for i in range(500)),
        *(f"- {{kind: HyperNode, metadata: {{name: h{i}}}, spec: *s}}" for i in range(2000)),
    ]
    for lines in (laughs, hypernodes):
        path.write_text("\n".join(lines))
        begin = time.perf_counter()
        with pytest.raises(FlextopoError, match=r"is on leaf|legal: up to|too many"):
            read_network(path, 1000)
        assert time.perf_counter() - begin < 20


@pytest.mark.parametrize("form", ["labels", "regex", "plain"])
def test_a_thousand_nodes(tmp_path: Path, form: str) -> None:
    names = [f"gpu-{i // 8:03d}-{i % 8}" for i in range(1000)]
    nodes = [
        node(name, rack=f"rack-{i % 40 // 8}", block=f"block-{i // 40}")
        for i, name in enumerate(names)
    ]
    if form == "plain":
        blocks = {f"block-{b}": {f"rack-{i}": 8 for i in range(5)} for b in range(25)}
        path = write(tmp_path, {"blocks": blocks}, name="network.json")
    elif form == "labels":
        path = write(tmp_path, listed(*nodes), name="network.json")
    else:
        leaves = [hypernode(f"l{i}", 1, regex(f"^gpu-{i:03d}-")) for i in range(125)]
        above = [
            hypernode(f"b{b}", 2, *(exact(f"l{5 * b + i}") for i in range(5))) for b in range(25)
        ]
        path = write(tmp_path, listed(*nodes, *leaves, *above), name="network.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fleet = parse_servers(f"600*a100,400*rtx4090@{path}")
    assert fleet.network is not None
    assert fleet.network.leaf == tuple(i // 8 for i in range(1000))
    assert fleet.network.block == tuple(i // 40 for i in range(1000))
