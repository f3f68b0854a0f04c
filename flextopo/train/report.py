"""Write the generated blocks of README and docs, from code, registries and saved results."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flextopo.baselines.registry import SELECTORS
from flextopo.cluster.errors import FlextopoError
from flextopo.envs.registration import ENVIRONMENTS
from flextopo.policies.runtime import read_meta
from flextopo.policies.shipped import ZOO, zoo_names
from flextopo.train.benchmark.tracks import TRACKS
from flextopo.train.distil import load_distilled, term_rows
from flextopo.train.planning_results import (
    knowledge_rows,
    load_clusters,
    load_knowledge,
    planning_rows,
)
from flextopo.train.ppo_results import budget_rows, load_ppo, speed_rows
from flextopo.train.range_results import load_worlds, world_rows
from flextopo.train.reference import REFERENCE
from flextopo.train.results import (
    ablation_rows,
    against_rows,
    gang_rows,
    load_ablation,
    load_results,
    markdown,
    paired_rows,
    tables,
)
from flextopo.train.training_seeds import load_seeds, seed_rows, served_rows

BLOCK = re.compile(r"<!-- generated: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


SAVED: dict[str, tuple[Callable[[Path], Any], Callable[[Any], list[list[str]]]]] = {
    "ablation": (load_ablation, ablation_rows),
    "ppo": (load_ppo, budget_rows),
    "ppo-speed": (load_ppo, speed_rows),
    "distilled": (load_distilled, term_rows),
    "in-range": (load_worlds, world_rows),
    "planning-all": (load_clusters, planning_rows),
    "learnt-all": (load_clusters, planning_rows),
    "bound-all": (load_clusters, planning_rows),
    "training-seeds": (load_seeds, seed_rows),
    "who-wins": (load_seeds, served_rows),
    "planning-knowledge": (load_knowledge, knowledge_rows),
}
"""Name of a block, and of its results file if it has one, to what reads them and makes the rows."""


def _policy_rows() -> list[list[str]]:
    out = [["name", "trained by", "SHA-256"]]
    for policy in zoo_names():
        meta = read_meta(ZOO / policy)
        out.append([f"`{policy}`", f"`{meta['trained_by']}`", f"`{meta['sha256'][:12]}`"])
    return out


LISTS: dict[str, Callable[[], list[list[str]]]] = {
    "environments": lambda: [
        ["id", "servers", "what it is"],
        *([f"`{id_}`", f"`{servers}`", about] for id_, (servers, about) in ENVIRONMENTS.items()),
    ],
    "selectors": lambda: [
        ["name", "what it does"],
        *([f"`{name}`", about] for name, (_, about) in SELECTORS.items()),
    ],
    "policies": _policy_rows,
    "tracks": lambda: [
        ["track", "what it is", "games"],
        *([f"`{name}`", track.about, str(track.num_games)] for name, track in TRACKS.items()),
    ],
}
"""Name of a block of what the package has, to what makes its rows."""


def generated(name: str, results: Path) -> str:
    """Return the Markdown of one generated block.

    Args:
        name: `environments`, `selectors`, `policies`, `tracks`, `ablation`, `ppo`, `ppo-speed`, `in-range`,
            `distilled`, `planning-all`, `learnt-all`, `bound-all`, `training-seeds`, `who-wins`,
            `planning-knowledge`, a block of `REFERENCE`, or the stem of a results file, with `-paired` for its
            paired differences, with `-against` for those of its last policy from every other selector, with
            `-gangs` for what was done for gangs, with `-plans` for what looking ahead buys.
        results: folder of the saved results.

    Raises:
        FlextopoError: there is no such block, or its results file is missing.
    """
    if name in REFERENCE:
        return REFERENCE[name]()
    if name in LISTS:
        return markdown(LISTS[name]())
    if name == "stress":
        from flextopo.train.stress_run import load_stress, stress_rows

        return markdown(stress_rows(load_stress(results / "stress.json")))
    if name in SAVED:
        load, rows = SAVED[name]
        return markdown(rows(load(results / f"{name}.json")))
    for kind, of in (
        ("-against", against_rows),
        ("-paired", paired_rows),
        ("-gangs", gang_rows),
        ("-plans", lambda found: planning_rows([found])),
    ):
        if name.endswith(kind):
            return markdown(of(load_results(results / f"{name.removesuffix(kind)}.json")))
    return "\n\n".join(map(markdown, tables(load_results(results / f"{name}.json"))))


def fill_blocks(text: str, write: Callable[[str], str]) -> str:
    """Return a page with the body of every generated block written anew.

    Args:
        text: the page.
        write: from the name of a block to its body.

    Raises:
        FlextopoError: the page has no block.
    """
    if not BLOCK.search(text):
        raise FlextopoError("no block to fill; legal: <!-- generated: NAME --> ... <!-- end -->")
    return BLOCK.sub(
        lambda match: f"<!-- generated: {match[1]} -->\n{write(match[1])}\n<!-- end -->", text
    )


def fill(text: str, results: Path) -> str:
    """Return README with every generated block written anew.

    Raises:
        FlextopoError: it has no block, or a block cannot be generated.
    """
    return fill_blocks(text, lambda name: generated(name, results))
