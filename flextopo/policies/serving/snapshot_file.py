"""A cluster in one file, in place of a watch: Kubernetes objects as YAML or JSON."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
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


class _Head(msgspec.Struct):
    """What tells of what kind an object is."""

    kind: str = ""


class _List(msgspec.Struct):
    """A list of objects as they are written."""

    items: list[msgspec.Raw] | None = None


_HEAD, _LIST = msgspec.json.Decoder(_Head), msgspec.json.Decoder(_List)
_RAW_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in KINDS.items()}


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

    Returns:
        The cache. An object that cannot be used is left out, and `problems` says why; a node that
        such a pod is on is left out of decisions.

    Raises:
        ObjectError: the file cannot be read, is too large, or has no node with GPUs.
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
    if not cache.nodes.states:
        why = "".join(f"; {problem}" for problem in islice(cache.problems.values(), 1))
        raise ObjectError(f"{path}: no node with GPUs; legal: one at least{why}")
    return cache


def _fill(cache: ClusterCache, data: bytes, source: str) -> None:
    is_json = data.lstrip()[:1] in (b"{", b"[")
    raw = _from_json(data, source) if is_json else _from_yaml(data, source)
    objects: list[KubeObject] = []
    for place, item in raw:
        try:
            objects.append(_decode(item))
        except ObjectError as error:
            cache.problems[place] = str(error)
    # Classes and groups say how pods are to be read, so they come first.
    for obj in sorted(objects, key=lambda obj: isinstance(obj, PodObject)):
        if isinstance(obj, PodObject):
            obj.metadata.namespace = obj.metadata.namespace or "default"
            obj.metadata.uid = obj.metadata.uid or key_of(obj.metadata)
        cache.put(obj)
    cache.refresh()


def _decode(item: bytes | msgspec.Raw) -> KubeObject:
    try:
        kind = _HEAD.decode(item).kind
        if kind not in _DECODERS:
            raise ObjectError(f"kind {kind[:40]!r}; legal: {', '.join(KINDS)}")
        found: KubeObject = _DECODERS[kind].decode(item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectError(str(error)) from None
    return found


def _from_json(data: bytes, source: str) -> Iterator[tuple[str, bytes | msgspec.Raw]]:
    try:
        if data.lstrip()[:1] == b"[":
            items: list[msgspec.Raw] | None = _RAW_ITEMS.decode(data)
        else:
            items = _LIST.decode(data).items
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectError(f"{source}: {error}; legal: Kubernetes objects") from None
    if items is None:
        yield "object", data
    for i, item in enumerate(items or ()):
        yield f"items[{i}]", item


def _from_yaml(data: bytes, source: str) -> Iterator[tuple[str, bytes | msgspec.Raw]]:
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
            where = f"document {i}, items[{j}]"
            try:
                if _size(item, {}) > MAX_BYTES:
                    raise ValueError("its aliases make it too large")
                encoded = msgspec.json.encode(item)
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                raise ObjectError(f"{source}: {where}: {error}; legal: what JSON can say") from None
            yield where, encoded


def _size(value: Any, known: dict[int, int]) -> int:
    """Return about how long a YAML value is as JSON, where nothing has an alias any more."""
    if not isinstance(value, dict | list):
        return len(value) if isinstance(value, str) else 1
    if id(value) not in known:
        known[id(value)] = MAX_BYTES + 1  # unless it contains itself
        inside = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inside)
    return known[id(value)]
