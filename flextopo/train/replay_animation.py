"""A day as an animated GIF: one or two selectors on the same tape, and what they have lost so far.

Pillow is needed, which comes with matplotlib.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from flextopo.envs.arrangement import state_network
from flextopo.envs.gang_marks import in_gang
from flextopo.envs.rendering import draw_scene
from flextopo.envs.scene import LEGEND, LETTERS, Scene, first_gpus, make_scene
from flextopo.train.replay import Recording
from flextopo.train.replay_page import Games

PICTURES = 144
"""Pictures of an episode, a day's are ten minutes apart; the last one stays."""

PICTURE_MS, LAST_MS = 90, 4000
MARGIN, CHART, LINE = 20, 110, 24
COLOURS = ((198, 44, 58), (31, 95, 168))
"""Of the first and the second selector."""

INK, FAINT, PAPER = (30, 34, 40), (150, 156, 166), (250, 250, 251)
LEGEND_WORDS = {"x": "evicted since the last picture"}
WIDTH = 440
"""Of one selector's part, at least."""


@dataclass(frozen=True)
class Side:
    """One selector, picture by picture.

    Attributes:
        name: of the selector.
        uses: (T, G) uint8 places in `LETTERS`; what was evicted since the last picture shows as such.
        pods: (T, G) int32 holders, -1 = free.
        lost_gpu_h: (T,) weighted GPU-hours lost so far.
        evicted: (T,) GPUs of victims so far, and of those stopped with them.
    """

    name: str
    uses: npt.NDArray[np.uint8]
    pods: npt.NDArray[np.int32]
    lost_gpu_h: npt.NDArray[np.float64]
    evicted: npt.NDArray[np.int64]


def animate(games: Games) -> bytes:
    """Return games as an animated GIF."""
    times = np.linspace(0, games.sim.tape.end_s, PICTURES + 1).astype(np.int64)[1:]
    num_gpus = int(games.sim.state.arrays.totals[0]["gpus"])
    asked = games.sim.state.arrays.pods["gpus"]
    sides = [sample(recording, times, num_gpus, asked) for recording in games.recordings]
    images = [Image.fromarray(picture) for picture in _pictures(games, sides, times)]
    palette = images[-1].quantize(128)
    quantized = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    content = io.BytesIO()
    quantized[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=quantized[1:],
        duration=[PICTURE_MS] * (len(images) - 1) + [LAST_MS],
        loop=0,
        optimize=True,
    )
    return content.getvalue()


def sample(
    recording: Recording,
    times_s: npt.NDArray[np.int64],
    num_gpus: int,
    pod_gpus: npt.NDArray[np.int32],
) -> Side:
    """Return what a recording looks like at some times.

    Args:
        recording: of one selector.
        times_s: (T,) ascending.
        num_gpus: of the cluster, G.
        pod_gpus: (P,) GPUs that each pod of the tape asks for.
    """
    free, freed = LETTERS.index("."), [LETTERS.index(letter) for letter in "xn"]
    uses, pods = np.zeros(num_gpus, np.uint8), np.full(num_gpus, -1, np.int32)
    shown, holders, lost = [], [], []
    at, loss = 0, 0.0
    for time_s in times_s.tolist():
        flash = np.zeros(num_gpus, np.bool_)
        while at < len(recording.frames) and recording.frames[at].time_s <= time_s:
            frame = recording.frames[at]
            for gpu, pod, use in frame.changes:
                flash[gpu] |= use in freed and uses[gpu] != free  # somebody had to go
                uses[gpu], pods[gpu] = use, pod
            loss, at = sum(frame.loss_gpu_s) / 3600, at + 1
        shown.append(np.where(flash, freed[0], uses).astype(np.uint8))
        holders.append(pods.copy())
        lost.append(loss)
    return Side(
        recording.name,
        np.array(shown),
        np.array(holders),
        np.array(lost, np.float64),
        _evicted(recording, times_s, pod_gpus),
    )


