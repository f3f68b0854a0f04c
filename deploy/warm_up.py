"""Compile the kernels of the service once, into NUMBA_CACHE_DIR."""

from flextopo.baselines.registry import make_selector
from flextopo.policies.selectors import find_selector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.server import warm_up

baseline = make_selector("flextopo-best-effort")
for name in ("requeue-aware", "deepset-imitation"):
    warm_up(Decider(ClusterCache(), find_selector(name), baseline))
