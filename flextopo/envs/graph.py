"""An observation option: each candidate's server as a graph of GPUs, NUMA nodes and sockets."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from flextopo.cluster.observation.gpu_graph import NUM_GPU, empty_graph, observe_graph
from flextopo.cluster.simulation.episodes import cluster_of, scratch_of_thread
from flextopo.cluster.topology.model import MAX_GPUS
from flextopo.envs.preemption import PreemptionEnv


class GraphObservation(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Add `graph` to the observation of a scalar environment, (K, 16, 8) float32 within 0 to 1.

    Row i has the GPUs of candidate i's server, see `GPU_FEATURES`; places without GPU are 0.

    Args:
        env: a `PreemptionEnv`, wrapped or not.

    Raises:
        TypeError: it is another environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ObservationWrapper.__init__(self, env)
        inner = env.unwrapped
        if not isinstance(inner, PreemptionEnv):
            raise TypeError(f"{type(inner).__name__}; legal: a PreemptionEnv")
        self._inner = inner
        assert isinstance(env.observation_space, spaces.Dict)
        box = spaces.Box(0.0, 1.0, (inner.k, MAX_GPUS, NUM_GPU), np.float32)
        self.observation_space = spaces.Dict({**env.observation_space.spaces, "graph": box})

    def observation(self, observation: Any) -> dict[str, Any]:
        """Return the observation with the graphs."""
        batch = self._inner.core.batch
        assert batch is not None
        graph = empty_graph(self._inner.k)
        count, asked = int(batch.environments[0]["options"]), int(batch.outcome[0]["asked"])
        if asked >= 0 and count > 0:
            found = type(batch.found)(*(array[0] for array in batch.found))
            observe_graph(
                cluster_of(batch.running, 0, scratch_of_thread(batch.scratch, 0)),
                asked,
                found,
                count,
                graph,
            )
            if self._inner.core.order is not None:
                graph = graph[self._inner.core.order[0]]
        return {**observation, "graph": graph}
