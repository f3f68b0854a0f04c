"""Options from configuration dataclasses, whose fields are the one place of default and meaning."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple, get_origin, get_type_hints

import typer

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import LossWeights, Scenario
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.train.config import (
    AblationConfig,
    ComparisonConfig,
    FitConfig,
    ImitationConfig,
    PlanningConfig,
    PPOConfig,
    RangesConfig,
    SweepConfig,
)
from flextopo.train.reproduce_config import Plan


class Field(NamedTuple):
    """A field of a configuration.

    Attributes:
        type: as it is written.
        default: None also where it is made anew each time.
        meaning: what the docstring, or the field's metadata, says.
    """

    type: str
    default: Any
    meaning: str


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A configuration dataclass, as the command line sees it."""

    kind: Any

    @property
    def name(self) -> str:
        """Its class's name."""
        return str(self.kind.__name__)

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Its fields in their order."""
        meanings = read_attributes(inspect.getdoc(self.kind) or "")
        found = {}
        for spec in dataclasses.fields(self.kind):
            default = None if spec.default is dataclasses.MISSING else spec.default
            meaning = meanings.get(spec.name) or spec.metadata.get("doc", "")
            found[spec.name] = Field(str(spec.type), default, meaning)
        return found

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """Field to default."""
        return {name: field.default for name, field in self.fields.items()}

    def option(self, field: str, *flags: str, more: str = "", **how: Any) -> Any:
        """Return the option of a field, for `Annotated`.

        Args:
            field: its meaning is the option's help.
            flags: how it is given, if not by the parameter's name.
            more: a further sentence of help, such as how a tuple is written.
            how: see `typer.Option`.
        """
        return typer.Option(*flags, help=f"{sentence(self.fields[field].meaning)} {more}", **how)

    def setting(self, *fields: str) -> Any:
        """Return the option `--set`, for `Annotated`; its help names some fields that have no other option."""
        about = f"Set a field of {self.kind.__name__}, any number of times: {', '.join(fields)}."
        return typer.Option("--set", metavar="FIELD=VALUE", help=about)

    def make(self, given: Mapping[str, Any], settings: Iterable[str]) -> Any:
        """Make a configuration of what options and `--set` say, and else of defaults.

        Args:
            given: field to value; None = not given.
            settings: FIELD=VALUE.

        Raises:
            FlextopoError: a field is unknown, a value is not of its type, or it is not legal.
        """
        options = {name: value for name, value in given.items() if value is not None}
        for name in options:
            if name not in self.fields:
                raise FlextopoError(
                    f"--{name.replace('_', '-')} with {self.name}; legal: {self.legal()}"
                )
        options = {name: self._convert(name, value) for name, value in options.items()}
        return self.kind(**{**options, **self.parse(settings)})

    def parse(self, settings: Iterable[str], option: str = "--set") -> dict[str, Any]:
        """Return the values of settings by field.

        A value is JSON; text may stand without quotes, and the one element of a tuple alone.

        Args:
            settings: FIELD=VALUE.
            option: by which they were given, for messages.

        Raises:
            FlextopoError: a field is unknown, or a value is not of its type.
        """
        found = {}
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or name not in self.fields:
                raise FlextopoError(f"{option} {setting}; legal: FIELD=VALUE, of {self.legal()}")
            found[name] = self._convert(name, text, read=True)
        return found

    def legal(self) -> str:
        """Return all fields with their types, in words."""
        return ", ".join(f"{name} ({field.type})" for name, field in self.fields.items())

    def _convert(self, name: str, value: Any, read: bool = False) -> Any:
        import msgspec

        hint = get_type_hints(self.kind)[name]
        attempts = [*_decoded(value), value] if read else [value]
        if get_origin(hint) is tuple:
            attempts += [(attempt,) for attempt in attempts]
        for attempt in attempts:
            try:
                return msgspec.convert(attempt, hint)
            except msgspec.ValidationError:
                continue
        raise FlextopoError(f"{name} = {value}; legal: {self.fields[name].type}")


def _decoded(text: str) -> Iterator[Any]:
    import msgspec

    try:
        yield msgspec.json.decode(text)
    except msgspec.DecodeError:
        return


def read_attributes(docstring: str) -> dict[str, str]:
    """Return attribute to meaning of a docstring's `Attributes:` section."""
    section = inspect.cleandoc(docstring).partition("Attributes:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    found = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


UNITS = {"h": "hours", "s": "seconds"}


def sentence(text: str) -> str:
    """Return a meaning as a sentence of help; brackets do not mark up anything in it."""
    unit, _, rest = text.rstrip(".").replace("[", r"\[").partition(" ")
    text = f"{UNITS.get(unit, unit)} {rest}".strip()
    return f"{text[:1].upper()}{text[1:]}."


COMPARISON = Configuration(ComparisonConfig)
WORKLOAD = Configuration(WorkloadConfig)
SCENARIO = Configuration(Scenario)
WEIGHTS = Configuration(LossWeights)
PLAN = Configuration(Plan)
SWEEP = Configuration(SweepConfig)
ABLATION = Configuration(AblationConfig)
FIT = Configuration(FitConfig)
RANGES = Configuration(RangesConfig)
ALGORITHMS = {
    "ppo": Configuration(PPOConfig),
    "imitation": Configuration(ImitationConfig),
    "planning": Configuration(PlanningConfig),
}
"""What `train` knows, and the configuration of each."""
