"""The native vector environment as Stable-Baselines3 wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from flextopo.cluster.errors import FlextopoError
from flextopo.envs.core import Arrays
from flextopo.envs.vector import PreemptionVectorEnv


class PreemptionVecEnv(VecEnv):
    """Stable-Baselines3's interface to `PreemptionVectorEnv`, masks and episode statistics included.

    `infos` hold what Stable-Baselines3 reads: at the end of an episode `terminal_observation`,
    `TimeLimit.truncated` and `episode` (return `r` and length `l`), and `metrics`.

    Args:
        num_envs: how many environments.
        servers: this and the other arguments as in `PreemptionVectorEnv`, but for `copy`:
            Stable-Baselines3 keeps an observation over the next step, so it is always True.

    Raises:
        FlextopoError: `copy` is False.

    Attributes:
        elapsed_s: (B,) simulated seconds that passed in the last step.
    """

    def __init__(self, num_envs: int = 64, servers: Any = "16*rtx4090", **arguments: Any) -> None:
        if not arguments.get("copy", True):
            raise FlextopoError(
                "copy = False; legal: True, since Stable-Baselines3 keeps observations over a step"
            )
        self.vector = PreemptionVectorEnv(
            num_envs, servers, autoreset_mode=AutoresetMode.SAME_STEP, **arguments
        )
        self._actions = np.zeros(num_envs, np.int64)
        self._masks = np.zeros((num_envs, self.vector.k + 1), np.bool_)
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self.elapsed_s = np.zeros(num_envs)
        self._time_s = np.zeros(num_envs, np.int64)
        super().__init__(
            num_envs, self.vector.single_observation_space, self.vector.single_action_space
        )

    def reset(self) -> Arrays:
        """Start new tapes with the seeds given to `seed`, which count once."""
        shown, _ = self.vector.reset(seed=self._seeds)
        self._reset_seeds()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._masks = shown["action_mask"].astype(np.bool_)
        self._keep_time()
        return shown

    def _keep_time(self) -> None:
        """Note where in its tape each environment stands."""
        batch = self.vector.core.batch
        assert batch is not None
        self._time_s = batch.outcome["time_s"]

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Arrays, Any, Any, list[dict[str, Any]]]:
        """Carry out the actions; rewards are float32, as Stable-Baselines3 keeps them."""
        shown, reward, _, over, info = self.vector.step(self._actions)
        self._masks = shown["action_mask"].astype(np.bool_)
        until_s = (
            np.where(over, info["final_info"]["time_s"], info["time_s"])
            if over.any()
            else (info["time_s"])
        )
        self.elapsed_s = (until_s - self._time_s).astype(np.float64)
        self._returns += reward
        self._keep_time()
        self._lengths += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(over):
            metrics = info["final_info"]["metrics"]
            infos[i] = {
                "terminal_observation": info["final_obs"][i],
                "TimeLimit.truncated": True,
                "episode": {"r": float(self._returns[i]), "l": int(self._lengths[i])},
                "metrics": {name: metrics[name][i] for name in metrics if name[0] != "_"},
            }
        self._returns[over] = 0.0
        self._lengths[over] = 0
        return shown, reward.astype(np.float32), over, infos

    def close(self) -> None:
        self.vector.close()

    def has_attr(self, attr_name: str) -> bool:
        """Say whether the environments have an attribute; `action_masks` is what is asked for."""
        return attr_name == "action_masks" or hasattr(self.vector, attr_name)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, the same for every environment."""
        return [getattr(self.vector, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"{attr_name}: the environments have no attributes of their own")

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of each environment: `action_masks` is the only one there is."""
        if method_name != "action_masks":
            raise AttributeError(f"{method_name}; legal: action_masks")
        return list(self._masks[list(self._get_indices(indices))])

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Say that episodes are counted here: Stable-Baselines3 asks for its Monitor."""
        return [wrapper_class.__name__ == "Monitor"] * len(list(self._get_indices(indices)))

    def _get_indices(self, indices: int | Iterable[int] | None) -> Sequence[int]:
        if indices is None:
            return range(self.num_envs)
        return [indices] if isinstance(indices, int) else list(indices)
