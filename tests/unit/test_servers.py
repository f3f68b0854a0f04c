"""The servers of a cluster as a person writes them."""

import re
import warnings
from pathlib import Path

import pytest

from flextopo.cluster.errors import FlextopoError, TopologyError, UnknownNameError
from flextopo.cluster.topology.captures.load import TopologyWarning
from flextopo.cluster.topology.flextopo import build_graph
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import Fleet, ServerModel, preset
from flextopo.cluster.topology.network import MAX_SERVERS, Network
from flextopo.cluster.topology.resource import write_resource
from flextopo.cluster.topology.servers import check_servers, parse_servers
from flextopo.train.compare import find_fleet

RTX, A100 = preset("rtx4090"), preset("a100")
SMALL = ServerModel("small", (0,), (0,), (4,), gpu_name="T4")


@pytest.mark.parametrize(
    ("text", "models", "nodes"),
    [
        ("rtx4090", (RTX,), (0,)),
        ("rtx4090x16", (RTX,), (0,) * 16),
        ("a100x16", (A100,), (0,) * 16),
        ("16*rtx4090", (RTX,), (0,) * 16),
        ("2*rtx4090,3*a100", (RTX, A100), (0, 0, 1, 1, 1)),
        (" 1 * a100 , rtx4090x2 ", (A100, RTX), (0, 1, 1)),
        ("a100,rtx4090,2*a100", (A100, RTX), (0, 1, 0, 0)),
    ],
)
def test_presets(text: str, models: tuple[ServerModel, ...], nodes: tuple[int, ...]) -> None:
    assert parse_servers(text) == Fleet(models, nodes)


def test_a_file_among_presets(tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    write_resource(build_graph(SMALL, "small"), path)
    assert parse_servers(f"2*rtx4090,2*{path},{path}") == Fleet((RTX, SMALL), (0, 0, 1, 1, 1))


def test_a_file_without_ending_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_resource(build_graph(SMALL, "small"), tmp_path / "any.yaml")
    (tmp_path / "any.yaml").rename(tmp_path / "any")
    monkeypatch.chdir(tmp_path)
    assert parse_servers("any") == Fleet((SMALL,), (0,))


def test_files_of_one_name_stay_apart(tmp_path: Path) -> None:
    other = ServerModel("small", (), (0,), (2,))
    for folder, model in (("a", SMALL), ("b", other), ("c", SMALL)):
        (tmp_path / folder).mkdir()
        write_resource(build_graph(model, "small"), tmp_path / folder / "f.yaml")
    fleet = parse_servers(",".join(f"{tmp_path}/{folder}/f.yaml" for folder in "abc"))
    assert [model.name for model in fleet.models] == ["small", f"{tmp_path}/b/f.yaml"]
    assert fleet.node_model == (0, 1, 0)


def test_a_file_called_like_a_preset_stays_apart(tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    write_resource(build_graph(SMALL, "rtx4090"), path)
    fleet = parse_servers(f"{path},rtx4090")
    assert [model.name for model in fleet.models] == [str(path), "rtx4090"]
    assert fleet.node_model == (0, 1)


def test_assumptions_are_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "host.csv"
    path.write_text("0,0,0,0\n1,1,0,0\n")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        check_servers(f"2*{path},rtx4090")
    assert not told
    with pytest.raises(UnknownNameError, match="unknown server 'lathe'"):
        check_servers(f"2*{path},lathe")
    with pytest.warns(TopologyWarning, match="GPUs are not listed"):
        models = parse_servers(f"3*{path},rtx4090").models[:1]
    assert models == (ServerModel("host", (), (0,), (2,)),)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse_servers(f"{path},{path},rtx4090")
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no servers are given; legal: NAME, NAMExCOUNT, COUNT*NAME or COUNT*FILE"),
        ("  ", "no servers are given"),
        ("8*rtx4090,,a100", "item '' of the servers names none; legal: NAME"),
        ("8*", "item '8*' of the servers names none"),
        ("rtx4090x0", "count '0' of 'rtx4090'; legal: 1 to 100000"),
        ("rtx4090x-3", "count '-3' of 'rtx4090'; legal: 1 to 100000"),
        ("0*a100", "count '0' of 'a100'; legal: 1 to 100000"),
        ("-1*a100", "count '-1' of 'a100'; legal: 1 to 100000"),
        ("1.5*a100", "count '1.5' of 'a100'"),
        ("*a100", "count '' of 'a100'"),
        ("9" * 5000 + "*a100", "of 'a100'; legal: 1 to 100000"),
        ("100001*a100", "100001 servers; legal: 1 to 100000"),
        ("60000*a100,60000*rtx4090", "120000 servers; legal: 1 to 100000"),
        ("no/such.xml", "no/such.xml: no such file"),
        ("2*such.yaml", "such.yaml: no such file"),
    ],
)
def test_illegal_texts(text: str, message: str) -> None:
    with pytest.raises(TopologyError, match=re.escape(message)) as caught:
        parse_servers(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["h100", "4*h100", "h100x4", "a100,RTX4090"])
def test_unknown_names(text: str) -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown server '.*'; legal: a100, .*, rtx4090, the"
    ):
        parse_servers(text)


def test_the_largest_cluster() -> None:
    assert parse_servers(f"{MAX_SERVERS}*a100").num_nodes == MAX_SERVERS


def test_a_network_stands_behind_the_servers() -> None:
    fleet = parse_servers("8*rtx4090,4*a100@leaf4")
    assert fleet.network is not None
    assert fleet.network.leaf == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert fleet.network.block == (0,) * 12
    assert fleet.network.level_of([0, 0]) == NetworkLevel.SERVER
    assert fleet.network.level_of([0, 3]) == NetworkLevel.LEAF
    assert fleet.network.level_of([0, 4]) == NetworkLevel.BLOCK
    assert parse_servers("4*a100").network is None


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="network 'leaf5'; legal: leaf16, leaf32, leaf4"):
        parse_servers("8*a100@leaf5")
    with pytest.raises(TopologyError, match="leaf 0 is in block 0 and in block 1"):
        Network((0, 0), (0, 1))


@pytest.mark.parametrize("text", ["a" * 300, f"2*rtx4090@{'q' * 400}", f"2*./{'c' * 400}", "x\0y"])
def test_a_word_that_cannot_be_a_file_is_told_in_one_sentence(text: str) -> None:
    with pytest.raises(FlextopoError, match="legal: "):
        parse_servers(text)
    with pytest.raises(FlextopoError, match="legal: "):
        find_fleet(text)
