"""Decisions with the looked-ahead loss of every action, from simulated days.

The states come from a mixture of behaviours (oracle, greedy-cost, the network itself, noise). Each
decision is branched over the K cheapest candidates and waiting on the same future. A branch goes on
under the greedy rule, or, once a network is to be improved upon, under that network: then the losses
are unbiased samples of what each action costs under the network's own policy.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import write_whole
from flextopo.cluster.observation.features import (
    Observation,
    empty_observation,
    observed_width,
)
from flextopo.cluster.observation.gpu_graph import empty_graph, observe_graph
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.candidates import CandidateArrays
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape, randomised
from flextopo.cluster.workload.seeds import TRAINING, take
from flextopo.policies.continuation import PolicyLookahead
from flextopo.policies.runtime import score
from flextopo.train.scale_out import run_jobs

Weights = Mapping[str, npt.NDArray[np.float32]]

Job = tuple[str, int]
"""Servers, and the seed of the tape that is played on them."""


@dataclass(frozen=True)
class Demonstrations:
    """Decisions with the looked-ahead loss of every action; D decisions, K candidates.

    Attributes:
        preemptor, cluster, candidates, mask: observations with a leading D.
        losses: (D, K + 1) float32, GPU-hours above the cheapest candidate's, or what `Committee`
            says; 0 where illegal.
        graph: (D, K, 16, 8) float16, see `graph_features`; (D, 0) where it was not asked for.
    """

    preemptor: npt.NDArray[np.float32]
    cluster: npt.NDArray[np.float32]
    candidates: npt.NDArray[np.float32]
    mask: npt.NDArray[np.int8]
    losses: npt.NDArray[np.float32]
    graph: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.losses)

    def save(self, path: Path) -> None:
        """Write an npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, **vars(self))
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Demonstrations:
        """Read what `save` wrote.

        Raises:
            FlextopoError: it is missing, damaged, or something else.
        """
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
                return cls(*(arrays[spec.name] for spec in fields(cls)))
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            raise FlextopoError(f"{path}: is damaged; legal: what a training run writes") from None

    @property
    def num_choices(self) -> int:
        """How many decisions there are; a tape without any has a row without a legal action."""
        return int(np.count_nonzero(self.mask.any(-1)))


