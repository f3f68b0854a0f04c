"""What PPO was measured to do, as tables: `benchmarks/ppo.py` and `ppo_budget.py` write the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flextopo.train.results import read_saved

Rows = list[list[str]]


def load_ppo(path: Path) -> Any:
    """Read what one of the two benchmarks wrote.

    Raises:
        FlextopoError: it is missing or none.
    """
    return read_saved(path, "legal: what benchmarks/ppo.py writes")


def _beyond(found: dict[str, Any]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def budget_rows(rows: list[dict[str, Any]]) -> Rows:
    """Return a heading, then what each learner makes of each budget."""
    out = [["learner", "decisions", "minutes", "of the processor", "loss %", "against greedy-cost, points",
            "verdict", "against requeue-aware, points", "verdict", "days", "seed"]]  # fmt: skip
    for row in rows:
        greedy, requeue = row["greedy-cost"], row["requeue-aware"]
        out.append(
            [
                row["learner"],
                f"{row['timesteps']:,}",
                f"{row['minutes']:.1f}",
                f"{row['processor_minutes']:.1f}" if "processor_minutes" in row else "not measured",
                f"{row['loss']:.2f}",
                _beyond(greedy),
                greedy["verdict"],
                _beyond(requeue),
                requeue["verdict"],
                str(row["days"]),
                str(row["seed"]),
            ]
        )
    return out


def speed_rows(results: dict[str, Any]) -> Rows:
    """Return a heading, then how fast each learner learned, and what it lost in the end."""
    out = [["learner", "decisions a second", "the example is, times as fast",
            "against greedy-cost, points", "the example against it, points"]]  # fmt: skip
    for name, row in results["learners"].items():
        mine = name == "example"
        out.append(
            [
                name,
                f"{row['per_s']:,.0f}",
                "" if mine else f"{row['times_as_fast']:.1f}",
                _beyond(row["beyond_greedy"]),
                "" if mine else _beyond(row["example_beyond"]),
            ]
        )
    return out
