"""How to compare, train, search and ablate: every configuration, and what is legal in it.

Nothing heavy is imported here, so that help and completion know the fields at once.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from flextopo.baselines.registry import COMPARED, check_object, looks_ahead, selector_name
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.seeds import SPLITS, TRAINING, VALIDATION, take
from flextopo.policies.shipped import zoo_names

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named
    from flextopo.cluster.topology.model import Fleet

T = TypeVar("T")

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared on what; from Python also a `Fleet`, selectors themselves, or their classes.

    Attributes:
        servers: such as rtx4090x16, 16*a100, 8*rtx4090,8*a100 or 4*FILE.
        selectors: names of `flextopo list selectors`, or MODULE:NAME of others.
        policies: shipped ones, or folders of others.
        seeds: how many seeds, each one tape.
        split: where they come from: `comparison`, or `validation` while a policy is developed.
        oracle_seeds: seeds that selectors play that look ahead, which cost most; 0 = all.
        services: trace of online demand; without one, the generator's.
        batch: trace of batch jobs; without one, the generator's; traces go together.
        workload: the generator's parameters.
        scenario: loss weights and node admission.
    """

    servers: str | Fleet = "16*rtx4090"
    selectors: tuple[Named, ...] = COMPARED
    policies: tuple[Named, ...] = field(default_factory=lambda: tuple(zoo_names()))
    seeds: int = 40
    split: str = "comparison"
    oracle_seeds: int = 0
    services: str | None = None
    batch: str | None = None
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    scenario: Scenario = field(default_factory=Scenario)

    def __post_init__(self) -> None:
        if self.split not in ("comparison", "validation"):
            raise FlextopoError(f"split {self.split!r}; legal: comparison, validation")
        take(SPLITS[self.split], self.seeds)
        if not 0 <= self.oracle_seeds <= self.seeds:
            raise FlextopoError(f"oracle seeds {self.oracle_seeds}; legal: 0 to {self.seeds}")
        if not self.names:
            raise FlextopoError("no selector is given; legal: one at least")
        if len(set(self.names)) < len(self.names):
            raise FlextopoError(f"selectors {', '.join(self.names)}; legal: each one once")
        for name, given in self.named.items():
            if not isinstance(given, str):
                check_object(name, given)
        if (self.services is None) != (self.batch is None):
            trace = self.services or self.batch
            raise FlextopoError(f"trace {trace!r} alone; legal: services and batch together")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All that is compared, in the order of the tables."""
        return tuple(map(selector_name, (*self.selectors, *self.policies)))

    @property
    def named(self) -> dict[str, Named]:
        """Name to what was given: the name itself, or an object."""
        return dict(zip(self.names, (*self.selectors, *self.policies), strict=True))

    def seeds_of(self, name: str) -> list[int]:
        """Return the seeds that a selector plays."""
        ahead = looks_ahead(name)
        fewer = self.oracle_seeds if ahead and self.oracle_seeds else self.seeds
        return take(SPLITS[self.split], fewer)


@dataclass(frozen=True)
class FitConfig:
    """How to fit the hours of `requeue-aware`.

    Attributes:
        servers: clusters to fit on; the days of all count alike.
        seeds: validation days on each.
        rounds: of the search, each over every size.
        grid: hours that are tried for each size.
        gang_share: share of services whose replicas are gangs, on clusters that have a network.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100")
    seeds: int = 100
    rounds: int = 2
    grid: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
    gang_share: float = 0.0

    def __post_init__(self) -> None:
        _check(self, ones=("seeds", "rounds"))
        _check_share("gang_share", self.gang_share)
        if not self.grid or not all(0 <= hours < math.inf for hours in self.grid):
            raise FlextopoError(f"grid = {self.grid}; legal: one number or more, 0 or more each")
        if not self.servers:
            raise FlextopoError("servers = (); legal: one cluster or more")
        _check_where("cpu", *self.servers)


