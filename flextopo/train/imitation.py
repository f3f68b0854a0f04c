"""Imitate a lookahead, then improve on the policy by its own lookahead.

1. Imitation: branches of the demonstrations go on greedily. The scorer minimises the expected loss
   under its own probabilities, sum_i p_i L_i: the average over tapes is what a policy can know, the
   luck on one tape averages out. From the second round on the network is among the behaviours
   (DAgger).
2. Improvement: branches go on under the network of the round before, so what is minimised is the
   loss of one free decision followed by that policy: policy iteration. Imitation alone waits too
   much, since it takes for granted that greedy will not wait on.
3. Committee: where this ends depends on the first weights and the tapes, so several networks are
   trained. The best rounds of each decide together, the best network is fitted to what they say, and
   improved once more.

Validation tapes choose the round of a network. Between the best network, the one that learnt from the
committee and its improvement others choose, four times as many: a best of many rounds is partly luck.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder
from flextopo.cluster.observation.features import observed_width
from flextopo.cluster.simulation.metrics import episode_metrics
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.seeds import TRAINING, VALIDATION, take
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector
from flextopo.train.committee import Committee
from flextopo.train.config import AGAIN, ImitationConfig
from flextopo.train.demonstrations import (
    Demonstrations,
    Demonstrator,
    Job,
    Weights,
    tape_for,
    workload_on,
)
from flextopo.train.devices import use_device
from flextopo.train.fitting import disagreement, fit
from flextopo.train.rounds import COMMITTEE, Rounds, free_folder, rounds_folder, weights_of
from flextopo.train.scale_out import run_jobs


def play_validation(
    selector: VictimSelector,
    servers: tuple[str, ...],
    tapes: int,
    first: int = 0,
    ray: str | None = None,
    gang_share: float = 0.0,
) -> tuple[npt.NDArray[np.float64], float]:
    """Play validation tapes.

    Args:
        selector: who plays.
        servers: clusters, one after the other.
        tapes: how many.
        first: position of the first among the validation seeds.
        ray: where to play; see `run_jobs`. Without it in this process: games take milliseconds.
        gang_share: of the workload on clusters that have a network.

    Returns:
        (tapes,) weighted losses, and the mean success rate.
    """
    seeds = take(VALIDATION, tapes, first)
    jobs = [(servers[i % len(servers)], seed) for i, seed in enumerate(seeds)]
    play = partial(_play_validation, selector, gang_share)
    played = dict(run_jobs(play, jobs, 1, ray))
    losses, success = np.array([played[i] for i in range(tapes)]).T
    return losses, float(np.nanmean(success))


def _play_validation(selector: VictimSelector, gang_share: float, job: Job) -> tuple[float, float]:
    """Return weighted loss and success rate on the tape of a seed."""
    servers, seed = job
    fleet = parse_servers(servers)
    sim = tape_for(fleet, workload_on(fleet, gang_share), seed)
    sim.play(selector)
    metrics = episode_metrics(sim)
    return metrics["weighted_loss"], metrics["success_rate"]


def validate(
    selector: VictimSelector,
    config: ImitationConfig,
    again: bool = False,
    ray: str | None = None,
) -> float:
    """Return the mean weighted loss on the validation tapes of every cluster trained on.

    Args:
        selector: who plays.
        config: of the training.
        again: on `AGAIN` times as many others.
        ray: where to play; see `run_jobs`.
    """
    tapes = config.validation_tapes
    many, first = (AGAIN * tapes, tapes) if again else (tapes, 0)
    losses, _ = play_validation(selector, config.servers, many, first, ray, config.gang_share)
    return float(np.mean(losses))


def imitate(
    config: ImitationConfig,
    workers: int = 1,
    report: Callable[[str], None] = print,
    rounds: Rounds | None = None,
    ray: str | None = None,
) -> tuple[CandidateScorer, list[float]]:
    """Train one network; return its best round by validation and the validation loss of each.

    Args:
        config: how to train, with the seed of this network.
        workers: processes that demonstrate; no number depends on it.
        report: is told about each round.
        rounds: those that are over already; they are added to.
        ray: where tapes are played; see `run_jobs`. No number depends on it either.
    """
    rounds = rounds or Rounds(config)
    torch.manual_seed(config.seed)
    network = _first_network(config).to(use_device(config.device))
    for round_ in range(len(rounds.losses), len(config.plan)):
        if round_:
            network.load_state_dict(rounds.networks[-1])
        weights = weights_of(network) if round_ or config.start else {}
        improve = round_ >= config.rounds
        demonstrator = _demonstrator(config, weights, improve)
        first = config.seed * sum(config.plan) + sum(config.plan[:round_])
        new = demonstrator.collect(first, config.plan[round_], workers, ray)
        data = rounds.to_fit(new)
        *_, final = fit(network, data, config, round_)
        _add(rounds, network, new, ray)
        stage = "improvement" if improve else "imitation"
        report(f"{stage} {round_ + 1}/{len(config.plan)}: {_said(data, final, rounds)}")
    network.load_state_dict(rounds.networks[int(np.argmin(rounds.losses))])
    return network, rounds.losses


def _first_network(config: ImitationConfig) -> CandidateScorer:
    """Return the network that a training begins with, which takes all features of its clusters."""
    width = observed_width(config.servers)
    if config.start:
        return load_network(config.start, width)
    return CandidateScorer(ScorerConfig(config.hidden, width=width))


def _demonstrator(config: ImitationConfig, weights: Weights, improve: bool) -> Demonstrator:
    """Return how days are demonstrated in a round."""
    return Demonstrator(
        config.servers,
        config.k,
        config.horizon_s,
        weights,
        improve,
        gang_share=config.gang_share,
    )


def train_imitation(
    config: ImitationConfig,
    folder: Path,
    workers: int,
    report: Callable[[str], None],
    resume: bool = False,
    ray: str | None = None,
) -> Path:
    """Train the networks, and write the best to `folder / "policy"`; return that folder.

    Tapes are played by `workers` or over `ray`, see `run_jobs`; networks are fitted in this process.

    Raises:
        FlextopoError: a policy is there already, there is nothing to resume, or no such device.
    """
    target = free_folder(folder)
    use_device(config.device)
    torch.set_num_threads(1)
    runs = _open_runs(config, folder, resume)
    trained = []
    for at, run in enumerate(runs):
        make_folder(folder / rounds_folder(at))
        prefix = f"network {at + 1}/{config.networks}, " if config.networks > 1 else ""
        trained.append(imitate(run.config, workers, _behind(prefix, report), run, ray))
    best = int(np.argmin([min(history) for _, history in trained]))
    network, history = trained[best]
    kept, finalists = min(history), list[float]()
    if config.members:
        last = Rounds(config, folder / COMMITTEE, with_data=False)
        if last.is_there:
            last.resume()
        make_folder(folder / COMMITTEE)
        learn_from_all(network, runs, last, workers, report, ray)
        states = [runs[best].networks[int(np.argmin(history))], *last.networks]
        finalists = _take_best(network, states, config, report, ray)
        kept = [kept, *last.losses][int(np.argmin(finalists))]
        history = [*history, *last.losses]
    return save_policy(
        network,
        target,
        f"imitation-{config.seed}",
        config.k,
        config=asdict(config),
        rounds=rounds_folder(best),
        validation={"weighted_loss": kept},
        validation_loss=history,
        finalists=finalists,
    )


def _open_runs(config: ImitationConfig, folder: Path, resume: bool) -> list[Rounds]:
    """Return the rounds of each network: none yet, or those that an earlier run left."""
    runs = [
        Rounds(config.of_network(at), folder / rounds_folder(at)) for at in range(config.networks)
    ]
    begun = [run for run in runs if run.is_there]
    if resume:
        for run in begun or runs[:1]:
            run.resume()
    elif begun:
        raise FlextopoError(f"{folder}: holds a run already; legal: another folder, or --resume")
    return runs


def _take_best(
    network: CandidateScorer,
    states: list[dict[str, torch.Tensor]],
    config: ImitationConfig,
    report: Callable[[str], None],
    ray: str | None,
) -> list[float]:
    """Load the state that does best on other validation tapes; return the loss of each."""
    losses = []
    for state in states:
        network.load_state_dict(state)
        losses.append(validate(_selector(network, config), config, True, ray))
    network.load_state_dict(states[int(np.argmin(losses))])
    report(
        f"on {AGAIN * config.validation_tapes} other validation tapes: "
        + ", ".join(f"{loss:.4f}" for loss in losses)
    )
    return losses


def learn_from_all(
    network: CandidateScorer,
    runs: list[Rounds],
    last: Rounds,
    workers: int,
    report: Callable[[str], None],
    ray: str | None = None,
) -> None:
    """Fit a network to what the best rounds of all say together, then improve on that once.

    Args:
        network: the best; it is fitted further.
        runs: of the networks, each over.
        last: the two rounds, or what is over of them; they are added to.
        workers: processes that play.
        report: is told about each round.
        ray: where tapes are played; see `run_jobs`.
    """
    config = last.config
    # From the end of the training tapes, which no network has seen.
    first = len(TRAINING) - (config.seed + 1) * sum(config.last_plan)
    seen, more = config.last_plan
    if not last.losses:
        members = [
            {key: value.numpy() for key, value in run.networks[at].items()}
            for run in runs
            for at in np.argsort(run.losses)[: config.members]
        ]
        committee = Committee(config.servers, config.k, tuple(members), config.gang_share)
        data = committee.collect(first, seen, workers, ray)
        *_, final = fit(network, data, config, len(config.plan), disagreement, unit=1.0)
        _add(last, network, data, ray)
        report(
            f"committee of {len(members)}: {len(data)} decisions, cross entropy {final:.3f}, "
            f"validation weighted loss {last.losses[-1]:.4f}"
        )
    if config.improvements and len(last.losses) == 1:
        network.load_state_dict(last.networks[0])
        demonstrator = _demonstrator(config, weights_of(network), True)
        data = demonstrator.collect(first + seen, more, workers, ray)
        *_, final = fit(network, data, config, len(config.plan) + 1)
        _add(last, network, data, ray)
        report(f"improvement on it: {_said(data, final, last)}")


def _add(rounds: Rounds, network: CandidateScorer, data: Demonstrations, ray: str | None) -> None:
    """Play the validation tapes, and add a round."""
    selector = _selector(network, rounds.config)
    rounds.add(network, validate(selector, rounds.config, ray=ray), data)


def _selector(network: CandidateScorer, config: ImitationConfig) -> LearnedSelector:
    return LearnedSelector("candidate", weights_of(network), config.k)


def _said(data: Demonstrations, final: float, rounds: Rounds) -> str:
    return (
        f"{len(data)} decisions, expected loss {final:+.3f} GPU-h a decision beyond the "
        f"cheapest candidate's, validation weighted loss {rounds.losses[-1]:.4f}"
    )


def _behind(prefix: str, report: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: report(prefix + line)
