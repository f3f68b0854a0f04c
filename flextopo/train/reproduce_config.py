"""How to reproduce the paper's experiment: its configurations, and what is legal in them.

Nothing heavy is imported here, so that help and completion know the fields at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.topology.model import ServerModel, preset

CORES_PER_GPU = {"rtx4090": 7, "a100": 14}
LAST_CORES = ("unused", "free", "used")


SEEDS = 5
"""Seeds from the plan's on that show how far runs of the default lie apart."""


def keep_last_cores(model: ServerModel) -> ServerModel:
    """Return the server without the last core of each NUMA node, which no pod may use."""
    cores = tuple(max(cores - 1, 0) for cores in model.numa_cores)
    return replace(model, numa_cores=cores, core_ids=())


@dataclass(frozen=True)
class PaperConfig:
    """One run of the experiment. What the paper does not publish is marked (ours).

    Attributes:
        kind: preset of the servers.
        servers: how many; the paper has 100.
        preemptions: decisions counted; the paper has 5,000.
        batch_mix: shares of batch pods with 1, 2, 4, 8 cards (ours; the paper: 1 or 2 cards).
        preemptor_mix: the same of preemptors (ours). The default is the one mix of 1- and 2-card
            pods in which every blind decision is a draw of two victims, as the headline of 44.5 %
            near 3/7 suggests: any single victim would be a hit.
        cores_per_gpu: cores a card; 0 = 7 on rtx4090, 14 on a100.
        last_core: what becomes of the last core of each NUMA node: `unused` by anyone, as in the
            paper, `free` for every pod, or `used` by an evictable single-core batch pod.
        online_priority: of preemptors.
        batch_priority: of batch pods.
        fill: share of all GPUs up to which batch pods fill the cluster before each arrival (ours).
        online_share: mean share of all GPUs that online pods hold; it fixes their lifetime (ours).
        redraw_starts: draw the start times of a node's pods anew whenever its pods have changed.
            Blind policies evict the latest started of equal priority, so their choice is a random
            one among equals. With start times drawn once, the pods that replaced the last leaver
            are evicted next, time and again (ours).
        seed: of arrivals, lifetimes, batch pods and start times.
    """

    kind: str = "rtx4090"
    servers: int = 100
    preemptions: int = 5000
    batch_mix: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    preemptor_mix: tuple[float, ...] = (0.0, 1.0, 0.0, 0.0)
    cores_per_gpu: int = 0
    last_core: str = "unused"
    online_priority: int = 1000
    batch_priority: int = 500
    fill: float = 1.0
    online_share: float = 0.5
    redraw_starts: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in CORES_PER_GPU:
            raise UnknownNameError("kind of server", self.kind, list(CORES_PER_GPU))
        for name, low, high in (
            ("servers", 1, 10_000),
            ("preemptions", 1, 1_000_000),
            ("seed", 0, 2**32 - 1),
            ("fill", 0, 1),
            ("online_share", 0, 1),
            ("cores_per_gpu", 0, self.model.num_cores // self.model.num_gpus),
        ):
            if not low <= getattr(self, name) <= high:
                _fail(name, getattr(self, name), f"{low} to {high}")
        for name in ("batch_mix", "preemptor_mix"):
            mix = getattr(self, name)
            if len(mix) != 4 or min(mix) < 0 or not math.isclose(sum(mix), 1, abs_tol=1e-6):
                _fail(name, mix, "4 shares, 0 or more, of sum 1")
        if self.last_core not in LAST_CORES:
            _fail("last_core", repr(self.last_core), ", ".join(LAST_CORES))
        if self.batch_priority >= self.online_priority:
            _fail("batch_priority", self.batch_priority, f"below {self.online_priority}")

    @property
    def model(self) -> ServerModel:
        """The server, without its last cores where nobody may use them."""
        model = preset(self.kind)
        return keep_last_cores(model) if self.last_core == "unused" else model

    def cores(self, gpus: int) -> int:
        """Return the cores that a pod of so many cards asks for."""
        return gpus * (self.cores_per_gpu or CORES_PER_GPU[self.kind])


def _fail(name: str, value: object, legal: str) -> None:
    raise FlextopoError(f"reproduction: {name} = {value}; legal: {legal}")


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        kinds: presets of servers, rtx4090 and a100; the sensitivity is that of the first.
        preemptions: counted in each run of the headline; the other runs count a fifth.
        seed: of arrivals and batch pods, the same for all.
    """

    kinds: tuple[str, ...] = ("rtx4090", "a100")
    preemptions: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in CORES_PER_GPU:
                raise UnknownNameError("kind of server", kind, list(CORES_PER_GPU))
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            given = ", ".join(self.kinds) or "none"
            raise FlextopoError(f"kinds of servers: {given}; legal: one or more, each once")
        if self.preemptions < 100:
            raise FlextopoError(f"preemptions = {self.preemptions}; legal: 100 or more")
        for seed in (self.seed, self.seed + SEEDS - 1):
            PaperConfig(preemptions=self.preemptions, seed=seed)
