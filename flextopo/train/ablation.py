"""What each ingredient buys: stages of training, networks, PPO, DQN, and features, on validation tapes.

All networks are fitted to the same demonstrations with the same optimiser and order of data. All rows
are played on the same validation tapes; the comparison seeds are not touched.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flextopo.baselines.policies import GreedyCost
from flextopo.cluster.observation.features import (
    CANDIDATE_FEATURES,
    CLUSTER_FEATURES,
    PREEMPTOR_FEATURES,
    Observation,
    empty_observation,
)
from flextopo.cluster.observation.gpu_graph import empty_graph, observe_graph
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.cluster.workload.seeds import TRAINING
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import LearnedSelector, load_policy, read_meta
from flextopo.train.ablation_dqn import train_dqn
from flextopo.train.ablation_networks import AttentionScorer, GraphScorer, LinearScorer
from flextopo.train.config import AblationConfig, ImitationConfig
from flextopo.train.demonstrations import Demonstrations, Demonstrator
from flextopo.train.fitting import fit
from flextopo.train.imitation import play_validation
from flextopo.train.ppo import train_ppo
from flextopo.train.rounds import COMMITTEE, read_rounds, weights_of
from flextopo.train.statistics import estimate, paired_difference

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class TorchSelector:
    """A network of the ablation behind the selector protocol.

    Attributes:
        network: has `packed`.
        k: candidates it looks at.
        graph: it reads their servers' graphs, too.
    """

    network: Any
    k: int
    graph: bool
    name: str = "torch"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the legal action of the highest score; None where that is waiting."""
        aligned = self.filter.binds(preemptor)
        found, count = cluster.find(preemptor, aligned, self.k)
        if count == 0:
            return None
        o = empty_observation(self.k)
        observe(cluster.arrays, cluster.costs, preemptor.index, found, count, o)
        inputs = [torch.from_numpy(array[None]) for array in o]
        if self.graph:
            graph = empty_graph(self.k)
            observe_graph(cluster.arrays, preemptor.index, found, count, graph)
            inputs.append(torch.from_numpy(graph[None]))
        with torch.no_grad():
            scores, _ = self.network.packed(*inputs)
        chosen = int(scores[0].argmax())
        return None if chosen == self.k else cluster.candidate_at(found, chosen, preemptor)


@dataclass(frozen=True, eq=False)
class Shuffled(LearnedSelector):
    """A policy to which one feature says nothing: it shows what it was at some other decision.

    Attributes:
        field: of the observation.
        column: of the feature.
        values: what the feature was elsewhere.
        rng: draws from them.
    """

    field: str = ""
    column: int = 0
    values: npt.NDArray[np.float32] | None = None
    rng: np.random.Generator | None = None

    def score(self, o: Observation) -> npt.NDArray[np.float32]:
        """Return the scores of all actions, with the feature's value taken from elsewhere."""
        assert self.rng is not None
        assert self.values is not None
        array = getattr(o, self.field)
        array[..., self.column] = self.rng.choice(self.values, array.shape[:-1])
        return super().score(o)


Played = tuple[npt.NDArray[np.float64], float]
"""Weighted loss of each tape, and the mean success rate."""


class Arena:
    """Play selectors on the validation tapes, and compare them with greedy-cost.

    Args:
        servers: clusters, one after the other.
        tapes: how many tapes.
    """

    def __init__(self, servers: tuple[str, ...], tapes: int) -> None:
        self.servers, self.tapes = servers, tapes
        self.greedy = self.validate(GreedyCost())

    def validate(self, selector: VictimSelector, tapes: int | None = None) -> Played:
        """Return what a selector comes to on the first tapes; None = on all."""
        return play_validation(selector, self.servers, tapes or self.tapes)

    def row(self, group: str, name: str, played: Played, **more: Any) -> dict[str, Any]:
        """Return a row of the table."""
        losses, success = played
        return {
            "group": group,
            "name": name,
            "loss": float(losses.mean()),
            "against_greedy": asdict(paired_difference(losses, self.greedy[0])),
            "success": success,
            **more,
        }