def concatenate(parts: list[Demonstrations]) -> Demonstrations:
    """Return all decisions of the parts."""
    if len(parts) == 1:
        return parts[0]
    names = [spec.name for spec in fields(Demonstrations)]
    return Demonstrations(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


@dataclass(frozen=True)
class Demonstrator:
    """How days are demonstrated.

    Attributes:
        servers: clusters, one after the other.
        k: candidates that are branched and shown.
        horizon_s: how far a branch looks ahead.
        weights: of the network that is among the behaviours; empty = none yet.
        improve: branches go on under that network, not under the greedy rule.
        graph: record the graphs of the candidates' servers too.
        gang_share: of the workloads on clusters that have a network.
    """

    servers: tuple[str, ...]
    k: int
    horizon_s: int
    weights: Weights
    improve: bool = False
    graph: bool = False
    gang_share: float = 0.0

    def collect(
        self, first: int, tapes: int, workers: int = 1, ray: str | None = None
    ) -> Demonstrations:
        """Play training tapes; the result is the same for any number of workers, and over Ray.

        Args:
            first: position of the first tape among the training seeds.
            tapes: how many.
            workers: processes.
            ray: where to play; see `run_jobs`.
        """
        return collect(self.demonstrate, self.servers, first, tapes, workers, ray)

    def demonstrate(self, job: Job) -> Demonstrations:
        """Play the tape of a seed on servers and record every decision.

        Half of the tapes follow the network, if there is one, the others the oracle or greedy; a
        tenth of the actions are random.
        """
        servers, seed = job
        fleet = parse_servers(servers)
        rng = np.random.default_rng((seed, 17))
        sim = training_tape(fleet, seed, self.gang_share)
        behaviour = rng.choice(
            ("network", "network", "oracle", "greedy") if self.weights else ("oracle", "greedy")
        )
        ahead = PolicyLookahead(self.weights, self.k) if self.improve else None
        rows: list[Observation] = []
        losses: list[npt.NDArray[np.float32]] = []
        graphs: list[npt.NDArray[np.float16]] = []
        k = self.k
        width = observed_width(self.servers)
        for pod, found, count, o in decisions(sim, k, width):
            branch = sim.branch(found, count, self.horizon_s, ahead)
            row = np.zeros(k + 1, np.float32)
            row[:count] = (branch[:count] - branch[0]) / 3600.0
            if o.mask[k]:
                row[k] = (branch[count] - branch[0]) / 3600.0
            rows.append(o)
            losses.append(row)
            if self.graph:
                graph = empty_graph(k)
                observe_graph(sim.state.arrays, pod.index, found, count, graph)
                graphs.append(graph.astype(np.float16))
            if rng.random() < 0.1:
                action = int(rng.integers(count + 1))
            elif behaviour == "network":
                action = int(np.argmax(score(self.weights, o)))
            else:
                action = int(np.argmin(branch)) if behaviour == "oracle" else 0
            carry_out(sim, pod, found, action if action < count else None)
        if not rows:
            rows, losses = [empty_observation(k, width)], [np.zeros(k + 1, np.float32)]
            graphs = [empty_graph(k).astype(np.float16)] if self.graph else []
        return stack(rows, losses, graphs)


def stack(
    rows: list[Observation],
    losses: list[npt.NDArray[np.float32]],
    graphs: list[npt.NDArray[np.float16]],
) -> Demonstrations:
    """Return the decisions of a tape; without `graphs` none were asked for."""
    return Demonstrations(
        np.stack([o.preemptor for o in rows]),
        np.stack([o.cluster for o in rows]),
        np.stack([o.candidates for o in rows]),
        np.stack([o.mask for o in rows]),
        np.stack(losses),
        np.stack(graphs) if graphs else np.zeros((len(rows), 0), np.float16),
    )


def collect(
    play: Callable[[Job], Demonstrations],
    servers: tuple[str, ...],
    first: int,
    tapes: int,
    workers: int,
    ray: str | None = None,
) -> Demonstrations:
    """Play training tapes, from the one at position `first` on; see `Demonstrator.collect`."""
    seeds = take(TRAINING, tapes, first)
    jobs = [(servers[i % len(servers)], seed) for i, seed in enumerate(seeds)]
    played = dict(run_jobs(play, jobs, workers, ray))
    return concatenate([played[i] for i in range(tapes)])


def decisions(
    sim: Simulator, k: int, width: int
) -> Iterator[tuple[Pod, CandidateArrays, int, Observation]]:
    """Yield each decision: who asks, up to `k` candidates, their number, and what is seen.

    Each must be carried out before the next is asked for; where there is no candidate nobody is
    asked.
    """
    while (pod := sim.next_decision()) is not None:
        found, count = sim.state.find(pod, AlignmentFilter.OWN.binds(pod), k)
        if count == 0:
            sim.apply(None)
            continue
        o = empty_observation(k, width)
        observe(sim.state.arrays, sim.costs, pod.index, found, count, o)
        o.mask[k] = sim.may_wait(pod)
        yield pod, found, count, o


def carry_out(sim: Simulator, pod: Pod, found: CandidateArrays, chosen: int | None) -> None:
    """Take a candidate, or wait (None)."""
    sim.apply(None if chosen is None else sim.state.candidate_at(found, chosen, pod))


def workload_on(fleet: Fleet, gang_share: float) -> WorkloadConfig:
    """Return the default workload, with gangs where there is a network."""
    return WorkloadConfig(gang_share=gang_share if fleet.network is not None else 0.0)


def training_tape(fleet: Fleet, seed: int, gang_share: float) -> Simulator:
    """Return a simulation of the tape of a seed, its workload drawn anew; see `workload_on`."""
    return tape_for(fleet, randomised(seed, workload_on(fleet, gang_share)), seed)


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
