"""Generated tapes on small clusters, and a walk over the decisions of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.baselines.registry import make_selector
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.schema import ALL_MEMBERS, NEVER_S, pod_table
from flextopo.cluster.topology.model import Fleet, ServerModel
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.generator import generate_tape
from flextopo.cluster.workload.tape import Tape

BUSY = WorkloadConfig(online_peak_share=0.9, max_duration_s=86400)
"""Small clusters decide often: much online demand, and many jobs, since none runs for weeks."""

SERVERS = ("4*rtx4090", "4*a100", "2*rtx4090,2*a100")


def make_tape(servers: str, seed: int, config: WorkloadConfig | None = None) -> tuple[Tape, Fleet]:
    """Return a generated tape and the servers it is for."""
    fleet = parse_servers(servers)
    tape = generate_tape(
        config or BUSY,
        fleet.num_gpus,
        seed,
        gpus_per_server=fleet.gpus_per_server,
        cores_per_gpu=fleet.cores_per_gpu,
    )
    return tape, fleet


def simulate(
    servers: str,
    seed: int,
    filter_: AlignmentFilter = AlignmentFilter.OWN,
    scenario: Scenario | None = None,
    config: WorkloadConfig | None = None,
) -> Simulator:
    """Return a simulation of a generated tape that has warmed up."""
    return Simulator(*make_tape(servers, seed, config), filter_, scenario)


def decisions(
    servers: str, seed: int, walk: str = "random", config: WorkloadConfig | None = None
) -> Iterator[tuple[Simulator, Pod]]:
    """Yield every decision of a tape, taken by the selector `walk`."""
    selector = make_selector(walk, seed)
    simulator = simulate(servers, seed, selector.filter, config=config)
    while (pod := simulator.next_decision()) is not None:
        yield simulator, pod
        simulator.apply(selector.select(simulator.state, pod))


DUO = ServerModel("duo", gpu_numa=(0, 0, 1, 1), numa_socket=(0, 1), numa_cores=(4, 4))
"""Two sockets of one NUMA node, two GPUs and four cores each."""


def hand_tape(
    pods: Sequence[Mapping[str, int]],
    end_s: int,
    *,
    warmup_s: int = 0,
    pdb_allowed: Sequence[int] = (),
) -> Tape:
    """Return a tape written by hand, with a grace period of 30 s and restart work of 60 s.

    A pod with `depart_s` is online with priority 1000; any other is a batch job with priority 100.
    What is not given is 0, but cores (as many as GPUs), group and budget (none), and how
    many members of a group have to run (all).
    """

    def column(name: str, online: int = 0, batch: int = 0) -> npt.NDArray[np.int64]:
        return np.array([pod.get(name, online if "depart_s" in pod else batch) for pod in pods])

    return Tape(
        end_s=end_s,
        warmup_s=warmup_s,
        grace_s=30,
        restart_s=60,
        pods=pod_table(
            len(pods),
            **{name: column(name) for name in ("arrive_s", "duration_s", "start_s", "gpus")},
            **{name: column(name) for name in ("requirement", "batch_class", "checkpoint_s")},
            depart_s=column("depart_s", batch=NEVER_S),
            cores=np.array([pod.get("cores", pod["gpus"]) for pod in pods]),
            priority=column("priority", 1000, 100),
            online=np.array(["depart_s" in pod for pod in pods]),
            preemptible=column("preemptible", 0, 1),
            group=column("group", -1, -1),
            min_members=column("min_members", ALL_MEMBERS, ALL_MEMBERS),
            pdb=column("pdb", -1, -1),
            service=column("service", 0, -1),
            deadline_s=column("deadline_s", 60, 60),
            sensitivity=column("sensitivity"),
            required_tier=column("required_tier", 3, 3),
            preferred_tier=column("preferred_tier", 3, 3),
        ),
        pdb_allowed=np.array(pdb_allowed, np.int64),
    )


def with_backoff(tape: Tape, backoff_s: int) -> Tape:
    """Return a tape whose evicted jobs stay out of the queue for a while at first."""
    kept = {name: getattr(tape, name) for name in ("end_s", "warmup_s", "grace_s", "restart_s")}
    return Tape(**kept, pods=tape.pods, backoff_s=backoff_s)


def same(a: Any, b: Any) -> bool:
    """Compare two observations or infos bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    return repr(a) == repr(b)
