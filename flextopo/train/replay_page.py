"""The replay viewer: recordings of one tape as one HTML page that needs nothing else."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.cluster.topology.levels import LEVELS, TIERS
from flextopo.cluster.topology.network import Network
from flextopo.envs.arrangement import state_network
from flextopo.envs.gang_marks import GANG_COLOURS, in_gang
from flextopo.envs.scene import LEGEND, THEMES, Colour, make_scene
from flextopo.train.blame import blaming
from flextopo.train.compare import check, make_tape, open_episode, servers_text
from flextopo.train.config import ComparisonConfig
from flextopo.train.replay import Difference, Recording, differences, record
from flextopo.train.replay_decision import Choice, Shown

ASSETS = Path(__file__).parent / "replay_assets"

SCRIPTS = (
    "recording.js",
    "arrangement.js",
    "drawing.js",
    "timeline.js",
    "gangs.js",
    "panels.js",
    "player.js",
)
"""Joined into one script, in this order."""

MAX_SELECTORS = 2

SHOWN_COLUMNS = (
    "node",
    "victims",
    "stopped",
    "gpu_mask",
    "level",
    "below",
    "cost_gpu_h",
    "discarded_gpu_h",
    "score",
)
"""Of the rows that describe candidates."""

GANG_COLUMNS = ("wait_s", "tier", "seats", "victim_nodes")
"""Of these rows, too, where a network is known; a seat is pod, node, GPUs, level, levels below."""


@dataclass(frozen=True)
class Written:
    """What `write_replay` wrote.

    Attributes:
        path: of the page.
        size_bytes: of the page.
        recordings: what it shows.
        found: where they differ.
    """

    path: Path
    size_bytes: int
    recordings: tuple[Recording, ...]
    found: tuple[Difference, ...]


def write_replay(
    config: ComparisonConfig,
    names: Sequence[str],
    seed: int,
    out: Path,
    done: Callable[[int, int], None] | None = None,
    draw: Callable[[Games], bytes] | None = None,
) -> Written:
    """Play one tape with one or two selectors, and write the page that replays it.

    Args:
        config: servers, workload, scenario and traces; its selectors and seeds do not matter.
        names: the selectors, of the registry or the zoo, or folders of policies.
        seed: of the tape; also of `random` and `rollout`, as in a comparison.
        out: the page; its folder is made where it is missing.
        done: is told how many of how many simulated seconds are over.
        draw: makes something else of the games, such as `replay_animation.animate`.

    Raises:
        FlextopoError: a selector is unknown, there are none or too many of them, the seed is
            negative, a selector fails, or the page cannot be written.
    """
    games = record_games(config, names, seed, out, done)
    content = (draw or draw_page)(games)
    write_whole(out, content)
    return Written(out, len(content), games.recordings, games.found)


@dataclass(frozen=True, eq=False)
class Games:
    """Games of one tape that were recorded.

    Attributes:
        sim: one of the simulations, at its end.
        recordings: one or two.
        found: where they differ.
        facts: what was played, in words.
    """

    sim: Simulator
    recordings: tuple[Recording, ...]
    found: tuple[Difference, ...]
    facts: dict[str, str]


def record_games(
    config: ComparisonConfig,
    names: Sequence[str],
    seed: int,
    out: Path,
    done: Callable[[int, int], None] | None = None,
) -> Games:
    """Play one tape with one or two selectors, to be written to `out`; see `write_replay`.

    Raises:
        FlextopoError: as `write_replay`.
    """
    if not 1 <= len(names) <= MAX_SELECTORS or len(set(names)) < len(names):
        listed = ", ".join(names) or "none"
        raise FlextopoError(f"selectors {listed}; legal: one, or two different ones")
    if seed < 0:
        raise FlextopoError(f"seed = {seed}; legal: a whole number, 0 or more")
    if out.is_dir():
        raise FlextopoError(f"{out}: is a folder; legal: a file to write")
    config = replace(config, selectors=tuple(names), policies=())
    _, source = make_tape(config, check(config), seed)
    games = [open_episode(config, name, seed) for name in names]
    make_folder(out.parent)
    recordings = []
    for i, (name, (sim, selector)) in enumerate(zip(names, games, strict=True)):
        with blaming(selector, name, seed):
            recording = record(sim, selector, _part(done, i, len(games)))
        recording.name = name  # policies may call themselves by one name
        recordings.append(recording)
    facts = {
        "servers": servers_text(config.servers),
        "tape seed": str(seed),
        "demand": source,
        "admission": config.scenario.admission,
    }
    found = differences(*recordings) if len(recordings) > 1 else []
    return Games(games[0][0], tuple(recordings), tuple(found), facts)


def draw_page(games: Games) -> bytes:
    """Return the page that replays games."""
    return render(games.sim, games.recordings, games.found, games.facts).encode()


def render(
    sim: Simulator,
    recordings: Sequence[Recording],
    found: Sequence[Difference],
    facts: dict[str, str],
) -> str:
    """Return the page.

    Args:
        sim: any simulation of the tape.
        recordings: one or two.
        found: where they differ.
        facts: shown under the title.
    """
    data = json.dumps(page_data(sim, recordings, found), separators=(",", ":"), allow_nan=False)
    title = " and ".join(recording.name for recording in recordings)
    listed = (f"<li><b>{html.escape(k)}</b> {html.escape(v)}</li>" for k, v in facts.items())
    parts = {
        "title": html.escape(title),
        "facts": "".join(listed),
        "style": _colour_rules() + (ASSETS / "style.css").read_text(),
        "data": data.replace("<", "\\u003c"),  # no text may close the element
        "script": "\n".join((ASSETS / name).read_text() for name in SCRIPTS),
    }
    pieces = (ASSETS / "page.html").read_text().split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [parts[name], rest]
    return "".join(filled)


def page_data(
    sim: Simulator, recordings: Sequence[Recording], found: Sequence[Difference]
) -> dict[str, Any]:
    """Return what the page's script reads; times and losses are differences from frame to frame."""
    state, pods = sim.state, sim.state.arrays.pods
    network = state_network(state)
    scene = make_scene(state.models, state.arrays.nodes["model"].tolist(), network)
    asked = ("gpus", "cores", "priority", "online", "requirement", "batch_class")
    columns: tuple[str, ...] = (*asked, "checkpoint_s", "preemptible", "group", "pdb")
    gang_columns = GANG_COLUMNS if network else ()
    if network:
        columns += ("required_tier", "preferred_tier")
    made = {
        "end_s": sim.tape.end_s,
        "demanded_gpu_s": sim.tape.demanded_gpu_s(),
        "terms": LOSS_TERMS,
        "scene": scene.as_dict(),
        "models": [
            {
                "name": m.name,
                "gpu_numa": m.gpu_numa,
                "numa_socket": m.numa_socket,
                "gpu_island": m.gpu_island,
            }
            for m in state.models
        ],
        "levels": [{"name": level.name, "label": level.label} for level in LEVELS.values()],
        "pods": {name: pods[name].tolist() for name in columns},
        "shown_columns": SHOWN_COLUMNS + gang_columns,
        "sides": [_side(recording, bool(network)) for recording in recordings],
        "differences": [[*difference.moment, difference.about] for difference in found],
    }
    if network:
        made["network"] = _network(network, in_gang(state))
    return made


