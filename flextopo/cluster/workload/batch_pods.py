"""The pods of batch jobs: what an eviction costs each job, and the columns of its pods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.schema import ALL_MEMBERS
from flextopo.cluster.workload.batch_jobs import BatchJobs
from flextopo.cluster.workload.config import CHECKPOINT_S, WorkloadConfig
from flextopo.cluster.workload.tape import BATCH_PRIORITIES

PODS_PER_BUDGET = 10
"""Pods that share one PodDisruptionBudget, about; each budget allows one disruption at a time."""

LONG_JOB_S = 86400
"""A job that runs for longer saves checkpoints: who loses a day once does so (assumption)."""

LONG_JOB_CHECKPOINT_S = 3600
"""Interval of a long job that was drawn without checkpoints: assumption."""

ELASTIC_GPUS = (4, 8)
"""Single pods of this size may be elastic jobs, which shrink and grow by whole workers."""

WORKER_GPUS = 2
"""GPUs of one worker of an elastic job: assumption."""

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BatchAttributes:
    """What an eviction of each job costs; drawn, since no public trace records it. J rows.

    Attributes:
        batch_class: (J,) int64, 0 low, 1 middle.
        preemptible: (J,) bool.
        checkpoint_s: (J,) int64, 0 = no checkpoints.
        pdb: (J,) int64, budget index, -1 = none.
        num_pdbs: number of budgets.
        elastic: (J,) bool, its workers start, stop and are evicted each by itself.
        protection_s: (J,) int64, not a victim for this long after each start.
        shrinks: (J,) bool, a PodGroup that goes on with half of its members.
    """

    batch_class: Ints
    preemptible: Bools
    checkpoint_s: Ints
    pdb: Ints
    num_pdbs: int
    elastic: Bools
    protection_s: Ints
    shrinks: Bools


def draw_attributes(
    config: WorkloadConfig, jobs: BatchJobs, rng: list[np.random.Generator]
) -> BatchAttributes:
    """Draw the attributes of each job.

    Args:
        config: the shares.
        jobs: only single pods fall under a budget or are elastic, and no job is both.
        rng: five generators: class and preemptibility, checkpoints, budgets, elastic jobs,
            guaranteed durations.

    Returns:
        The attributes, one row a job.
    """
    count, single = len(jobs), jobs.pods == 1
    low, protected = rng[0].random((2, count))
    batch_class = (low >= config.low_class_share).astype(np.int64)
    preemptible = (batch_class > 0) | (protected >= config.low_protected_share)
    interval = np.array(CHECKPOINT_S)[
        rng[1].choice(len(CHECKPOINT_S), count, p=config.checkpoint_mix)
    ]
    long = np.minimum(jobs.wanted_s, config.max_duration_s) > LONG_JOB_S
    under = np.flatnonzero((rng[2].random(count) < config.pdb_share) & single)
    num_pdbs = math.ceil(len(under) / PODS_PER_BUDGET)
    pdb = np.full(count, -1, np.int64)
    pdb[under] = rng[2].permutation(np.arange(len(under)) % max(num_pdbs, 1))
    elastic = (rng[3].random(count) < config.elastic_share) & single
    elastic &= np.isin(jobs.gpus, ELASTIC_GPUS)
    shrinks = (rng[3].random(count) < config.elastic_group_share) & ~single
    spot = (rng[4].random(count) < config.spot_share) & (batch_class == 0) & preemptible
    return BatchAttributes(
        batch_class=batch_class,
        preemptible=preemptible,
        checkpoint_s=np.where(long & (interval == 0), LONG_JOB_CHECKPOINT_S, interval),
        pdb=np.where(elastic, -1, pdb),
        num_pdbs=num_pdbs,
        elastic=elastic,
        protection_s=np.where(spot, config.spot_guaranteed_s, 0),
        shrinks=shrinks,
    )


def batch_columns(jobs: BatchJobs, attributes: BatchAttributes) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the jobs' pods, in the jobs' order; groups count from 0.

    An elastic job of one pod becomes workers that share its run time but belong to no PodGroup. The pod
    of a PodGroup that has fewer GPUs is its last. In an elastic PodGroup each pod does its part of the
    work, whether the others run or not, while half of them do.
    """
    elastic = attributes.elastic
    gpus = np.where(elastic, WORKER_GPUS, jobs.gpus)
    pods = num_pods(jobs, attributes)
    grouped = (pods > 1) & ~elastic
    columns = {
        "arrive_s": jobs.submit_s,
        "duration_s": jobs.duration_s,
        "gpus": gpus,
        "priority": np.array(BATCH_PRIORITIES)[attributes.batch_class],
        "batch_class": attributes.batch_class,
        "preemptible": attributes.preemptible,
        "protection_s": attributes.protection_s,
        "checkpoint_s": attributes.checkpoint_s,
        "group": np.where(grouped, np.cumsum(grouped) - 1, -1),
        "min_members": np.where(attributes.shrinks, -(-jobs.pods // 2), ALL_MEMBERS),
        "pdb": attributes.pdb,
    }
    repeated = {name: np.repeat(column, pods) for name, column in columns.items()}
    shorter = jobs.rest > 0
    repeated["gpus"][np.cumsum(pods)[shorter] - 1] = jobs.rest[shorter]
    return repeated


def num_pods(jobs: BatchJobs, attributes: BatchAttributes) -> Ints:
    """Return how many pods each job becomes, (J,) int64."""
    return np.where(attributes.elastic, jobs.gpus // WORKER_GPUS, jobs.pods)
