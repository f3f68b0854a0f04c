"""No modules import each other in a circle, not even for types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx

import flextopo

PACKAGE = Path(flextopo.__file__).parent


def module_of(path: Path, package: Path) -> str:
    """Return the full name of a module of a package."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield what runs, or is read for types, at import: what is inside of functions is not."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody", "handlers"):
                yield from statements(getattr(node, block, []))


def import_graph(package: Path) -> nx.DiGraph:
    """Return which module of a package imports which."""
    paths = {module_of(path, package): path for path in sorted(package.rglob("*.py"))}
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_nodes_from(paths)
    for name, path in paths.items():
        for node in statements(ast.parse(path.read_text()).body):
            named: list[str] = []
            if isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                named = [each if each in paths else str(node.module) for each in inside]
            graph.add_edges_from((name, other) for other in named if other in paths)
    return graph


def circles(package: Path) -> list[list[str]]:
    """Return the sets of modules that import each other."""
    graph = import_graph(package)
    found = [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]
    return found + [[name] for name in graph if (name, name) in graph.edges]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert import_graph(PACKAGE).number_of_edges() > 300
    assert circles(PACKAGE) == []


def test_a_circle_is_noticed_also_where_it_is_for_types_alone(tmp_path: Path) -> None:
    package = tmp_path / "ring"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from ring.b import B\n")
    lazy = "def f():\n    from ring.a import A\n"
    (package / "b.py").write_text(lazy)
    assert circles(package) == []
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ring import a\n"
    (package / "b.py").write_text(typed)
    assert circles(package) == [["ring.a", "ring.b"]]