@dataclass(frozen=True)
class RangesConfig:
    """How to find the ranges that a policy was trained within.

    Attributes:
        servers: clusters that it was trained on, one after the other.
        tapes: training tapes.
        validation_tapes: of drawn workloads, and as many of the default one, on which false alarms count.
        noise: share of actions on training tapes that are random.
        quantile: share of decisions that may lie below the lowest value of a feature, and above the highest.
        margin: of a range, in shares of its width, on both sides.
        false_alarms: highest share of decisions on validation tapes that are out of range.
        sizes: fewest and most servers of a cluster.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
    tapes: int = 3000
    validation_tapes: int = 1500
    noise: float = 0.1
    quantile: float = 0.001
    margin: float = 0.05
    false_alarms: float = 0.01
    sizes: tuple[int, int] = (4, 1000)

    def __post_init__(self) -> None:
        _check(self, ones=("tapes", "validation_tapes"))
        legal = {"noise": 1.0, "quantile": 0.5, "margin": 10.0, "false_alarms": 1.0}
        for name, most in legal.items():
            if not 0 <= getattr(self, name) <= most:
                raise FlextopoError(f"{name} = {getattr(self, name)}; legal: 0 to {most:g}")
        if not 1 <= self.sizes[0] <= self.sizes[1]:
            raise FlextopoError(f"sizes = {self.sizes}; legal: the fewest servers, then the most")
        if not self.servers:
            raise FlextopoError("servers = (); legal: one cluster or more")
        _check_where("cpu", *self.servers)


AGAIN = 4
"""How many times as many validation tapes the last choice takes."""


@dataclass(frozen=True)
class ImitationConfig:
    """How to imitate and improve.

    Attributes:
        servers: clusters to train on, one after the other.
        networks: trained one after the other, each from first weights and tapes of its own.
        members: rounds of each network in the committee; 0 = none, the best network is kept.
        tapes: training tapes a round; the committee plays four times as many.
        rounds: rounds of imitation, each fitted on all of them so far.
        improvements: rounds of improvement, each fitted on the last two of them.
        last_tapes: training tapes of the last round of improvement, which need most.
        epochs: passes over the data a round.
        k: candidates that are branched and shown.
        horizon_s: how far a branch looks ahead.
        hidden: width of the network, when it begins from scratch.
        learning_rate: of Adam.
        batch_size: decisions a gradient step.
        entropy: weight of the entropy bonus, in units of the mean loss difference.
        validation_tapes: tapes that choose the checkpoint.
        seed: of the networks, the order of their data and their first training tape; network i of n
            has the seed n * seed + i.
        start: artifact (name or folder) to begin with; empty = from scratch.
        gang_share: share of services whose replicas are gangs, on clusters that have a network.
        device: the network's: cpu or cuda. Decisions are looked ahead on the cpu.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
    networks: int = 3
    members: int = 2
    tapes: int = 600
    rounds: int = 2
    improvements: int = 4
    last_tapes: int = 1600
    epochs: int = 15
    k: int = 16
    horizon_s: int = 4 * 3600
    hidden: int = 64
    learning_rate: float = 1e-3
    batch_size: int = 512
    entropy: float = 0.02
    validation_tapes: int = 480
    seed: int = 0
    start: str = ""
    gang_share: float = 0.0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check(
            self,
            ones=("networks", "tapes", "last_tapes", "epochs", "k", "hidden", "batch_size",
                  "validation_tapes"),
            above=("learning_rate", "horizon_s"),
            zeros=("rounds", "members", "improvements", "entropy", "seed"),
        )  # fmt: skip
        most = len(VALIDATION) // (1 + AGAIN)
        if self.validation_tapes > most:
            raise FlextopoError(f"validation_tapes = {self.validation_tapes}; legal: 1 to {most}")
        end = (self.seed + 1) * (self.networks * sum(self.plan) + sum(self.last_plan))
        if end > len(TRAINING):
            raise FlextopoError(
                f"seed = {self.seed}: with tapes = {self.tapes} it and those below take {end} "
                f"training tapes; legal: up to {len(TRAINING)}"
            )
        if not self.servers:
            raise FlextopoError("servers = (); legal: one cluster or more")
        _check_share("gang_share", self.gang_share)
        if self.rounds < 1 and not self.start:
            raise FlextopoError("rounds = 0 without start; legal: 1 or more, or a start policy")
        _check_where(self.device, *self.servers)

    def of_network(self, at: int) -> ImitationConfig:
        """Return the configuration of one of the networks alone."""
        return replace(self, networks=1, members=0, seed=self.networks * self.seed + at)

    @property
    def last_plan(self) -> list[int]:
        """Training tapes that the committee plays, and those of the improvement on it."""
        return [4 * self.tapes, self.last_tapes] if self.members else []

    @property
    def plan(self) -> list[int]:
        """Training tapes of each round."""
        tapes = [self.tapes] * (self.rounds + self.improvements)
        if self.improvements:
            tapes[-1] = self.last_tapes
        return tapes


PLANNED_TAPES = 600_000
"""Position of the first training tape of `PlanningConfig`; imitation plays those at both ends."""


