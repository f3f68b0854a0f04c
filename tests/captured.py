"""Files of captures that a test writes."""

from collections.abc import Callable
from pathlib import Path

Save = Callable[[str, str], Path]
"""Writes a file of a name, and returns where it is."""
