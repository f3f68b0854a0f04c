"""Draw the figures of docs/method.md into the folder given, or beside this file: `make figures`."""

from __future__ import annotations

import sys
from pathlib import Path

from flextopo.cli.topology_drawing import POD_COLOURS, draw_png
from flextopo.cluster.topology.flextopo import build_graph, mark_used
from flextopo.cluster.topology.model import preset

BATCH = {f"batch-{gpu}": [gpu] for gpu in range(7)}
"""Batch pods on a server of RTX 4090s: GPUs 0 to 6, one each; GPU 7 is free."""

COLOURS = dict(zip(BATCH, POD_COLOURS, strict=True)) | {"online": "black"}
"""A pod keeps its colour from figure to figure."""


def draw(name: str, pods: dict[str, list[int]], folder: Path) -> None:
    """Draw a server with pods that hold these GPUs, and seven cores of each GPU's NUMA node."""
    model = preset("rtx4090")
    graph = build_graph(model, name)
    for pod, gpus in pods.items():
        cores = [core for gpu in gpus for core in model.cores[model.gpu_numa[gpu]][:7]]
        mark_used(graph, pod, cores, gpus)
    draw_png(graph, folder / f"{name}.png", COLOURS)


def without(*victims: int) -> dict[str, list[int]]:
    """Return the batch pods without those on these GPUs."""
    return {pod: gpus for pod, gpus in BATCH.items() if gpus[0] not in victims}


def main(folder: Path) -> None:
    """Draw all figures."""
    for name in ("rtx4090", "a100"):
        draw_png(build_graph(preset(name), name), folder / f"{name}.png")
    draw("before", BATCH, folder)
    draw("blind", {**without(1), "online": [1, 7]}, folder)
    draw("aligned", {**without(6), "online": [6, 7]}, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
