"""The candidate scorer: shared weights over candidates, one deep-set round, any number of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flextopo.cluster.observation.features import NUM_CANDIDATE, NUM_PREEMPTOR, cluster_width

MASKED = -1e8
"""Score of an illegal action: no probability, and still a finite gradient."""


@dataclass(frozen=True)
class ScorerConfig:
    """Size of the network.

    Attributes:
        hidden: width h of every layer.
        context: one deep-set round: each candidate also sees the mean and the maximum over all.
        width: features of a candidate, more where servers tell islands apart.
        shared: features of the preemptor and of the cluster; 0 = all that go with that width.
    """

    hidden: int = 64
    context: bool = True
    width: int = NUM_CANDIDATE
    shared: int = 0


class CandidateScorer(nn.Module):
    """Score each candidate, and "do not preempt now", from what it is and what the others are.

    The order of candidates does not matter and their number may be any. With h hidden units:
    e_i = relu(W_c candidate_i + W_s [preemptor, cluster]), pooled = [mean e, max e] over legal
    candidates, score_i = v . relu(W_e e_i + W_p pooled); waiting and the value come from `pooled`.
    """

    def __init__(self, config: ScorerConfig | None = None) -> None:
        super().__init__()
        self.config = config or ScorerConfig()
        h = self.config.hidden
        self.candidate = nn.Linear(self.config.width, h)
        shared = self.config.shared or NUM_PREEMPTOR + cluster_width(self.config.width)
        self.shared = nn.Linear(shared, h, bias=False)
        self.own = nn.Linear(h, h)
        self.pooled = nn.Linear(2 * h, h, bias=False)
        self.score = nn.Linear(h, 1)
        self.wait = nn.Sequential(nn.Linear(2 * h, h), nn.ReLU(), nn.Linear(h, 1))
        self.critic = nn.Sequential(nn.Linear(2 * h, h), nn.ReLU(), nn.Linear(h, 1))

    def forward(
        self, preemptor: Tensor, cluster: Tensor, candidates: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return action scores and the value.

        Args:
            preemptor: (B, 9) float32.
            cluster: (B, 16) float32, more where the network takes all features.
            candidates: (B, K, width) float32.
            mask: (B, K + 1), nonzero = legal.

        Returns:
            Scores (B, K + 1), illegal ones at `MASKED`, and value (B,).
        """
        legal = mask != 0
        shared = self.shared(torch.cat([preemptor, cluster], -1)).unsqueeze(-2)
        encoded = torch.relu(self.candidate(candidates) + shared)
        pooled = pool(encoded, legal[..., :-1])
        hidden = self.own(encoded)
        if self.config.context:
            hidden = hidden + self.pooled(pooled).unsqueeze(-2)
        scores = self.score(torch.relu(hidden)).squeeze(-1)
        scores = torch.cat([scores, self.wait(pooled)], -1)
        return scores.masked_fill(~legal, MASKED), self.critic(pooled).squeeze(-1)

    def packed(
        self, preemptor: Tensor, cluster: Tensor, candidates: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what `forward` does, computed for the legal candidates alone.

        Most of the K places are empty most of the time, so this trains several times faster. The
        sums run in another order, so results differ in the last bits.
        """
        legal = mask[:, :-1] != 0
        decision, place = legal.nonzero(as_tuple=True)
        shared = self.shared(torch.cat([preemptor, cluster], -1))
        encoded = torch.relu(self.candidate(candidates[decision, place]) + shared[decision])
        empty = torch.zeros_like(shared)
        mean = empty.index_add(0, decision, encoded)
        mean = mean / legal.sum(-1, keepdim=True).clamp(min=1).to(mean.dtype)
        # Encodings are 0 or more, so the zeros that it starts with take nothing away.
        most = empty.scatter_reduce(0, decision.unsqueeze(-1).expand_as(encoded), encoded, "amax")
        pooled = torch.cat([mean, most], -1)
        hidden = self.own(encoded)
        if self.config.context:
            hidden = hidden + self.pooled(pooled)[decision]
        scores = torch.full_like(mask, MASKED, dtype=encoded.dtype)
        scores = scores.index_put((decision, place), self.score(torch.relu(hidden)).squeeze(-1))
        wait = torch.where(mask[:, -1:] != 0, self.wait(pooled), MASKED)
        return torch.cat([scores[:, :-1], wait], -1), self.critic(pooled).squeeze(-1)


def pool(encoded: Tensor, legal: Tensor) -> Tensor:
    """Return mean and maximum of the (B, K, h) encodings over the (B, K) legal ones: (B, 2h)."""
    weight = legal.unsqueeze(-1).to(encoded.dtype)
    mean = (encoded * weight).sum(-2) / weight.sum(-2).clamp(min=1.0)
    return torch.cat([mean, (encoded * weight).amax(-2)], -1)
