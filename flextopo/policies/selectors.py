"""Find any selector by name: of the registry, of the zoo, or an artifact's folder."""

from __future__ import annotations

from pathlib import Path

from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.selector import VictimSelector
from flextopo.policies.runtime import load_policy, zoo_names


def find_selector(name: str, seed: int = 0) -> VictimSelector:
    """Return a selector of the registry, or a policy of the zoo or in a folder.

    Raises:
        UnknownNameError: it is none of them.
        ArtifactError: the policy is damaged or was made for another layout.
    """
    if name in SELECTORS:
        return make_selector(name, seed)
    if name in zoo_names() or Path(name).is_dir():
        return load_policy(name)
    raise UnknownNameError("selector", name, [*SELECTORS, *zoo_names(), "the folder of a policy"])
