"""Imitate a lookahead, then improve on the policy by its own lookahead.

1. Imitation: branches of the demonstrations go on greedily. The scorer minimises the expected loss
   under its own probabilities, sum_i p_i L_i: the average over tapes is what a policy can know, the
   luck on one tape averages out. From the second round on the network is among the behaviours
   (DAgger).
2. Improvement: branches go on under the network of the round before, so what is minimised is the
   loss of one free decision followed by that policy: policy iteration. Imitation alone waits too
   much, since it takes for granted that greedy will not wait on.

Where this ends depends on the first weights and the tapes, so several networks are trained. Validation
tapes choose the network and its round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.metrics import episode_metrics
from flextopo.cluster.output_files import make_folder
from flextopo.cluster.seeds import VALIDATION, take
from flextopo.cluster.selector import VictimSelector
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import check_servers, parse_servers
from flextopo.cluster.workload import WorkloadConfig
from flextopo.policies.artifact import save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector
from flextopo.train.demonstrations import Demonstrations, Demonstrator, tape_for
from flextopo.train.devices import check_device, use_device
from flextopo.train.rounds import Rounds, rounds_folder, weights_of


@dataclass(frozen=True)
class ImitationConfig:
    """How to imitate and improve.

    Attributes:
        servers: clusters to train on, one after the other.
        networks: trained one after the other, each from first weights and tapes of its own.
        tapes: training tapes a round.
        rounds: rounds of imitation, each fitted on all of them so far.
        improvements: rounds of improvement, each fitted on the last two of them.
        last_tapes: training tapes of the last round of improvement, which need most.
        epochs: passes over the data a round.
        k: candidates that are branched and shown.
        horizon_s: how far a branch looks ahead.
        hidden: width of the network.
        learning_rate: of Adam.
        batch_size: decisions a gradient step.
        entropy: weight of the entropy bonus, in units of the mean loss difference.
        validation_tapes: tapes that choose the checkpoint.
        seed: of the networks, the order of their data and their first training tape; network i of n
            has the seed n * seed + i.
        device: the network's: cpu or cuda. Decisions are looked ahead on the cpu.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
    networks: int = 3
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
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in (
            "networks", "tapes", "rounds", "last_tapes", "epochs", "k", "hidden", "batch_size",
            "validation_tapes",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise FlextopoError(f"{name} = {getattr(self, name)}; legal: 1 or more")
        for name in ("learning_rate", "horizon_s"):
            if not getattr(self, name) > 0:
                raise FlextopoError(f"{name} = {getattr(self, name)}; legal: above 0")
        for name in ("improvements", "entropy", "seed"):
            if not getattr(self, name) >= 0:
                raise FlextopoError(f"{name} = {getattr(self, name)}; legal: 0 or more")
        if not self.servers:
            raise FlextopoError("servers = (); legal: one cluster or more")
        for servers in self.servers:
            check_servers(servers)
        check_device(self.device)

    def of_network(self, at: int) -> ImitationConfig:
        """Return the configuration of one of the networks alone."""
        return replace(self, networks=1, seed=self.networks * self.seed + at)

    @property
    def plan(self) -> list[int]:
        """Training tapes of each round."""
        tapes = [self.tapes] * (self.rounds + self.improvements)
        if self.improvements:
            tapes[-1] = self.last_tapes
        return tapes


Objective = Callable[[Any, list[torch.Tensor], float], torch.Tensor]


def expected_loss(network: Any, batch: list[torch.Tensor], entropy: float) -> torch.Tensor:
    """Return the mean over decisions of sum_i p_i L_i, less the entropy bonus."""
    *inputs, losses = batch
    scores, _ = network.packed(*inputs)
    log_p = torch.log_softmax(scores, -1)
    p = log_p.exp()
    bonus = -(p * log_p).sum(-1)
    return ((p * losses).sum(-1) - entropy * bonus).mean()


def fit(
    network: Any,
    data: Demonstrations,
    config: ImitationConfig,
    round_: int,
    objective: Objective | None = None,
    graph: bool = False,
) -> Iterator[float]:
    """Train on the demonstrations; yield the mean objective after each epoch.

    Args:
        network: a `CandidateScorer`, or another with `packed`.
        data: losses are cut at 100 GPU-hours.
        config: of the optimiser.
        round_: together with the seed it decides the order of the data.
        objective: of network, batch and weight of the entropy; None = `expected_loss`, whose mean
            is in GPU-hours a decision.
        graph: give the network the candidates' graphs, too.
    """
    objective = objective or expected_loss
    spread = float(np.clip(np.abs(data.losses), 0, 100).mean()) or 1.0
    arrays = [data.preemptor, data.cluster, data.candidates, data.mask]
    arrays += [data.graph] if graph else []
    arrays.append(np.clip(data.losses, -100, 100) / spread)
    device = next(network.parameters()).device
    tensors = [torch.from_numpy(array).to(device) for array in arrays]
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs)
    order = np.random.default_rng((config.seed, round_, 29))
    for _ in range(config.epochs):
        total = 0.0
        shuffled = order.permutation(len(data))
        for at in range(0, len(data), config.batch_size):
            rows = torch.from_numpy(shuffled[at : at + config.batch_size]).to(device)
            loss = objective(network, [t[rows] for t in tensors], config.entropy)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        schedule.step()
        yield total / len(data) * spread


