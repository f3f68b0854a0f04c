"""Put a policy into a rule that can be read: `python -m flextopo.train.distil --json FILE`.

The rule is fitted to which candidate the policy prefers, whether or not it would rather wait: penalties are
minus the logits of a choice (conditional logit), and terms are added one at a time, each time the one with
which the choices are likeliest. Training tapes fit, validation tapes say how often rule and policy agree.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, randomised
from flextopo.cluster.workload.seeds import TRAINING, VALIDATION, take
from flextopo.policies.linear_rule import TERMS, LinearRule
from flextopo.policies.runtime import LearnedSelector, load_policy
from flextopo.train.config import RangesConfig
from flextopo.train.demonstrations import carry_out, decisions, tape_for
from flextopo.train.results import read_saved
from flextopo.train.scale_out import run_jobs

Floats = npt.NDArray[np.float64]

SERVERS = RangesConfig().servers
PENALTY = 1e-4
"""Of the squares of weights, so that they stay finite where terms separate all choices."""

SEARCHED = 8000
"""Choices on which terms are searched; weights are fitted on all."""


class Choices(NamedTuple):
    """Decisions among several candidates; D decisions, T terms in the order of `TERMS`.

    Fields: `terms` (D, K, T) float32; `legal` (D, K) bool; `chosen` (D,) int64, whom the policy prefers.
    """

    terms: npt.NDArray[np.float32]
    legal: npt.NDArray[np.bool_]
    chosen: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)


Job = tuple[str, str, int]
"""Policy, servers and seed; every other tape is of a drawn workload."""


def collect(policy: str, seeds: Sequence[int], workers: int = 1) -> Choices:
    """Return what a policy chooses on some tapes; it plays itself."""
    jobs = [(policy, SERVERS[i % len(SERVERS)], seed) for i, seed in enumerate(seeds)]
    played = dict(run_jobs(choices_on, jobs, workers))
    return Choices(
        *(np.concatenate(each) for each in zip(*map(played.get, range(len(jobs))), strict=True))
    )


def choices_on(job: Job) -> Choices:
    """Return what a policy chooses on a tape."""
    name, servers, seed = job
    policy = _policy(name)
    sim = tape_for(parse_servers(servers), randomised(seed) if seed % 2 else WorkloadConfig(), seed)
    terms, legal, chosen = [], [], []
    for pod, found, count, o in decisions(sim, policy.k, policy.width):
        scores = policy.score(policy.read(o))
        if count > 1:
            features = o.candidates.astype(np.float64)
            terms.append(np.stack([term.of(features) for term in TERMS.values()], -1))
            legal.append(o.mask[:-1] != 0)
            chosen.append(int(np.argmax(scores[:-1])))
        action = int(np.argmax(scores))
        carry_out(sim, pod, found, action if action < count else None)
    shape = (len(chosen), policy.k)
    return Choices(
        np.array(terms, np.float32).reshape(*shape, len(TERMS)),
        np.array(legal, np.bool_).reshape(shape),
        np.array(chosen, np.int64),
    )


@lru_cache(maxsize=1)
def _policy(name: str) -> LearnedSelector:
    return load_policy(name)


def fit_weights(
    choices: Choices, columns: Sequence[int], first: Floats | None = None
) -> tuple[Floats, float]:
    """Fit the weights of some terms, with which the choices are likeliest.

    Args:
        choices: of the policy.
        columns: of the terms.
        first: weights to begin with.

    Returns:
        Weights (T,), and the mean of minus the logarithm of the likelihood.
    """
    terms = choices.terms[..., columns].astype(np.float64)
    taken = np.arange(len(choices)), choices.chosen

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = np.where(choices.legal, -(terms @ weights), -np.inf)
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        value = -np.log(p[taken]).mean() + PENALTY * weights @ weights
        slope = (terms[taken] - np.einsum("dk,dkt->dt", p, terms)).mean(0) + 2 * PENALTY * weights
        return float(value), slope

    begin = np.zeros(len(columns)) if first is None else first
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return found.x, float(found.fun)


def agreement(choices: Choices, columns: Sequence[int], weights: Floats) -> float:
    """Return in which share of decisions the least penalty is the policy's choice."""
    terms = choices.terms[..., columns].astype(np.float64)
    penalties = np.where(choices.legal, terms @ weights, np.inf)
    return float((penalties.argmin(1) == choices.chosen).mean())