@dataclass(frozen=True)
class PlanningConfig:
    """How to learn what planning would decide.

    Attributes:
        servers: clusters to train on, one after the other.
        tapes: training tapes; every decision on them is planned.
        futures: imagined for each decision; all its actions are played in all of them.
        randomised: share of the tapes whose workload is drawn anew, as imitation's is; the others are of the
            default workload. Futures are imagined from the tape's own.
        k: candidates that are tried and shown.
        horizon_s: how far a branch looks ahead.
        most_lost: GPU-hours beyond the rule's choice at which losses are cut.
        hidden: width of the network.
        epochs: passes over the decisions.
        learning_rate: of Adam, at its highest.
        batch_size: decisions a gradient step.
        entropy: weight of the entropy bonus in the first epoch, GPU-hours.
        last_entropy: the same in the last epoch.
        validation_tapes: tapes that tell how good the network is; they choose nothing.
        seed: of the tapes and of the network.
        device: the network's: cpu or cuda. Decisions are planned on the cpu.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
    tapes: int = 3000
    futures: int = 64
    randomised: float = 0.5
    k: int = 16
    horizon_s: int = 4 * 3600
    most_lost: float = 10.0
    hidden: int = 64
    epochs: int = 15
    learning_rate: float = 2e-3
    batch_size: int = 512
    entropy: float = 0.5
    last_entropy: float = 0.1
    validation_tapes: int = 480
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check(
            self,
            ones=("tapes", "futures", "k", "hidden", "epochs", "batch_size", "validation_tapes"),
            above=("learning_rate", "horizon_s", "most_lost"),
            zeros=("seed", "entropy", "last_entropy"),
        )
        _check_share("randomised", self.randomised)
        end = PLANNED_TAPES + (self.seed + 1) * self.tapes
        if end > len(TRAINING):
            raise FlextopoError(
                f"seed = {self.seed}: with tapes = {self.tapes} the training tapes end at {end}; "
                f"legal: up to {len(TRAINING)}"
            )
        if not self.servers:
            raise FlextopoError("servers = (); legal: one cluster or more")
        take(VALIDATION, self.validation_tapes)
        _check_where(self.device, *self.servers)


@dataclass(frozen=True)
class PPOConfig:
    """How to train.

    Attributes:
        servers: the cluster to train on.
        timesteps: decisions in all.
        seed: of everything; the tapes come from the training seeds.
        start: artifact (name or folder) to begin with; empty = from scratch.
        num_envs: environments played side by side.
        rollout: decisions each plays between two updates.
        k: candidates shown.
        tapes: different tapes to train on.
        hidden: width of the network, when it begins from scratch.
        learning_rate: of Adam.
        epochs: passes over a rollout.
        batch_size: decisions a gradient step.
        tau_s: time constant of the discount, in simulated seconds; see `rollout_buffer`.
        relative: learn from the reward beyond greedy-cost's on the same day.
        kl: weight of the divergence from the start policy, in units of the reward.
        entropy: weight of the entropy bonus.
        clip: of the probability ratio.
        critic_steps: decisions during which only the critic learns, so that the first policy
            updates of a warm start have a baseline.
        threads: of torch.
        allow_wait: may the policy leave a pod pending? From scratch it then tends to learn to wait
            for ever, since waiting is one action that is always there.
        device: the network's: cpu or cuda.
    """

    servers: str = "16*rtx4090"
    timesteps: int = 100_000
    seed: int = 0
    start: str = ""
    num_envs: int = 8
    rollout: int = 256
    k: int = 16
    tapes: int = 4096
    hidden: int = 64
    learning_rate: float = 3e-4
    epochs: int = 4
    batch_size: int = 256
    tau_s: float = 4 * 3600.0
    relative: bool = True
    kl: float = 0.0
    entropy: float = 0.003
    clip: float = 0.2
    critic_steps: int = 0
    threads: int = 1
    allow_wait: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        _check(
            self,
            ones=("timesteps", "num_envs", "rollout", "k", "tapes", "hidden", "batch_size",
                  "epochs", "threads"),
            above=("learning_rate", "tau_s", "clip"),
            zeros=("seed", "kl", "entropy", "critic_steps"),
        )  # fmt: skip
        if self.kl > 0 and not self.start:
            raise FlextopoError(f"kl = {self.kl} without start; legal: 0, or a start policy")
        _check_where(self.device, self.servers)


FIRST_TAPE = 5000
"""Validation seeds from here on judge trials; training chooses its checkpoints on earlier ones."""


@dataclass(frozen=True)
class Space:
    """Where a hyper-parameter may lie.

    Attributes:
        low: lowest value.
        high: highest value.
        log: uniform in the logarithm.
    """

    low: float
    high: float
    log: bool = False


SPACES: dict[str, dict[str, Space]] = {
    "ppo": {
        "learning_rate": Space(1e-4, 3e-3, log=True),
        "entropy": Space(1e-4, 3e-2, log=True),
        "clip": Space(0.1, 0.4),
        "tau_s": Space(1800.0, 86400.0, log=True),
        "epochs": Space(2, 10),
        "hidden": Space(32, 128, log=True),
    },
    "imitation": {
        "learning_rate": Space(2e-4, 5e-3, log=True),
        "entropy": Space(2e-3, 0.2, log=True),
        "epochs": Space(10, 60),
        "hidden": Space(32, 128, log=True),
        "batch_size": Space(128, 1024, log=True),
    },
}
"""Algorithm to field of its configuration to range."""

DEFAULT_SEARCH = {"ppo": ("learning_rate", "entropy"), "imitation": ("learning_rate", "entropy")}
BUDGETS = {"ppo": "timesteps", "imitation": "tapes"}


@dataclass(frozen=True)
class SweepConfig:
    """What is searched, and how a trial is judged.

    Attributes:
        algorithm: `ppo` or `imitation`.
        search: fields of the algorithm's configuration; none = learning rate and entropy.
        trials: how many in all.
        budget: decisions (ppo) or tapes a round (imitation) of a trial.
        fixed: other fields of the configuration, such as `servers`; the rest keeps its default.
        judged_on: servers of the tapes that judge a trial.
        tapes: how many validation tapes judge it.
        batch: trials asked for at a time; changes the study, unlike the number of workers.
        seed: of the search and of every training.
    """

    algorithm: str = "ppo"
    search: tuple[str, ...] = ()
    trials: int = 8
    budget: int = 20_000
    fixed: dict[str, Any] = field(default_factory=dict)
    judged_on: str = "16*rtx4090"
    tapes: int = 16
    batch: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.algorithm not in SPACES:
            raise UnknownNameError("algorithm", self.algorithm, list(SPACES))
        _check(self, ones=("trials", "budget", "batch"), zeros=("seed",))
        take(VALIDATION, self.tapes, FIRST_TAPE)
        for name in self.searched:
            if name not in SPACES[self.algorithm]:
                raise UnknownNameError("hyper-parameter", name, list(SPACES[self.algorithm]))

    @property
    def searched(self) -> tuple[str, ...]:
        """The fields that are searched."""
        return self.search or DEFAULT_SEARCH[self.algorithm]


def _from_scratch() -> PPOConfig:
    return PPOConfig(
        servers="8*rtx4090,8*a100", timesteps=500_000, num_envs=64, rollout=128, batch_size=1024,
        allow_wait=True,
    )  # fmt: skip


@dataclass(frozen=True)
class AblationConfig:
    """How much is spent.

    Attributes:
        tapes: training tapes whose demonstrations all networks are fitted to.
        ppo: of the trainings from scratch; the others differ where their name says so.
        validation_tapes: tapes that every row is played on.
        importance_tapes: the first of them, on which features are shuffled.
    """

    tapes: int = 900
    ppo: PPOConfig = field(default_factory=_from_scratch)
    validation_tapes: int = 480
    importance_tapes: int = 120

    def __post_init__(self) -> None:
        _check(self, ones=("tapes", "validation_tapes", "importance_tapes"))


def from_fields(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Return a configuration from its fields, of which lists become tuples.

    Args:
        kind: its class.
        values: field to value.
        where: what messages begin with, such as a file.

    Raises:
        FlextopoError: a field is unknown, or a value is not legal.
    """
    legal = [spec.name for spec in fields(kind)]  # type: ignore[arg-type]
    for name in values:
        if name not in legal:
            raise FlextopoError(
                f"{where}{kind.__name__} has no {name!r}; legal: {', '.join(legal)}"
            )
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _check(
    config: Any,
    ones: tuple[str, ...] = (),
    above: tuple[str, ...] = (),
    zeros: tuple[str, ...] = (),
) -> None:
    """Check fields that are 1 or more, above 0, and 0 or more."""
    for names, compare, bound, words in (
        (ones, operator.ge, 1, "1 or more"),
        (above, operator.gt, 0, "above 0"),
        (zeros, operator.ge, 0, "0 or more"),
    ):
        for name in names:
            if not compare(getattr(config, name), bound):
                raise FlextopoError(f"{name} = {getattr(config, name)}; legal: {words}")


def _check_share(name: str, value: float) -> None:
    """Check a field that is a share."""
    if not 0 <= value <= 1:
        raise FlextopoError(f"{name} = {value}; legal: 0 to 1")


def _check_where(device: str, *clusters: str) -> None:
    # Reading servers loads networkx, which help and completion must not wait for.
    from flextopo.cluster.topology.servers import check_servers

    for servers in clusters:
        check_servers(servers)
    if device not in DEVICES:
        raise FlextopoError(f"device {device!r}; legal: {', '.join(DEVICES)}")
