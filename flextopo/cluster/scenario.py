"""What a comparison holds fixed beside the tape: the weights of the loss, and node admission.

No kernel is imported here, so that the command line knows these fields without compiling any.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import NamedTuple

from flextopo.cluster.errors import FlextopoError

ADMISSIONS = ("best-effort", "restricted")


class Sensitivity(NamedTuple):
    """How fast a service serves where it is misaligned, 1 = as fast as at its best.

    Fields: `off_island`, on one NUMA node where one PCIe switch or NVLink island would do; `off_numa`,
    on one socket where one NUMA node would do; `off_socket`, across sockets where one would do;
    `off_leaf`, a gang whose servers hang on several leaves where one would do; `off_block`, on several
    blocks; `about`, what serves, and where the figures are from.
    """

    off_island: float
    off_numa: float
    off_socket: float
    off_leaf: float
    off_block: float
    about: str


SENSITIVITIES: dict[str, Sensitivity] = {
    "offload": Sensitivity(
        1.0, 0.85, 0.67, 0.95, 0.9,
        "weights or cache offloaded to the host's memory: 1.5 times slower across sockets (vLLM "
        "issue 30492); on one socket half of that, an assumption",
    ),
    "resident": Sensitivity(
        1.0, 0.99, 0.98, 0.98, 0.95,
        "decodes on the GPU alone: 0.7 to 1.9 % slower across sockets (vLLM issue 30492)",
    ),
    "linked": Sensitivity(
        0.8, 0.8, 0.65, 0.8, 0.65,
        "tensor-parallel over the links between GPUs: an NVLink pair serves 25 % more than one "
        "over PCIe at one request and 53 % more at four (nccl and vLLM measurements)",
    ),
    "host-heavy": Sensitivity(
        1.0, 0.5, 0.2, 0.95, 0.9,
        "speculative decoding with much work on the host: 5 times slower across NUMA domains "
        "(srt-slurm issue 332); on one socket an assumption",
    ),
}  # fmt: skip
"""Kinds of services by what misalignment does to them; a pod of which nobody says is the first.

Between servers nothing was measured for these kinds. Taken here, as assumptions: stages of a pipeline that
hand over activations lose 2 to 5 % beyond their leaf and 5 to 10 % beyond their block; what is linked
loses there what it loses inside a server."""

NUM_SENSITIVITIES = len(SENSITIVITIES)

MOST = 1e9
"""The highest legal weight: sums of a year's GPU-hours stay finite."""

DEADLINES = ("hard", "soft")

BACKFILLS = ("any", "easy", "reserve")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss; the unit of account is the GPU-hour lost.

    Attributes:
        waiting: weight of a GPU-hour that an online pod waits for its place within its service's
            deadline, or starts up.
        late: weight of a GPU-hour that it waits beyond the deadline: more than any victim set is worth.
        late_doubling_s: after so long beyond the deadline a further hour weighs twice as much, after
            twice as long three times; 0 = it does not grow.
        outage: how much more a service's only replica is missed: both of the above are multiplied by
            1 + outage / (1 + replicas that serve).
        misalignment: weight of a GPU-hour lost because an online pod runs unaligned.
        discarded: weight of a batch GPU-hour lost or repeated, times 1 + priority class.
        eviction: weight of the fixed charge.
        idle: weight of a free GPU-hour while batch work that wants it waits.
        eviction_h: fixed charge in hours an evicted GPU.
        expected_start_s: what an evicted replica takes to start up elsewhere.
        expected_service_h: for how long a choice counts an unaligned placement; about the mean
            life of a replica that the generated workload adds (1.95 h on 16 servers of 8 GPUs).
    """

    waiting: float = 1.0
    late: float = 32.0
    late_doubling_s: float = 600.0
    outage: float = 3.0
    misalignment: float = 3.0
    discarded: float = 1.0
    eviction: float = 1.0
    idle: float = 1.0
    eviction_h: float = 0.05
    expected_start_s: float = 90.0
    expected_service_h: float = 2.0

    def __post_init__(self) -> None:
        for spec in fields(self):
            value = getattr(self, spec.name)
            if not 0 <= value <= MOST:
                raise FlextopoError(f"loss weight {spec.name} = {value}; legal: 0 to {MOST:g}")


@dataclass(frozen=True)
class Scenario:
    """What a comparison holds fixed beside the tape.

    Attributes:
        weights: the loss.
        admission: node admission: `best-effort` takes every pod that fits, `restricted` refuses a
            guaranteed pod that cannot be aligned, after its victims are gone (the names are those
            of kubelet's topology policies).
        deadline: `hard` lets no selector leave a pod pending by choice once that would take it past
            its service's deadline; `soft` leaves that to the loss.
        backfill: whom the batch scheduler lets pass a job that fits nowhere: `any` that fits; with
            `reserve` the servers that will be free first are kept for the job, and with `easy` those
            may use them that end before.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    admission: str = "best-effort"
    deadline: str = "hard"
    backfill: str = "any"

    def __post_init__(self) -> None:
        for name, legal in (
            ("admission", ADMISSIONS),
            ("deadline", DEADLINES),
            ("backfill", BACKFILLS),
        ):
            if getattr(self, name) not in legal:
                raise FlextopoError(f"{name} {getattr(self, name)!r}; legal: {', '.join(legal)}")
