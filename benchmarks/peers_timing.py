"""The measuring side of `peers.py`: each peer's script serves its cases over stdin and stdout.

Runs in the peer's own environment, so it needs the standard library and numpy alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Case(NamedTuple):
    """One environment in one way of being stepped.

    Attributes:
        environment: its name; cases of one name share what a step means.
        variant: how it is stepped, such as "scalar" or "vector".
        num_envs: environments stepped by one call.
        draw: return a random legal action (one for each environment).
        step: take it; resets of episodes that ended belong to the step, here or inside.
        meaning: one sentence, what one step of one environment is.
        steps_a_call: steps of each environment in one call; more than 1 = a compiled rollout,
            which draws its actions itself.
    """

    environment: str
    variant: str
    num_envs: int
    draw: Callable[[], Any]
    step: Callable[[Any], None]
    meaning: str
    steps_a_call: int = 1


def draw_legal(rng: np.random.Generator, mask: Any) -> int:
    """Return one legal action of a mask of shape (A,), all equally likely."""
    legal = np.flatnonzero(mask)
    return int(legal[int(rng.random() * len(legal))])


def draw_legal_batch(rng: np.random.Generator, mask: Any) -> Any:
    """Return one legal action for each row of a mask of shape (n, A), in two array operations."""
    return np.argmax(rng.random(mask.shape, dtype=np.float32) * mask, axis=1)


def measure(case: Case, seconds: float) -> dict[str, float | None]:
    """Step a case for a while.

    Returns:
        `alone`: steps/s of the step calls alone (None where they draw, too); `drawn`: steps/s with
        the drawing of actions. Both count steps of single environments.
    """
    clock = time.perf_counter
    drawing = stepping = 0.0
    calls = 0
    while drawing + stepping < seconds:
        begin = clock()
        action = case.draw()
        middle = clock()
        case.step(action)
        end = clock()
        drawing += middle - begin
        stepping += end - middle
        calls += 1
    steps = calls * case.num_envs * case.steps_a_call
    alone = steps / stepping if case.steps_a_call == 1 else None
    return {"alone": alone, "drawn": steps / (stepping + drawing)}


def warm_up(case: Case, longest_s: float = 40.0) -> float:
    """Step until it gets no faster for three seconds; return the first second's steps/s.

    For an environment that keeps what it prepared for later episodes.
    """
    first = best = measure(case, 1.0)["drawn"] or 0.0
    begin, still = time.perf_counter(), 0
    while still < 3 and time.perf_counter() - begin < longest_s:
        rate = measure(case, 1.0)["drawn"] or 0.0
        still = 0 if rate > 1.02 * best else still + 1
        best = max(best, rate)
    return first


def serve(
    cases: Sequence[Case],
    missing: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Announce the cases as one JSON line, then answer each line "seconds" with one round.

    Args:
        cases: what this script can measure; each is run once first, so that it is compiled.
        missing: (case, reason) of what it cannot.
        notes: sentences to print below the table.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what a peer prints itself is not an answer
    for case in cases:
        measure(case, 0.1)
    shown = [(c.environment, c.variant, c.num_envs, c.meaning) for c in cases]
    start = {"cases": shown, "missing": list(missing), "notes": list(notes)}
    print(json.dumps(start), file=answers, flush=True)
    for line in sys.stdin:
        rates = [measure(case, float(line)) for case in cases]
        print(json.dumps(rates), file=answers, flush=True)