def run_ablation(run: Path, config: AblationConfig, report: Report) -> dict[str, Any]:
    """Return the document that `flextopo report` reads.

    Args:
        run: folder of an imitation run: its `policy` and the networks of its rounds.
        config: how much is spent.
        report: is told about each row.

    Raises:
        FlextopoError: the folder is none of an imitation run.
    """
    torch.set_num_threads(1)
    policy = load_policy(run / "policy")
    folder = run / read_meta(run / "policy").get("rounds", "")
    rounds = read_rounds(folder)
    training = ImitationConfig(
        **{**rounds["config"], "servers": tuple(rounds["config"]["servers"])}
    )
    arena = Arena(training.servers, config.validation_tapes)
    rows: list[dict[str, Any]] = []

    def add(group: str, name: str, played: Played, **more: Any) -> None:
        rows.append(arena.row(group, name, played, **more))
        difference = rows[-1]["against_greedy"]
        report(
            f"{group}: {name}: {100 * rows[-1]['loss']:.2f} %, {100 * difference['mean']:+.2f} "
            f"[{100 * difference['low']:+.2f}, {100 * difference['high']:+.2f}], "
            f"success {100 * rows[-1]['success']:.1f} %"
        )

    add("baseline", "greedy-cost", arena.greedy)
    _stages(run, folder, training, arena, add)
    data = Demonstrator(
        training.servers, training.k, training.horizon_s, policy.weights, True, graph=True
    ).collect(_unused(training), config.tapes)
    report(f"{len(data)} decisions for the networks")
    _networks(data, training, arena, add)
    curves = _ppo(run / "policy", config, arena, add)
    _dqn(config, arena, add)
    importance = _importance(policy, data, config, arena, report)
    return {"ablation": rows, "learning_curves": curves, "importance": importance}


def _unused(training: ImitationConfig) -> int:
    """Return the place of a training tape that no training with a seed below 100 reaches."""
    return max(len(TRAINING) // 2, 100 * sum(training.plan))


def _stages(run: Path, folder: Path, training: ImitationConfig, arena: Arena, add: Any) -> None:
    """Play the network of every round: of the best of several networks, then of the committee's."""
    stages = [
        (folder, at, "improvement" if at >= training.rounds else "imitation")
        for at in range(len(read_rounds(folder)["losses"]))
    ]
    last = run / COMMITTEE
    if last.exists():
        names = ("committee", "improvement")
        stages += [(last, at, names[at]) for at in range(len(read_rounds(last)["losses"]))]
    for i, (where, at, name) in enumerate(stages):
        with np.load(where / f"network-{at}.npz", allow_pickle=False) as arrays:
            weights = {key: arrays[key] for key in arrays.files}
        played = arena.validate(LearnedSelector(name, weights, training.k))
        add("stages", f"{name}, round {i + 1}", played)


def value_loss(network: Any, batch: list[torch.Tensor], _: float) -> torch.Tensor:
    """Return the squared error of scores as predictions of minus the losses, up to a constant."""
    *inputs, losses = batch
    mask = inputs[3] != 0
    scores, _ = network.packed(*inputs)
    error = torch.where(mask, scores + losses, 0.0)
    mean = error.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)
    return (torch.where(mask, error - mean, 0.0) ** 2).sum(-1).mean()


WARM_UP = 3
"""Epochs of value regression before the expected loss. From random weights that alone soon gives all
probability to waiting, which is better than a random candidate, and learns no more."""


def _networks(data: Demonstrations, training: ImitationConfig, arena: Arena, add: Any) -> None:
    """Fit every network to the same demonstrations."""
    h = training.hidden
    makers: dict[str, tuple[Callable[[], nn.Module], bool, bool]] = {
        "deep set (ships)": (lambda: CandidateScorer(ScorerConfig(h)), False, False),
        "independent MLP": (lambda: CandidateScorer(ScorerConfig(h, context=False)), False, False),
        "attention": (lambda: AttentionScorer(h), False, False),
        "graph of the server": (lambda: GraphScorer(h), True, False),
        "linear": (LinearScorer, False, False),
        "deep set, value regression": (lambda: CandidateScorer(ScorerConfig(h)), False, True),
    }
    for name, (make, graph, regression) in makers.items():
        torch.manual_seed(training.seed)
        network: Any = make()
        begin = time.perf_counter()
        epochs = training.epochs if regression else WARM_UP
        for _ in fit(network, data, replace(training, epochs=epochs), 0, value_loss, graph):
            pass
        if not regression:
            rest = replace(training, epochs=max(1, training.epochs - epochs))
            for _ in fit(network, data, rest, 1, None, graph):
                pass
            epochs += rest.epochs
        speed = epochs * len(data) / (time.perf_counter() - begin)
        selector: VictimSelector = TorchSelector(network, training.k, graph)
        if isinstance(network, CandidateScorer):
            selector = LearnedSelector(name, weights_of(network), training.k)
        parameters = sum(p.numel() for p in network.parameters())
        add("networks", name, arena.validate(selector), speed=speed, parameters=parameters)


