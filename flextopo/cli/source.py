"""What modules declare, read from their source: importing some of them takes a second or more."""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from typing import Any


@lru_cache
def statements(module: str) -> list[ast.stmt]:
    """Return the statements of a module, by its full name, without running it."""
    spec = importlib.util.find_spec(module)
    source = getattr(spec and spec.loader, "get_source", lambda _: None)(module)
    return ast.parse(source or "").body


def declared_class(module: str, name: str) -> ast.ClassDef:
    """Return a class of a module."""
    for node in statements(module):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(f"{module} declares no class {name}")


def declared_value(module: str, name: str) -> ast.expr:
    """Return what a module assigns to a name."""
    for node in statements(module):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and name in [getattr(target, "id", None) for target in targets]:
            return value  # type: ignore[no-any-return]
    raise LookupError(f"{module} assigns no {name}")


def constant(node: ast.expr) -> Any:
    """Return the value of an expression of constants, such as `4 * 3600`; else None."""
    if any(isinstance(part, ast.Name | ast.Call | ast.Attribute) for part in ast.walk(node)):
        return None
    return eval(compile(ast.Expression(node), "source", "eval"), {"__builtins__": {}})