def _network(network: Network, gangs: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return what a page with a network has beside the others: names, and who is in a gang."""
    return {
        "leaf": network.leaf,
        "block": network.block,
        "leaf_names": [network.leaf_name(leaf) for leaf in range(network.num_leaves)],
        "block_names": [network.block_name(block) for block in range(network.num_blocks)],
        "tiers": [tier.label for tier in TIERS.values()],
        "members": np.flatnonzero(gangs).tolist(),
    }


def _side(recording: Recording, with_gangs: bool) -> dict[str, Any]:
    frames = recording.frames
    times = np.array([frame.time_s for frame in frames])
    losses = np.round([frame.loss_gpu_s for frame in frames]).astype(np.int64)
    at = {frame.moment: i for i, frame in enumerate(frames)}
    return {
        "name": recording.name,
        "scores": recording.scores,
        "time_s": np.diff(times, prepend=0).tolist(),
        "rank": [frame.rank for frame in frames],
        "sizes": [len(frame.changes) for frame in frames],
        "changes": [x for frame in frames for change in frame.changes for x in change],
        "loss_gpu_s": np.diff(losses, axis=0, prepend=0 * losses[:1]).ravel().tolist(),
        "online_wait": [frame.online_wait for frame in frames],
        "batch_wait": [frame.batch_wait for frame in frames],
        "choices": [
            _choice(at[m], choice, with_gangs) for m, choice in sorted(recording.choices.items())
        ],
        "weighted_loss": _number(recording.metrics["weighted_loss"]),
    }


def _choice(frame: int, choice: Choice, with_gangs: bool) -> dict[str, Any]:
    return {
        "frame": frame,
        "pod": choice.pod,
        "waited_s": choice.waited_s,
        "candidates": choice.num_candidates,
        "chosen": choice.chosen,
        "wait_score": _number(choice.wait_score),
        "reason": choice.reason,
        "shown": [
            _shown(candidate) + (_shown_gang(candidate) if with_gangs else [])
            for candidate in choice.shown
        ],
    }


def _shown_gang(candidate: Shown) -> list[Any]:
    """Return the rest of a row in `GANG_COLUMNS`."""
    seats = [
        [seat.pod, seat.node, seat.gpu_mask, seat.level, seat.below] for seat in candidate.seats
    ]
    return [candidate.wait_s, candidate.tier, seats, candidate.victim_nodes]


def _shown(candidate: Shown) -> list[Any]:
    """Return a candidate as a row of `SHOWN_COLUMNS`: most of a page is these."""
    return [
        candidate.node,
        candidate.victims,
        candidate.stopped,
        candidate.gpu_mask,
        candidate.level,
        candidate.below,
        round(candidate.cost_gpu_s / 3600, 4),
        round(candidate.discarded_gpu_s / 3600, 4),
        _number(candidate.score),
    ]


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 6)


def _colour_rules() -> str:
    """Return the scene's colours as CSS variables, such as `--use-0` and `--numa_node`, for both themes."""
    uses = list(enumerate(LEGEND.values()))
    gangs = list(enumerate(GANG_COLOURS))
    light = {f"use-{i}": use.light for i, use in uses} | {f"gang-{i}": c[0] for i, c in gangs}
    dark = {f"use-{i}": use.dark for i, use in uses} | {f"gang-{i}": c[1] for i, c in gangs}
    day, night = _variables(light | THEMES["light"]), _variables(dark | THEMES["dark"])
    return f":root{{{day}}}\n@media(prefers-color-scheme:dark){{:root{{{night}}}}}\n"


def _variables(colours: dict[str, Colour]) -> str:
    return "".join(f"--{name}:#{bytes(colour).hex()};" for name, colour in colours.items())


def _part(
    done: Callable[[int, int], None] | None, i: int, count: int
) -> Callable[[int, int], None] | None:
    """Return a progress report for part i of `count` equal ones."""
    if done is None:
        return None
    return lambda now, end: done(i * end + now, count * end)
