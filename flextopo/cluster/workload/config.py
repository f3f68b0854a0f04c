"""The parameters of the workload model: default, unit, reason and ranges of each in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.scenario import SENSITIVITIES
from flextopo.cluster.workload.tape import MAX_BACKOFF_S

REPLICA_GPUS = (1, 2, 4, 8)
"""GPUs of an online replica or a batch pod, in the order of the mixes."""

GANG_MEMBERS = (2, 4, 8, 16)
"""Members of a replica over several servers, in the order of `gang_mix`."""

CHECKPOINT_S = (900, 1800, 3600, 0)
"""Checkpoint intervals of batch jobs in the order of `checkpoint_mix`; 0 = none."""

PHILLY_GPU_MIX = (0.947, 0.018, 0.021, 0.014)
"""Share of jobs with 1, 2, 4 and 8 GPUs in Microsoft's Philly trace (Jeon et al., ATC 2019)."""

SPOT_HOUR_FACTORS = (
    *(1.15, 0.82, 0.72, 0.69, 0.66, 0.73, 0.73, 0.77, 0.82, 0.87, 1.29, 1.32),
    *(1.02, 0.99, 1.30, 1.29, 1.39, 1.30, 1.03, 1.09, 1.13, 0.99, 0.97, 0.93),
)
"""Arrival rate of each hour of the day over the mean, as reported for Alibaba's spot GPU jobs."""


NUMBERS = (int, float, np.integer, np.floating)


def _number(
    default: float, low: float, high: float, doc: str, train: tuple[float, float] | None = None
) -> Any:
    """Declare a parameter, legal in [low, high], drawn from `train` by `randomised`."""
    return field(default=default, metadata={"legal": (low, high), "train": train, "doc": doc})


def _shares(default: tuple[float, ...], doc: str, *, mix: bool = True) -> Any:
    """Declare weights of fixed length, 0 or more: a mix sums to 1, factors to their number."""
    total = 1.0 if mix else float(len(default))
    return field(default=default, metadata={"sum": total, "doc": doc})


