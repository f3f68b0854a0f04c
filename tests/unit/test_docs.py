"""The documentation keeps its promises: its code runs, its output is true, its site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from pages import ROOT, check_command, commands, read_blocks, with_output

from flextopo.baselines.registry import SELECTORS
from flextopo.cluster.observation.features import (
    CANDIDATE_FEATURES,
    CLUSTER_FEATURES,
    PREEMPTOR_FEATURES,
)
from flextopo.cluster.simulation.metrics import METRICS
from flextopo.cluster.state.loss import LOSS_TERMS
from flextopo.envs.core import observation_space
from flextopo.envs.preemption import PreemptionEnv
from flextopo.train.reference import REFERENCE, SIGNED, feature_range, section
from flextopo.train.report import fill

DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("installed without the repository's root", allow_module_level=True)
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.fixture
def _scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run in a folder of its own, and forget what pages register."""
    selectors, ids = dict(SELECTORS), dict(gymnasium.registry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)
    yield
    SELECTORS.clear()
    SELECTORS.update(selectors)
    gymnasium.registry.clear()
    gymnasium.registry.update(ids)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("_scratch")
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_and_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    text = (DOCS / page).read_text()
    if "flextopo train" in text or "import torch" in text:
        pytest.importorskip("sb3_contrib")
    assert with_output(text, tmp_path, small=True) == text


def test_a_page_with_wrong_output_or_an_unmarked_command_is_noticed(tmp_path: Path) -> None:
    page = "```python\nprint(1)\n```\n\n```text\n2\n```\n"
    assert with_output(page, tmp_path, small=True) == page.replace("2\n", "1\n")
    with pytest.raises(AssertionError, match="not marked"):
        with_output("```bash\nkubectl get pods\n```\n", tmp_path)
    with pytest.raises(Exception, match="No such option"):
        check_command(["flextopo", "compare", "--seed", "3"])
    with pytest.raises(AssertionError, match="nonsense"):
        check_command(["make", "nonsense"])


@pytest.mark.slow
@pytest.mark.usefixtures("_scratch")
def test_the_tutorials_output_is_that_of_its_commands(tmp_path: Path) -> None:
    text = (DOCS / "tutorial.md").read_text()
    assert with_output(text, tmp_path) == text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p}" for p in PAGES)])
def test_commands_outside_of_shell_blocks_exist(page: str) -> None:
    """Blocks without a language are read, too: those of the pages that code hosts show first."""
    for block in read_blocks((ROOT / page).read_text()):
        lines = [] if block.language else block.text.splitlines()
        for words in commands(
            "\n".join(li for li in lines if li.startswith(("flextopo ", "make ")))
        ):
            check_command(words)


def test_the_reference_is_up_to_date() -> None:
    text = (DOCS / "environment.md").read_text()
    assert fill(text, DOCS / "results") == text
    shown = set(re.findall(r"<!-- generated: (env-\S+) -->", text))
    assert shown == set(REFERENCE)


def test_the_reference_names_everything_in_info() -> None:
    env = PreemptionEnv("2*rtx4090", tapes=8)
    _, info = env.reset(seed=0)
    over = False
    while not over:
        _, _, _, over, info = env.step(0)
    named = re.findall(r"`(\w+)`", REFERENCE["env-information"]())
    assert set(info) <= set(named)
    assert set(info["metrics"]) == set(METRICS)
    assert set(info["loss"]) == set(LOSS_TERMS)


def test_the_docstring_states_the_sizes_of_the_observation() -> None:
    shapes = {name: box.shape for name, box in observation_space(7).items()}
    stated = dict(re.findall(r"`(\w+)` \((.+?)\)", section("Observation Space")))
    sizes = {"K": 7, "K + 1": 8}
    for name, shape in shapes.items():
        words = [word.strip() for word in stated[name].split(",") if word.strip()]
        assert tuple(sizes.get(word) or int(word) for word in words) == shape, name


def test_features_lie_in_the_ranges_that_the_reference_states() -> None:
    kinds = {
        "preemptor": PREEMPTOR_FEATURES,
        "cluster": CLUSTER_FEATURES,
        "candidates": CANDIDATE_FEATURES,
    }
    lowest: dict[str, Any] = {name: np.zeros(len(kind)) for name, kind in kinds.items()}
    env = PreemptionEnv("2*rtx4090,2*a100", randomise=True)
    rng = np.random.default_rng(0)
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        over = False
        while not over:
            for name, kind in kinds.items():
                rows = observation[name].reshape(-1, len(kind))
                lowest[name] = np.minimum(lowest[name], rows.min(0))
            action = rng.choice(np.flatnonzero(info["action_mask"]))
            observation, _, _, over, info = env.step(action)
    for name, kind in kinds.items():
        signed = np.array([feature_range(meaning) == SIGNED for meaning in kind.values()])
        assert (lowest[name][~signed] >= 0).all(), name
    assert (lowest["cluster"] < 0).any()


def test_the_figures_are_those_that_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = DOCS / "figures"
    subprocess.run([sys.executable, str(figures / "draw.py"), str(tmp_path)], check=True)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in figures.glob("*.png")}
    assert drawn == set(re.findall(r"figures/(\S+\.png)", (DOCS / "method.md").read_text()))
    assert all(path.stat().st_size < 150_000 for path in figures.glob("*.png"))


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert {"tutorial.html", "environment.html"} <= {page.name for page in pages}
    for page in pages:
        text = page.read_text()
        loads = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", text)
        assert loads
        assert not [tag for tag in loads if re.search(r"(?:src|href)=\W?(?:https?:)?//", tag)]
        assert "mermaid" not in re.findall(r'class="(\w+)"', text)
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\W*(?:https?:)?//", sheet.read_text())
    api = (tmp_path / "site" / "api" / "envs.html").read_text()
    assert "Choose the victims for one pending online pod after another" in api