def _evicted(
    recording: Recording, times_s: npt.NDArray[np.int64], pod_gpus: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return GPUs of victims, and of those stopped with them, until each time, (T,)."""
    when, count = [-1], [0]
    for (time_s, _), choice in sorted(recording.choices.items()):
        if choice.chosen is not None:
            taken = choice.shown[choice.chosen]
            when.append(time_s)
            count.append(count[-1] + int(pod_gpus[[*taken.victims, *taken.stopped]].sum()))
    return np.array(count)[np.searchsorted(when, times_s, side="right") - 1]


def _pictures(
    games: Games, sides: Sequence[Side], times_s: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a picture (H, W, 3) uint8 for each time."""
    state = games.sim.state
    nodes = state.arrays.nodes["model"].tolist()
    scene = make_scene(state.models, nodes, state_network(state))
    first = first_gpus(state)
    gangs = np.where(in_gang(state), state.arrays.pods["group"], -1)
    most = max(float(side.lost_gpu_h[-1]) for side in sides) or 1.0
    for i, time_s in enumerate(times_s.tolist()):
        clusters = [_cluster(scene, side, i, first, gangs) for side in sides]
        yield _page(clusters, sides, i, time_s, most, games)


def _cluster(
    scene: Scene, side: Side, i: int, first: npt.NDArray[np.int64], gangs: npt.NDArray[np.int32]
) -> npt.NDArray[np.uint8]:
    pods = side.pods[i]
    picture = draw_scene(scene, side.uses[i], first, np.where(pods >= 0, gangs[pods], -1))
    factor = max(1, round(WIDTH / picture.shape[1]))
    return picture.repeat(factor, 0).repeat(factor, 1)


def _page(
    clusters: Sequence[npt.NDArray[np.uint8]],
    sides: Sequence[Side],
    i: int,
    time_s: int,
    most: float,
    games: Games,
) -> npt.NDArray[np.uint8]:
    """Return a picture: the clock, a cluster and a sentence for each selector, the chart, the legend."""
    height, width = clusters[0].shape[:2]
    whole = len(sides) * width + (len(sides) + 1) * MARGIN
    top = 3 * LINE + MARGIN
    bottom = top + height + MARGIN // 2
    image = Image.new("RGB", (whole, bottom + CHART + 3 * LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(image)
    hours, minutes = time_s // 3600, time_s % 3600 // 60
    title = f"{games.facts['servers']}, {'the same day' if len(sides) > 1 else 'a day'}"
    _write(draw, (MARGIN, MARGIN // 2), title, 18, INK)
    _write(draw, (whole - MARGIN, MARGIN // 2), f"{hours:02d}:{minutes:02d}", 18, INK, "ra")
    for s, (side, cluster) in enumerate(zip(sides, clusters, strict=True)):
        left = MARGIN + s * (width + MARGIN)
        said = f"{side.lost_gpu_h[i]:.0f} GPU-h lost, {side.evicted[i]} GPUs evicted"
        _write(draw, (left, MARGIN + LINE), side.name, 18, COLOURS[s])
        _write(draw, (left, MARGIN + 2 * LINE), said, 15, INK)
        image.paste(Image.fromarray(cluster), (left, top + MARGIN // 2))
    box = (MARGIN, bottom + LINE, whole - MARGIN, bottom + LINE + CHART)
    _write(draw, (MARGIN, bottom), "weighted GPU-hours lost so far", 15, INK)
    _chart(draw, box, sides, i, most)
    _legend(
        draw, (MARGIN, box[3] + LINE // 2), whole - MARGIN, bool(in_gang(games.sim.state).any())
    )
    return np.asarray(image)


def _chart(
    draw: Any, box: tuple[int, int, int, int], sides: Sequence[Side], i: int, most: float
) -> None:
    left, top, right, bottom = box
    draw.line((left, bottom, right, bottom), FAINT)
    step = (right - left - 60) / (PICTURES - 1)
    highest = max(float(side.lost_gpu_h[i]) for side in sides)
    for side, colour in zip(sides, COLOURS, strict=False):
        points = [
            (left + step * x, bottom - (bottom - top) * float(lost) / most)
            for x, lost in enumerate(side.lost_gpu_h[: i + 1])
        ]
        draw.line(points, colour, 3)
        (x, y), above = points[-1], float(side.lost_gpu_h[i]) == highest
        anchor = "lb" if above else "lt"  # so that two do not cover each other
        _write(draw, (int(x) + 8, int(y)), f"{side.lost_gpu_h[i]:.0f}", 15, colour, anchor)


def _legend(draw: Any, at: tuple[int, int], right: int, gangs: bool) -> None:
    x, y = at
    marks = [(use.light, LEGEND_WORDS.get(letter, use.meaning)) for letter, use in LEGEND.items()]
    if gangs:
        marks.append((PAPER, "in a coloured frame: members of one gang, G and its number"))
    for colour, meaning in marks:
        width = 22 + round(draw.textlength(meaning, font=_font(13))) + 14
        if x + width > right:
            x, y = at[0], y + LINE - 4
        draw.rectangle((x, y, x + 12, y + 12), colour, FAINT)
        _write(draw, (x + 18, y + 6), meaning, 13, INK, "lm")
        x += width


def _write(
    draw: Any,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    anchor: str = "la",
) -> None:
    draw.text(at, text, fill=colour, font=_font(size), anchor=anchor)


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
