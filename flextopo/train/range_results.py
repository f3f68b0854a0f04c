"""What deciding within training ranges alone comes to: `benchmarks/in_range.py` writes the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flextopo.train.results import read_saved
from flextopo.train.statistics import paired_difference

RULE = "requeue-aware"
POLICY, GUARDED = "deepset-planning@0", "deepset-planning+in-range@0"


def load_worlds(path: Path) -> list[dict[str, Any]]:
    """Return the worlds that were played.

    Raises:
        FlextopoError: the file is missing or none.
    """
    found = read_saved(path, "legal: what benchmarks/in_range.py writes", worlds=list)
    return list(found["worlds"])


def world_rows(worlds: list[dict[str, Any]]) -> list[list[str]]:
    """Return a heading, then for each world how often the rule decided, and what that came to.

    Args:
        worlds: each with `name`, `decisions` and those of them out of range, `outside`; `why`, the commonest
            reason; and `losses`, a list of weighted losses by selector, on the same tapes.
    """
    out = [["world", "days", "out of range %", "most often for", f"{RULE} %", "policy against it, points",
            "in range against it", "in range against the policy"]]  # fmt: skip
    for world in worlds:
        losses = {name: np.array(found, np.float64) for name, found in world["losses"].items()}
        rule, policy, guarded = (losses[name] for name in (RULE, POLICY, GUARDED))
        pairs = ((policy, rule), (guarded, rule), (guarded, policy))
        out.append(
            [
                world["name"],
                str(len(rule)),
                f"{100 * world['outside'] / max(1, world['decisions']):.1f}",
                world["why"],
                f"{100 * rule.mean():.2f}",
                *(_difference(*pair) for pair in pairs),
            ]
        )
    return out


def _difference(mine: Any, theirs: Any) -> str:
    found = paired_difference(mine, theirs)
    return f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
