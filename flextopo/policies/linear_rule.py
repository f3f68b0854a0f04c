"""Rules that can be read: each candidate has a penalty, a weighted sum of a few terms, and the least wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.observation.features import F, empty_observation
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.observation.observe_candidate import GPU_TOP, RUN_TOP
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod

Floats = npt.NDArray[np.float64]


class Term(NamedTuple):
    """Something that may be wrong with a candidate.

    Fields: `about`, with its unit; `of`, from features (..., 33) to its values (...).
    """

    about: str
    of: Callable[[Floats], Floats]


def _feature(about: str, at: int, factor: float = 1.0) -> Term:
    return Term(about, lambda f: factor * f[..., at])


TERMS: dict[str, Term] = {
    "dearer": _feature(
        "logarithm of 1 + weighted quarter GPU-hours lost beyond the cheapest candidate's",
        F.cost_gap,
        GPU_TOP,
    ),
    "gpus_without_place": Term(
        "GPUs evicted whose pods fit on no other node at once",
        lambda f: 32.0 * f[..., F.evicted_gpus] * (1.0 - f[..., F.victims_fit]),
    ),
    "evicted_gpus": _feature("GPUs evicted", F.evicted_gpus, 32.0),
    "largest_victim": _feature("GPUs of the largest victim", F.largest_victim, 16.0),
    "victims": _feature("pods evicted", F.victims, 8.0),
    "group_members": _feature("PodGroup members stopped beside the victims", F.group_members, 8.0),
    "earlier_evictions": _feature("most evictions of a victim before", F.earlier_evictions, 4.0),
    "middle_class": _feature("share of the victims' GPUs of class middle", F.middle_class),
    "since_checkpoint": _feature("share of the checkpoint interval gone by", F.since_checkpoint),
    "no_checkpoint": _feature("share of the victims' GPUs that never checkpoint", F.no_checkpoint),
    "youngest_victim": _feature(
        "logarithm of 1 + minutes that the youngest victim has run", F.youngest_victim, RUN_TOP
    ),
    "oldest_victim": _feature(
        "logarithm of 1 + minutes that the oldest victim has run", F.oldest_victim, RUN_TOP
    ),
    "remaining": _feature(
        "logarithm of 1 + quarter GPU-hours that victims may still need",
        F.expected_remaining,
        GPU_TOP,
    ),
    "deficit": _feature("how bad the level is: 0 the best, 1 across sockets", F.deficit),
    "surplus_gpus": _feature("GPUs evicted beyond the need", F.surplus_gpus, 16.0),
    "budgeted": _feature("share of the victims under a disruption budget", F.budgeted),
    "free_after": _feature("share of the server's GPUs that are free afterwards", F.free_after),
    "online_after": _feature(
        "share of the server's GPUs held by online pods afterwards", F.online_after
    ),
    "evictable_after": _feature(
        "share of the server's GPUs held by evictable pods afterwards", F.evictable_after
    ),
    "refill": _feature("share of the server's GPUs that pending batch pods would fill", F.refill),
}
"""What a rule may be made of."""


@dataclass(frozen=True)
class LinearRule:
    """Take the candidate of the least penalty; it never waits.

    Attributes:
        name: as tables show it.
        weights: of terms, by name.
        k: candidates it looks at, the cheapest first.
        filter: whom the guaranteed filter binds.

    Raises:
        UnknownNameError: there is no such term.
    """

    name: str
    weights: Mapping[str, float]
    k: int = 16
    filter: AlignmentFilter = AlignmentFilter.OWN

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in TERMS:
                raise UnknownNameError("term", name, list(TERMS))

    def penalties(self, features: Floats) -> Floats:
        """Return the penalties (...) of candidates with these features, (..., 33) as observed."""
        total = np.zeros(features.shape[:-1])
        for name, weight in self.weights.items():
            total += weight * TERMS[name].of(features)
        return total

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        """Choose the candidate of the least penalty, of equals the cheapest; None where there is none."""
        found, count = cluster.find(preemptor, self.filter.binds(preemptor), self.k)
        if count == 0:
            return None
        o = empty_observation(self.k)
        seen = getattr(cluster, "whole", cluster.arrays)
        observe(seen, cluster.costs, preemptor.index, found, count, o)
        chosen = int(np.argmin(self.penalties(o.candidates[:count].astype(np.float64))))
        return cluster.candidate_at(found, chosen, preemptor)

    def __str__(self) -> str:
        lines = [f"{weight:+8.3f} x {TERMS[name].about}" for name, weight in self.weights.items()]
        return "\n".join(["penalty, the least wins:", *lines])
