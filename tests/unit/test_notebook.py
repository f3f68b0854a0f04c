"""The notebook runs from its first cell to its last, shortened, and says what the saved one says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sb3_contrib")
pytest.importorskip("matplotlib")
nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

TOUR = Path(__file__).parents[2] / "examples" / "tour.ipynb"
if not TOUR.is_file():
    pytest.skip("installed without the repository's root", allow_module_level=True)

SHORTER = {
    r"seeds=20": "seeds=2",
    r"DECISIONS = 300_000": "DECISIONS = 64",
    r"n_steps=32": "n_steps=1",
}


def said(cell: Any) -> str:
    """Return what a cell printed, without numbers."""
    text = "".join(o["text"] for o in cell["outputs"] if o["output_type"] == "stream")
    return re.sub(r"[-+\d.,\[\] ]+", " ", text)


@pytest.mark.filterwarnings("ignore")
def test_it_runs(tmp_path: Path) -> None:
    saved = nbformat.read(TOUR, 4)
    nbformat.validate(saved)
    tour = nbformat.read(TOUR, 4)
    install = [cell for cell in tour.cells if "%pip install" in cell.source]
    assert len(install) == 1
    tour.cells.remove(install[0])
    saved.cells.remove(next(cell for cell in saved.cells if "%pip install" in cell.source))
    found = set()
    for cell in tour.cells:
        for long, short in SHORTER.items():
            if cell.cell_type == "code" and re.search(long, cell.source):
                cell.source = re.sub(long, short, cell.source)
                found.add(long)
    assert found == set(SHORTER)
    client = nbclient.NotebookClient(tour, timeout=600, resources={"metadata": {"path": tmp_path}})
    client.execute()
    for cell, before in zip(tour.cells, saved.cells, strict=True):
        if cell.cell_type == "code":
            kinds = {o["output_type"] for o in cell.outputs}
            assert kinds, cell.source  # every cell shows something
            assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.source
            if before.outputs and "print(found)" not in cell.source:
                assert said(cell).split() == said(before).split() or "learned" in said(cell)
    assert (tmp_path / "tour" / "day.gif").stat().st_size > 10_000
    assert (tmp_path / "tour" / "day.html").stat().st_size > 10_000


def test_it_is_small_and_tells_of_no_machine() -> None:
    text = TOUR.read_text()
    assert len(text) < 1_000_000
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert "/work" not in text
    assert not re.search(r"error", "".join(map(str, json.loads(text)["metadata"])))


def test_its_links_lead_somewhere() -> None:
    links = [
        link
        for cell in json.loads(TOUR.read_text())["cells"]
        if cell["cell_type"] == "markdown"
        for link in re.findall(r"\]\((\S+?)\)", "".join(cell["source"]))
    ]
    assert links
    for link in links:
        assert (TOUR.parent / link).exists(), link
