"""Generated tapes on small clusters, and a walk over the decisions of one."""

from __future__ import annotations

from collections.abc import Iterator

from flextopo.baselines.registry import make_selector
from flextopo.cluster.pods import Pod
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import parse_servers
from flextopo.cluster.simulator import Scenario, Simulator
from flextopo.cluster.state import AlignmentFilter
from flextopo.cluster.tape import Tape
from flextopo.cluster.workload import generate_tape
from flextopo.cluster.workload_config import WorkloadConfig

BUSY = WorkloadConfig(online_peak_share=0.9)
SERVERS = ("4*rtx4090", "4*a100", "2*rtx4090,2*a100")


def make_tape(servers: str, seed: int, config: WorkloadConfig | None = None) -> tuple[Tape, Fleet]:
    """Return a generated tape and the servers it is for."""
    fleet = Fleet(*parse_servers(servers))
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
