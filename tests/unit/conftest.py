"""What tests of several modules are given."""

from pathlib import Path

import pytest
from captured import Save


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Return what writes a file under a temporary folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write
