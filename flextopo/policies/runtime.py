"""Run a trained scorer with numpy alone: no torch, no gymnasium; refuses what does not match.

An artifact is a folder with `weights.npz` (arrays by parameter name) and `meta.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.features import Observation, empty_observation, layout_hash, observe
from flextopo.cluster.pods import Pod
from flextopo.cluster.selector import AlignmentFilter, Candidate
from flextopo.cluster.state import ClusterState

ZOO = Path(__file__).parent / "zoo"

Array = npt.NDArray[np.float32]


class ArtifactError(FlextopoError):
    """Report an artifact that is missing, damaged, or made for another layout of features."""


def zoo_names() -> list[str]:
    """Return the names of the policies that ship with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/meta.json"))


def score(weights: Mapping[str, Array], o: Observation) -> Array:
    """Return the scores of all actions, (K + 1,); the torch network's forward pass in numpy."""
    shared = weights["shared.weight"] @ np.concatenate([o.preemptor, o.cluster])
    legal = o.mask[:-1] != 0
    encoded = _relu(_linear(weights, "candidate", o.candidates[legal]) + shared)
    h = encoded.shape[1]
    pooled = np.zeros(2 * h, np.float32)
    if len(encoded):
        pooled = np.concatenate([encoded.mean(0), encoded.max(0)])
    hidden = _linear(weights, "own", encoded)
    if "pooled.weight" in weights:
        hidden = hidden + weights["pooled.weight"] @ pooled
    scores = np.full(len(o.mask), -1e8, np.float32)
    scores[:-1][legal] = _linear(weights, "score", _relu(hidden))[:, 0]
    if o.mask[-1]:
        scores[-1] = _linear(weights, "wait.2", _relu(_linear(weights, "wait.0", pooled)))[0]
    return scores


def _linear(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    out: Array = x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
    return out


def _relu(x: Array) -> Array:
    out: Array = np.maximum(x, 0.0)
    return out


@dataclass(frozen=True, eq=False)
class LearnedSelector:
    """A trained scorer behind the selector protocol: the legal action of the highest score.

    Attributes:
        name: of the artifact.
        weights: arrays by parameter name.
        k: candidates it looks at, the cheapest first.
        allow_wait: may it answer "do not preempt now" although there are candidates?
        filter: it works behind each pod's own guaranteed filter.
    """

    name: str
    weights: Mapping[str, Array]
    k: int
    allow_wait: bool = True
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the candidate of the highest score; None where waiting scores higher.

        Raises:
            ArtifactError: a score is not a finite number.
        """
        aligned = self.filter.binds(preemptor)
        found, count = cluster.find(preemptor, aligned, self.k)
        if count == 0:
            return None
        o = empty_observation(self.k)
        observe(cluster.arrays, cluster.costs, preemptor.index, found, count, o)
        o.mask[-1] = self.allow_wait
        scores = score(self.weights, o)
        if not np.isfinite(scores).all():
            raise ArtifactError(f"policy {self.name!r}: a score is not finite; legal: numbers")
        chosen = int(np.argmax(scores))
        return None if chosen == self.k else cluster.candidate_at(found, chosen, preemptor)


def load_policy(name: str | Path) -> LearnedSelector:
    """Load a policy of the zoo by name, or from a folder.

    Raises:
        UnknownNameError: neither a name of the zoo nor a folder.
        ArtifactError: the artifact is damaged or was made for another layout.
    """
    folder = Path(name)
    if str(name) in zoo_names():
        folder = ZOO / str(name)
    elif not folder.is_dir():
        raise UnknownNameError("policy", str(name), [*zoo_names(), "a folder with meta.json"])
    meta = read_meta(folder)
    blob = _read(folder / "weights.npz")
    digest = hashlib.sha256(blob).hexdigest()
    if digest != meta["sha256"]:
        raise ArtifactError(
            f"{folder / 'weights.npz'}: SHA-256 {digest[:12]}...; legal: {meta['sha256'][:12]}..."
        )
    if meta["layout"] != layout_hash():
        raise ArtifactError(
            f"{folder / 'meta.json'}: layout {meta['layout']!r}; legal here: {layout_hash()!r}"
        )
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        weights = {key: arrays[key] for key in arrays.files}
    return LearnedSelector(
        meta["name"], weights, int(meta["k"]), allow_wait=bool(meta.get("allow_wait", True))
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """Read an artifact's `meta.json`.

    Raises:
        ArtifactError: it is missing, no JSON object, or lacks a key.
    """
    try:
        meta = json.loads(_read(folder / "meta.json"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{folder / 'meta.json'}: not JSON ({error})") from None
    missing = {"name", "k", "layout", "sha256"} - set(meta if isinstance(meta, dict) else ())
    if missing:
        raise ArtifactError(f"{folder / 'meta.json'}: no {min(missing)!r}; legal: all four keys")
    return dict(meta)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
