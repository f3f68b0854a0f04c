"""YAML and JSON that nobody trusts: parsed without tricks, and its fields checked one by one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from flextopo.cluster.errors import TopologyError

_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?"


def parse_document(text: str, source: str) -> object:
    """Parse YAML or JSON text without trusting it.

    Raises:
        TopologyError: it is neither, or more than one document; the message names the line.
    """
    documents = parse_documents(text, source)
    if len(documents) > 1:
        raise TopologyError(f"{source}: {len(documents)} documents; legal: one")
    return documents[0] if documents else None


def parse_documents(text: str, source: str) -> list[object]:
    """Parse the documents of a YAML text, or the one of a JSON text.

    Raises:
        TopologyError: it is neither; the message names the line.
    """
    if not text.lstrip().startswith(("{", "[")):
        return _parse_yaml(text, source)
    try:
        return [json.loads(text)]
    except json.JSONDecodeError as error:
        raise TopologyError(
            f"{source}:{error.lineno}: {error.msg} in column {error.colno}; legal: JSON"
        ) from None
    except (ValueError, RecursionError):
        raise TopologyError(
            f"{source}: a number too long or nesting too deep; legal: an object as tools write it"
        ) from None


def _parse_yaml(text: str, source: str) -> list[object]:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            # Merge keys copy their aliases: a few lines of them can grow to gigabytes.
            for key, _ in node.value:
                if key.tag == "tag:yaml.org,2002:merge":
                    raise yaml.MarkedYAMLError(problem="merge key", problem_mark=key.start_mark)

    try:
        return list(yaml.load_all(text, Loader=Loader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise TopologyError(f"{source}:{line}: {error.problem}; legal: plain YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0] or "unreadable"
        raise TopologyError(f"{source}: {reason}; legal: plain YAML") from None


def mapping(value: object, where: str) -> Mapping[Any, Any]:
    """Return a value that must be a map.

    Raises:
        TopologyError: it is none.
    """
    if not isinstance(value, Mapping):
        raise TopologyError(f"{where}: {show(value)}; legal: a map of fields")
    return value


def list_field(fields: Mapping[Any, Any], key: str, where: str) -> list[object]:
    """Return a field that must be a list.

    Raises:
        TopologyError: it is none.
    """
    value = fields.get(key)
    if not isinstance(value, list):
        raise TopologyError(f"{where}.{key}: {show(value)}; legal: a list")
    return value


def text_field(fields: Mapping[Any, Any], key: str, where: str) -> str:
    """Return a field that must be a text and not empty.

    Raises:
        TopologyError: it is none.
    """
    value = fields.get(key)
    if not isinstance(value, str) or not value:
        raise TopologyError(f"{where}.{key}: {show(value)}; legal: a text that is not empty")
    return value


def check_name(name: object, where: str) -> str:
    """Return a name of a node or of what holds nodes; Kubernetes allows no others in labels.

    Raises:
        TopologyError: it is none.
    """
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise TopologyError(
            f"{where}: {show(name)}; legal: a name of letters and digits, with -, _ and . inside"
        )
    return name


def show(value: object) -> str:
    """Quote a value in a message; never a list or map, which may be a whole document."""
    if value is None:
        return "missing"
    if isinstance(value, Mapping | list):
        return "a map" if isinstance(value, Mapping) else "a list"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
