"""Within which ranges a policy was trained: `ranges.json` beside its weights, and the test by it.

A decision is out of range where a feature of the preemptor, of the cluster or of a candidate lies outside
what training observed, where a candidate is on a kind of server that training had none of, or where the
cluster has fewer or more servers than the policy was tried on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.observation.features import Observation
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.topology.model import ServerModel
from flextopo.policies.runtime import ArtifactError

FILE = "ranges.json"

MAX_BYTES = 50_000
"""Most bytes of a file of ranges; the shipped one has 5 kB."""

MOST = 10**9
"""Largest number that a file of ranges may hold."""

SLACK = 1e-6
"""What float32 may be off by."""

Layout = tuple[tuple[int, ...], ...]
"""GPUs of each NUMA node that has any, by socket, both sorted: `((4,), (4,))` has one such node a socket."""

Range = tuple[float, float]


@lru_cache(maxsize=256)
def layout_of(model: ServerModel) -> Layout:
    """Return where a server's GPUs are, whatever its sockets and NUMA nodes are numbered."""
    sockets: dict[int, list[int]] = {}
    for numa_node, socket in enumerate(model.numa_socket):
        gpus = model.gpu_numa.count(numa_node)
        if gpus:
            sockets.setdefault(socket, []).append(gpus)
    return tuple(sorted(tuple(sorted(each)) for each in sockets.values()))


@dataclass(frozen=True, eq=False)
class Ranges:
    """What a policy has seen in training.

    Attributes:
        features: lowest and highest value of each feature, by part of the observation, in the order in
            which the policy reads them.
        layouts: the kinds of servers.
        servers: fewest and most servers of a cluster.
        allowed: features that may lie outside of their range.
        about: how it was found, for people: tapes, decisions, quantile, margin, false alarms.
    """

    features: Mapping[str, Mapping[str, Range]]
    layouts: frozenset[Layout]
    servers: tuple[int, int]
    allowed: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def _bounds(self) -> dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Return the lowest and highest values by part, in its order."""
        found = {}
        for part, ranges in self.features.items():
            low, high = np.array(list(ranges.values()), np.float64).reshape(-1, 2).T
            found[part] = low - SLACK, high + SLACK
        return found

    def outside(self, o: Observation) -> list[str]:
        """Return the names of the features that lie outside of their range.

        Args:
            o: what the policy reads of one decision.
        """
        bad = self._outside(o)
        return [
            name
            for part in bad
            for name, out in zip(self.features[part], bad[part], strict=True)
            if out
        ]

    def count(self, o: Observation) -> npt.NDArray[np.int64]:
        """Return how many features lie outside of their range.

        Args:
            o: what the policy reads; of B decisions each array has a leading axis (B, ...).

        Returns:
            () int64, or (B,).
        """
        total: npt.NDArray[np.int64] = sum(bad.sum(-1) for bad in self._outside(o).values())
        return total

    def _outside(self, o: Observation) -> dict[str, npt.NDArray[np.bool_]]:
        """Return by part which features lie outside, (..., F); of candidates those that the mask has."""
        found = {}
        for part, (low, high) in self._bounds.items():
            values = getattr(o, part)
            bad = (values < low) | (values > high)
            if part == "candidates":
                bad = (bad & (o.mask[..., :-1, None] != 0)).any(-2)
            found[part] = bad
        return found

    def why(self, cluster: ClusterState, found: CandidateArrays, count: int, o: Observation) -> str:
        """Return why a decision is out of range, in words; empty = it is within.

        Args:
            cluster: as the policy sees it.
            found: the candidates that it looks at.
            count: how many there are, at least 1.
            o: what it reads of them.
        """
        servers = len(getattr(cluster, "whole", cluster.arrays).nodes)
        if not self.servers[0] <= servers <= self.servers[1]:
            return f"{servers} servers; in range: {self.servers[0]} to {self.servers[1]}"
        for model in np.unique(cluster.arrays.nodes["model"][found.node[:count]]):
            if layout_of(cluster.models[model]) not in self.layouts:
                return f"servers of another kind ({cluster.models[model].name})"
        if self.count(o) <= self.allowed:
            return ""
        return f"{', '.join(self.outside(o))} out of range"

    def document(self) -> dict[str, Any]:
        """Return them as they are saved."""
        return {
            **self.about,
            "allowed": self.allowed,
            "servers": list(self.servers),
            "layouts": sorted(self.layouts),
            "features": {part: dict(ranges) for part, ranges in self.features.items()},
        }


def read_ranges(path: Path, names: Mapping[str, Sequence[str]]) -> Ranges:
    """Read a file of ranges.

    Args:
        path: of the file.
        names: the features that the policy reads, by part of the observation.

    Raises:
        ArtifactError: it is missing, damaged, or of a policy that reads other features.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; legal: what `flextopo fit-ranges` writes"
        ) from None
    if len(blob) > MAX_BYTES:
        raise ArtifactError(f"{path}: {len(blob)} bytes; legal: up to {MAX_BYTES}")
    try:
        given = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from None
    if not isinstance(given, dict):
        raise ArtifactError(f"{path}: no JSON object; legal: what `flextopo fit-ranges` writes")
    keys = ("allowed", "servers", "layouts", "features")
    if missing := [key for key in keys if key not in given]:
        raise ArtifactError(f"{path}: no {missing[0]!r}; legal: {', '.join(keys)}")
    return Ranges(
        features=_read_features(given["features"], names, path),
        layouts=frozenset(_read_layouts(given["layouts"], path)),
        servers=_read_servers(given["servers"], path),
        allowed=_read_count(given["allowed"], path),
        about={key: value for key, value in given.items() if key not in keys},
    )


