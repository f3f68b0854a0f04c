"""Learn what planning would decide: every action of a decision, played in many imagined futures.

The mean over 64 futures says what an action costs in expectation, where one true future says mostly how
lucky its tape is. All branches of a decision face the same futures and go on under `requeue-aware`; what
counts is the difference from the rule's own choice. A network is fitted to take the least of them. What it
has to see for that is who holds the GPUs of each server, see `features.HELD`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

import flextopo
from flextopo.baselines.requeue import RequeueAware
from flextopo.baselines.rollout import Proposal, Rollout, compare_with, place_of
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.observation.features import NUM_OBSERVED, Observation, empty_observation
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.config import WorkloadConfig
from flextopo.cluster.workload.generator import randomised
from flextopo.policies.artifact import save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector
from flextopo.train.config import PLANNED_TAPES, PlanningConfig
from flextopo.train.demonstrations import (
    Demonstrations,
    Job,
    carry_out,
    collect,
    concatenate,
    stack,
    tape_for,
)
from flextopo.train.devices import use_device
from flextopo.train.fitting import expected_loss
from flextopo.train.imitation import play_validation
from flextopo.train.rounds import free_folder, weights_of

PARTS = 10
"""Files in which the decisions of a run are kept: an interrupted run goes on behind the last."""

RANDOM = 0.05
"""Share of the decisions that are taken at random, so that the network sees what comes of them."""

LEAST_SPREAD = 1e-3
"""Standard deviation that a feature has at least, for its scale; one that never varies is not read."""


@dataclass(frozen=True)
class Planned:
    """How decisions are planned.

    Attributes:
        config: of the training.
    """

    config: PlanningConfig

    def demonstrate(self, job: Job) -> Demonstrations:
        """Play the tape of a seed on servers, and plan every decision that has a choice.

        Half of the tapes follow the plans, the others the rule.
        """
        servers, seed = job
        config, fleet = self.config, parse_servers(servers)
        rng = np.random.default_rng((seed, 31))
        follow, anew = rng.random() < 0.5, rng.random() < config.randomised
        workload = randomised(seed, WorkloadConfig()) if anew else WorkloadConfig()
        sim, rule = tape_for(fleet, workload, seed), RequeueAware()
        planner = Rollout(seed, config.futures, horizon_s=config.horizon_s, workload=workload)
        rows, losses = list[Observation](), list[npt.NDArray[np.float32]]()
        while (pod := sim.next_decision()) is not None:
            chosen = rule.select(sim.state, pod)
            found, count = sim.state.find(pod, AlignmentFilter.OWN.binds(pod), config.k)
            if chosen is None or count == 0:
                sim.apply(None)
                continue
            tried = np.ones(count + 1, np.bool_)
            tried[count] = sim.may_wait(pod)
            action = own = place_of(chosen, sim.state, pod, found, count)
            if tried.sum() > 1:
                o = empty_observation(config.k, NUM_OBSERVED)
                observe(sim.state.arrays, sim.costs, pod.index, found, count, o)
                o.mask[config.k] = tried[count]
                branches = planner.branch(sim.state, pod, Proposal(found, count, tried, own))
                mean, error = compare_with(branches, own)
                row = np.zeros(config.k + 1, np.float32)
                row[:count] = mean[:count] / 3600.0
                row[config.k] = mean[count] / 3600.0 if tried[count] else 0.0
                rows.append(o)
                losses.append(row)
                if follow:
                    action = int(np.argmin(mean + planner.caution * error))
                if rng.random() < RANDOM:
                    action = int(rng.choice(np.flatnonzero(tried)))
            carry_out(sim, pod, found, action if action < count else None)
        if not rows:
            rows = [empty_observation(config.k, NUM_OBSERVED)]
            losses = [np.zeros(config.k + 1, np.float32)]
        return stack(rows, losses, [])

    def collect(
        self, folder: Path, workers: int, report: Callable[[str], None], ray: str | None
    ) -> Demonstrations:
        """Plan all tapes, or those that the folder does not hold yet; no number depends on the workers.

        Args:
            folder: keeps what is planned, in `PARTS` files.
            workers: processes.
            report: is told about each file.
            ray: where to play; see `run_jobs`.

        Raises:
            FlextopoError: a file there is damaged.
        """
        config, parts = self.config, list[Demonstrations]()
        ends = np.linspace(0, config.tapes, min(PARTS, config.tapes) + 1).astype(int)
        for at, (begin, end) in enumerate(itertools.pairwise(ends)):
            path = folder / f"planned-{at}.npz"
            if path.exists():
                parts.append(Demonstrations.load(path))
                if parts[-1].candidates.shape[1:] != (config.k, NUM_OBSERVED):
                    raise FlextopoError(f"{path}: is damaged; legal: what a planning run writes")
                continue
            first = PLANNED_TAPES + config.seed * config.tapes + int(begin)
            new = collect(self.demonstrate, config.servers, first, int(end - begin), workers, ray)
            new.save(path)
            parts.append(new)
            report(
                f"planned {end} of {config.tapes} tapes: {sum(part.num_choices for part in parts)} decisions"
            )
        return concatenate(parts)


@dataclass(frozen=True)
class Scale:
    """Mean and inverse spread of the features of one part, as training sees them; 0 = never varies."""

    mean: npt.NDArray[np.float32]
    inverse: npt.NDArray[np.float32]

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> Scale:
        """Return the scale of (N, F) values."""
        spread = values.std(0, dtype=np.float64)
        inverse = np.where(spread > 0, 1.0 / np.maximum(spread, LEAST_SPREAD), 0.0)
        return cls(values.mean(0, dtype=np.float64).astype(np.float32), inverse.astype(np.float32))

    def apply(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return values on the scale."""
        scaled: npt.NDArray[np.float32] = (values - self.mean) * self.inverse
        return scaled