def distil(
    policy: str, num_terms: int, tapes: int, checked: int, workers: int = 1
) -> dict[str, Any]:
    """Find a rule of a few terms.

    Args:
        policy: of the zoo, or its folder.
        num_terms: how many terms.
        tapes: training tapes.
        checked: validation tapes.
        workers: processes; the numbers do not depend on it.

    Returns:
        The document that is saved: `terms`, each with its weight and the agreement of the rule that ends with it;
        weights are such that the first is 1.

    Raises:
        FlextopoError: more terms than there are, or no decision among several candidates.
    """
    names = list(TERMS)
    if not 1 <= num_terms <= len(names):
        raise FlextopoError(f"{num_terms} terms; legal: 1 to {len(names)}")
    seen = collect(policy, take(TRAINING, tapes), workers)
    apart = collect(policy, take(VALIDATION, checked), workers)
    if not (len(seen) and len(apart)):
        raise FlextopoError("no choice on these tapes; legal: more tapes")
    some = Choices(seen.terms[:SEARCHED], seen.legal[:SEARCHED], seen.chosen[:SEARCHED])
    columns: list[int] = []
    weights, agreed = np.zeros(0), []
    for _ in range(num_terms):
        others = [at for at in range(len(names)) if at not in columns]
        tried = {at: fit_weights(some, [*columns, at], np.append(weights, 0.0))[1] for at in others}
        columns.append(min(tried, key=lambda at: tried[at]))
        weights, _ = fit_weights(seen, columns, np.append(weights, 0.0))
        agreed.append(agreement(apart, columns, weights))
    scaled = weights / weights[0]
    return {
        "policy": policy,
        "terms": [
            {"name": names[at], "weight": round(float(weight), 3), "agreement": round(share, 4)}
            for at, weight, share in zip(columns, scaled, agreed, strict=True)
        ],
        "cheapest": round(float((apart.chosen == 0).mean()), 4),
        "decisions": {"fitted": len(seen), "checked": len(apart)},
    }


def rule_of(found: dict[str, Any], name: str = "distilled") -> LinearRule:
    """Return the rule of a document."""
    return LinearRule(name, {term["name"]: term["weight"] for term in found["terms"]})


def load_distilled(path: Path) -> dict[str, Any]:
    """Read a rule that was saved.

    Raises:
        FlextopoError: it is missing or none.
    """
    return dict(read_saved(path, "legal: what flextopo.train.distil writes", terms=list))


def term_rows(found: dict[str, Any]) -> list[list[str]]:
    """Return a heading, then the terms in the order in which they were added."""
    out = [["weight", "of", "agrees with the policy in, with those above %"]]
    for term in found["terms"]:
        share = f"{100 * term['agreement']:.1f}"
        out.append([f"{term['weight']:+.2f}", TERMS[term["name"]].about, share])
    return out


def main() -> None:
    """Find a rule, print and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "policy", nargs="?", default="deepset-imitation", help="of the zoo, or its folder"
    )
    parser.add_argument("--terms", type=int, default=7, help="how many")
    parser.add_argument("--tapes", type=int, default=2000, help="of training")
    parser.add_argument("--checked", type=int, default=800, help="tapes of validation")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="file for the rule")
    given = parser.parse_args()
    found = distil(given.policy, given.terms, given.tapes, given.checked, given.workers)
    print(rule_of(found))
    print(
        f"agrees with {given.policy} in {100 * found['terms'][-1]['agreement']:.1f} % of decisions"
    )
    if given.json:
        make_folder(given.json.parent)
        write_whole(given.json, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
