"""What an entry of the leaderboard is: who played what, and what each game came to."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flextopo.baselines.loading import describe
from flextopo.baselines.policies import OracleLookahead
from flextopo.baselines.registry import BUILT_IN, SELECTORS, selector_name
from flextopo.baselines.rollout import Lookahead, Rollout
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.in_range import InRange
from flextopo.policies.runtime import LearnedSelector
from flextopo.policies.selectors import PLANNED, find_selector, inner
from flextopo.policies.shipped import zoo_names
from flextopo.train.results import versions

KINDS = ("rule", "learned", "planner", "oracle")
"""What an entry is; an oracle knows the future and is ranked apart."""

MAX_TEXT = 200

TRAINED = "policy"
"""What training calls the folder of a policy, within the one that it is told to write."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+@._:-]*")
"""What an entry may be called: nothing that looks like another, or like Markdown."""

URL = re.compile(r"https?://[^\s()<>\"'\\\\]+")

PARTS = re.compile(r"((?:oracle-)?lookahead\+)?(.+?)((?:\+plan@[0-9]+|\+in-range|@[0-9]+)*)")
"""A selector as text: what looks ahead with it, the selector itself, and what is done to it."""

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
    texts = {name: given.get(name, "") for name in ("by", "about", "url")}
    if text in SELECTORS and not texts["about"]:
        texts["about"] = SELECTORS[text].about
    name = given.get("name") or default_name(text)
    text = without_folder(text)
    entry = Entry(
        name,
        text,
        given.get("kind") or kind_of(found),
        texts["by"],
        texts["about"],
        texts["url"],
        source_of(selector, found),
        versions(),
    )
    check_texts(entry, "")
    return entry


def check_texts(entry: Entry, where: str) -> None:
    """Refuse texts that would pose as another entry, or be more than a line in a table.

    Args:
        entry: whose texts these are.
        where: what messages begin with, such as a file.

    Raises:
        FlextopoError: names the text.
    """
    lines = {"selector": entry.selector, "by": entry.by, "about": entry.about}
    for part in ("source", "versions"):
        lines |= {f"{part}.{key}": value for key, value in getattr(entry, part).items()}
    for what, value in lines.items():
        if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
            raise FlextopoError(
                f"{where}{what} = {str(value)[:60]!r}; legal: one line of up to {MAX_TEXT} signs"
            )
    if not isinstance(entry.name, str) or not NAME.fullmatch(entry.name[:MAX_TEXT]):
        raise FlextopoError(
            f"{where}name {str(entry.name)[:60]!r}; legal: letters, digits and + @ . _ : -"
        )
    taken = entry.name.casefold()
    if taken in (*BUILT_IN, *zoo_names()) and entry.selector != taken:
        raise FlextopoError(
            f"{where}name {entry.name!r} is another selector's; legal: one of its own"
        )
    if entry.url != "" and not (isinstance(entry.url, str) and URL.fullmatch(entry.url[:MAX_TEXT])):
        raise FlextopoError(f"{where}url {str(entry.url)[:60]!r}; legal: http:// or https://")
    if entry.kind not in KINDS:
        raise FlextopoError(f"{where}kind {str(entry.kind)[:60]!r}; legal: {', '.join(KINDS)}")


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


def split_selector(text: str) -> tuple[str, str, str]:
    """Return what looks ahead with a selector, the selector itself, and what is done to it."""
    found = PARTS.fullmatch(text)
    assert found is not None  # of any text that is not empty
    return found[1] or "", found[2], found[3]


def without_folder(text: str) -> str:
    """Return a selector with a policy's folder by its name alone, which is the same elsewhere."""
    ahead, inside, done = split_selector(text)
    return f"{ahead}{Path(inside).resolve().name}{done}" if Path(inside).is_dir() else text


def default_name(text: str) -> str:
    """Return what an entry is called unless its author says it: as its selector is without folders.

    Training writes every policy into a folder `policy`, so one of that name is called as the folder
    that holds it: `runs/mine/policy@0` is `mine@0`.
    """
    ahead, inside, done = split_selector(text)
    folder = Path(inside).resolve()
    above = folder.parent.name
    taken = above.casefold() in (*BUILT_IN, *zoo_names())
    if folder.is_dir() and folder.name == TRAINED and NAME.fullmatch(above) and not taken:
        return f"{ahead}{above}{done}"
    return without_folder(text)


def kind_of(found: Any) -> str:
    """Return one of `KINDS` by what decides, as far as that can be seen."""
    decides = inner(found)
    if isinstance(decides, OracleLookahead):
        return "oracle"
    if isinstance(decides, Rollout | Lookahead):
        return "planner"
    return "learned" if isinstance(decides, LearnedSelector | InRange) else "rule"


def source_of(selector: Any, found: Any) -> dict[str, str]:
    """Return the class of what decides, and the SHA-256 of its file or its policy's meta data."""
    decides = inner(found)
    source = {"class": describe(decides)}
    if isinstance(selector, str | Path):
        folder = Path(split_selector(str(selector))[1])
        if folder.is_dir():
            return source | {"sha256": _digest(folder / "meta.json")}
    if not source["class"].startswith("flextopo."):
        path = inspect.getsourcefile(type(decides))
        if path is not None and Path(path).is_file():
            source["sha256"] = _digest(Path(path))
    return source


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
