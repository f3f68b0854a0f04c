"""What an entry of the leaderboard is: who played what, and what each game came to."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flextopo.baselines.loading import describe
from flextopo.baselines.registry import ORACLES, SELECTORS, looks_ahead, selector_name
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.in_range import InRange
from flextopo.policies.runtime import LearnedSelector
from flextopo.policies.selectors import PLANNED, find_selector, inner
from flextopo.train.results import versions

KINDS = ("rule", "learned", "planner", "oracle")
"""What an entry is; an oracle knows the future and is ranked apart."""

MAX_TEXT = 200

Values = list[float | None]
"""A metric of each game; None where a game has no such value."""


@dataclass(frozen=True)
class TrackResult:
    """What an entry came to on one track.

    Attributes:
        games: digest of the worlds, see `all_digests`.
        wall_s: seconds that it took, on whatever machine; no part of any comparison.
        metrics: name of `METRICS` to a value a game.
    """

    games: str
    wall_s: float
    metrics: dict[str, Values]


@dataclass(frozen=True)
class Entry:
    """One result file.

    Attributes:
        name: in the tables.
        selector: what was played, as `find_selector` takes it.
        kind: one of `KINDS`.
        by: whose it is.
        about: a line on what it does.
        url: where more is said, "" = nowhere.
        source: `class` as `module:Class`, and the SHA-256 of its file or weights where there is one.
        versions: of what it depends on.
        tracks: name to result, at least one.
    """

    name: str
    selector: str
    kind: str
    by: str = ""
    about: str = ""
    url: str = ""
    source: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    tracks: dict[str, TrackResult] = field(default_factory=dict)


def describe_entry(selector: Any, given: Mapping[str, str]) -> Entry:
    """Return an entry without results.

    Args:
        selector: a name, folder, `module:Class`, object or class.
        given: its `name`, `kind`, `by`, `about` and `url`, "" = as found.

    Raises:
        FlextopoError: there is no such selector, it depends on the clock, or a text is not legal.
    """
    text = selector_name(selector)
    found = find_selector(selector)
    refuse_clocks(text)
    kind = given.get("kind") or _kind(text, found)
    if kind not in KINDS:
        raise FlextopoError(f"kind {kind!r}; legal: {', '.join(KINDS)}")
    texts = {name: given.get(name, "") for name in ("by", "about", "url")}
    if text in SELECTORS and not texts["about"]:
        texts["about"] = SELECTORS[text].about
    name = given.get("name") or (Path(text).name if Path(text).is_dir() else text)
    for what, value in {"name": name, **texts}.items():
        if len(value) > MAX_TEXT or not value.isprintable() or "|" in value:
            raise FlextopoError(
                f"{what} {value!r}; legal: one line of up to {MAX_TEXT} signs, no |"
            )
    by, about, url = texts.values()
    return Entry(name, text, kind, by, about, url, _source(selector, found), versions())


def refuse_clocks(text: str) -> None:
    """Refuse a planner whose choices depend on the clock.

    Raises:
        FlextopoError: it does.
    """
    planned = PLANNED.fullmatch(text)
    if planned and planned[3]:
        raise FlextopoError(
            f"selector {text!r} depends on the clock; legal: {planned[1]}+plan@ a number of futures"
        )


def _kind(text: str, found: Any) -> str:
    if text.split("+")[0].split("@")[0] in ORACLES:
        return "oracle"
    if looks_ahead(text):
        return "planner"
    return "learned" if isinstance(inner(found), LearnedSelector | InRange) else "rule"


def _source(selector: Any, found: Any) -> dict[str, str]:
    decides = inner(found)
    source = {"class": describe(decides)}
    folder = Path(str(selector))
    if isinstance(selector, str | Path) and folder.is_dir():
        return source | {"sha256": hashlib.sha256((folder / "meta.json").read_bytes()).hexdigest()}
    if not source["class"].startswith("flextopo."):
        path = inspect.getsourcefile(type(decides))
        if path is not None and Path(path).is_file():
            source["sha256"] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return source