def fit_plans(
    network: CandidateScorer, data: Demonstrations, config: PlanningConfig
) -> list[float]:
    """Fit a network to features on a scale of their own, which its first layers take over afterwards.

    Args:
        network: a scorer of all features, from first weights; it is changed.
        data: planned decisions.
        config: of the optimiser.

    Returns:
        The mean of each epoch: expected loss in GPU-hours beyond the rule's choice, less the entropy bonus.
    """
    legal = data.mask[:, :-1] != 0
    shared = np.concatenate([data.preemptor, data.cluster], 1)
    of_shared, of_candidates = Scale.of(shared), Scale.of(data.candidates[legal])
    candidates = np.where(legal[..., None], of_candidates.apply(data.candidates), 0.0)
    given = len(data.preemptor[0])
    shared = of_shared.apply(shared)
    losses = np.clip(data.losses, -config.most_lost, config.most_lost)
    device = next(network.parameters()).device
    arrays = (shared[:, :given], shared[:, given:], candidates, data.mask, losses)
    tensors = [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    optimiser = torch.optim.Adam(network.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        config.learning_rate,
        total_steps=config.epochs * -(-len(data) // config.batch_size),
    )
    order = np.random.default_rng((config.seed, 37))
    history = []
    for epoch in range(config.epochs):
        at = epoch / max(config.epochs - 1, 1)
        entropy = config.entropy + (config.last_entropy - config.entropy) * at
        total, shuffled = 0.0, order.permutation(len(data))
        for begin in range(0, len(data), config.batch_size):
            rows = torch.from_numpy(shuffled[begin : begin + config.batch_size]).to(device)
            batch = [tensor[rows] for tensor in tensors]
            loss = expected_loss(network, batch, entropy)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        history.append(total / len(data))
    _take_over(network, of_shared, of_candidates)
    return history


def _take_over(network: CandidateScorer, shared: Scale, candidates: Scale) -> None:
    """Let the first layers take features as they are observed."""
    with torch.no_grad():
        for layer, scale in ((network.shared, shared), (network.candidate, candidates)):
            layer.weight.mul_(torch.from_numpy(scale.inverse).to(layer.weight.device))
            mean = torch.from_numpy(scale.mean).to(layer.weight.device)
            network.candidate.bias.sub_(layer.weight @ mean)


def train_planning(
    config: PlanningConfig,
    folder: Path,
    workers: int,
    report: Callable[[str], None],
    resume: bool = False,
    ray: str | None = None,
) -> Path:
    """Plan, fit a network, and write it to `folder / "policy"`; return that folder.

    Tapes are played by `workers` or over `ray`, see `run_jobs`; the network is fitted in this process.

    Raises:
        FlextopoError: a policy is there already, there is nothing to resume or it is damaged, no decision has
            a choice, or there is no such device.
    """
    target = free_folder(folder)
    device = use_device(config.device)
    _open(config, folder, resume)
    torch.set_num_threads(1)
    data = Planned(config).collect(folder, workers, report, ray)
    if not data.num_choices:
        raise FlextopoError(
            f"tapes = {config.tapes}, k = {config.k}: no decision there has a choice; legal: more of them"
        )
    torch.manual_seed(config.seed)
    network = CandidateScorer(ScorerConfig(config.hidden, width=NUM_OBSERVED)).to(device)
    history = fit_plans(network, data, config)
    report(
        f"fitted to {data.num_choices} decisions: " + ", ".join(f"{loss:+.3f}" for loss in history)
    )
    learnt = LearnedSelector("planned", weights_of(network), config.k)
    validation = {}
    for name, selector in (("weighted_loss", learnt), ("requeue-aware", RequeueAware())):
        losses, _ = play_validation(selector, config.servers, config.validation_tapes, ray=ray)
        validation[name] = float(np.mean(losses))
    report("validation weighted loss: " + ", ".join(f"{k} {v:.4f}" for k, v in validation.items()))
    return save_policy(
        network,
        target,
        f"planning-{config.seed}",
        config.k,
        config=asdict(config),
        validation=validation,
        decisions=data.num_choices,
    )


def _open(config: PlanningConfig, folder: Path, resume: bool) -> None:
    """Begin a run's folder, or check that the one there is of the same configuration.

    Raises:
        FlextopoError: it holds a run already, none, or another one.
    """
    path = folder / "planning.json"
    mine = {**json.loads(json.dumps(asdict(config))), "version": flextopo.__version__}
    if not resume:
        if path.exists():
            raise FlextopoError(
                f"{folder}: holds a run already; legal: another folder, or --resume"
            )
        make_folder(folder)
        write_whole(path, (json.dumps(mine, indent=1) + "\n").encode())
        return
    try:
        there = json.loads(path.read_bytes())
    except OSError:
        raise FlextopoError(f"{path}: missing; legal: a planning run's folder") from None
    except ValueError:
        raise FlextopoError(f"{path}: is damaged; legal: what a planning run writes") from None
    if there != mine:
        raise FlextopoError(f"{folder}: of another configuration; legal: the same one")
