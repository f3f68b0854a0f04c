"""Find the ranges that a policy was trained within, for `NAME+in-range`.

The policy plays training tapes, as `Committee` does: randomised workloads, a tenth of its actions random. Of
each feature the lowest value of a decision has a quantile below which there is nearly nothing, the highest
one above; a margin comes on top. On validation tapes, of which the ranges know nothing, so many features may
lie outside that false alarms stay rare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import Observation
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, randomised
from flextopo.cluster.workload.seeds import TRAINING, VALIDATION, take
from flextopo.policies.ranges import Ranges, layout_of
from flextopo.policies.runtime import LearnedSelector, load_policy
from flextopo.train.config import RangesConfig
from flextopo.train.demonstrations import carry_out, decisions, tape_for
from flextopo.train.scale_out import run_jobs

Floats = npt.NDArray[np.float32]


class Tape(NamedTuple):
    """What is played.

    Fields: `policy`, who plays; `servers`; `seed` of the tape; `drawn`, of a workload drawn for training, or of
    the default one; `noise`, share of actions that are random.
    """

    policy: str
    servers: str
    seed: int
    drawn: bool
    noise: float


class Extremes(NamedTuple):
    """Lowest and highest value of each feature in D decisions: (D, F) each, parts in the policy's order."""

    low: Floats
    high: Floats


def fit_ranges(
    policy: str,
    config: RangesConfig,
    workers: int = 1,
    done: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Find the ranges of a policy.

    Args:
        policy: of the zoo, or its folder.
        config: what to play, and what counts as out of range.
        workers: processes; the numbers do not depend on it.
        done: is told how many of how many tapes are played.

    Raises:
        UnknownNameError, ArtifactError: as `load_policy`.
        FlextopoError: nobody had to be preempted on these tapes.
    """
    names = load_policy(policy).names
    training, validation = config.tapes, config.validation_tapes
    jobs = [
        *_tapes(policy, config, TRAINING, training, True, config.noise),
        *_tapes(policy, config, VALIDATION, validation, True, 0.0),
        *_tapes(policy, config, VALIDATION, validation, False, 0.0),
    ]
    played: dict[int, Extremes] = {}
    for i, found in run_jobs(observe_tape, jobs, workers):
        played[i] = found
        if done is not None:
            done(len(played), len(jobs))
    seen = _joined([played[i] for i in range(training)])
    drawn, default = (
        _joined([played[i] for i in range(begin, begin + validation)])
        for begin in (training, training + validation)
    )
    if not (len(seen.low) and len(drawn.low) and len(default.low)):
        raise FlextopoError("no decision on these tapes; legal: more tapes, or busier servers")
    low, high = _bounds(seen, config)
    counts = [((x.low < low) | (x.high > high)).sum(1) for x in (drawn, default)]
    allowed = next(k for k in range(len(low) + 1) if _alarms(counts, k)[0] <= config.false_alarms)
    fleets = [parse_servers(text) for text in config.servers]
    values = iter(zip(low.tolist(), high.tolist(), strict=True))
    return Ranges(
        features={part: {name: next(values) for name in names[part]} for part in names},
        layouts=frozenset(layout_of(model) for fleet in fleets for model in fleet.models),
        servers=config.sizes,
        allowed=allowed,
        about={
            "policy": policy,
            "trained_on": list(config.servers),
            "tapes": training,
            "decisions": len(seen.low),
            "quantile": config.quantile,
            "margin": config.margin,
            "false_alarms": dict(
                zip(("drawn", "default"), _alarms(counts, allowed)[1], strict=True)
            ),
        },
    )


def _tapes(
    policy: str, config: RangesConfig, seeds: range, count: int, drawn: bool, noise: float
) -> list[Tape]:
    servers = config.servers
    return [
        Tape(policy, servers[i % len(servers)], seed, drawn, noise)
        for i, seed in enumerate(take(seeds, count))
    ]


def _bounds(
    seen: Extremes, config: RangesConfig
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the lowest and highest value of each feature that is within; four digits are kept."""
    low = np.quantile(seen.low.astype(np.float64), config.quantile, axis=0)
    high = np.quantile(seen.high.astype(np.float64), 1.0 - config.quantile, axis=0)
    margin = config.margin * (high - low)
    return np.floor((low - margin) * 1e4) / 1e4, np.ceil((high + margin) * 1e4) / 1e4


def _alarms(counts: Sequence[npt.NDArray[np.int64]], allowed: int) -> tuple[float, list[float]]:
    """Return the share of decisions with more features outside: the most of all sets, and of each."""
    shares = [float((count > allowed).mean()) for count in counts]
    return max(shares), [round(share, 5) for share in shares]


def observe_tape(tape: Tape) -> Extremes:
    """Play a tape and return what the policy reads of its decisions."""
    policy = _policy(tape.policy)
    rng = np.random.default_rng((tape.seed, 29))
    workload = randomised(tape.seed) if tape.drawn else WorkloadConfig()
    sim = tape_for(parse_servers(tape.servers), workload, tape.seed)
    rows: list[Extremes] = []
    for pod, found, count, o in decisions(sim, policy.k, policy.width):
        read = policy.read(o)
        rows.append(_extremes(read))
        random = tape.noise and rng.random() < tape.noise
        action = int(rng.integers(count + 1) if random else np.argmax(policy.score(read)))
        carry_out(sim, pod, found, action if action < count else None)
    if not rows:
        nothing = np.zeros((0, sum(map(len, policy.names.values()))), np.float32)
        return Extremes(nothing, nothing)
    return Extremes(np.stack([row.low for row in rows]), np.stack([row.high for row in rows]))


def _extremes(o: Observation) -> Extremes:
    legal = o.candidates[o.mask[:-1] != 0]
    return Extremes(
        *(np.concatenate([o.preemptor, o.cluster, rows]) for rows in (legal.min(0), legal.max(0)))
    )


@lru_cache(maxsize=1)
def _policy(name: str) -> LearnedSelector:
    return load_policy(name)


def _joined(parts: Sequence[Extremes]) -> Extremes:
    return Extremes(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def summary(ranges: Ranges) -> dict[str, Any]:
    """Return what is told of ranges: how they were found, and how often they raise a false alarm."""
    alarms = ranges.about["false_alarms"]
    return {
        "decisions": ranges.about["decisions"],
        "features that may lie outside": ranges.allowed,
        "false alarms, drawn workloads %": f"{100 * alarms['drawn']:.2f}",
        "false alarms, default workload %": f"{100 * alarms['default']:.2f}",
    }
