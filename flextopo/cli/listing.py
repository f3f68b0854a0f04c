"""`flextopo list`: the names that commands take, and the fields that `--set` sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer

from flextopo.cli import completion
from flextopo.cli.configuration import ALGORITHMS, WEIGHTS, WORKLOAD, Configuration
from flextopo.cli.terminal import JsonPath, results_to
from flextopo.cluster.errors import UnknownNameError
from flextopo.train.benchmark.tracks import TRACKS
from flextopo.train.stress import PERTURBATIONS
from flextopo.train.tables import format_table

Rows = list[dict[str, Any]]


def _environments() -> Rows:
    from flextopo.envs.registration import ENVIRONMENTS

    return [
        {"name": name, "about": about, "servers": servers}
        for name, (servers, about) in ENVIRONMENTS.items()
    ]


def _selectors() -> Rows:
    from flextopo.baselines.registry import known_selectors

    return [{"name": name, "about": about} for name, (_, about) in known_selectors().items()]


def _policies() -> Rows:
    from flextopo.policies.shipped import zoo_names

    return [{"name": name, "about": "ships with the package"} for name in zoo_names()]


def _perturbations() -> Rows:
    return [{"name": name, "about": how.about} for name, how in PERTURBATIONS.items()]


def _tracks() -> Rows:
    return [
        {"name": name, "about": track.about, "games": track.num_games}
        for name, track in TRACKS.items()
    ]


def _fields(configuration: Configuration) -> Rows:
    return [{"name": name, **field._asdict()} for name, field in configuration.fields.items()]


NAMES: dict[str, Callable[[], Rows]] = {
    "environments": _environments,
    "selectors": _selectors,
    "policies": _policies,
    "perturbations": _perturbations,
    "tracks": _tracks,
}
FIELDS = {**ALGORITHMS, "workload": WORKLOAD, "weights": WEIGHTS}
"""What is listed by name only: the fields of a configuration."""

KINDS = (*NAMES, *FIELDS)


def list_names(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]",
            help=f"One of {', '.join(KINDS)}.",
            autocompletion=completion.among(*KINDS),
        ),
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """List the names that commands take, or the fields for --set.

    Examples:
        flextopo list
        flextopo list selectors --json
        flextopo list ppo
    """
    if kind is not None and kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    with results_to(json_path) as write:
        if kind in FIELDS:
            fields = _fields(FIELDS[kind])
            write({kind: fields})
            table = [["field", "type", "default", "meaning"]]
            table += [[f["name"], f["type"], _shown(f["default"]), f["meaning"]] for f in fields]
            typer.echo(format_table(table, numbers=False))
            return
        found = {name: rows() for name, rows in NAMES.items() if kind in (None, name)}
        write(found)
        for name, rows in found.items():
            one = {"policies": "policy"}.get(name, name.rstrip("s"))
            for row in rows:
                typer.echo(f"{one:<13} {row['name']:<32} {row['about']}")


def _shown(value: Any) -> str:
    """Write a default as `--set` takes it, cut where it is long."""
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= 50 else f"{text[:47]}..."
