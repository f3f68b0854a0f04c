"""Find any selector: by name, of the zoo, in a folder, in a module, or the object itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from flextopo.baselines.loading import IMPORT_TEXT, build, load_attribute
from flextopo.baselines.registry import (
    SELECTORS,
    Entry,
    check_free,
    known_selectors,
    looks_ahead,
    make_selector,
    plugins,
)
from flextopo.baselines.wait_limit import WaitLimit
from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.in_range import SUFFIX, load_in_range
from flextopo.policies.runtime import load_policy
from flextopo.policies.shipped import zoo_names

if TYPE_CHECKING:
    from flextopo.baselines.loading import Named

S = TypeVar("S")

PLANNED = re.compile(r"(.+)\+plan@([1-9][0-9]{0,5})(ms)?")
"""A selector that plans, its base, and how many futures, or milliseconds, it may take."""

NEARLY_PLANNED = re.compile(r".*\+plan(@[^@]*)?", re.DOTALL)
"""What is meant for one."""


def find_selector(selector: Named, seed: int = 0) -> VictimSelector:
    """Return a selector.

    Args:
        selector: a name of the registry, a policy of the zoo, the folder of one, `module:name` of a
            selector or its class, or one of these two itself. `NAME@300` is any of them that lets no pod
            wait for more than 300 seconds by its own choice. `NAME+plan@64` tries the best candidates of
            one in 64 sampled futures, `NAME+plan@50ms` in as many as there is time for; see `Rollout`.
            `lookahead+NAME` and `oracle-lookahead+NAME` go on with that selector in their branches.
            `NAME+in-range` is a policy that leaves decisions outside of its training ranges to a rule.
        seed: of this episode; a class that takes a `seed` gets it.

    Raises:
        UnknownNameError: it is none of them.
        ArtifactError: the policy is damaged or reads unknown features.
        FlextopoError: the module fails, what it names is no selector, or `+plan@` is not followed by a
            number.
    """
    if isinstance(selector, Path):
        selector = str(selector)
    if not isinstance(selector, str):
        return build(selector, seed)
    if selector in _known():
        return make_selector(selector, seed)
    if _is_policy(selector):
        return load_policy(selector)
    if NEARLY_PLANNED.fullmatch(selector):
        return _find_planner(selector, seed)
    named, at, seconds = selector.rpartition("@")
    if at and seconds.isdecimal():
        return WaitLimit(find_selector(named, seed), selector, int(seconds))
    ahead, plus, base = selector.partition("+")
    if plus and ahead in ("lookahead", "oracle-lookahead"):
        found: Any = make_selector(ahead, seed)
        found = replace(found, name=selector, base=_find_base(base, selector, seed))
        return cast("VictimSelector", found)
    if selector.endswith(SUFFIX) and _is_policy(selector.removesuffix(SUFFIX)):
        return load_in_range(selector.removesuffix(SUFFIX))
    if IMPORT_TEXT.fullmatch(selector):
        return build(load_attribute(selector), seed, selector)
    others = [
        "the folder of a policy",
        "a policy with +in-range",
        "MODULE:NAME of a selector or its class; all of them also with @SECONDS or +plan@FUTURES",
    ]
    raise UnknownNameError("selector", selector, [*known_selectors(), *zoo_names(), *others])


def _find_planner(selector: str, seed: int) -> VictimSelector:
    """Return `NAME+plan@64` or `NAME+plan@50ms`.

    Raises:
        FlextopoError: there is no such number, or the base looks ahead itself.
    """
    from flextopo.baselines.rollout import MOST_SAMPLES, Rollout

    planned = PLANNED.fullmatch(selector)
    if planned is None:
        raise FlextopoError(
            f"selector {selector!r}; legal: NAME+plan@FUTURES or NAME+plan@MILLISECONDSms, whole "
            "numbers from 1 to 999999"
        )
    base, number, unit = planned.groups()
    limit: dict[str, Any] = {"samples": int(number)}
    if unit:
        limit = {"samples": MOST_SAMPLES, "budget_s": int(number) / 1000}
    return Rollout(seed=seed, base=_find_base(base, selector, seed), name=selector, **limit)


def _find_base(base: str, selector: str, seed: int) -> VictimSelector:
    """Return what branches go on with.

    Raises:
        FlextopoError: it would look ahead in every branch itself.
    """
    if looks_ahead(base):
        raise FlextopoError(
            f"selector {selector!r}: {base!r} looks ahead itself; legal: a base that does not"
        )
    return find_selector(base, seed)


@overload
def register_selector(selector: S, /, *, about: str = "") -> S: ...
@overload
def register_selector(*, about: str = "") -> Callable[[S], S]: ...
def register_selector(selector: Any = None, /, *, about: str = "") -> Any:
    """Let a selector be called by its name, in this process and in the workers that it starts.

    Args:
        selector: a selector or its class; without one, the call is a decorator.
        about: what it does; else the first line of its docstring.

    Returns:
        The selector, so that a class may be decorated.

    Raises:
        FlextopoError: it is no selector, or its name is taken.
    """
    if selector is None:
        return lambda decorated: register_selector(decorated, about=about)
    name = build(selector).name
    _check_shipped([name])
    check_free(name, f"selector name {name!r}", plugins())
    said = (inspect.getdoc(selector) or "").partition("\n")[0].rstrip(".")
    SELECTORS[name] = Entry(selector, about or said)
    return selector


def _known() -> dict[str, Entry]:
    known = known_selectors()
    _check_shipped(known)
    return known


def _check_shipped(names: Collection[str]) -> None:
    for name in zoo_names():
        if name in names:
            raise FlextopoError(f"selector name {name!r} is a shipped policy's; legal: another")


def _is_policy(text: str) -> bool:
    return text in zoo_names() or (text != "" and Path(text).is_dir())


def find_served(name: str) -> VictimSelector:
    """Return a selector for a scheduler, as `find_selector` does.

    A policy may find that waiting is best until the preemptor gives up; a scheduler has promised to
    place it. So it lets no pod wait by choice, unless `NAME@SECONDS` says for how long it may.
    """
    found = find_selector(name)
    return found if isinstance(found, WaitLimit) else WaitLimit(found, found.name, 0)


def inner(selector: VictimSelector) -> VictimSelector:
    """Return what decides behind `NAME@SECONDS`."""
    return selector.selector if isinstance(selector, WaitLimit) else selector
