"""The calibrated workload generator: online services and batch jobs on one event tape."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.state.pods import TopologyRequirement
from flextopo.cluster.state.schema import ALL_MEMBERS, DEADLINE_S, NEVER_S, pod_table
from flextopo.cluster.topology.levels import NetworkLevel
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.cluster.workload.batch_jobs import BatchJobs, cut_notes, generate_jobs
from flextopo.cluster.workload.batch_pods import BatchAttributes, batch_columns, draw_attributes
from flextopo.cluster.workload.config import WorkloadConfig, randomised
from flextopo.cluster.workload.online_demand import (
    STEP_S,
    OnlinePods,
    num_services,
    num_steps,
    replica_pods,
    service_rates,
)
from flextopo.cluster.workload.tape import ONLINE_PRIORITY, Tape

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
    deadlines: np.random.Generator
    sensitivities: np.random.Generator
    elastic: np.random.Generator
    spot: np.random.Generator
    gangs: np.random.Generator

    @property
    def of_replicas(self) -> list[np.random.Generator]:
        """What `replica_pods` draws from."""
        return [
            self.services, self.seconds, self.start_up, self.deadlines, self.sensitivities, self.gangs,
        ]  # fmt: skip

    @property
    def of_attributes(self) -> list[np.random.Generator]:
        """What `draw_attributes` draws from."""
        return [self.classes, self.checkpoints, self.budgets, self.elastic, self.spot]

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
    online = replica_pods(rates, config, num_gpus, gpus_per_server, rng.of_replicas)
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

    In one second online pods come first, then jobs in their order; pods of a job are neighbours.

    Args:
        config: shares of the attributes, grace, restart, back-off and the tape's window.
        online: replicas.
        jobs: by submission.
        rng: streams for the attributes.
        cores_per_gpu: whole cores.

    Returns:
        The tape.
    """
    attributes = draw_attributes(config, jobs, rng.of_attributes)
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
        backoff_s=config.backoff_s,
        notes=cut_notes(jobs, config),
    )


def _columns(online: OnlinePods, jobs: BatchJobs, attributes: BatchAttributes) -> dict[str, Any]:
    """Return the tape's arrays before sorting: replicas, then the pods of jobs."""
    batch = batch_columns(jobs, attributes)
    replicas, pods = len(online.service), len(batch["gpus"])
    gangs = int(online.group.max(initial=-1)) + 1

    def join(replica: Any, pod: Any) -> Any:
        both = np.empty(replicas + pods, np.asarray(pod).dtype)
        both[:replicas], both[replicas:] = replica, pod
        return both

    return {
        "arrive_s": join(online.arrive_s, batch["arrive_s"]),
        "depart_s": join(online.depart_s, NEVER_S),
        "duration_s": join(0, batch["duration_s"]),
        "start_s": join(online.start_s, 0),
        "gpus": join(online.gpus, batch["gpus"]),
        "priority": join(ONLINE_PRIORITY, batch["priority"]),
        "online": join(True, False),
        "requirement": join(online.requirement, TopologyRequirement.NONE),
        "deadline_s": join(online.deadline_s, DEADLINE_S),
        "sensitivity": join(online.sensitivity, 0),
        "preemptible": join(False, batch["preemptible"]),
        "protection_s": join(0, batch["protection_s"]),
        "batch_class": join(0, batch["batch_class"]),
        "checkpoint_s": join(0, batch["checkpoint_s"]),
        "group": join(online.group, np.where(batch["group"] < 0, -1, batch["group"] + gangs)),
        "min_members": join(ALL_MEMBERS, batch["min_members"]),
        "required_tier": join(online.required_tier, NetworkLevel.CLUSTER),
        "preferred_tier": join(online.preferred_tier, NetworkLevel.CLUSTER),
        "pdb": join(-1, batch["pdb"]),
        "service": join(online.service, -1),
    }
