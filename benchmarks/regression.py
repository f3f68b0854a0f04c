"""Find out what got slower: every figure is a ratio to a reference loop of the same process.

`regression.py compare` measures all cases, measures those that look slower again, and fails with a
table of what stays more than 20 % above `baseline.json`; `regression.py baseline` rewrites it.

Reference and subject take turns (reference, subject, reference, ...) for about a second a case,
and the shortest run of each counts: what the neighbours steal falls away. Work of compiled kernels
is divided by a compiled loop, work of the interpreter by a plain-Python one, so that the ratio
moves little from machine to machine; after a change of machine or of Python, write it anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from regression_cases import REFERENCES, Case, all_cases

BASELINE = Path(__file__).parent / "baseline.json"
LIMIT = 0.20
"""How much slower than its baseline a case may be, as a share of it."""

CASE_S = 1.0
MIN_ROUNDS = 7
AGAIN = 3
"""Times that suspects are measured again, each time for longer."""


class Slower(NamedTuple):
    """A case that is slower than allowed; `now` is None where it was not measured at all."""

    name: str
    before: float
    now: float | None


def slower(
    baseline: Mapping[str, float], measured: Mapping[str, float], limit: float = LIMIT
) -> list[Slower]:
    """Return the cases of the baseline that are missing, or slower by more than `limit` of it.

    Args:
        baseline: name to ratio; a case that only `measured` has is new and passes.
        measured: name to ratio, larger = slower.
        limit: 0.2 = a fifth longer is still allowed.

    Returns:
        In the baseline's order.
    """
    found = []
    for name, before in baseline.items():
        now = measured.get(name)
        if now is None or now > before * (1.0 + limit):
            found.append(Slower(name, before, now))
    return found


def best(earlier: Mapping[str, float], again: Mapping[str, float]) -> dict[str, float]:
    """Return the smaller ratio where a case was measured twice: noise only ever adds time."""
    return {**earlier, **{name: min(now, earlier.get(name, now)) for name, now in again.items()}}


def ratio(case: Case, seconds: float) -> float:
    """Measure a case for about that long; return its shortest run over the reference's."""
    run, reference = case.prepare(), REFERENCES[case.reference]()
    reference()  # compiles
    begin = time.perf_counter()
    subjects: list[float] = []
    references = [reference()]
    while len(subjects) < MIN_ROUNDS or time.perf_counter() - begin < seconds:
        subjects.append(run())
        references.append(reference())
    return min(subjects) / min(references)


def measure(cases: Mapping[str, Case], seconds: float) -> dict[str, float]:
    """Measure the cases one after another, printing each ratio."""
    ratios = {}
    for name, case in cases.items():
        ratios[name] = ratio(case, seconds)
        print(f"{name:36} {ratios[name]:12.5f} of the {case.reference} loop", flush=True)
    return ratios


def compare(cases: Mapping[str, Case], baseline: Mapping[str, float]) -> int:
    """Measure, measure the suspects again, and print what stays slower; return the exit status."""
    ratios = measure(cases, CASE_S)
    for attempt in range(AGAIN):
        suspects = [s.name for s in slower(baseline, ratios) if s.now is not None]
        if not suspects:
            break
        print(f"again: {', '.join(suspects)}")
        again = measure({name: cases[name] for name in suspects}, CASE_S * (attempt + 2))
        ratios = best(ratios, again)
    for name in ratios.keys() - baseline.keys():
        print(f"{name}: no baseline yet; `make bench-baseline` writes one")
    found = slower(baseline, ratios)
    if not found:
        print(f"nothing is more than {LIMIT:.0%} slower than its baseline")
        return 0
    print(f"\n{'slower than its baseline':36} {'before':>12} {'now':>12} {'change':>8}")
    for name, before, now in found:
        change = "missing" if now is None else f"{now / before - 1:+.0%}"
        print(f"{name:36} {before:12.5f} {'-' if now is None else f'{now:.5f}':>12} {change:>8}")
    return 1


def read_baseline(path: Path = BASELINE) -> dict[str, float]:
    """Return the stored ratios by name, in the order of the file."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {name: float(value) for name, value in stored["ratios"].items()}


def write_baseline(ratios: Mapping[str, float], path: Path = BASELINE) -> None:
    """Store the ratios, and what they were measured with."""
    stored = {
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "ratios": {name: float(f"{value:.4g}") for name, value in ratios.items()},
    }
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("compare", "baseline"))
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    cases = {name: case for name, case in all_cases().items() if options.only in name}
    stored = read_baseline() if BASELINE.exists() else {}
    if options.what == "compare":
        return compare(cases, {name: r for name, r in stored.items() if options.only in name})
    first = measure(cases, CASE_S)
    kept = {name: r for name, r in stored.items() if options.only not in name}
    write_baseline({**kept, **best(first, measure(cases, CASE_S))})
    return 0


if __name__ == "__main__":
    sys.exit(main())
