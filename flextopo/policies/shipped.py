"""Which policies ship with the package; nothing else is imported to know it."""

from __future__ import annotations

from pathlib import Path

ZOO = Path(__file__).parent / "zoo"


def zoo_names() -> list[str]:
    """Return the names of the policies that ship with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/meta.json"))
