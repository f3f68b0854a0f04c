"""Scorers that the shipped deep set is compared with. All take (B, K, F) arrays and share its scores:
higher is better, the last is waiting. They are for the ablation alone; none can be exported.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flextopo.cluster.observation.features import NUM_CANDIDATE, NUM_CLUSTER, NUM_PREEMPTOR
from flextopo.cluster.observation.gpu_graph import NUM_GPU
from flextopo.policies.network import MASKED, CandidateScorer, ScorerConfig

SHARED = NUM_PREEMPTOR + NUM_CLUSTER


class LinearScorer(nn.Module):
    """A weighted sum of a candidate's features; waiting is one of what all candidates share."""

    def __init__(self) -> None:
        super().__init__()
        self.candidate = nn.Linear(NUM_CANDIDATE, 1)
        self.wait = nn.Linear(SHARED, 1)

    def packed(
        self, preemptor: Tensor, cluster: Tensor, candidates: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scores (B, K + 1) and a value of 0, (B,)."""
        wait = self.wait(torch.cat([preemptor, cluster], -1))
        scores = torch.cat([self.candidate(candidates).squeeze(-1), wait], -1)
        return scores.masked_fill(mask == 0, MASKED), wait.squeeze(-1) * 0.0


class AttentionScorer(nn.Module):
    """Candidates, and a token for waiting, attend to each other: one pre-norm transformer block."""

    def __init__(self, hidden: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.candidate = nn.Linear(NUM_CANDIDATE, hidden)
        self.shared = nn.Linear(SHARED, hidden, bias=False)
        self.waiting = nn.Parameter(torch.zeros(hidden))
        self.block = nn.TransformerEncoderLayer(
            hidden, heads, 2 * hidden, dropout=0.0, batch_first=True, norm_first=True
        )
        self.score = nn.Linear(hidden, 1)

    def packed(
        self, preemptor: Tensor, cluster: Tensor, candidates: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scores (B, K + 1) and a value of 0, (B,)."""
        shared = self.shared(torch.cat([preemptor, cluster], -1)).unsqueeze(-2)
        tokens = torch.cat([self.candidate(candidates), self.waiting.expand_as(shared)], -2)
        hidden = self.block(torch.relu(tokens + shared), src_key_padding_mask=mask == 0)
        scores = self.score(hidden).squeeze(-1).masked_fill(mask == 0, MASKED)
        return scores, scores[:, -1] * 0.0


class GraphScorer(nn.Module):
    """The deep set, told of each candidate's server by two rounds of messages over its graph.

    A GPU hears the mean of its NUMA node, then that of its socket; the sum over the GPUs is the
    server's embedding, and joins the candidate's features.
    """

    def __init__(self, hidden: int = 64, width: int = 16) -> None:
        super().__init__()
        self.gpu = nn.Linear(NUM_GPU, width)
        self.numa = nn.Linear(2 * width, width)
        self.socket = nn.Linear(2 * width, width)
        self.server = nn.Linear(width, NUM_CANDIDATE)
        self.scorer = CandidateScorer(ScorerConfig(hidden))

    def packed(
        self, preemptor: Tensor, cluster: Tensor, candidates: Tensor, mask: Tensor, graph: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return scores (B, K + 1) and the value (B,); `graph` is (B, K, 16, 8)."""
        decision, place = (mask[:, :-1] != 0).nonzero(as_tuple=True)
        gpus = graph[decision, place].to(torch.float32)
        exists = gpus[..., :1]
        hidden = torch.relu(self.gpu(gpus)) * exists
        for column, layer in ((-2, self.numa), (-1, self.socket)):
            group = gpus[..., column]
            peers = (group.unsqueeze(-1) == group.unsqueeze(-2)) * exists.transpose(-1, -2)
            heard = peers @ hidden / peers.sum(-1, keepdim=True).clamp(min=1.0)
            hidden = torch.relu(layer(torch.cat([hidden, heard], -1))) * exists
        servers = torch.zeros_like(candidates)
        servers = servers.index_put((decision, place), self.server(hidden.sum(-2)))
        scores, value = self.scorer.packed(preemptor, cluster, candidates + servers, mask)
        return scores, value
