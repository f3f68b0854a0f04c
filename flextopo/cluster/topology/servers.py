"""The servers of a cluster as a person writes them: `8*rtx4090,8*my-server.xml`."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from os.path import isfile  # of a word that is too long for a name it says no, where Path raises

from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.topology.captures.load import TopologyWarning, load_server
from flextopo.cluster.topology.model import ISLANDS, PRESETS, Fleet, ServerModel, preset
from flextopo.cluster.topology.network import MAX_SERVERS, NETWORKS, Network, network_preset
from flextopo.cluster.topology.network_file import read_network

_FORMS = "NAME, NAMExCOUNT, COUNT*NAME or COUNT*FILE, joined by commas"


def parse_servers(text: str) -> Fleet:
    """Parse the servers of a cluster.

    Args:
        text: `rtx4090x16`, `16*rtx4090`, `8*rtx4090,8*a100`, `8*rtx4090,8*server.xml`; a file is a
            FlexTopo resource or any capture that `load_server` reads. With `+islands` behind a name
            or file, its GPUs are told apart by PCIe switch or NVLink island, too. Behind all of
            them may stand their network: a preset (`64*a100@leaf8`, see `network.NETWORKS`), or a
            file (`64*a100@network.yaml`, see `network_file.read_network`).

    Returns:
        The servers; the distinct models are in order of appearance.

    Raises:
        UnknownNameError: a name is neither a preset nor a file.
        TopologyError: no servers, more than 100,000, a count below 1, a file that cannot be read, or
            a network of more or fewer nodes.

    Warns:
        TopologyWarning: something about a file's server, or its place, had to be assumed.
    """
    if not text.strip():
        raise TopologyError(f"no servers are given; legal: {_FORMS}")
    text, at, network = text.rpartition("@") if "@" in text else (text, "", "")
    counted = [_count(item.strip()) for item in text.split(",")]
    total = sum(count for count, _ in counted)
    if total > MAX_SERVERS:
        raise TopologyError(f"{total} servers; legal: 1 to {MAX_SERVERS}")
    models: list[ServerModel] = []
    indices: dict[str, int] = {}
    nodes: list[int] = []
    for count, name in counted:
        if name not in indices:
            indices[name] = _add_model(models, _server(name), name)
        nodes += [indices[name]] * count
    found = _network(network.strip(), total) if at else None
    return Fleet(tuple(models), tuple(nodes), found)


def check_servers(text: str) -> None:
    """Raise what `parse_servers` raises, and leave its warnings to whoever uses the servers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TopologyWarning)
        parse_servers(text)


def _count(item: str) -> tuple[int, str]:
    """Split an item into how many servers and of what name."""
    count, star, name = item.partition("*")
    if not star:
        count, name = "1", item
        shorthand = re.fullmatch(f"({'|'.join(map(re.escape, PRESETS))})x([+-]?[0-9]+)", item)
        if shorthand:
            name, count = shorthand[1], shorthand[2]
    count, name = count.strip(), name.strip()
    if not name:
        raise TopologyError(f"item {item!r} of the servers names none; legal: {_FORMS}")
    # Nine digits already are too many servers, and longer numbers slow or break int().
    if not re.fullmatch("[0-9]{1,9}", count) or int(count) < 1:
        raise TopologyError(f"count {count[:40]!r} of {name!r}; legal: 1 to {MAX_SERVERS}")
    return int(count), name


def _server(name: str) -> ServerModel:
    islands = name.endswith(ISLANDS)
    if name.removesuffix(ISLANDS) in PRESETS:
        return preset(name)
    name = name.removesuffix(ISLANDS)
    # A word without ending or folder is meant as a name, unless there is such a file.
    if not re.search(r"[./\\]", name) and not isfile(name):
        raise UnknownNameError("server", name, [*PRESETS, "the path of a file"])
    model, assumed = load_server(name, islands=islands)
    for warning in assumed:
        warnings.warn(warning, TopologyWarning, stacklevel=3)
    return model


def _network(name: str, servers: int) -> Network:
    if name in NETWORKS:
        return network_preset(name, servers)
    if not re.search(r"[./\\]", name) and not isfile(name):
        raise UnknownNameError("network", name, [*NETWORKS, "the path of a file"])
    network, assumed = read_network(name, servers)
    for warning in assumed:
        warnings.warn(warning, TopologyWarning, stacklevel=3)
    return network


def _add_model(models: list[ServerModel], model: ServerModel, name: str) -> int:
    """Add a model unless it is there already; return its index."""
    for index, known in enumerate(models):
        if known == model:
            return index
    if model.name in {*PRESETS, *(known.name for known in models)} and name not in PRESETS:
        model = replace(model, name=name)
    models.append(model)
    return len(models) - 1
