"""What the shell completes: names that are known without training code or compiled kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flextopo.baselines.registry import known_selectors
from flextopo.cli.configuration import ALGORITHMS, WEIGHTS, WORKLOAD, Configuration
from flextopo.cluster.scenario import ADMISSIONS
from flextopo.policies.shipped import zoo_names
from flextopo.train.benchmark.tracks import TRACKS
from flextopo.train.config import SPACES
from flextopo.train.stress import PERTURBATIONS

Completions = list[tuple[str, str]]
"""Values, each with what some shells show beside it."""


def selectors(incomplete: str) -> Completions:
    """Complete a selector or a shipped policy."""
    return _starting(incomplete, [*_selectors(), *_policies()])


def selector_list(incomplete: str) -> Completions:
    """Complete the last of several selectors, joined by commas."""
    return _last(incomplete, [("all", "all but rollout"), *_selectors()])


def policies(incomplete: str) -> Completions:
    """Complete a shipped policy."""
    return _starting(incomplete, _policies())


def policy_list(incomplete: str) -> Completions:
    """Complete the last of several policies, joined by commas."""
    return _last(incomplete, [("all", "all that ship"), ("none", "no policy"), *_policies()])


def servers(incomplete: str) -> Completions:
    """Complete servers: those of each environment, and presets after `4*`."""
    from flextopo.cluster.topology.model import PRESETS
    from flextopo.envs.registration import ENVIRONMENTS

    count, star, _ = incomplete.rpartition("*")
    if star:
        return _starting(incomplete, [(f"{count}*{name}", "preset") for name in PRESETS])
    return _starting(incomplete, [(fleet, name) for name, (fleet, _) in ENVIRONMENTS.items()])


def sources(incomplete: str) -> Completions:
    """Complete where a topology comes from, unless it is a file."""
    from flextopo.cluster.topology.model import PRESETS

    known = [(name, model.gpu_name) for name, model in PRESETS.items()]
    return _starting(incomplete, [*known, ("detect", "this machine")])


def presets(incomplete: str) -> Completions:
    """Complete the last of several presets, joined by commas."""
    from flextopo.cluster.topology.model import PRESETS

    return _last(incomplete, [(name, model.gpu_name) for name, model in PRESETS.items()])


def trace_kinds(incomplete: str) -> Completions:
    """Complete a format of trace files."""
    from flextopo.cluster.workload.trace_readers import KINDS

    return _starting(incomplete, [(name, kind.about) for name, kind in KINDS.items()])


def algorithms(incomplete: str) -> Completions:
    """Complete a training algorithm."""
    return _starting(incomplete, [(name, config.name) for name, config in ALGORITHMS.items()])


def searched_algorithms(incomplete: str) -> Completions:
    """Complete an algorithm that `sweep` knows."""
    return _starting(incomplete, [(name, ALGORITHMS[name].name) for name in SPACES])


def workload_fields(incomplete: str) -> Completions:
    """Complete FIELD= of the workload."""
    return _starting(incomplete, _fields([WORKLOAD]))


def perturbation_list(incomplete: str) -> Completions:
    """Complete the last of several perturbations, joined by commas."""
    known = [(name, how.about) for name, how in PERTURBATIONS.items()]
    return _last(incomplete, [("all", "all of them"), *known])


def track_list(incomplete: str) -> Completions:
    """Complete the last of several tracks of the benchmark, joined by commas."""
    known = [(name, track.about) for name, track in TRACKS.items()]
    return _last(incomplete, [("all", "all whose files are there"), *known])


def weights(incomplete: str) -> Completions:
    """Complete NAME= of the loss weights."""
    return _starting(incomplete, _fields([WEIGHTS]))


def training_fields(incomplete: str) -> Completions:
    """Complete FIELD= of the algorithms' configurations."""
    return _starting(incomplete, dict(_fields(ALGORITHMS.values())).items())


def admissions(incomplete: str) -> Completions:
    """Complete the node admission."""
    return _starting(incomplete, [(name, "") for name in ADMISSIONS])


def among(*values: str) -> Callable[[str], Completions]:
    """Return a completion of fixed values."""
    return lambda incomplete: _starting(incomplete, [(value, "") for value in values])


def _selectors() -> Completions:
    return [(name, entry.about) for name, entry in known_selectors().items()]


def _policies() -> Completions:
    return [(name, "ships with the package") for name in zoo_names()]


def _fields(configurations: Iterable[Configuration]) -> Completions:
    return [
        (f"{name}=", field.meaning)
        for configuration in configurations
        for name, field in configuration.fields.items()
    ]


def _starting(incomplete: str, known: Iterable[tuple[str, str]]) -> Completions:
    return [(value, about) for value, about in known if value.startswith(incomplete)]


def _last(incomplete: str, known: Iterable[tuple[str, str]]) -> Completions:
    before, comma, last = incomplete.rpartition(",")
    found = [(value, about) for value, about in known if value not in before.split(",")]
    return [(f"{before}{comma}{value}", about) for value, about in _starting(last, found)]
