"""The calibrated workload generator: online services and batch jobs on one event tape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.state.schema import NEVER_S, pod_table
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.cluster.workload.batch_jobs import (
    BatchAttributes,
    BatchJobs,
    draw_attributes,
    generate_jobs,
)
from flextopo.cluster.workload.config import WorkloadConfig, randomised
from flextopo.cluster.workload.online_demand import (
    STEP_S,
    OnlinePods,
    num_services,
    num_steps,
    replica_pods,
    service_rates,
)
from flextopo.cluster.workload.tape import BATCH_PRIORITIES, ONLINE_PRIORITY, Tape

__all__ = ["WorkloadConfig", "generate_tape", "randomised"]


class Streams(NamedTuple):
    """One random generator a purpose, so that a change to one purpose shifts no other."""

    residuals: np.random.Generator
    bursts: np.random.Generator
    services: np.random.Generator
    seconds: np.random.Generator
    start_up: np.random.Generator
    hourly_factors: np.random.Generator
    arrivals: np.random.Generator
    durations: np.random.Generator
    in_progress: np.random.Generator
    classes: np.random.Generator
    checkpoints: np.random.Generator
    budgets: np.random.Generator
    service_stretch: np.random.Generator
    job_stretch: np.random.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Streams:
        """Spawn the streams; a new purpose goes last, or all tapes change.

        Raises:
            WorkloadError: the seed is negative.
        """
        if seed < 0:
            raise WorkloadError(f"workload: seed = {seed}; legal: 0 or more")
        children = np.random.SeedSequence(seed).spawn(len(cls._fields))
        return cls(*map(np.random.default_rng, children))


def generate_tape(
    config: WorkloadConfig,
    num_gpus: int,
    seed: int,
    *,
    gpus_per_server: int = 8,
    cores_per_gpu: int = 7,
) -> Tape:
    """Generate the events of one episode for a cluster.

    Args:
        config: parameters of the workload.
        num_gpus: GPUs of the whole cluster.
        seed: 0 or more; equal arguments give equal tapes, bit by bit.
        gpus_per_server: no pod asks for more; 1 to 16.
        cores_per_gpu: whole CPU cores that each pod asks for a GPU.

    Returns:
        A tape from -warmup to the horizon, both rounded up to 10 min; t = 0 is 00:00. With less
        than one GPU for the online peak there are no services.

    Raises:
        WorkloadError: an argument is out of range, or `config.services` is more than fits.
    """
    check_cluster(num_gpus, gpus_per_server, cores_per_gpu)
    rng = Streams.from_seed(seed)
    warmup, account = num_steps(config)
    rates = service_rates(config, num_services(config, num_gpus), [rng.residuals, rng.bursts])
    online = replica_pods(
        rates, config, num_gpus, gpus_per_server, [rng.services, rng.seconds, rng.start_up]
    )
    jobs = generate_jobs(
        config,
        num_gpus,
        gpus_per_server,
        -warmup * STEP_S,
        account * STEP_S,
        [rng.hourly_factors, rng.arrivals, rng.durations, rng.in_progress],
    )
    return assemble_tape(config, online, jobs, rng, cores_per_gpu)


def check_cluster(num_gpus: int, gpus_per_server: int, cores_per_gpu: int) -> None:
    """Check the size of a cluster.

    Raises:
        WorkloadError: names the argument, its value and what was legal.
    """
    for name, value, high in (
        ("num_gpus", num_gpus, 10**7),
        ("gpus_per_server", gpus_per_server, MAX_GPUS),
        ("cores_per_gpu", cores_per_gpu, 1024),
    ):
        if not 1 <= value <= high:
            raise WorkloadError(f"workload: {name} = {value}; legal: 1 to {high}")


def assemble_tape(
    config: WorkloadConfig,
    online: OnlinePods,
    jobs: BatchJobs,
    rng: Streams,
    cores_per_gpu: int,
) -> Tape:
    """Join replicas and jobs in one table by arrival, and draw the jobs' attributes.

    In one second online pods come first, then jobs in their order; members of a PodGroup are
    neighbours.

    Args:
        config: shares of the attributes, grace, restart and the tape's window.
        online: replicas.
        jobs: by submission.
        rng: streams for the attributes.
        cores_per_gpu: whole cores.

    Returns:
        The tape.
    """
    attributes = draw_attributes(config, jobs.pods, [rng.classes, rng.checkpoints, rng.budgets])
    columns = _columns(online, jobs, attributes)
    order = np.argsort(columns["arrive_s"], kind="stable")
    warmup, account = num_steps(config)
    return Tape(
        end_s=account * STEP_S,
        warmup_s=warmup * STEP_S,
        grace_s=config.grace_s,
        restart_s=config.restart_s,
        pods=pod_table(
            len(order),
            cores=columns["gpus"][order] * cores_per_gpu,
            **{name: column[order] for name, column in columns.items()},
        ),
        pdb_allowed=np.ones(attributes.num_pdbs, np.int64),
    )


def _columns(online: OnlinePods, jobs: BatchJobs, attributes: BatchAttributes) -> dict[str, Any]:
    """Return the tape's arrays before sorting: replicas, then the pods of jobs."""
    job = np.repeat(np.arange(len(jobs)), jobs.pods)
    is_group = jobs.pods > 1
    group = np.where(is_group, np.cumsum(is_group) - 1, -1)
    replicas, pods = len(online.service), len(job)

    def join(replica: Any, pod: Any) -> Any:
        both = np.empty(replicas + pods, np.asarray(pod).dtype)
        both[:replicas], both[replicas:] = replica, pod
        return both

    return {
        "arrive_s": join(online.arrive_s, jobs.submit_s[job]),
        "depart_s": join(online.depart_s, NEVER_S),
        "duration_s": join(0, jobs.duration_s[job]),
        "start_s": join(online.start_s, 0),
        "gpus": join(online.gpus, jobs.gpus[job]),
        "priority": join(ONLINE_PRIORITY, np.array(BATCH_PRIORITIES)[attributes.batch_class[job]]),
        "online": join(True, False),
        "requirement": join(online.requirement, TopologyRequirement.NONE),
        "preemptible": join(False, attributes.preemptible[job]),
        "batch_class": join(0, attributes.batch_class[job]),
        "checkpoint_s": join(0, attributes.checkpoint_s[job]),
        "group": join(-1, group[job]),
        "pdb": join(-1, attributes.pdb[job]),
        "service": join(online.service, -1),
    }
