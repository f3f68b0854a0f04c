"""What looking ahead buys, as rows of a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.train.planning_results import knowledge_rows, load_knowledge, planning_rows


def results(**losses: list[float]) -> dict[str, Any]:
    """Return results of selectors by their losses a seed."""
    return {
        "selectors": {
            name.replace("_", "-"): {"weighted_loss": {"per_seed": values}}
            for name, values in losses.items()
        }
    }


RULE = [0.06] * 9 + [0.07]
FAR = [0.05] * 9 + [0.06]


def test_the_share_of_the_way_to_the_oracle() -> None:
    half = [0.055] * 9 + [0.065]
    table = planning_rows([results(requeue_aware=RULE, oracle_lookahead=FAR, plan=half)])
    rows = {row[0]: row[1:] for row in table[1:]}
    assert rows["plan"] == [
        *("5.60", "-0.50", "[-0.50, -0.50]", "-0.50", "-0.50", "1.00"),
        *("50% [50%, 50%]", "better"),
    ]
    assert rows["requeue-aware"] == ["6.10", *[""] * 7]
    assert rows["oracle-lookahead"][6] == ""


def test_clusters_are_put_together_seed_by_seed() -> None:
    """One cluster gains what the other loses: together nothing, and nothing may be claimed."""
    up = results(requeue_aware=RULE, oracle_lookahead=FAR, plan=FAR)
    down = results(requeue_aware=RULE, oracle_lookahead=FAR, plan=[2 * a - b for a, b in zip(RULE, FAR, strict=True)])  # fmt: skip
    rows = {row[0]: row[1:] for row in planning_rows([up, down])[1:]}
    assert rows["plan"][1] in ("+0.00", "-0.00")
    assert rows["plan"][7] != "better"
    one = {row[0]: row[1:] for row in planning_rows([up])[1:]}
    assert one["plan"][1] == "-1.00"


def test_one_lucky_day_is_seen() -> None:
    lucky = [*RULE[:9], 0.01]
    rows = {
        row[0]: row[1:]
        for row in planning_rows([results(requeue_aware=RULE, oracle_lookahead=FAR, plan=lucky)])
    }
    assert rows["plan"][1] == "-0.60"
    assert rows["plan"][4] == "+0.00"


def test_results_without_the_oracle_are_refused() -> None:
    with pytest.raises(FlextopoError, match="without oracle-lookahead"):
        planning_rows([results(requeue_aware=RULE)])


def test_what_a_planner_knows_stands_side_by_side(tmp_path: Path) -> None:
    """Each world by itself: what gains in one may lose in the other."""
    worse = [2 * a - b for a, b in zip(RULE, FAR, strict=True)]
    path = tmp_path / "planning-knowledge.json"
    worlds = {
        "generated": {"requeue-aware": RULE, "all": FAR},
        "recorded": {"requeue-aware": RULE, "all": worse},
    }
    path.write_text(json.dumps({"futures": 64, "worlds": worlds}))
    head, row = knowledge_rows(load_knowledge(path))
    assert len(head) == len(row) == 11
    assert row[:3] == ["all", "-1.00", "[-1.00, -1.00]"]
    assert (row[5], row[6], row[10]) == ("better", "+1.00", "worse")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"futures": 64}'])
def test_knowledge_that_is_none_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "planning-knowledge.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        FlextopoError, match=r"planning-knowledge\.json: (missing|is damaged); legal"
    ):
        load_knowledge(path)
