"""Train with torch alone: actor-critic over the native vector, with masks. Takes ten seconds."""

import argparse

import gymnasium
import torch
from torch import nn


def run(network, observation):
    """Return the distribution over the candidates, and the value, (B,)."""
    names = ("candidates", "preemptor", "cluster")
    rows, *shared = (torch.as_tensor(observation[name]) for name in names)
    shared = torch.cat(shared, 1).unsqueeze(1).expand(-1, rows.shape[1], -1)
    scores, values = network(torch.cat([rows, shared], 2)).unbind(2)
    legal = torch.as_tensor(observation["action_mask"][:, :-1]) > 0
    actor = torch.distributions.Categorical(logits=scores.masked_fill(~legal, -torch.inf))
    return actor, (values * legal).sum(1) / legal.sum(1)


def main():
    """Train, and print what days cost meanwhile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=300, help="gradient steps")
    updates = parser.parse_args().updates
    torch.manual_seed(0)
    name = "flextopo:flextopo/Preempt-RTX4090-v0"  # imports flextopo by itself
    how = {"k": 16, "allow_wait": False, "autoreset_mode": "SameStep"}
    envs = gymnasium.make_vec(name, 32, "vector_entry_point", **how)
    observation, _ = envs.reset(seed=0)
    size = sum(part.shape[-1] for part in observation.values()) - 17  # without the mask
    network = nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 2))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for update in range(1, updates + 1):
        played, lost = [], []
        for _ in range(16):
            actor, value = run(network, observation)
            action = actor.sample()
            observation, reward, _, over, info = envs.step(action.numpy())
            played.append((actor, action, value, *map(torch.as_tensor, (reward / 100, over))))
            if over.any():
                lost += info["final_info"]["metrics"]["weighted_loss"][over].tolist()
        loss, target = 0.0, run(network, observation)[1].detach()
        for actor, action, value, reward, over in reversed(played):
            # A day is cut, not finished: what follows is worth about as much as this state.
            target = (reward + 0.98 * torch.where(over, value.detach(), target)).float()
            gain = target - value
            chosen = actor.log_prob(action) * gain.detach() + 0.003 * actor.entropy()
            loss += (0.5 * gain**2 - chosen).mean()
        network.zero_grad()
        loss.backward()
        optimiser.step()
        if update % 50 == 0 or update == updates:
            print(f"update {update}: {len(lost)} days lost {sum(lost) / max(1, len(lost)):.1%}")


if __name__ == "__main__":
    main()
