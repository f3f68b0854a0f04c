"""A cluster in one file, in place of a watch: Kubernetes objects as YAML or JSON."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import KINDS, KubeObject, ObjectError, PodObject, key_of

MAX_BYTES = 512 * 2**20
"""Largest snapshot; 80,000 pods of 5 kB are 400 MB."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe loader that leaves times as text, as JSON has them."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Kind(msgspec.Struct):
    kind: str = ""


class _List(msgspec.Struct):
    kind: str = ""
    items: list[msgspec.Raw] | None = None


def load_snapshot(path: Path, clock: Callable[[], int] | None = None) -> ClusterCache:
    """Load a cluster.

    Args:
        path: what `kubectl get pods,nodes,flextopos,pdb,priorityclasses -A -o json` (or yaml)
            writes: a List, or any number of YAML documents, each an object or a List. Pods may
            lack a uid, which then is `namespace/name`.
        clock: Unix time in seconds, the system's by default.

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
    cache = ClusterCache(clock)
    # Millions of objects are made and none is let go: the collector would only walk them.
    gc.disable()
    try:
        _fill(cache, data, str(path))
    finally:
        gc.enable()
    for place, problem in cache.problems.items():
        raise ObjectError(f"{path}: {place}: {problem}")
    if not cache.nodes.states:
        raise ObjectError(f"{path}: no node with GPUs; legal: one at least")
    return cache


def _fill(cache: ClusterCache, data: bytes, source: str) -> None:
    objects = _from_json if data.lstrip()[:1] in (b"{", b"[") else _from_yaml
    # Classes and groups say how pods are to be read, so they come first.
    read = sorted(objects(data, source), key=lambda obj: isinstance(obj, PodObject))
    for obj in read:
        if isinstance(obj, PodObject):
            obj.metadata.namespace = obj.metadata.namespace or "default"
            obj.metadata.uid = obj.metadata.uid or key_of(obj.metadata)
        cache.put(obj)
    cache.refresh()


def _from_json(data: bytes, source: str) -> Iterator[KubeObject]:
    try:
        if data.lstrip()[:1] == b"[":
            raws: list[msgspec.Raw] = msgspec.json.decode(data, type=list[msgspec.Raw])
        else:
            whole = msgspec.json.decode(data, type=_List)
            raws = [msgspec.Raw(data)] if whole.items is None else whole.items
        for i, raw in enumerate(raws):
            kind = msgspec.json.decode(raw, type=_Kind).kind
            yield msgspec.json.decode(raw, type=_type_of(kind, f"{source}: items[{i}]"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectError(f"{source}: {error}") from None


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
            kind = item.get("kind") if isinstance(item, dict) else None
            try:
                yield msgspec.convert(item, _type_of(str(kind), where))
            except msgspec.ValidationError as error:
                raise ObjectError(f"{where}: {error}") from None


def _type_of(kind: str, where: str) -> type[KubeObject]:
    try:
        return KINDS[kind]
    except KeyError:
        raise ObjectError(f"{where}: kind {kind!r}; legal: {', '.join(KINDS)}") from None
