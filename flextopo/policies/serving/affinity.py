"""Whether a node matches a node selector, as pods and volumes have them."""

from __future__ import annotations

from collections.abc import Mapping

from flextopo.policies.serving.budgets import holds
from flextopo.policies.serving.objects import Expression, NodeSelector, NodeSelectorTerm


def matches_node(selector: NodeSelector, name: str, labels: Mapping[str, str]) -> bool:
    """Say whether a node of this name and these labels matches one of the alternatives."""
    return any(_matches_term(term, name, labels) for term in selector.nodeSelectorTerms or ())


def _matches_term(term: NodeSelectorTerm, name: str, labels: Mapping[str, str]) -> bool:
    """Say whether a node matches one alternative; an empty one matches none."""
    if not term.matchExpressions and not term.matchFields:
        return False
    fields = {"metadata.name": name}
    return all(_holds(one, labels) for one in term.matchExpressions or ()) and all(
        _holds(one, fields) for one in term.matchFields or ()
    )


def _holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    if expression.operator not in ("Gt", "Lt"):
        return holds(expression, labels)
    try:
        here, there = int(labels[expression.key]), int((expression.values or [""])[0])
    except (KeyError, ValueError):
        return False
    return here > there if expression.operator == "Gt" else here < there