@dataclass(frozen=True)
class WorkloadConfig:
    """Parameters of the generated workload; defaults are fitted on public traces.

    Each field declares its default, its legal range, its unit and reason and, where one exists, the
    range that `randomised` draws it from. ServeGen = 34 services of the alibaba/ServeGen week,
    10-min windows; openb = Alibaba's cluster-trace-gpu-v2023; Philly = Microsoft's trace.

    Raises:
        WorkloadError: a value is outside its legal range.
    """

    warmup_h: float = _number(12.0, 0, 336, "h before the account that fill the cluster")
    horizon_h: float = _number(24.0, 1 / 6, 8784, "h in the account: one day")

    services: int | None = field(
        default=None, metadata={"doc": "number of online services; None = by the next field"}
    )
    services_per_128_gpus: float = _number(6.0, 0.01, 128, "services in 16 servers of 8", (3, 12))
    online_peak_share: float = _number(
        0.6, 0.01, 1, "highest online demand of the day, share of all GPUs", (0.3, 0.9)
    )
    daily_amplitude: float = _number(
        1.10, 0, 5, "A1, log-rate, 24 h wave: ServeGen median", (0.5, 1.75)
    )
    daily_peak_h: float = _number(15.8, 0, 24, "p, h of day: ServeGen median", (8, 18))
    half_daily_amplitude: float = _number(
        0.55, 0, 5, "A2, log-rate, 12 h wave: ServeGen median", (0.3, 1.0)
    )
    half_daily_peak_h: float = _number(10.3, 0, 12, "p2, h of day: ServeGen mean direction")
    residual_sd: float = _number(0.56, 0, 5, "log-rate beside the waves: ServeGen", (0.34, 1.2))
    residual_phi: float = _number(
        0.76, 0, 0.999, "AR(1) coefficient over 10 min: ServeGen", (0.6, 0.93)
    )
    residual_correlation: float = _number(
        0.3, 0, 1, "of two services' residuals: they rise together", (0, 0.6)
    )
    burst_factor: float = _number(2.0, 1, 100, "rate multiple in a burst of 10 min", (1.3, 3))
    burst_share: float = _number(0.01, 0, 1, "share of 10-min steps with a burst")
    scale_down_s: int = _number(1800, 0, 86400, "s at a lower demand before scaling", (300, 3600))
    start_p50_s: float = _number(
        90.0, 0, 86400, "s, median start-up of an LLM replica: 59-294 s in vLLM issues 19824, 20264"
    )
    start_p90_s: float = _number(240.0, 0, 86400, "s, 90th percentile of the same")
    start_factor: float = _number(
        1.0, 0, 1000, "start-up multiple: 0.1 = a snapshot restored in 10 s, 2.4 = a 70B model",
        (0.1, 2.4),
    )  # fmt: skip
    replica_gpu_mix: tuple[float, ...] = _shares(
        (0.4, 0.3, 0.2, 0.1), "share of services with 1, 2, 4, 8 GPUs a replica: assumption"
    )
    gang_share: float = _number(
        0.0, 0, 1, "share of services whose replicas are gangs of whole servers; no public trace says: "
        "assumption where it is not 0; needs servers with a network",
    )  # fmt: skip
    gang_mix: tuple[float, ...] = _shares(
        (0.5, 0.3, 0.15, 0.05), "share of those with 2, 4, 8, 16 members: assumption"
    )
    pair_share: float = _number(
        0.25, 0, 1, "share of them that are groups of prefill and decode: half of the members have half of "
        "the GPUs: assumption",
    )  # fmt: skip
    guaranteed_share: float = _number(0.5, 0, 1, "share of services with requirement guaranteed")
    none_share: float = _number(0.0, 0, 1, "share of services without one; the rest best-effort")
    deadline_min_s: int = _number(
        30,
        1,
        86400,
        "s, shortest deadline of a service to place, log-uniform: assumption",
        (15, 60),
    )
    deadline_max_s: int = _number(300, 1, 86400, "s, longest one: assumption", (120, 600))
    sensitivity_mix: tuple[float, ...] = _shares(
        (0.2, 0.5, 0.2, 0.1),
        f"share of services that are {', '.join(SENSITIVITIES)}: assumption; a replica of one GPU "
        "is never linked but resident",
    )

    batch_load: float = _number(
        0.65, 0, 10, "GPU-s asked for by batch jobs a GPU-s of the cluster", (0.4, 1.2)
    )
    batch_gpu_mix: tuple[float, ...] = _shares(
        (0.75, 0.07, 0.06, 0.12), "share of jobs with 1, 2, 4, 8 GPUs: Alibaba spot, whole GPUs"
    )
    small_job_mu: float = _number(7.65, 0, 20, "log s, jobs of 1-2 GPUs, log-normal", (6.0, 7.7))
    small_job_sigma: float = _number(1.83, 0, 10, "log s, jobs of 1-2 GPUs", (1.7, 2.2))
    large_job_mu: float = _number(9.12, 0, 20, "log s, jobs of 4-8 GPUs, log-normal", (8.9, 9.8))
    large_job_sigma: float = _number(2.76, 0, 10, "log s, jobs of 4-8 GPUs", (2.5, 2.9))
    min_duration_s: int = _number(60, 1, 10**7, "s; shorter jobs are lengthened to it")
    max_duration_s: int = _number(
        2592000, 1, 10**7, "s; longer jobs are cut to it, and counted: 30 days; 6 % of jobs over 3 "
        "days hold 78 % of GPU-time (Philly), P99 is 19.8 days (GFS, arXiv 2509.11134)",
    )  # fmt: skip
    hour_factors: tuple[float, ...] = _shares(
        SPOT_HOUR_FACTORS, "batch arrival rate of each hour of the day over the mean", mix=False
    )
    arrival_shape: float = _number(
        2.0, 0.05, 1000, "shape of the hourly gamma factor, mean 1", (0.5, 5)
    )
    arrival_correlation: float = _number(0.4, 0, 0.999, "of that factor in neighbouring hours")
    low_class_share: float = _number(0.6, 0, 1, "jobs of class low; the rest middle")
    low_protected_share: float = _number(0.1, 0, 1, "low jobs that must not be preempted")
    checkpoint_mix: tuple[float, ...] = _shares(
        (0.4, 0.25, 0.15, 0.2),
        "jobs with a checkpoint each 15, 30, 60 min or none: assumption; jobs over a day drawn "
        "without have one each 60 min: assumption",
    )
    group_share: float = _number(
        0.1, 0, 1, "batch GPU-hours in PodGroups of 2-4 whole servers", (0, 0.2)
    )
    pdb_share: float = _number(0.1, 0, 1, "single batch pods under a disruption budget: assumption")
    elastic_share: float = _number(
        0.1, 0, 1, "single pods of 4 or 8 GPUs that are pods of 2 instead, each evicted by itself: "
        "assumption", (0, 0.3),
    )  # fmt: skip
    elastic_group_share: float = _number(
        0.0, 0, 1, "PodGroups of batch jobs that go on with half of their members, the others evicted "
        "each by itself: assumption",
    )  # fmt: skip
    spot_share: float = _number(
        0.2, 0, 1, "preemptible low jobs with a guaranteed duration, as GFS's spot tasks (arXiv "
        "2509.11134): assumption", (0, 0.5),
    )  # fmt: skip
    spot_guaranteed_s: int = _number(
        3600, 0, 10**7, "s after each start that they are no victims: assumption; Meta's research "
        "clusters: 2 h (arXiv 2410.21680)", (0, 7200),
    )  # fmt: skip
    initial_jobs: bool = field(
        default=True, metadata={"doc": "start with jobs in progress: a steady state sooner"}
    )
    grace_s: int = _number(30, 0, 3600, "s from an eviction to free resources", (0, 120))
    restart_s: int = _number(60, 0, 86400, "s of work repeated after an eviction: assumption")
    backoff_s: int = _number(
        10, 0, MAX_BACKOFF_S, "s out of the queue after a first eviction, doubling to "
        f"{MAX_BACKOFF_S}: Kubernetes' job controller", (0, 60),
    )  # fmt: skip

    def __post_init__(self) -> None:
        for spec in fields(self):
            # Configuration files know lists only, and a frozen configuration must be hashable.
            if isinstance(getattr(self, spec.name), list):
                object.__setattr__(self, spec.name, tuple(getattr(self, spec.name)))
        self.validate()

    def validate(self) -> None:
        """Check every field; runs at construction.

        Raises:
            WorkloadError: names the field, its value and what was legal.
        """
        for spec in fields(self):
            value = getattr(self, spec.name)
            if "legal" in spec.metadata:
                self._check_number(spec.name, value, *spec.metadata["legal"])
            elif "sum" in spec.metadata:
                self._check_shares(spec.name, value, len(spec.default), spec.metadata["sum"])  # type: ignore[arg-type]
        if self.services is not None:
            self._check_number("services", self.services, 1, 10**6, whole=True)
        if self.max_duration_s < self.min_duration_s:
            _fail("max_duration_s", self.max_duration_s, f"min_duration_s = {self.min_duration_s}+")
        if self.start_p90_s < self.start_p50_s or (self.start_p90_s > 0 == self.start_p50_s):
            _fail("start_p90_s", self.start_p90_s, f"start_p50_s = {self.start_p50_s} or more")
        if self.deadline_max_s < self.deadline_min_s:
            _fail("deadline_max_s", self.deadline_max_s, f"deadline_min_s = {self.deadline_min_s}+")
        if self.guaranteed_share + self.none_share > 1 + 1e-9:
            _fail("none_share", self.none_share, f"0 to {1 - self.guaranteed_share:g}")

    def _check_number(
        self, name: str, value: object, low: float, high: float, *, whole: bool = False
    ) -> None:
        whole = whole or (name.endswith("_s") and not name.startswith("start_p"))
        kinds = (int, np.integer) if whole else NUMBERS
        if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
            _fail(name, value, f"{'a whole number ' if whole else ''}{low:g} to {high:g}")

    def _check_shares(self, name: str, value: object, size: int, total: float) -> None:
        numbers = value if isinstance(value, tuple) else ()
        ok = len(numbers) == size and all(isinstance(v, NUMBERS) and v >= 0 for v in numbers)
        if not ok or not math.isclose(sum(numbers), total, abs_tol=1e-6):
            _fail(name, value, f"{size} numbers, 0 or more, of sum {total:g}")


