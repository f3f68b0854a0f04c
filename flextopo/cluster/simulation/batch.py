"""Many environments stepped by one kernel call: no Python object on the path.

Each environment plays one row of `running`. A new tape is copied from `stored`, where tapes wait
warmed up and ready; one that is not there yet is asked of Python, which loads it and calls again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.jit.kernels import fetch_and_add, program, stage
from flextopo.cluster.observation.features import FEATURES, Observation, empty_observation
from flextopo.cluster.observation.observe import mistrust
from flextopo.cluster.simulation.ahead import fetch_cluster, fetch_pods
from flextopo.cluster.simulation.episodes import (
    Episodes,
    axes_of,
    copy_episode,
    costs_of,
    empty_episodes,
    rules_of,
    view_cluster,
    view_events,
    view_scratch,
)
from flextopo.cluster.simulation.metrics import METRICS, measure
from flextopo.cluster.simulation.scheduler import END
from flextopo.cluster.simulation.step import Decision, act, show_next
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.candidates import (
    CandidateArrays,
    Workspace,
    candidate_arrays,
    workspace,
)
from flextopo.cluster.state.loss import LOSS_TERMS, weighted_gpu_s, write_terms
from flextopo.cluster.state.storage import scratch_of

NEXT_STEP, SAME_STEP, DISABLED = range(3)
"""When an environment that ended starts anew (the names are Gymnasium's)."""

DRAWS = 256
"""Tapes drawn ahead for each environment."""

MAX_REDRAWS = 100
"""Tapes without a decision that a reset skips before it shows one."""

ENVIRONMENT_DTYPE = np.dtype(
    [
        ("given", "i8"),  # a day asked for by name, -1 = none
        ("cursor", "i8"),  # place of the next tape in `draws`
        ("tries", "i8"),  # tapes without a decision that the present reset skipped
        ("options", "i8"),  # candidates of the present decision, or END
        ("unrewarded", "f8"),  # GPU-hours lost before the first decision
        ("ended", "?"),
        ("starting", "?"),
    ],
    align=True,
)
"""What an environment keeps from step to step, beside its episode."""

OUTCOME_DTYPE = np.dtype(
    [
        ("reward", "f8"),  # GPU-hours per 100 GPUs
        ("time_s", "i8"),
        ("asked", "i8"),  # the preemptor, -1 = none
        ("loss", "f8", (len(LOSS_TERMS),)),  # GPU-hours since time 0
        ("unrewarded", "f8"),  # those of them before the first decision
        ("truncated", "?"),
        ("invalid", "?"),
        ("final_time_s", "i8"),  # this and the rest only of an episode that has just ended
        ("final_invalid", "?"),
        ("final_loss", "f8", (len(LOSS_TERMS),)),
        ("final_unrewarded", "f8"),
        ("final_cluster", "f4", (len(FEATURES["cluster"]),)),  # its observation of the cluster
        ("metrics", "f8", (len(METRICS),)),
    ],
    align=True,
)
"""What a step of an environment came to, beside the observation."""


class Batch(NamedTuple):
    """B environments with K candidates each, stepped by T threads.

    Fields: `running` B rows, `stored` S rows, tape d in row d % S; `draws` (B, 256) int64 tapes that
    come next; `environments` (B,) ENVIRONMENT_DTYPE; `found` (B, K) arrays; `observation` with a leading B, every
    row of which a step writes; `outcome` (B,) OUTCOME_DTYPE, zeros before a step; `taken` (1,) int64
    environments that threads have taken in hand in this step; `workspace` and `scratch` with a
    leading T; `allow_wait`, `autoreset`; `shared`, callers may write to `observation`; `gpus` of the
    cluster.
    """

    running: Episodes
    stored: Episodes
    draws: npt.NDArray[np.int64]
    environments: npt.NDArray[Any]
    found: CandidateArrays
    observation: Observation
    outcome: npt.NDArray[Any]
    taken: npt.NDArray[np.int64]
    workspace: Workspace
    scratch: tuple[npt.NDArray[Any], ...]
    allow_wait: int
    autoreset: int
    shared: int
    gpus: int


def empty_observations(b: int, k: int, width: int) -> Observation:
    """Return memory for the observations of `b` environments; see `empty_observation`."""
    fields: Any = (np.stack([array] * b) for array in empty_observation(k, width))
    return Observation(*fields)


class BatchSettings(NamedTuple):
    """What a batch is made for.

    Fields: `num_envs` environments; `k` candidates shown; `width` features of a candidate; `threads`
    that step them; `allow_wait`; `autoreset`, one of NEXT_STEP, SAME_STEP, DISABLED; `shared` as in
    `Batch`; `gpus` of the cluster.
    """

    num_envs: int
    k: int
    width: int
    threads: int
    allow_wait: bool
    autoreset: int
    shared: bool
    gpus: int


def empty_batch(like: Cluster, stored: Episodes, settings: BatchSettings) -> Batch:
    """Return memory for environments that have not started yet, on the nodes of `like`."""
    b, k = settings.num_envs, settings.k
    environments = np.zeros(b, ENVIRONMENT_DTYPE)
    environments["given"], environments["cursor"], environments["options"] = -1, DRAWS, END
    found: Any = (np.stack([array] * b) for array in candidate_arrays(k))
    scratch: Any = (np.stack([array] * settings.threads) for array in workspace())
    return Batch(
        running=empty_episodes(like, b, *axes_of(stored)),
        stored=stored,
        draws=np.zeros((b, DRAWS), np.int64),
        environments=environments,
        found=CandidateArrays(*found),
        observation=empty_observations(b, k, settings.width),
        outcome=np.zeros(b, OUTCOME_DTYPE),
        taken=np.zeros(1, np.int64),
        workspace=Workspace(*scratch),
        scratch=scratch_of(like, settings.threads),
        allow_wait=int(settings.allow_wait),
        autoreset=settings.autoreset,
        shared=int(settings.shared),
        gpus=settings.gpus,
    )


@stage
def decision_of(b: Batch, i: int, thread: int) -> Decision:
    """Return what environment i sees: views, no copies."""
    w, o, f = b.workspace, b.observation, b.found
    return Decision(
        view_cluster(b.running, i, view_scratch(b.scratch, thread)),
        view_events(b.running, i),
        rules_of(b.running, i),
        costs_of(b.running, i),
        Workspace(w.eligible[thread], w.need[thread], w.path[thread]),
        CandidateArrays(
            f.node[i],
            f.slots[i],
            f.level[i],
            f.deficit[i],
            f.wait_s[i],
            f.cost[i],
            f.tier[i],
            f.seat_node[i],
            f.seat_slots[i],
        ),
        Observation(o.preemptor[i], o.cluster[i], o.candidates[i], o.mask[i]),
    )


@stage
def _take_tape(b: Batch, i: int) -> bool:
    """Copy the next tape of environment i from the store; False if it is not there."""
    environment = b.environments[i]
    tape = environment["given"]
    if tape < 0:
        if environment["cursor"] == b.draws.shape[1]:
            return False
        tape = b.draws[i, environment["cursor"]]
    row = tape % b.stored.tape.shape[0]
    if b.stored.tape[row] != tape:
        return False
    copy_episode(b.stored, row, b.running, i)
    if environment["given"] < 0:
        environment["cursor"] += 1
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
        b.outcome[i]["metrics"],
    )
    write_terms(d.events.account, d.costs, 3600.0, b.outcome[i]["final_loss"])
    for feature in range(d.observation.cluster.shape[0]):
        b.outcome[i]["final_cluster"][feature] = d.observation.cluster[feature]
    b.outcome[i]["final_invalid"] = b.outcome[i]["invalid"]
    b.outcome[i]["final_time_s"] = d.cluster.totals[0]["now_s"]


