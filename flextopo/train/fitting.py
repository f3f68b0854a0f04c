"""Fit a network to demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from flextopo.train.config import ImitationConfig
from flextopo.train.demonstrations import Demonstrations

Objective = Callable[[Any, list[torch.Tensor], float], torch.Tensor]


def expected_loss(network: Any, batch: list[torch.Tensor], entropy: float) -> torch.Tensor:
    """Return the mean over decisions of sum_i p_i L_i, less the entropy bonus."""
    *inputs, losses = batch
    scores, _ = network.packed(*inputs)
    log_p = torch.log_softmax(scores, -1)
    p = log_p.exp()
    bonus = -(p * log_p).sum(-1)
    return ((p * losses).sum(-1) - entropy * bonus).mean()


def disagreement(network: Any, batch: list[torch.Tensor], _: float) -> torch.Tensor:
    """Return the cross entropy of what a `Committee` says and what the network says, in nats."""
    *inputs, log_loss = batch
    scores, _value = network.packed(*inputs)
    said = torch.where(inputs[3] != 0, torch.exp(-log_loss), 0.0)
    return -(said * torch.log_softmax(scores, -1)).sum(-1).mean()


def fit(
    network: Any,
    data: Demonstrations,
    config: ImitationConfig,
    round_: int,
    objective: Objective | None = None,
    graph: bool = False,
    unit: float | None = None,
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
        unit: of the losses that the objective sees; None = their mean.
    """
    objective = objective or expected_loss
    unit = unit or float(np.clip(np.abs(data.losses), 0, 100).mean()) or 1.0
    arrays = [data.preemptor, data.cluster, data.candidates, data.mask]
    arrays += [data.graph] if graph else []
    arrays.append(np.clip(data.losses, -100, 100) / unit)
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
        yield total / len(data) * unit
