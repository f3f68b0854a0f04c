"""Find any selector: by name, of the zoo, in a folder, in a module, or the object itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flextopo.baselines.loading import IMPORT_TEXT, build, load_attribute
from flextopo.baselines.registry import known_selectors, make_selector
from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.runtime import LearnedSelector, load_policy
from flextopo.policies.shipped import zoo_names

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named


def find_selector(selector: Named, seed: int = 0) -> VictimSelector:
    """Return a selector.

    Args:
        selector: a name of the registry, a policy of the zoo, the folder of one, `module:name` of a
            selector or its class, or one of these two itself. `POLICY@300` is the policy that lets no
            pod wait for more than 300 seconds by its own choice.
        seed: of this game; a class that takes a `seed` gets it.

    Raises:
        UnknownNameError: it is none of them.
        ArtifactError: the policy is damaged or reads unknown features.
        FlextopoError: the module fails, or what it names is no selector.
    """
    if not isinstance(selector, str):
        return build(selector, seed)
    if selector in known_selectors():
        return make_selector(selector, seed)
    if _is_policy(selector):
        return load_policy(selector)
    policy, at, seconds = selector.rpartition("@")
    if at and seconds.isdecimal() and _is_policy(policy):
        return replace(load_policy(policy), name=selector, max_wait_s=int(seconds))
    if IMPORT_TEXT.fullmatch(selector):
        return build(load_attribute(selector), seed, selector)
    others = [
        "the folder of a policy, also with @SECONDS",
        "MODULE:NAME of a selector or its class",
    ]
    raise UnknownNameError("selector", selector, [*known_selectors(), *zoo_names(), *others])


def _is_policy(text: str) -> bool:
    return text in zoo_names() or Path(text).is_dir()


def find_served(name: str) -> VictimSelector:
    """Return a selector for a scheduler, as `find_selector` does.

    A policy may find that waiting is best until the preemptor gives up; a scheduler has promised to
    place it. So it lets no pod wait by choice, unless `POLICY@SECONDS` says for how long it may.
    """
    found = find_selector(name)
    if isinstance(found, LearnedSelector) and found.max_wait_s is None:
        return replace(found, max_wait_s=0)
    return found