def _fail(name: str, value: object, legal: str) -> None:
    raise WorkloadError(f"workload: {name} = {value!r}; legal: {legal}")


def randomised(seed: int, base: WorkloadConfig | None = None) -> WorkloadConfig:
    """Draw a workload for randomised training around `base`.

    Numbers are uniform in their field's training range; the batch GPU mix lies uniformly between
    `base`'s and Philly's; the mixes of replica GPUs and of sensitivities are Dirichlet around
    `base`'s with concentration 10. Fields without a range keep `base`'s value.

    Args:
        seed: of the draw; equal seeds give equal configurations.
        base: supplies the other fields; None = the defaults.

    Returns:
        A legal configuration.
    """
    base = WorkloadConfig() if base is None else base
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    drawn: dict[str, Any] = {}
    for spec in fields(base):
        low_high = spec.metadata.get("train")
        if low_high is not None:
            value = float(rng.uniform(*low_high))
            drawn[spec.name] = round(value) if isinstance(spec.default, int) else value
    to_philly = rng.random()
    mix = (1 - to_philly) * np.array(base.batch_gpu_mix) + to_philly * np.array(PHILLY_GPU_MIX)
    drawn["batch_gpu_mix"] = tuple((mix / mix.sum()).tolist())
    for name in ("replica_gpu_mix", "sensitivity_mix"):
        alpha = 10 * np.array(getattr(base, name)) + 1e-3
        drawn[name] = tuple(rng.dirichlet(alpha).tolist())
    return replace(base, **drawn)
