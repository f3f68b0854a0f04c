"""Many environments stepped by one kernel call: no Python object on the path.

Each environment plays one row of `running`. A new day is copied from `stored`, where days wait
warmed up and ready; one that is not there yet is asked of Python, which loads it and calls again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.arrays import Cluster
from flextopo.cluster.candidates import CandidateArrays, Workspace, workspace
from flextopo.cluster.decision import Decision, act, show_next
from flextopo.cluster.episodes import (
    Episodes,
    copy_episode,
    costs_of,
    empty_episodes,
    rules_of,
    view_cluster,
    view_events,
)
from flextopo.cluster.features import Observation, empty_observation
from flextopo.cluster.kernels import fetch_and_add, kernel, stage
from flextopo.cluster.loss import LOSS_TERMS, weighted_gpu_s
from flextopo.cluster.metrics import METRICS, measure
from flextopo.cluster.simulation import END

NEXT_STEP, SAME_STEP, DISABLED = range(3)
"""When an environment that ended starts anew (the names are Gymnasium's)."""

DRAWS = 32
"""Days drawn ahead for each environment."""

MAX_REDRAWS = 100
"""Days without a decision that a reset skips before it shows one."""


class Batch(NamedTuple):
    """B environments with K candidates each, stepped by T threads.

    Fields: `running` B rows, `stored` S rows, day d in row d % S; `draws` (B, 32) int64 days that
    come next, from `cursor` (B,) on; `given` (B,) int64 a day asked for by name, -1 = none;
    `tries` (B,) days without a decision that the present reset skipped; `ended` and `starting` (B,)
    int8; `options` (B,) candidates of the present decision or END; `found` (B, K) arrays;
    `observation` with a leading B, every row of which a step writes; `reward` (B,) GPU-hours per
    100 GPUs; `truncated` and `invalid` (B,) int8; `time_s` and `asked` (B,) int64; `loss` (B, 5)
    GPU-hours since time 0; `final_loss`, `final_time_s` and `metrics` (B, M) of the episode that
    ended last; `taken` (1,) int64 environments that threads have taken in hand in this step;
    `workspace` and `scratch` with a leading T; `allow_wait`, `autoreset`; `gpus` of the cluster.
    """

    running: Episodes
    stored: Episodes
    draws: npt.NDArray[np.int64]
    cursor: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    tries: npt.NDArray[np.int64]
    ended: npt.NDArray[np.int8]
    starting: npt.NDArray[np.int8]
    options: npt.NDArray[np.int64]
    found: CandidateArrays
    observation: Observation
    reward: npt.NDArray[np.float64]
    truncated: npt.NDArray[np.int8]
    invalid: npt.NDArray[np.int8]
    time_s: npt.NDArray[np.int64]
    asked: npt.NDArray[np.int64]
    loss: npt.NDArray[np.float64]
    final_loss: npt.NDArray[np.float64]
    final_time_s: npt.NDArray[np.int64]
    metrics: npt.NDArray[np.float64]
    taken: npt.NDArray[np.int64]
    workspace: Workspace
    scratch: npt.NDArray[np.int16]
    allow_wait: int
    autoreset: int
    gpus: int


def empty_observations(b: int, k: int) -> Observation:
    """Return room for the observations of `b` environments."""
    fields: Any = (np.stack([array] * b) for array in empty_observation(k))
    return Observation(*fields)


def empty_batch(
    like: Cluster, stored: Episodes, num_envs: int, k: int, threads: int, allow_wait: bool,
    autoreset: int, gpus: int,
) -> Batch:  # fmt: skip
    """Return room for `num_envs` environments that have not started yet."""
    pods, budgets = stored.pods.shape[1], stored.pdb_left.shape[1]
    b = num_envs
    scratch: Any = (np.stack([array] * threads) for array in workspace())
    return Batch(
        running=empty_episodes(like, b, pods, budgets),
        stored=stored,
        draws=np.zeros((b, DRAWS), np.int64),
        cursor=np.full(b, DRAWS),
        given=np.full(b, -1),
        tries=np.zeros(b, np.int64),
        ended=np.zeros(b, np.int8),
        starting=np.zeros(b, np.int8),
        options=np.full(b, END),
        found=CandidateArrays(
            node=np.zeros((b, k), np.int64),
            slots=np.zeros((b, k), np.int64),
            level=np.zeros((b, k), np.int64),
            deficit=np.zeros((b, k), np.int64),
            cost=np.zeros((b, k)),
        ),
        observation=empty_observations(b, k),
        reward=np.zeros(b),
        truncated=np.zeros(b, np.int8),
        invalid=np.zeros(b, np.int8),
        time_s=np.zeros(b, np.int64),
        asked=np.zeros(b, np.int64),
        loss=np.zeros((b, len(LOSS_TERMS))),
        final_loss=np.zeros((b, len(LOSS_TERMS))),
        final_time_s=np.zeros(b, np.int64),
        metrics=np.zeros((b, len(METRICS))),
        taken=np.zeros(1, np.int64),
        workspace=Workspace(*scratch),
        scratch=np.zeros((threads, *like.scratch.shape), np.int16),
        allow_wait=int(allow_wait),
        autoreset=autoreset,
        gpus=gpus,
    )


@stage
def decision_of(b: Batch, i: int, thread: int) -> Decision:
    """Return what environment i sees: views, no copies."""
    w, o, f = b.workspace, b.observation, b.found
    return Decision(
        view_cluster(b.running, i, b.scratch[thread]),
        view_events(b.running, i),
        rules_of(b.running, i),
        costs_of(b.running, i),
        Workspace(
            w.slot[thread],
            w.pod[thread],
            w.cost[thread],
            w.gpus[thread],
            w.cores[thread],
            w.need_gpus[thread],
            w.need_cores[thread],
            w.rest_gpus[thread],
            w.rest_cores[thread],
            w.stack[thread],
            w.path_cost[thread],
        ),
        CandidateArrays(f.node[i], f.slots[i], f.level[i], f.deficit[i], f.cost[i]),
        Observation(o.preemptor[i], o.cluster[i], o.candidates[i], o.mask[i]),
    )


@stage
def _take_day(b: Batch, i: int) -> bool:
    """Copy the next day of environment i from the store; False if it is not there."""
    day = b.given[i]
    if day < 0:
        if b.cursor[i] == b.draws.shape[1]:
            return False
        day = b.draws[i, b.cursor[i]]
    row = day % b.stored.day.shape[0]
    if b.stored.day[row] != day:
        return False
    copy_episode(b.stored, row, b.running, i)
    if b.given[i] < 0:
        b.cursor[i] += 1
    return True


@stage
def _finish(b: Batch, d: Decision, i: int) -> None:
    """Keep what an episode came to; its event heap, empty of meaning now, is scratch memory."""
    measure(
        d.cluster,
        d.events.account,
        d.costs,
        d.rules.end_s,
        b.running.demanded[i],
        d.events.heap,
        b.metrics[i],
    )
    _write_loss(d, b.final_loss[i])
    b.final_time_s[i] = d.cluster.totals[0]["now_s"]


@stage
def _write_loss(d: Decision, out: npt.NDArray[np.float64]) -> None:
    """Write the five terms of the loss in GPU-hours."""
    a, costs = d.events.account[0], d.costs
    out[0] = costs.waiting * a["waiting"] / 3600.0
    out[1] = (costs.late * a["late"] + costs.cross * a["cross"]) / 3600.0
    out[2] = costs.discarded * a["discarded_weighted"] / 3600.0
    out[3] = costs.eviction * a["evicted_gpus"] / 3600.0
    out[4] = costs.idle * a["idle"] / 3600.0


@kernel
def play(b: Batch, actions: npt.NDArray[np.int64], thread: int) -> int:
    """Step the environments that no other thread has taken, or go on with those that are starting.

    Args:
        b: the environments; `taken` must be 0 before the first thread begins.
        actions: (B,) int64, one for each; empty = only carry on those with `starting` set.
        thread: index of the scratch memory to use.

    Returns:
        How many of them wait for a day that is not in the store, with `starting` set.
    """
    waiting = 0
    while True:
        i = fetch_and_add(b.taken)
        if i >= b.options.shape[0]:
            return waiting
        acts = actions.shape[0] > 0 and not (b.ended[i] and b.autoreset == NEXT_STEP)
        if actions.shape[0] > 0 and not acts:
            b.starting[i] = 1
            b.reward[i] = 0.0
            b.truncated[i] = b.invalid[i] = 0
        # One loop for acting and for starting: what it calls is compiled into it, once.
        while acts or b.starting[i]:
            if not acts and not _take_day(b, i):
                waiting += 1
                break
            d = decision_of(b, i, thread)
            before = weighted_gpu_s(d.events.account, d.costs)
            count = b.options[i] if acts else 0
            if acts:
                b.invalid[i] = act(d, count, actions[i])
                waits = actions[i] == b.found.cost.shape[1]
                if b.allow_wait == 0 and count > 0 and waits:
                    b.invalid[i] = 1
                    d.events.account[0]["invalid_actions"] += 1
            if count != END:
                count = show_next(d)
            b.options[i] = count
            if acts:
                acts = False
                lost = weighted_gpu_s(d.events.account, d.costs) - before
                b.reward[i] = -lost / 36.0 / b.gpus
                b.truncated[i] = b.ended[i] = count == END
                if count == END:
                    _finish(b, d, i)
                    b.starting[i] = b.autoreset == SAME_STEP
            else:
                b.tries[i] += 1
                if count != END or b.given[i] >= 0 or b.tries[i] == MAX_REDRAWS:
                    b.starting[i] = b.ended[i] = b.tries[i] = 0
                    b.given[i] = -1
            _write_loss(d, b.loss[i])
            b.time_s[i] = d.cluster.totals[0]["now_s"]
            b.asked[i] = d.events.clock[0]["asked"]
            if b.allow_wait == 0 and count > 0:
                d.observation.mask[d.observation.mask.shape[0] - 1] = 0
