"""Play and train on the environment with TorchRL: `GymEnv`, its spec check, masks, one PPO loss."""

import gymnasium
import numpy as np
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import ActionMask, DTypeCastTransform, GymEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs
from torchrl.modules import MaskedCategorical, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

import flextopo  # noqa: F401

NAME, K = "flextopo/Preempt-RTX4090-v0", 16


def make():
    """Return the environment with masked random actions."""
    env = GymEnv(NAME, k=K, categorical_action_encoding=True)
    cast = DTypeCastTransform(torch.int8, torch.bool, in_keys=["action_mask"])
    return TransformedEnv(TransformedEnv(env, cast), ActionMask())


def same_as_gymnasium():
    """Play random legal actions, then the same ones without TorchRL; the rewards are equal."""
    env = make()
    env.set_seed(3)
    torch.manual_seed(0)
    day = env.rollout(20, break_when_any_done=False)
    legal = day["action_mask"].gather(1, day["action"].unsqueeze(1))
    assert legal.all(), "an action was masked"
    plain = gymnasium.make(NAME, k=K)
    plain.reset(seed=3)
    plain.reset()  # seeding there resets, and so does a rollout
    for action, reward in zip(day["action"], day["next", "reward"], strict=True):
        found = plain.step(int(action))
        assert np.float32(found[1]) == np.float32(reward), (found[1], reward)
        if found[3]:
            plain.reset()
    return len(day)


def update(env):
    """Do one update of PPO; return the loss."""
    names = ["candidates", "preemptor", "cluster"]
    sizes = [env.observation_spec[name].shape.numel() for name in names]

    class Flat(torch.nn.Module):
        def __init__(self, out):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(sum(sizes), 64), torch.nn.Tanh(), torch.nn.Linear(64, out)
            )

        def forward(self, candidates, *others):
            return self.layers(torch.cat([candidates.flatten(-2), *others], -1))

    actor = ProbabilisticActor(
        TensorDictModule(Flat(K + 1), in_keys=names, out_keys=["logits"]),
        in_keys={"logits": "logits", "mask": "action_mask"},
        spec=env.action_spec,
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    critic = ValueOperator(Flat(1), in_keys=names)
    with torch.no_grad():
        played = env.rollout(64, actor, break_when_any_done=False)
    GAE(gamma=0.98, lmbda=0.95, value_network=critic)(played)
    losses = ClipPPOLoss(actor, critic)(played)
    total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
    total.backward()
    assert all(p.grad is not None for p in [*actor.parameters(), *critic.parameters()])
    return float(total)


def main():
    """Check, play, update."""
    torch.set_num_threads(1)
    check_env_specs(make(), seed=0)
    steps = same_as_gymnasium()
    loss = update(make())
    assert np.isfinite(loss), loss
    print(
        f"specs hold; {steps} masked random steps as in Gymnasium; one update of PPO, loss {loss:.2f}"
    )


if __name__ == "__main__":
    main()
