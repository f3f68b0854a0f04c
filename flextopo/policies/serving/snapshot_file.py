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


_KIND = msgspec.json.Decoder(_Kind)
_DECODERS: dict[str, msgspec.json.Decoder[KubeObject]] = {
    name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()
}


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
            yield _read(raw, f"{source}: items[{i}]")
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
            try:
                if _size(item, {}) > MAX_BYTES:
                    raise ValueError("its aliases make it too large")
                encoded = msgspec.json.encode(item)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise ObjectError(f"{where}: {error}; legal: what JSON can say") from None
            yield _read(msgspec.Raw(encoded), where)


def _size(value: Any, known: dict[int, int]) -> int:
    """Return about how long a YAML value is as JSON, where nothing has an alias any more."""
    if not isinstance(value, dict | list):
        return len(value) if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = MAX_BYTES + 1  # unless it contains itself
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]


def _read(raw: msgspec.Raw, where: str) -> KubeObject:
    """Decode an object by its kind.

    Raises:
        ObjectError: it is of another kind, or not of that kind's form.
    """
    try:
        kind = _KIND.decode(raw).kind
        if kind in _DECODERS:
            return _DECODERS[kind].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectError(f"{where}: {error}") from None
    raise ObjectError(f"{where}: kind {kind!r}; legal: {', '.join(KINDS)}")
