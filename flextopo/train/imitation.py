"""Imitate the lookahead oracle: learn from the looked-ahead loss of every candidate.

1. Collect decisions on training tapes with randomised workloads. At each, the simulator branches
   over the K cheapest candidates and waiting: one loss an action, not only the best action. The
   states come from a mixture of behaviours (the oracle, greedy, the network itself, noise).
2. Train the scorer to minimise the expected loss under its own probabilities, sum_i p_i L_i. The
   average over tapes is what a policy can know; the oracle's luck on one tape averages out.
3. Repeat with the network among the behaviours (DAgger). Validation tapes choose the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.features import Observation, empty_observation, observe
from flextopo.cluster.metrics import episode_metrics
from flextopo.cluster.seeds import TRAINING, VALIDATION, take
from flextopo.cluster.selector import AlignmentFilter
from flextopo.cluster.server_model import Fleet
from flextopo.cluster.servers import parse_servers
from flextopo.cluster.simulator import Simulator
from flextopo.cluster.workload import WorkloadConfig, generate_tape, randomised
from flextopo.policies.artifact import save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector, score


@dataclass(frozen=True)
class ImitationConfig:
    """How to imitate.

    Attributes:
        servers: clusters to train on, one after the other.
        tapes: training tapes a round.
        rounds: DAgger rounds; from the second on the network is among the behaviours.
        epochs: passes over all data collected so far, a round.
        k: candidates that are branched and shown.
        horizon_s: how far a branch looks ahead.
        hidden: width of the network.
        learning_rate: of Adam.
        batch_size: decisions a gradient step.
        entropy: weight of the entropy bonus, in units of the mean loss difference.
        validation_tapes: tapes that choose the checkpoint.
        seed: of the network, the order of the data and the first training tape.
    """

    servers: tuple[str, ...] = ("16*rtx4090", "16*a100", "8*rtx4090,8*a100")
    tapes: int = 800
    rounds: int = 3
    epochs: int = 15
    k: int = 16
    horizon_s: int = 4 * 3600
    hidden: int = 64
    learning_rate: float = 1e-3
    batch_size: int = 512
    entropy: float = 0.02
    validation_tapes: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tapes", "rounds", "epochs", "k", "hidden", "batch_size", "validation_tapes"):
            if getattr(self, name) < 1:
                raise FlextopoError(f"{name} = {getattr(self, name)}; legal: 1 or more")
        if self.seed < 0:
            raise FlextopoError(f"seed = {self.seed}; legal: 0 or more")


@dataclass(frozen=True)
class Demonstrations:
    """Decisions with the looked-ahead loss of every action; D decisions.

    Attributes:
        preemptor: (D, 6), cluster: (D, 12), candidates: (D, K, 30) float32; mask: (D, K + 1) int8.
        losses: (D, K + 1) float32, GPU-hours above the cheapest candidate's; 0 where illegal.
    """

    preemptor: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.float32]
    candidates: npt.NDArray[np.float32]
    mask: npt.NDArray[np.int8]
    losses: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.losses)


def tape_for(fleet: Fleet, config: WorkloadConfig, seed: int) -> Simulator:
    """Return a simulation of the generated tape of a seed on a fleet."""
    tape = generate_tape(
        config,
        fleet.num_gpus,
        seed,
        gpus_per_server=fleet.gpus_per_server,
        cores_per_gpu=fleet.cores_per_gpu,
    )
    return Simulator(tape, fleet)


def demonstrate(
    servers: str, seed: int, config: ImitationConfig, weights: dict[str, npt.NDArray[np.float32]]
) -> Demonstrations:
    """Play one training tape with a mixture of behaviours and record every decision.

    Half of the tapes follow the network (from the second round on), the others the oracle or
    greedy; a tenth of the actions are random.
    """
    fleet = Fleet(*parse_servers(servers))
    rng = np.random.default_rng((seed, 17))
    sim = tape_for(fleet, randomised(seed), seed)
    behaviour = rng.choice(
        ("network", "network", "oracle", "greedy") if weights else ("oracle", "greedy")
    )
    rows: list[Observation] = []
    losses: list[npt.NDArray[np.float32]] = []
    k = config.k
    while (pod := sim.next_decision()) is not None:
        found, count = sim.state.find(pod, AlignmentFilter.OWN.binds(pod), k)
        if count == 0:
            sim.apply(None)
            continue
        branch = sim.branch(found, count, config.horizon_s)
        o = empty_observation(k)
        observe(sim.state.arrays, sim.costs, pod.index, found, count, o)
        row = np.zeros(k + 1, np.float32)
        row[:count] = (branch[:count] - branch[0]) / 3600.0
        row[k] = (branch[count] - branch[0]) / 3600.0
        rows.append(o)
        losses.append(row)
        if rng.random() < 0.1:
            action = int(rng.integers(count + 1))
        elif behaviour == "network":
            action = int(np.argmax(score(weights, o)))
        else:
            action = int(np.argmin(branch)) if behaviour == "oracle" else 0
        waits = action in (count, k)
        sim.apply(None if waits else sim.state.candidate_at(found, action, pod))
    return _stack(rows, losses, k)


def _stack(
    rows: list[Observation], losses: list[npt.NDArray[np.float32]], k: int
) -> Demonstrations:
    if not rows:
        o = empty_observation(k)
        rows, losses = [o], [np.zeros(k + 1, np.float32)]
    return Demonstrations(
        np.stack([o.preemptor for o in rows]),
        np.stack([o.cluster for o in rows]),
        np.stack([o.candidates for o in rows]),
        np.stack([o.mask for o in rows]),
        np.stack(losses),
    )


def _concatenate(parts: list[Demonstrations]) -> Demonstrations:
    return Demonstrations(
        *(
            np.concatenate([getattr(p, name) for p in parts])
            for name in Demonstrations.__annotations__
        )
    )


def collect(
    config: ImitationConfig, round_: int, network: CandidateScorer | None, workers: int
) -> Demonstrations:
    """Collect one round of demonstrations; the same for any number of workers."""
    weights = {} if network is None else _weights(network)
    seeds = take(TRAINING, config.tapes, (config.seed * config.rounds + round_) * config.tapes)
    jobs = [
        (config.servers[i % len(config.servers)], s, config, weights) for i, s in enumerate(seeds)
    ]
    if workers == 1:
        return _concatenate([demonstrate(*job) for job in jobs])
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return _concatenate(list(pool.map(_demonstrate, jobs, chunksize=4)))


def _demonstrate(
    job: tuple[str, int, ImitationConfig, dict[str, npt.NDArray[np.float32]]],
) -> Demonstrations:
    return demonstrate(*job)


def _weights(network: CandidateScorer) -> dict[str, npt.NDArray[np.float32]]:
    return {key: value.detach().cpu().numpy().copy() for key, value in network.state_dict().items()}


def expected_loss(
    network: CandidateScorer, batch: list[torch.Tensor], entropy: float
) -> torch.Tensor:
    """Return the mean over decisions of sum_i p_i L_i, less the entropy bonus."""
    preemptor, cluster, candidates, mask, losses = batch
    scores, _ = network.packed(preemptor, cluster, candidates, mask)
    log_p = torch.log_softmax(scores, -1)
    p = log_p.exp()
    bonus = -(p * log_p).sum(-1)
    return ((p * losses).sum(-1) - entropy * bonus).mean()


def fit(
    network: CandidateScorer, data: Demonstrations, config: ImitationConfig, round_: int
) -> Iterator[float]:
    """Train on the demonstrations; yield the mean expected loss after each epoch."""
    spread = float(np.clip(np.abs(data.losses), 0, 100).mean()) or 1.0
    tensors = [
        torch.from_numpy(array)
        for array in (
            data.preemptor,
            data.cluster,
            data.candidates,
            data.mask,
            np.clip(data.losses, -100, 100) / spread,
        )
    ]
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs)
    order = np.random.default_rng((config.seed, round_, 29))
    for _ in range(config.epochs):
        total = 0.0
        shuffled = order.permutation(len(data))
        for at in range(0, len(data), config.batch_size):
            rows = torch.from_numpy(shuffled[at : at + config.batch_size])
            loss = expected_loss(network, [t[rows] for t in tensors], config.entropy)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
        schedule.step()
        yield total / len(data) * spread


def validate(network: CandidateScorer, config: ImitationConfig) -> float:
    """Return the mean weighted loss on the validation tapes of every cluster trained on."""
    selector = LearnedSelector("candidate", _weights(network), config.k)
    losses = []
    for i, seed in enumerate(take(VALIDATION, config.validation_tapes)):
        fleet = Fleet(*parse_servers(config.servers[i % len(config.servers)]))
        sim = tape_for(fleet, WorkloadConfig(), seed)
        sim.run(selector)
        losses.append(episode_metrics(sim)["weighted_loss"])
    return float(np.mean(losses))


def imitate(
    config: ImitationConfig, workers: int = 1, report: Callable[[str], None] = print
) -> tuple[CandidateScorer, list[float]]:
    """Train a scorer; return the best by validation and the validation loss of each round."""
    torch.manual_seed(config.seed)
    network = CandidateScorer(ScorerConfig(config.hidden))
    best, best_loss, history = network.state_dict(), float("inf"), []
    parts: list[Demonstrations] = []
    for round_ in range(config.rounds):
        parts.append(collect(config, round_, network if round_ else None, workers))
        data = _concatenate(parts)
        *_, final = fit(network, data, config, round_)
        history.append(validate(network, config))
        report(
            f"round {round_ + 1}/{config.rounds}: {len(data)} decisions, "
            f"expected loss {final:+.3f} GPU-h a decision against greedy, "
            f"validation weighted loss {history[-1]:.4f}"
        )
        if history[-1] < best_loss:
            best_loss = history[-1]
            best = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(best)
    return network, history


def train_imitation(
    config: ImitationConfig, folder: Path, workers: int, report: Callable[[str], None]
) -> Path:
    """Imitate, and write the artifact to `folder / "policy"`; return its folder.

    Raises:
        FlextopoError: a policy is there already.
    """
    target = folder / "policy"
    if (target / "meta.json").exists():
        raise FlextopoError(f"{target}: holds a policy already; legal: another folder")
    torch.set_num_threads(1)
    network, history = imitate(config, workers, report)
    name = f"imitation-{config.seed}"
    return save_policy(
        network, target, name, config.k, config=asdict(config), validation_loss=history
    )