POINTS = 8
"""How often a PPO training is measured."""


def _ppo(start: Path, config: AblationConfig, arena: Arena, add: Any) -> dict[str, Any]:
    """Train with PPO from scratch and from the policy; return the learning curves."""
    scratch = config.ppo
    tuned = replace(
        scratch, start=str(start), learning_rate=1e-4, critic_steps=scratch.timesteps // 10
    )
    variants = {
        "from scratch, plain reward": replace(scratch, relative=False),
        "from scratch, beyond greedy-cost": scratch,
        "from scratch, never waits by choice": replace(scratch, allow_wait=False),
        "fine-tuned": tuned,
        "fine-tuned, held near its start": replace(tuned, kl=0.02),
    }
    curves: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for at, (name, variant) in enumerate(variants.items()):
            curve: dict[str, list[float]] = {"decisions": [], "loss": [], "low": [], "high": []}
            begin, playing = time.perf_counter(), 0.0
            for point in range(1, POINTS + 1):
                steps = scratch.timesteps * point // POINTS
                target = Path(folder) / str(at)
                policy = load_policy(
                    train_ppo(replace(variant, timesteps=steps), target, point > 1)
                )
                gc.collect()  # models and environments point at each other and hold days in memory
                before = time.perf_counter()
                played = arena.validate(policy)
                playing += time.perf_counter() - before
                found = estimate(played[0])
                curve["decisions"].append(steps)
                for key, value in (("loss", "mean"), ("low", "low"), ("high", "high")):
                    curve[key].append(getattr(found, value))
            speed = scratch.timesteps / (time.perf_counter() - begin - playing)
            add("PPO", name, played, speed=speed)
            curves[f"PPO, {name}"] = curve
    return curves


def _dqn(config: AblationConfig, arena: Arena, add: Any) -> None:
    """Train with DQN from scratch, on as many decisions as PPO."""
    begin = time.perf_counter()
    weights = weights_of(train_dqn(config.ppo))
    speed = config.ppo.timesteps / (time.perf_counter() - begin)
    policy = LearnedSelector("dqn", weights, config.ppo.k, allow_wait=config.ppo.allow_wait)
    add("DQN", "from scratch, beyond greedy-cost", arena.validate(policy), speed=speed)


def _importance(
    policy: LearnedSelector,
    data: Demonstrations,
    config: AblationConfig,
    arena: Arena,
    report: Report,
) -> dict[str, Any]:
    """Return what is lost when a feature's value is drawn from other decisions."""
    tapes = min(config.importance_tapes, config.validation_tapes)
    known, _ = arena.validate(policy, tapes)
    legal = data.mask[:, :-1] != 0
    fields = {
        "preemptor": (PREEMPTOR_FEATURES, data.preemptor),
        "cluster": (CLUSTER_FEATURES, data.cluster),
        "candidates": (CANDIDATE_FEATURES, data.candidates[legal]),
    }
    found = {}
    for field, (names, values) in fields.items():
        for column, name in enumerate(names):
            shuffled = Shuffled(
                policy.name,
                policy.weights,
                policy.k,
                field=field,
                column=column,
                values=values[:, column],
                rng=np.random.default_rng((column, len(names))),
            )
            losses, _ = arena.validate(shuffled, tapes)
            found[f"{field}: {name}"] = asdict(estimate(losses - known))
    report(f"{len(found)} features shuffled, one at a time, on {tapes} tapes")
    return found
