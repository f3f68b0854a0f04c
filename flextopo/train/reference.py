"""The environment's reference as Markdown, from the code: its docstring, features, parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from gymnasium import spaces

from flextopo.cluster.observation.features import (
    FEATURES,
    PREEMPTOR_FEATURES,
)
from flextopo.cluster.scenario import SENSITIVITIES, LossWeights
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.envs.core import observation_space
from flextopo.envs.preemption import PreemptionEnv
from flextopo.train.results import markdown

SIGNED = "-1 to 1"
"""A feature whose description says so may be negative; all others lie between 0 and 1."""


def section(heading: str, of: Any = PreemptionEnv) -> str:
    """Return the body of one `## Heading` of a docstring."""
    text = inspect.getdoc(of) or ""
    found = re.search(rf"^## {heading}\n(.*?)(?=\n## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no heading {heading}"
    return found[1].strip()


def described(text: str, names: list[str]) -> dict[str, str]:
    """Split `name: what it is. name: ...` at the given names, which must all be there."""
    parts = re.split(rf"\b({'|'.join(map(re.escape, names))}): ", " ".join(text.split()))
    found = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    assert set(found) == set(names), f"not described: {set(names) - set(found)}"
    return found


def feature_range(meaning: str) -> str:
    """Return the range of a feature from its description."""
    return SIGNED if SIGNED in meaning else "0 to 1"


def _features(features: dict[str, str]) -> str:
    head = ["place", "name", "what it is", "range"]
    body = [
        [str(i), f"`{name}`", meaning, feature_range(meaning)]
        for i, (name, meaning) in enumerate(features.items())
    ]
    return markdown([head, *body])


def _spaces() -> str:
    """Return the observation's fields; sizes that depend on K are told by comparing two K."""
    small, large = observation_space(2), observation_space(3)
    body = []
    for name, box in small.spaces.items():
        other = large.spaces[name]
        assert isinstance(box, spaces.Box)
        assert isinstance(other, spaces.Box)
        sizes = [
            str(a) if a == b else ("K" if a == 2 else f"K + {a - 2}")
            for a, b in zip(box.shape, other.shape, strict=True)
        ]
        shape = f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
        low, high = box.low.min(), box.high.max()
        body.append([f"`{name}`", shape, str(box.dtype), f"{low:g} to {high:g}"])
    return markdown([["field", "shape", "dtype", "range"], *body])


def _arguments() -> str:
    parameters = inspect.signature(PreemptionEnv).parameters
    names = [name for name in parameters if name != "render_mode"]
    meaning = described(section("Arguments"), names)
    modes = ", ".join(f"`{mode}`" for mode in PreemptionEnv.metadata["render_modes"])
    meaning["render_mode"] = f"{modes} or None."
    body = [[f"`{name}`", f"`{parameters[name].default!r}`", meaning[name]] for name in parameters]
    return markdown([["argument", "default", "what it is"], *body])


def _weights() -> str:
    names = [spec.name for spec in fields(LossWeights)]
    text = (inspect.getdoc(LossWeights) or "").partition("Attributes:")[2]
    meaning = described(text, names)
    body = [[f"`{s.name}`", f"{s.default:g}", meaning[s.name]] for s in fields(LossWeights)]
    return markdown([["weight", "default", "what it is"], *body])


def _sensitivities() -> str:
    body = [
        [f"`{name}`", *(f"{speed:g}" for speed in kind[:3]), kind.about]
        for name, kind in SENSITIVITIES.items()
    ]
    return markdown(
        [["kind", "off its island", "off its NUMA node", "off its socket", "what it is"], *body]
    )


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _workload() -> str:
    body = []
    for spec in fields(WorkloadConfig):
        shown = _number(spec.default) or str(spec.default)
        legal, train = (
            " to ".join(map(_number, spec.metadata.get(key) or ())) for key in ("legal", "train")
        )
        if spec.name == "hour_factors":
            shown = "one an hour"
        body.append([f"`{spec.name}`", shown, legal, train, spec.metadata["doc"]])
    return markdown([["field", "default", "legal", "randomised", "unit and reason"], *body])


REFERENCE: dict[str, Callable[[], str]] = {
    "env-description": lambda: section("Description"),
    "env-action-space": lambda: section("Action Space"),
    "env-observation-space": _spaces,
    "env-preemptor": lambda: _features(PREEMPTOR_FEATURES),
    "env-cluster": lambda: _features(FEATURES["cluster"]),
    "env-candidates": lambda: _features(FEATURES["candidates"]),
    "env-rewards": lambda: section("Rewards"),
    "env-starting-state": lambda: section("Starting State"),
    "env-episode-end": lambda: section("Episode End"),
    "env-information": lambda: section("Information"),
    "env-metrics": lambda: markdown(
        [["metric", "what it is"], *([f"`{name}`", about] for name, about in METRICS.items())]
    ),
    "env-arguments": _arguments,
    "env-weights": _weights,
    "env-sensitivities": _sensitivities,
    "env-workload": _workload,
}
"""Name of a generated block to what writes it."""