@program
def step_batch(b: Batch, actions: npt.NDArray[np.int64], thread: int) -> int:
    """Step the environments that no other thread has taken, or go on with those that are starting.

    A thread takes the next one when it begins with one, and asks for its memory meanwhile.

    Args:
        b: the environments; `taken` must be 0 before the first thread begins.
        actions: (B,) int64, one for each; empty = only carry on those with `starting` set.
        thread: index of the scratch memory to use.

    Returns:
        How many of them wait for a day that is not in the store, with `starting` set.
    """
    waiting, following = 0, fetch_and_add(b.taken)
    while True:
        i = following
        if i >= b.environments.shape[0]:
            return waiting
        following = fetch_and_add(b.taken)
        fetch_cluster(b.running, b.found, following)
        environment, out = b.environments[i], b.outcome[i]
        acts = actions.shape[0] > 0 and not (environment["ended"] and b.autoreset == NEXT_STEP)
        if actions.shape[0] > 0 and not acts:
            environment["starting"] = True
        # One loop for acting and for starting: what it calls is compiled into it, once.
        while acts or environment["starting"]:
            if not acts and not _take_tape(b, i):
                waiting += 1
                break
            d = decision_of(b, i, thread)
            before = weighted_gpu_s(d.events.account, d.costs)
            count = environment["options"] if acts else 0
            out["final_unrewarded"] = environment["unrewarded"]
            if acts:
                out["invalid"] = act(d, count, actions[i])
                waits = actions[i] == b.found.cost.shape[1]
                if b.allow_wait == 0 and count > 0 and waits and not out["invalid"]:
                    out["invalid"] = True
                    d.events.account[0]["invalid_actions"] += 1
            fetch_pods(b.running, following)
            if count != END:
                if b.shared:
                    mistrust(d.observation)
                count = show_next(d)
            environment["options"] = count
            if acts:
                acts = False
                lost = weighted_gpu_s(d.events.account, d.costs) - before
                out["reward"] = -lost / 36.0 / b.gpus
                out["truncated"] = environment["ended"] = count == END
                if count == END:
                    _finish(b, d, i)
                    environment["starting"] = b.autoreset == SAME_STEP
            else:
                environment["tries"] += 1
                out["invalid"] = False
                environment["unrewarded"] = weighted_gpu_s(d.events.account, d.costs) / 3600.0
                if count != END or environment["given"] >= 0 or environment["tries"] == MAX_REDRAWS:
                    environment["starting"] = environment["ended"] = False
                    environment["tries"], environment["given"] = 0, -1
            write_terms(d.events.account, d.costs, 3600.0, out["loss"])
            out["unrewarded"] = environment["unrewarded"]
            out["time_s"] = d.cluster.totals[0]["now_s"]
            out["asked"] = d.events.clock[0]["asked"]
            if b.allow_wait == 0 and count > 0:
                d.observation.mask[d.observation.mask.shape[0] - 1] = 0
