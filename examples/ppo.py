"""Train the candidate scorer with PPO and masks: torch alone, one file. Better than greedy-cost in minutes.

Reads from top to bottom: network, rollouts, advantages, update. What makes it fast: the native vector
environment, and that only legal candidates are kept and computed, one row each. What makes it learn:
rewards beyond greedy-cost's on the same tape, a discount by simulated time, and episodes of six hours
that begin where greedy-cost preempts. Equal seeds give equal weights, bit by bit.
"""

import argparse
import time
from pathlib import Path

import gymnasium
import numpy as np
import torch
from torch import nn

import flextopo
from flextopo.policies.artifact import save_policy
from flextopo.policies.network import CandidateScorer
from flextopo.policies.runtime import LearnedSelector

NUM_ENVS, STEPS = 128, 16  # decisions between two updates: their product
ENVIRONMENT = {
    "k": 16, "allow_wait": False, "relative": True, "episode_h": 6, "tapes": 2048,
    "autoreset_mode": "SameStep",
}  # fmt: skip
TAU_S, LAMBDA = 4 * 3600, 0.95  # of the discount, in simulated time and by decision
REWARD_SCALE = 0.05  # rewards are GPU-hours per 100 GPUs
EPOCHS, MINIBATCH, LEARNING_RATE = 1, 256, 2e-3
CLIP, ENTROPY, CRITIC, MAX_GRADIENT = 0.2, 0.003, 0.5, 0.5
MASKED = -1e8


class Scorer(nn.Module):
    """Score candidates with shared weights; each also sees the mean and the maximum over all.

    The same network as `flextopo.policies.network.CandidateScorer`, which reads its weights.
    """

    def __init__(self, width, shared, hidden=64):
        super().__init__()
        self.candidate = nn.Linear(width, hidden)
        self.shared = nn.Linear(shared, hidden, bias=False)
        self.own = nn.Linear(hidden, hidden)
        self.pooled = nn.Linear(2 * hidden, hidden, bias=False)
        self.score = nn.Linear(hidden, 1)
        self.wait = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.critic = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, rows, legal):
        """Return log probabilities (M, K + 1) and values (M,) of M decisions.

        `rows` (R, width + shared) are the candidates where `legal` (M, K + 1) bool has them, decision
        after decision; the last column of `legal` is "do not preempt now".
        """
        count = legal[:, :-1].sum(1)
        decision = torch.repeat_interleave(torch.arange(len(count)), count)
        weight = torch.cat([self.candidate.weight, self.shared.weight], 1)
        encoded = torch.relu(nn.functional.linear(rows, weight, self.candidate.bias))
        nothing = torch.zeros(len(count), encoded.shape[1])
        mean = nothing.index_add(0, decision, encoded) / count.clamp(min=1).unsqueeze(1)
        place = decision.unsqueeze(1).expand_as(encoded)
        pooled = torch.cat([mean, nothing.scatter_reduce(0, place, encoded, "amax")], 1)
        around = self.pooled(pooled).index_select(0, decision)
        score = self.score(torch.relu(self.own(encoded) + around)).squeeze(1)
        scores = torch.full(legal.shape, MASKED)
        scores[:, :-1].masked_scatter_(legal[:, :-1], score)
        scores[:, -1:] = torch.where(legal[:, -1:], self.wait(pooled), MASKED)
        return torch.log_softmax(scores, 1), self.critic(pooled).squeeze(1)


class Rollouts:
    """The environments, where they stand, and how much simulated time each step takes."""

    def __init__(self, seed):
        name, how = "flextopo/Preempt-RTX4090-v0", "vector_entry_point"
        self.envs = gymnasium.make_vec(name, NUM_ENVS, how, **ENVIRONMENT)
        self.observation, info = self.envs.reset(seed=seed)
        self.time_s = info["time_s"]

    def packed(self):
        """Return what the scorer reads of the present decisions: legal candidates, and the mask."""
        shown = self.observation
        legal = shown["action_mask"] != 0
        decision, place = legal[:, :-1].nonzero()
        shared = np.concatenate([shown["preemptor"], shown["cluster"]], 1)
        rows = np.concatenate([shown["candidates"][decision, place], shared[decision]], 1)
        return torch.from_numpy(rows), torch.from_numpy(legal)

    @torch.inference_mode()
    def play(self, network):
        """Return (rows, legal, action, log probability, value, reward, discount) of each step.

        The values of the decisions that come next are the second result.
        """
        played = []
        for _ in range(STEPS):
            rows, legal = self.packed()
            log_p, value = network(rows, legal)
            action = (log_p - torch.empty_like(log_p).exponential_().log()).argmax(1)  # a draw
            taken = log_p.gather(1, action.unsqueeze(1)).squeeze(1)
            self.observation, reward, _, over, info = self.envs.step(action.numpy())
            until_s = info["time_s"]
            if over.any():
                until_s = np.where(over, info["final_info"]["time_s"], until_s)
            spans = np.maximum((until_s - self.time_s) / TAU_S, 1e-9)
            self.time_s = info["time_s"]
            reward = reward * REWARD_SCALE * -np.expm1(-spans) / spans  # spread over the step
            played.append((rows, legal, action, taken, value, reward, np.exp(-spans) * ~over))
        return played, network(*self.packed())[1]


