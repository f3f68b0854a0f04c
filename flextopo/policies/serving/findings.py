"""What an examination found: one line each, and what to do."""

from __future__ import annotations

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: short name of what was looked at.
        state: `ok`, `warning` or `problem`.
        found: what was found.
        advice: what to do, empty where nothing is to be done.
    """

    check: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def some(names: list[str]) -> str:
    """Return the first few of many names."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
