"""A cluster in one file, in place of a watch: Kubernetes objects as YAML or JSON."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import msgspec
import yaml

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import KINDS, KubeObject, ObjectError, PodObject, key_of
from flextopo.policies.serving.records import CLASS_BANDS

MAX_BYTES = 512 * 2**20
"""Largest snapshot; 80,000 pods of 5 kB are 400 MB."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that leaves times as text, as JSON has them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


_TAGGED = [
    msgspec.defstruct(name, [], bases=(kind,), tag_field="kind", tag=name)
    for name, kind in KINDS.items()
]
_Object: Any = reduce(or_, _TAGGED)


class _List(msgspec.Struct):
    items: list[_Object] | None = None


def load_snapshot(
    path: Path, clock: Callable[[], int] | None = None, bands: Sequence[int] = CLASS_BANDS
) -> ClusterCache:
    """Load a cluster.

    Args:
        path: what `kubectl get pods,nodes,flextopos,pdb,priorityclasses -A -o json` (or yaml)
            writes: a List, or any number of YAML documents, each an object or a List. Pods may
            lack a uid, which then is `namespace/name`.
        clock: Unix time in seconds, the system's by default.
        bands: priorities from which on batch pods are of class 1, 2, ...

    Raises:
        ObjectError: the file cannot be read, is too large, or an object in it is illegal.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ObjectError(
            f"{path}: {error.strerror}; legal: a file of Kubernetes objects"
        ) from None
    if len(data) > MAX_BYTES:
        raise ObjectError(f"{path}: over {MAX_BYTES >> 20} MiB; legal: up to that")
    cache = ClusterCache(clock, bands)
    # Millions of objects are made and hardly any is let go: the collector would only walk them.
    gc.disable()
    try:
        _fill(cache, data, str(path))
    finally:
        gc.freeze()
        gc.enable()
    for place, problem in cache.problems.items():
        raise ObjectError(f"{path}: {place}: {problem}")
    if not cache.nodes.states:
        raise ObjectError(f"{path}: no node with GPUs; legal: one at least")
    return cache


def _fill(cache: ClusterCache, data: bytes, source: str) -> None:
    is_json = data.lstrip()[:1] in (b"{", b"[")
    objects: Iterable[KubeObject] = (_from_json if is_json else _from_yaml)(data, source)
    # Classes and groups say how pods are to be read, so they come first.
    for obj in sorted(objects, key=lambda obj: isinstance(obj, PodObject)):
        if isinstance(obj, PodObject):
            obj.metadata.namespace = obj.metadata.namespace or "default"
            obj.metadata.uid = obj.metadata.uid or key_of(obj.metadata)
        cache.put(obj)
    cache.refresh()


def _from_json(data: bytes, source: str) -> list[KubeObject]:
    items: list[KubeObject] | None
    if data.lstrip()[:1] == b"[":
        items = _decode(data, list[_Object], source)
    else:
        items = _decode(data, _List, source).items
    return [_decode(data, _Object, source)] if items is None else items


def _decode(data: bytes, kind: Any, source: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        legal = f"; legal: {', '.join(KINDS)}" if "kind`" in str(error) else ""
        raise ObjectError(f"{source}: {error}{legal}") from None


def _from_yaml(data: bytes, source: str) -> Iterator[KubeObject]:
    try:
        documents = list(yaml.load_all(data, _Loader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ObjectError(f"{source}: no YAML ({' '.join(str(error).split())})") from None
    for i, document in enumerate(documents):
        if document is None:
            continue
        if not isinstance(document, dict):
            raise ObjectError(f"{source}: document {i} is no object; legal: Kubernetes objects")
        items: list[Any] = document.get("items", [document])
        if not isinstance(items, list):
            raise ObjectError(f"{source}: document {i}: items is no list; legal: a list")
        for j, item in enumerate(items):
            where = f"{source}: document {i}, items[{j}]"
            try:
                if _size(item, {}) > MAX_BYTES:
                    raise ValueError("its aliases make it too large")
                encoded = msgspec.json.encode(item)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise ObjectError(f"{where}: {error}; legal: what JSON can say") from None
            yield _decode(encoded, _Object, where)


def _size(value: Any, known: dict[int, int]) -> int:
    """Return about how long a YAML value is as JSON, where nothing has an alias any more."""
    if not isinstance(value, dict | list):
        return len(value) if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = MAX_BYTES + 1  # unless it contains itself
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]