def play_validation(
    selector: VictimSelector, servers: tuple[str, ...], tapes: int
) -> tuple[npt.NDArray[np.float64], float]:
    """Play the first validation tapes.

    Args:
        selector: who plays.
        servers: clusters, one after the other.
        tapes: how many.

    Returns:
        (tapes,) weighted losses, and the mean success rate.
    """
    losses, success = [], []
    for i, seed in enumerate(take(VALIDATION, tapes)):
        fleet = Fleet(*parse_servers(servers[i % len(servers)]))
        sim = tape_for(fleet, WorkloadConfig(), seed)
        sim.run(selector)
        metrics = episode_metrics(sim)
        losses.append(metrics["weighted_loss"])
        success.append(metrics["success_rate"])
    return np.array(losses), float(np.nanmean(success))


def validate(selector: VictimSelector, config: ImitationConfig) -> float:
    """Return the mean weighted loss on the validation tapes of every cluster trained on."""
    losses, _ = play_validation(selector, config.servers, config.validation_tapes)
    return float(np.mean(losses))


def imitate(
    config: ImitationConfig,
    workers: int = 1,
    report: Callable[[str], None] = print,
    rounds: Rounds | None = None,
) -> tuple[CandidateScorer, list[float]]:
    """Train one network; return its best round by validation and the validation loss of each.

    Args:
        config: how to train, with the seed of this network.
        workers: processes that demonstrate; no number depends on it.
        report: is told about each round.
        rounds: those that are over already; they are added to.
    """
    rounds = rounds or Rounds(config)
    torch.manual_seed(config.seed)
    network = CandidateScorer(ScorerConfig(config.hidden)).to(use_device(config.device))
    for round_ in range(len(rounds.losses), len(config.plan)):
        if round_:
            network.load_state_dict(rounds.networks[-1])
        weights = weights_of(network) if round_ else {}
        improve = round_ >= config.rounds
        demonstrator = Demonstrator(config.servers, config.k, config.horizon_s, weights, improve)
        first = config.seed * sum(config.plan) + sum(config.plan[:round_])
        new = demonstrator.collect(first, config.plan[round_], workers)
        data = rounds.to_fit(new)
        *_, final = fit(network, data, config, round_)
        selector = LearnedSelector("candidate", weights_of(network), config.k)
        rounds.add(network, validate(selector, config), new)
        report(
            f"{'improvement' if improve else 'imitation'} {round_ + 1}/{len(config.plan)}: "
            f"{len(data)} decisions, expected loss {final:+.3f} GPU-h a decision beyond the "
            f"cheapest candidate's, validation weighted loss {rounds.losses[-1]:.4f}"
        )
    network.load_state_dict(rounds.networks[int(np.argmin(rounds.losses))])
    return network, rounds.losses


def train_imitation(
    config: ImitationConfig,
    folder: Path,
    workers: int,
    report: Callable[[str], None],
    resume: bool = False,
) -> Path:
    """Train the networks, and write the best to `folder / "policy"`; return that folder.

    Raises:
        FlextopoError: a policy is there already, there is nothing to resume, or no such device.
    """
    target = folder / "policy"
    if (target / "meta.json").exists():
        raise FlextopoError(f"{target}: holds a policy already; legal: another folder")
    use_device(config.device)
    torch.set_num_threads(1)
    runs = [
        Rounds(config.of_network(at), folder / rounds_folder(at)) for at in range(config.networks)
    ]
    begun = [run for run in runs if run.is_there]
    if resume:
        for run in begun or runs[:1]:
            run.resume()
    elif begun:
        raise FlextopoError(f"{folder}: holds a run already; legal: another folder, or --resume")
    trained = []
    for at, run in enumerate(runs):
        make_folder(folder / rounds_folder(at))
        prefix = f"network {at + 1}/{config.networks}, " if config.networks > 1 else ""
        trained.append(imitate(run.config, workers, _behind(prefix, report), run))
    best = int(np.argmin([min(history) for _, history in trained]))
    network, history = trained[best]
    return save_policy(
        network,
        target,
        f"imitation-{config.seed}",
        config.k,
        config=asdict(config),
        rounds=rounds_folder(best),
        validation_loss=history,
    )


def _behind(prefix: str, report: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: report(prefix + line)
