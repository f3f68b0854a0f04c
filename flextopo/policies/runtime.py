"""Run a trained scorer without torch and gymnasium; refuse an artifact that does not match.

An artifact is a folder with `meta.json` and the model: `weights.npz`, arrays by parameter name, run
by numpy alone, or `model.onnx`, run by onnxruntime (`flextopo export` writes that).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.array_file import read_arrays
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.observation.features import (
    Observation,
    columns_of,
    empty_observation,
    feature_names,
    width_of,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.policies.shipped import FIRST_FEATURES, FIRST_LAYOUT, ZOO, zoo_names

if TYPE_CHECKING:
    from flextopo.cluster.simulation.lookahead import Branches

    Bools = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

MAX_K = 4096
"""Most candidates that an artifact may look at; training uses 16 to 64."""

MAX_WEIGHTS = 64 * 2**20
"""Most bytes of an array of an artifact; shipped ones have 0.1 MB in all."""

MODELS = ("weights.npz", "model.onnx")
"""Names of the file that holds the model; `meta.json` says which one its hash is of."""

OUTPUTS = {"scores": ("batch", "candidates + 1"), "value": ("batch",)}

Array = npt.NDArray[np.float32]


class ArtifactError(FlextopoError):
    """Report an artifact that is missing, damaged, or reads features that are not observed here."""


def inputs_of(features: Mapping[str, Sequence[str]]) -> dict[str, tuple[str | int, ...]]:
    """Return the arrays that `model.onnx` takes, all float32, in this order, with their shapes.

    Args:
        features: names of what it reads of a preemptor, of the cluster and of a candidate.
    """
    return {
        "preemptor": ("batch", len(features["preemptor"])),
        "cluster": ("batch", len(features["cluster"])),
        "candidates": ("batch", "candidates", len(features["candidates"])),
        "mask": ("batch", "candidates + 1"),
    }


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
        features: names of what it reads, by part of the observation; None = everything, of a
            candidate as much as its weights take.
        filter: it works behind each pod's own guaranteed filter.
    """

    name: str
    weights: Mapping[str, Array]
    k: int
    allow_wait: bool = True
    filter: AlignmentFilter = AlignmentFilter.OWN
    features: Mapping[str, Sequence[str]] | None = None

    @cached_property
    def names(self) -> Mapping[str, Sequence[str]]:
        """Names of what it reads, by part of the observation."""
        if self.features is not None:
            return self.features
        return feature_names(self.weights["candidate.weight"].shape[1])

    @cached_property
    def width(self) -> int:
        """How many features of a candidate must be observed, see `width_of`."""
        return width_of(columns_of(self.names))

    @cached_property
    def _columns(self) -> dict[str, list[int]]:
        """The columns that are read, of those parts of which not all are read in their order."""
        everything = columns_of(feature_names(self.width))
        found = columns_of(self.names)
        return {part: found[part] for part in found if found[part] != everything[part]}

    def read(self, o: Observation) -> Observation:
        """Return what the policy reads of an observation of `width` features a candidate."""
        for part, columns in self._columns.items():
            o = o._replace(**{part: getattr(o, part)[..., columns]})
        return o

    def score(self, o: Observation) -> Array:
        """Return the scores of all actions, (K + 1,), illegal ones at -1e8."""
        return score(self.weights, o)

    @cached_property
    def branch_losses(self) -> Callable[[Branches, Bools, Floats], None]:
        """What writes the losses of branches that go on under this policy; see `PolicyLookahead`.

        Raises:
            AttributeError: no kernel runs it, and branches go on in Python.
        """
        from flextopo.policies.continuation import PolicyLookahead, spread

        if not self.weights or not self.allow_wait:
            raise AttributeError(f"policy {self.name!r} is not for kernels")
        wide = spread(self.weights, columns_of(self.names), self.width) if self._columns else {}
        return PolicyLookahead({**self.weights, **wide}, self.k).branch_losses

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the candidate of the highest score; None where waiting scores higher.

        Raises:
            ArtifactError: a score is not a finite number.
        """
        found, count, o = self.look(cluster, preemptor)
        return self.choose(cluster, preemptor, found, o) if count else None

    def choose(
        self, cluster: ClusterState, preemptor: Pod, found: CandidateArrays, o: Observation
    ) -> Candidate | None:
        """Choose among what `look` found, of which there is at least one; see `select`."""
        chosen = int(np.argmax(self._judge(o)))
        return None if chosen == self.k else cluster.candidate_at(found, chosen, preemptor)

    def rank(self, cluster: ClusterState, preemptor: Pod) -> tuple[CandidateArrays, int, Array]:
        """Score what it may choose from.

        Returns:
            The candidates (valid until the next call), their number, and the scores of all actions,
            (K + 1,), illegal ones at -1e8; without candidates no score is computed.

        Raises:
            ArtifactError: a score is not a finite number.
        """
        found, count, o = self.look(cluster, preemptor)
        if count == 0:
            return found, 0, np.full(self.k + 1, -1e8, np.float32)
        return found, count, self._judge(o)

    def look(
        self, cluster: ClusterState, preemptor: Pod
    ) -> tuple[CandidateArrays, int, Observation]:
        """Return candidates (valid until the next call), their number, and what it reads of them.

        Without candidates nothing is observed.
        """
        aligned = self.filter.binds(preemptor)
        found, count = cluster.find(preemptor, aligned, self.k)
        o = empty_observation(self.k, self.width)
        if count == 0:
            return found, 0, o
        # A view of some nodes carries the others along, for what is said of the whole cluster.
        seen = getattr(cluster, "whole", cluster.arrays)
        observe(seen, cluster.costs, preemptor.index, found, count, o)
        o.mask[-1] = self.allow_wait and cluster.may_wait(preemptor)
        return found, count, self.read(o)

    def _judge(self, o: Observation) -> Array:
        scores = self.score(o)
        if not np.isfinite(scores).all():
            raise ArtifactError(f"policy {self.name!r}: a score is not finite; legal: numbers")
        return scores


@dataclass(frozen=True, eq=False)
class OnnxSelector(LearnedSelector):
    """A trained scorer that onnxruntime runs.

    Attributes:
        session: an `onnxruntime.InferenceSession` of `INPUTS` and `OUTPUTS`.
    """

    session: Any = None

    def score(self, o: Observation) -> Array:
        """Return the scores of all actions, (K + 1,), illegal ones at -1e8."""
        # Empty places at the end change no score and cost time; the graph takes any number.
        count = max(int(np.count_nonzero(o.mask[:-1])), 1)
        mask = np.append(o.mask[:count], o.mask[-1]).astype(np.float32)
        arrays = (o.preemptor, o.cluster, o.candidates[:count], mask)
        feed = {
            name: array[None] for name, array in zip(inputs_of(self.names), arrays, strict=True)
        }
        (found,) = self.session.run(["scores"], feed)
        scores = np.full(len(o.mask), -1e8, np.float32)
        scores[:count], scores[-1] = found[0, :-1], found[0, -1]
        return scores


def folder_of(name: str | Path) -> Path:
    """Return the folder of a policy.

    Raises:
        UnknownNameError: neither a name of the zoo nor a folder.
    """
    if str(name) in zoo_names():
        return ZOO / str(name)
    if not Path(name).is_dir():
        raise UnknownNameError("policy", str(name), [*zoo_names(), "a folder with meta.json"])
    return Path(name)


def load_policy(name: str | Path) -> LearnedSelector:
    """Load a policy of the zoo by name, or from a folder.

    Raises:
        UnknownNameError: neither a name of the zoo nor a folder.
        ArtifactError: the artifact is damaged, reads unknown features, or needs onnxruntime.
    """
    folder = folder_of(name)
    meta = read_meta(folder)
    path = folder / meta["model"]
    blob = _read(path)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != meta["sha256"]:
        raise ArtifactError(f"{path}: SHA-256 {digest[:12]}...; legal: {meta['sha256'][:12]}...")
    about = {"allow_wait": meta["allow_wait"], "features": meta["features"]}
    if path.name == "model.onnx":
        session = _open_session(blob, path, meta["features"])
        return OnnxSelector(meta["name"], {}, meta["k"], session=session, **about)
    weights = _read_weights(blob, path)
    named = {part: len(names) for part, names in meta["features"].items()}
    for layer, what, count in (
        ("candidate.weight", "a candidate", named["candidates"]),
        ("shared.weight", "preemptor and cluster", named["preemptor"] + named["cluster"]),
    ):
        wide = weights.get(layer, np.zeros((0, 0))).shape[-1]
        if wide != count:
            raise ArtifactError(
                f"{path}: reads {wide} features of {what}; legal: the {count} that meta.json names"
            )
    _check_layers(weights, path)
    return LearnedSelector(meta["name"], weights, meta["k"], **about)


def _read_weights(blob: bytes, path: Path) -> dict[str, Array]:
    """Read the arrays of a file.

    Raises:
        ArtifactError: it holds none of float32, one that claims more than is there, or no number.
    """
    try:
        arrays = read_arrays(blob, MAX_WEIGHTS)
    except ValueError as error:
        raise ArtifactError(f"{path}: no arrays ({error}); legal: plain numbers") from None
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise ArtifactError(f"{path}: {name} is of {array.dtype}; legal: float32")
        if not np.isfinite(array).all():
            raise ArtifactError(f"{path}: {name} is not finite; legal: numbers")
    return arrays


def _check_layers(weights: Mapping[str, Array], path: Path) -> None:
    """Refuse weights of which a layer is missing, or does not fit to the others.

    Raises:
        ArtifactError: names the layer.
    """
    h = int(weights["shared.weight"].shape[0])
    shapes = {
        "candidate.weight": (h, weights["candidate.weight"].shape[-1]), "candidate.bias": (h,),
        "shared.weight": (h, weights["shared.weight"].shape[-1]),
        "own.weight": (h, h), "own.bias": (h,), "score.weight": (1, h), "score.bias": (1,),
        "wait.0.weight": (h, 2 * h), "wait.0.bias": (h,), "wait.2.weight": (1, h),
        "wait.2.bias": (1,),
    }  # fmt: skip
    if "pooled.weight" in weights:
        shapes["pooled.weight"] = (h, 2 * h)
    for name, shape in shapes.items():
        if name not in weights:
            raise ArtifactError(f"{path}: no {name}; legal: {', '.join(shapes)}")
        if weights[name].shape != shape:
            raise ArtifactError(
                f"{path}: {name} of shape {weights[name].shape}; legal: {shape}, as of {h} hidden units"
            )


def _open_session(blob: bytes, path: Path, features: Mapping[str, Sequence[str]]) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ArtifactError(
            f"{path}: onnxruntime is not installed; legal: flextopo[runtime]"
        ) from None
    options = onnxruntime.SessionOptions()
    # One decision takes microseconds; further threads would only spin beside the service.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  its errors have no other common base
        raise ArtifactError(f"{path}: no ONNX model ({str(error).splitlines()[0]})") from None
    found = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
    if found != inputs_of(features):
        raise ArtifactError(f"{path}: inputs {found}; legal: {inputs_of(features)}")
    if "scores" not in {entry.name for entry in session.get_outputs()}:
        raise ArtifactError(f"{path}: no output 'scores'; legal: {', '.join(OUTPUTS)}")
    return session


def read_meta(folder: Path) -> dict[str, Any]:
    """Read an artifact's `meta.json`; `model` and `allow_wait` are filled in where they are absent.

    Raises:
        ArtifactError: it is missing, no JSON object, or a key is missing or of another type.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error})") from None
    if not isinstance(meta, dict):
        raise ArtifactError(f"{path}: no JSON object; legal: what `flextopo export` writes")
    meta = {"model": MODELS[0], "allow_wait": True, **meta}
    if meta.get("layout") == FIRST_LAYOUT:
        meta.setdefault("features", FIRST_FEATURES)
    kinds = {
        "name": str,
        "k": int,
        "features": dict,
        "sha256": str,
        "model": str,
        "allow_wait": bool,
    }
    for key, kind in kinds.items():
        if key not in meta:
            raise ArtifactError(f"{path}: no {key!r}; legal: {', '.join(kinds)}")
        if type(meta[key]) is not kind:
            raise ArtifactError(f"{path}: {key} = {meta[key]!r}; legal: of type {kind.__name__}")
    if meta["model"] not in MODELS:
        raise ArtifactError(f"{path}: model = {meta['model']!r}; legal: {', '.join(MODELS)}")
    if not 1 <= meta["k"] <= MAX_K:
        raise ArtifactError(f"{path}: k = {meta['k']}; legal: 1 to {MAX_K}")
    return {**meta, "features": _read_features(meta["features"], path)}


def _read_features(given: dict[str, Any], path: Path) -> dict[str, list[str]]:
    """Return the names of the features of each part; what else an exported artifact says is left."""
    found = {}
    for part in feature_names():
        names = given.get(part)
        if not isinstance(names, list | dict) or not all(isinstance(name, str) for name in names):
            raise ArtifactError(f"{path}: features of {part} are {names!r}; legal: a list of names")
        found[part] = list(names)
        twice = sorted({name for name in found[part] if found[part].count(name) > 1})
        if twice:
            raise ArtifactError(f"{path}: feature {twice[0]!r} of {part} twice; legal: once")
    try:
        columns_of(found)
    except UnknownNameError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from None
