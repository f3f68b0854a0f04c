"""Imitate a lookahead, then improve on the policy by its own lookahead.

1. Imitation: branches of the demonstrations go on greedily. The scorer minimises the expected loss
   under its own probabilities, sum_i p_i L_i: the average over tapes is what a policy can know, the
   luck on one tape averages out. From the second round on the network is among the behaviours
   (DAgger).
2. Improvement: branches go on under the network of the round before, so what is minimised is the
   loss of one free decision followed by that policy: policy iteration. Imitation alone waits too
   much, since it takes for granted that greedy will not wait on.

Validation tapes choose the checkpoint.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.metrics import episode_metrics
from flextopo.cluster.output_files import make_folder, write_whole
from flextopo.cluster.seeds import VALIDATION, take
from flextopo.cluster.selector import VictimSelector
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import check_servers, parse_servers
from flextopo.cluster.workload import WorkloadConfig
from flextopo.policies.artifact import save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector
from flextopo.train.demonstrations import Demonstrations, Demonstrator, concatenate, tape_for
from flextopo.train.devices import check_device, use_device


@dataclass(frozen=True)
class ImitationConfig:
    """How to imitate and improve.

    Attributes:
        servers: clusters to train on, one after the other.
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
        seed: of the network, the order of the data and the first training tape.
        device: the network's: cpu or cuda. Decisions are looked ahead on the cpu.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
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
            "tapes", "rounds", "last_tapes", "epochs", "k", "hidden", "batch_size",
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


def weights_of(network: CandidateScorer) -> dict[str, npt.NDArray[np.float32]]:
    """Return a copy of the network's arrays by parameter name."""
    return {key: value.detach().cpu().numpy().copy() for key, value in network.state_dict().items()}


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


def read_rounds(folder: Path) -> dict[str, Any]:
    """Read what a run keeps of its rounds: its `config` and the validation `losses`.

    Raises:
        FlextopoError: there is nothing, or something else.
    """
    path = folder / "rounds.json"
    try:
        state = json.loads(path.read_bytes())
        return {"config": dict(state["config"]), "losses": list(state["losses"])}
    except OSError:
        raise FlextopoError(f"{path}: missing; legal: an imitation run's folder") from None
    except (ValueError, KeyError, TypeError):
        raise FlextopoError(f"{path}: is damaged; legal: what an imitation run writes") from None


class Rounds:
    """The rounds that are over: networks, validation losses, and the data still needed.

    Args:
        config: of the training.
        folder: keeps them, so that a later process goes on from the last complete round to the same
            bits; None = in memory alone.
    """

    def __init__(self, config: ImitationConfig, folder: Path | None = None) -> None:
        self.config, self.folder = config, folder
        self.networks: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.data: dict[int, Demonstrations] = {}

    def add(self, network: CandidateScorer, loss: float, data: Demonstrations) -> None:
        """Add a round, and forget the data that no later round is fitted on."""
        at = len(self.losses)
        self.networks.append({key: v.cpu().clone() for key, v in network.state_dict().items()})
        self.losses.append(loss)
        self.data[at] = data
        old = [other for other in self.data if other < self._first_to_fit()]
        for other in old:
            del self.data[other]
        if self.folder is not None:
            buffer = io.BytesIO()
            np.savez(buffer, allow_pickle=False, **weights_of(network))
            write_whole(self.folder / f"network-{at}.npz", buffer.getvalue())
            data.save(self.folder / f"demonstrations-{at}.npz")
            state = {"config": asdict(self.config), "losses": self.losses}
            write_whole(self.folder / "rounds.json", json.dumps(state).encode())
            for other in old:
                (self.folder / f"demonstrations-{other}.npz").unlink()

    def resume(self) -> None:
        """Read the rounds that the folder keeps.

        Raises:
            FlextopoError: it keeps none, or those of another configuration.
        """
        assert self.folder is not None
        state = read_rounds(self.folder)
        if state["config"] != json.loads(json.dumps(asdict(self.config))):
            raise FlextopoError(f"{self.folder}: of another configuration; legal: the same one")
        self.losses = state["losses"]
        for at in range(len(self.losses)):
            with np.load(self.folder / f"network-{at}.npz", allow_pickle=False) as arrays:
                self.networks.append({key: torch.from_numpy(arrays[key]) for key in arrays.files})
        for at in range(self._first_to_fit(), len(self.losses)):
            self.data[at] = Demonstrations.load(self.folder / f"demonstrations-{at}.npz")

    def _first_to_fit(self) -> int:
        """Return the first round whose data the next round is fitted on."""
        at, first = len(self.losses), self.config.rounds
        return 0 if at < first else max(first, at - 1)

    def to_fit(self, new: Demonstrations) -> Demonstrations:
        """Return the data that the next round is fitted on."""
        return concatenate([*(self.data[at] for at in sorted(self.data)), new])


def imitate(
    config: ImitationConfig,
    workers: int = 1,
    report: Callable[[str], None] = print,
    rounds: Rounds | None = None,
) -> tuple[CandidateScorer, list[float]]:
    """Train a scorer; return the best by validation and the validation loss of each round.

    Args:
        config: how to train.
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
    """Train, and write the artifact to `folder / "policy"`; return its folder.

    Raises:
        FlextopoError: a policy is there already, there is nothing to resume, or no such device.
    """
    target = folder / "policy"
    if (target / "meta.json").exists():
        raise FlextopoError(f"{target}: holds a policy already; legal: another folder")
    use_device(config.device)
    torch.set_num_threads(1)
    rounds = Rounds(config, folder / "rounds")
    if resume:
        rounds.resume()
    elif (folder / "rounds" / "rounds.json").exists():
        raise FlextopoError(f"{folder}: holds a run already; legal: another folder, or --resume")
    make_folder(folder / "rounds")
    network, history = imitate(config, workers, report, rounds)
    name = f"imitation-{config.seed}"
    policy = save_policy(
        network, target, name, config.k, config=asdict(config), validation_loss=history
    )
    for path in (folder / "rounds").glob("demonstrations-*.npz"):
        path.unlink()
    return policy
