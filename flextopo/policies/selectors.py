"""Find any selector by name: of the registry, of the zoo, or an artifact's folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flextopo.baselines.registry import SELECTORS, make_selector
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.runtime import LearnedSelector, load_policy, zoo_names


def find_selector(name: str, seed: int = 0) -> VictimSelector:
    """Return a selector of the registry, or a policy of the zoo or in a folder.

    `POLICY@300` is the policy that lets no pod wait for more than 300 seconds by its own choice.

    Raises:
        UnknownNameError: it is none of them.
        ArtifactError: the policy is damaged or reads unknown features.
    """
    if name in SELECTORS:
        return make_selector(name, seed)
    if name in zoo_names() or Path(name).is_dir():
        return load_policy(name)
    policy, at, seconds = name.rpartition("@")
    if at and seconds.isdecimal() and (policy in zoo_names() or Path(policy).is_dir()):
        return replace(load_policy(policy), name=name, max_wait_s=int(seconds))
    raise UnknownNameError(
        "selector", name, [*SELECTORS, *zoo_names(), "the folder of a policy, also with @SECONDS"]
    )


def find_served(name: str) -> VictimSelector:
    """Return a selector for a scheduler, as `find_selector` does.

    A policy may find that waiting is best until the preemptor gives up; a scheduler has promised to
    place it. So it lets no pod wait by choice, unless `POLICY@SECONDS` says for how long it may.
    """
    found = find_selector(name)
    if isinstance(found, LearnedSelector) and found.max_wait_s is None:
        return replace(found, max_wait_s=0)
    return found