def advantages(values, rewards, discounts, last):
    """Return generalised advantages, (T, B): discounted by time, lambda by decision."""
    found, ahead, following = np.zeros_like(values), np.zeros_like(last), last
    for step in reversed(range(len(values))):
        error = rewards[step] + discounts[step] * following - values[step]
        ahead = found[step] = error + LAMBDA * discounts[step] * ahead
        following = values[step]
    return found


def update(network, optimiser, played, last):
    """Learn from a rollout: some epochs over its decisions, in a drawn order."""
    *decisions, values, rewards, discounts = zip(*played, strict=True)
    rows, legal, action, before = map(torch.cat, decisions)
    value = torch.stack(values).numpy()
    gain = advantages(value, np.stack(rewards), np.stack(discounts), last.numpy())
    gain = torch.from_numpy(gain.ravel())
    target = gain + torch.from_numpy(value.ravel())
    count = legal[:, :-1].sum(1)
    begin = count.cumsum(0) - count
    for _ in range(EPOCHS):
        for at in torch.randperm(len(gain)).split(MINIBATCH):
            shift = begin[at] - (count[at].cumsum(0) - count[at])
            own = torch.repeat_interleave(shift, count[at])
            own += torch.arange(len(own))
            log_p, value = network(rows[own], legal[at])
            ratio = (log_p.gather(1, action[at].unsqueeze(1)).squeeze(1) - before[at]).exp()
            scaled = (gain[at] - gain[at].mean()) / (gain[at].std() + 1e-8)
            clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
            actor = -torch.min(scaled * ratio, scaled * clipped).mean()
            critic = nn.functional.mse_loss(value, target[at])
            entropy = -(log_p.exp() * log_p).sum(1).mean()
            optimiser.zero_grad()
            (actor + CRITIC * critic - ENTROPY * entropy).backward()
            nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT)
            optimiser.step()


def judge(network, days):
    """Say what the best actions lose on validation days, and how that differs from greedy-cost."""
    weights = {name: array.detach().numpy().copy() for name, array in network.state_dict().items()}
    selector = LearnedSelector("ppo", weights, ENVIRONMENT["k"], ENVIRONMENT["allow_wait"])
    found = flextopo.compare(["greedy-cost", selector], seeds=days, split="validation").results
    loss, beyond = (found[kind]["ppo"] for kind in ("selectors", "paired"))
    return (
        f"loses {loss['weighted_loss']['mean']:.2%} of {days} validation days, beyond greedy-cost "
        f"{beyond['mean'] * 100:+.2f} [{beyond['low'] * 100:+.2f}, {beyond['high'] * 100:+.2f}] points"
    )


def make_network(shown):
    """Return a new network for observations like these."""
    shared = shown["preemptor"].shape[1] + shown["cluster"].shape[1]
    return Scorer(shown["candidates"].shape[2], shared)


def make_optimiser(network):
    """Return the optimiser; its learning rate falls to 0 in the course of a training."""
    return torch.optim.Adam(network.parameters(), LEARNING_RATE, eps=1e-5, fused=True)


def train(timesteps, seed, days):
    """Train and return the network; tell ten times how it does."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rollouts = Rollouts(seed)
    network = make_network(rollouts.observation)
    optimiser = make_optimiser(network)
    updates = max(1, timesteps // (NUM_ENVS * STEPS))
    spent = 0.0
    for done in range(updates):
        begin = time.perf_counter()
        optimiser.param_groups[0]["lr"] = LEARNING_RATE * (1 - done / updates)
        update(network, optimiser, *rollouts.play(network))
        spent += time.perf_counter() - begin
        if (done + 1) * 10 // updates > done * 10 // updates:
            steps = (done + 1) * NUM_ENVS * STEPS
            print(f"{steps:,} decisions, {spent:.0f} s: {judge(network, days)}", flush=True)
    rollouts.envs.close()
    return network


def main():
    """Train, and keep the policy where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timesteps", type=int, default=200_000, help="decisions to learn from")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--days", type=int, default=40, help="validation days to judge it on")
    parser.add_argument("--out", type=Path, help="folder to keep the policy in")
    options = parser.parse_args()
    network = train(options.timesteps, options.seed, options.days)
    if options.out:
        scorer = CandidateScorer()
        scorer.load_state_dict(network.state_dict())
        k, allow_wait = ENVIRONMENT["k"], ENVIRONMENT["allow_wait"]
        save_policy(scorer, options.out, "ppo", k, allow_wait=allow_wait)


if __name__ == "__main__":
    main()