def check_ranges(folder: Path, names: Mapping[str, Sequence[str]]) -> bytes | None:
    """Return the file of ranges of a policy's folder, None where it has none.

    Raises:
        ArtifactError: it is damaged, or of a policy that reads other features.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    read_ranges(path, names)
    return path.read_bytes()


def _read_features(
    given: Any, names: Mapping[str, Sequence[str]], path: Path
) -> dict[str, dict[str, Range]]:
    found: dict[str, dict[str, Range]] = {}
    for part, features in names.items():
        ranges = given.get(part) if isinstance(given, dict) else None
        if not isinstance(ranges, dict) or list(ranges) != list(features):
            raise ArtifactError(
                f"{path}: features of {part} are not those that the policy reads; legal: "
                f"{', '.join(features)}"
            )
        found[part] = {}
        for name, values in ranges.items():
            if not _is_range(values):
                raise ArtifactError(f"{path}: {name} = {_shown(values)}; legal: [LOWEST, HIGHEST]")
            found[part][name] = (float(values[0]), float(values[1]))
    return found


def _shown(given: Any) -> str:
    """Return what a file says, shortened; numbers of thousands of digits have no text."""
    try:
        return f"{given!r:.60s}"
    except ValueError:
        return "a number of thousands of digits"


def _is_range(values: Any) -> bool:
    ok = isinstance(values, list) and len(values) == 2
    ok = ok and all(type(v) in (int, float) and -MOST <= v <= MOST for v in values)
    return ok and values[0] <= values[1]


def _read_layouts(given: Any, path: Path) -> list[Layout]:
    def is_layout(each: Any) -> bool:
        return isinstance(each, list) and all(
            isinstance(socket, list) and all(type(gpus) is int for gpus in socket)
            for socket in each
        )

    if not isinstance(given, list) or not all(map(is_layout, given)):
        raise ArtifactError(
            f"{path}: layouts = {_shown(given)}; legal: GPUs of NUMA nodes by socket"
        )
    return [tuple(tuple(socket) for socket in each) for each in given]


def _read_servers(given: Any, path: Path) -> tuple[int, int]:
    if not _is_range(given) or not all(type(value) is int for value in given):
        raise ArtifactError(f"{path}: servers = {_shown(given)}; legal: [FEWEST, MOST]")
    return given[0], given[1]


def _read_count(given: Any, path: Path) -> int:
    if type(given) is not int or not 0 <= given <= MOST:
        raise ArtifactError(f"{path}: allowed = {_shown(given)}; legal: a whole number, 0 or more")
    return given
