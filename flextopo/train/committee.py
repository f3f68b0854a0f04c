"""Several networks that decide together, and one that learns from them.

The mean of the scores of networks that were trained on other tapes, from other weights, decides better
than each of them. It costs as many forward passes as there are members, so one network is fitted to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flextopo.cluster.observation.features import (
    Observation,
    empty_observation,
    observed_width,
)
from flextopo.cluster.topology.servers import parse_servers
from flextopo.policies.runtime import score
from flextopo.train.demonstrations import (
    Demonstrations,
    Job,
    Weights,
    carry_out,
    collect,
    decisions,
    stack,
    training_tape,
)


@dataclass(frozen=True)
class Committee:
    """Networks that decide by the mean of their scores.

    Attributes:
        servers: clusters that it plays on, one after the other.
        k: candidates that are shown.
        members: the networks.
        gang_share: of the workloads on clusters that have a network.
    """

    servers: tuple[str, ...]
    k: int
    members: tuple[Weights, ...]
    gang_share: float = 0.0

    def score(self, o: Observation) -> npt.NDArray[np.float32]:
        """Return the mean scores of all actions, (K + 1,), illegal ones at -1e8."""
        total = np.sum([score(weights, o) for weights in self.members], axis=0)
        return np.where(o.mask != 0, total / len(self.members), -1e8).astype(np.float32)

    def collect(
        self, first: int, tapes: int, workers: int = 1, ray: str | None = None
    ) -> Demonstrations:
        """Play training tapes; the result is the same for any number of workers, and over Ray.

        Args:
            first: position of the first tape among the training seeds.
            tapes: how many.
            workers: processes.
            ray: where to play; see `run_jobs`.

        Returns:
            Decisions, where the loss of an action is minus the logarithm of its probability.
        """
        return collect(self.demonstrate, self.servers, first, tapes, workers, ray)

    def demonstrate(self, job: Job) -> Demonstrations:
        """Play the tape of a seed on servers; a tenth of the actions are random."""
        servers, seed = job
        rng = np.random.default_rng((seed, 23))
        sim = training_tape(parse_servers(servers), seed, self.gang_share)
        rows: list[Observation] = []
        losses: list[npt.NDArray[np.float32]] = []
        width = observed_width(self.servers)
        for pod, found, count, o in decisions(sim, self.k, width):
            scores = self.score(o)
            rows.append(o)
            losses.append(log_loss(scores, o.mask))
            random = rng.random() < 0.1
            action = int(rng.integers(count + 1) if random else np.argmax(scores))
            carry_out(sim, pod, found, action if action < count else None)
        if not rows:
            rows, losses = [empty_observation(self.k, width)], [np.zeros(self.k + 1, np.float32)]
        return stack(rows, losses, [])


def log_loss(
    scores: npt.NDArray[np.float32], mask: npt.NDArray[np.int8]
) -> npt.NDArray[np.float32]:
    """Return minus the logarithms of the probabilities that scores stand for; 0 where illegal."""
    most = scores.max()
    log_p = scores - most - np.log(np.exp(scores - most).sum())
    return np.where(mask != 0, -log_p, 0.0).astype(np.float32)
