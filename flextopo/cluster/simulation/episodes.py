"""Several episodes side by side in one set of arrays, and the views that one episode sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.generated import define
from flextopo.cluster.jit.kernels import stage
from flextopo.cluster.scenario import LossWeights
from flextopo.cluster.simulation.events import Events, empty_events
from flextopo.cluster.simulation.rules import Rules
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.loss import Costs, compile_costs
from flextopo.cluster.state.storage import (
    Array,
    Kind,
    arrays_of,
    names_of,
    scratch_of,
    stack_arrays,
    stacked,
)

SIZES = ("pods", "departures", "budgets", "services")
"""Columns of `Episodes.sizes`: axes that are as long as the longest episode."""

IN_USE = {
    **{axis: f"source.sizes[s, {i}]" for i, axis in enumerate(SIZES)},
    "heap": 'source.events.clock[s, 0]["heap_size"]',
    "queue": 'source.events.clock[s, 0]["queue_size"]',
    "unserved": 'source.events.clock[s, 0]["unserved"]',
}
"""How much of an axis means something in row s of `source`."""


_COSTS = compile_costs(LossWeights(), 0, 0)

COST_SIZES = [np.size(field) for field in _COSTS]
"""How many numbers each field of `Costs` has."""


class Episodes(NamedTuple):
    """E episodes, each with memory for P pods, B budgets and S services on the same N nodes.

    Fields: `tape` (E,) int64, seed of the tape, -1 = empty; `sizes` (E, 4) int64, see `SIZES`;
    `rules` (E, 9) int64 and `costs` (E, C) float64, the numbers of `Rules` and `Costs` in their
    order; `demanded` (E,) int64 GPU-seconds asked for; `cluster` and `events` with a leading axis.
    """

    tape: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    rules: npt.NDArray[np.int64]
    costs: npt.NDArray[np.float64]
    demanded: npt.NDArray[np.int64]
    cluster: Cluster
    events: Events


def empty_episodes(like: Cluster, count: int, pods: int, budgets: int, services: int) -> Episodes:
    """Return memory for `count` episodes on the nodes of `like`; untouched rows take no memory."""
    sizes = dict.fromkeys(("pods", "heap", "queue", "unserved", "departures"), pods)
    sizes |= {"budgets": budgets, "services": services}
    return Episodes(
        tape=np.full(count, -1, np.int64),
        sizes=np.zeros((count, len(SIZES)), np.int64),
        rules=np.zeros((count, len(Rules._fields)), np.int64),
        costs=np.zeros((count, sum(COST_SIZES))),
        demanded=np.zeros(count, np.int64),
        cluster=stack_arrays(like, count, sizes),
        events=stack_arrays(empty_events(0, np.zeros(0, np.int64)), count, sizes),
    )


def rows_of(e: Episodes) -> list[npt.NDArray[Any]]:
    """Return all arrays with a row for each episode."""
    return [*e[:-2], *stacked(e.cluster), *stacked(e.events)]


def no_tapes(like: Episodes) -> Episodes:
    """Return one empty row that is as large as those of `like`."""
    return empty_episodes(cluster_of(like, 0, scratch_of(like.cluster)), 1, *axes_of(like))


def axes_of(e: Episodes) -> tuple[int, int, int]:
    """Return for how many pods, budgets and services each row has memory."""
    c = e.cluster
    return c.pods.shape[1], c.pdb_left.shape[1], c.serving.shape[1]


def bytes_of_episode(e: Episodes) -> int:
    """Return the memory of one episode."""
    return sum(array[0].nbytes for array in rows_of(e))


def move(source: Episodes, target: Episodes) -> None:
    """Copy all rows into wider ones."""
    for old, new in zip(rows_of(source), rows_of(target), strict=True):
        new[tuple(map(slice, old.shape))] = old


def store(e: Episodes, row: int, tape: int, sim: Simulator) -> None:
    """Write the present state of a simulation into a row that is large enough."""
    cluster, events = sim.state.arrays, sim.events
    lengths = {"pods": cluster.pods, "departures": events.departures}
    lengths |= {"budgets": cluster.pdb_left, "services": cluster.serving}
    e.tape[row] = -1
    e.sizes[row] = [len(lengths[axis]) for axis in SIZES]
    e.rules[row] = sim.rules
    e.costs[row] = np.hstack(sim.costs)
    e.demanded[row] = sim.tape.demanded_gpu_s()
    for one, many in ((cluster, e.cluster), (events, e.events)):
        for name in names_of(type(one), Kind.GIVEN, Kind.STATE):
            array = getattr(one, name)
            getattr(many, name)[row][: len(array)] = array
    e.tape[row] = tape


def _copy_lines() -> Iterator[str]:
    """Yield the lines of `copy_episode`: loops, since whole slices would count references."""
    for name in ("tape", "demanded"):
        yield f"target.{name}[t] = source.{name}[s]"
    for name in ("sizes", "rules", "costs"):
        yield f"for i in range(source.{name}.shape[1]):"
        yield f"    target.{name}[t, i] = source.{name}[s, i]"
    parts = {f"cluster.{name}": array for name, array in arrays_of(Cluster).items()}
    parts |= {f"events.{name}": array for name, array in arrays_of(Events).items()}
    rows = {name: array for name, array in parts.items() if array.kind in (Kind.GIVEN, Kind.STATE)}
    # One loop for all arrays of an axis: each more takes the compiler a while.
    for axis in dict.fromkeys(array.axes[0] for array in rows.values()):
        together = {name: array for name, array in rows.items() if array.axes[0] == axis}
        used = IN_USE.get(axis, f"source.{next(iter(together))}.shape[1]")
        yield f"for i0 in range({used}):"
        if axis == "pods":  # those that are to come are all alike, and so in the cache
            yield '    like = min(i0, source.events.clock[s, 0]["next_arrival"])'
        for name, array in together.items():
            yield from _copy_entry(name, array)


def _copy_entry(name: str, array: Array) -> Iterator[str]:
    """Yield the lines that copy what an array has at place i0 of its first axis."""
    inner = [f"i{depth}" for depth in range(1, len(array.axes))]
    for depth, index in enumerate(inner, 1):
        yield f"{'    ' * depth}for {index} in range(source.{name}.shape[{depth + 1}]):"
    there = "like" if array.axes[0] == "pods" and array.kind == Kind.STATE else "i0"
    here, other = ", ".join(["t", "i0", *inner]), ", ".join(["s", there, *inner])
    yield f"{'    ' * len(array.axes)}target.{name}[{here}] = source.{name}[{other}]"


copy_episode: Callable[[Episodes, int, Episodes, int], None] = stage(
    define("copy_episode", "source, s, target, t", _copy_lines(), __file__)
)
"""Copy row s of the first into row t of the second, which is large enough."""


def _view_lines(part: str, owner: type[Any]) -> Iterator[str]:
    """Yield the lines of a function that returns views of row `s`."""
    found: list[str] = []
    scratch = list(names_of(owner, Kind.SCRATCH))
    for name, array in arrays_of(owner).items():
        whole = f"source.{part}.{name}"
        if array.kind in (Kind.HARDWARE, Kind.SCRATCH):
            found.append(f"scratch[{scratch.index(name)}]" if name in scratch else whole)
            continue
        axis = "pods" if array.axes[0] in ("heap", "queue", "unserved") else array.axes[0]
        found.append(f"{whole}[s][:{IN_USE[axis]}]" if axis in SIZES else f"{whole}[s]")
    yield f"return {owner.__name__}({', '.join(found)})"


cluster_of: Callable[[Episodes, int, tuple[npt.NDArray[Any], ...]], Cluster] = define(
    "cluster_of", "source, s, scratch", _view_lines("cluster", Cluster), __file__, Cluster=Cluster
)
"""Return the cluster of an episode, given its row and `scratch_of` one thread: views, no copies."""

events_of: Callable[[Episodes, int], Events] = define(
    "events_of", "source, s", _view_lines("events", Events), __file__, Events=Events
)
"""Return the events of an episode: views, no copies."""

_SCRATCH = range(len(list(names_of(Cluster, Kind.SCRATCH))))

scratch_of_thread: Callable[[tuple[npt.NDArray[Any], ...], int], tuple[npt.NDArray[Any], ...]] = (
    define(
        "scratch_of_thread",
        "scratch, thread",
        [f"return ({' '.join(f'scratch[{i}][thread],' for i in _SCRATCH)})"],
        __file__,
    )
)
"""Return the scratch memory of one thread of `scratch_of` several."""

view_scratch = stage(scratch_of_thread)
view_cluster = stage(cluster_of)
view_events = stage(events_of)
"""The same inside kernels; a view made by a kernel must not leave it."""


def _numbers(array: str, first: int, count: int) -> str:
    return ", ".join(f"{array}[{i}]" for i in range(first, first + count))


rules_of: Callable[[Episodes, int], Rules] = stage(
    define(
        "rules_of",
        "source, s",
        ["r = source.rules[s]", f"return Rules({_numbers('r', 0, len(Rules._fields))})"],
        __file__,
        Rules=Rules,
    )
)
"""Return the rules of an episode."""


def _cost_lines() -> Iterator[str]:
    yield "c = source.costs[s]"
    fields, at = [], 0
    for size, like in zip(COST_SIZES, _COSTS, strict=True):
        numbers = _numbers("c", at, size)
        fields.append(f"({numbers},)" if isinstance(like, tuple) else numbers)
        at += size
    yield f"return Costs({', '.join(fields)})"


costs_of: Callable[[Episodes, int], Costs] = stage(
    define("costs_of", "source, s", _cost_lines(), __file__, Costs=Costs)
)
"""Return the costs of an episode."""
