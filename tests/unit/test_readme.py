"""README keeps its promises: its code runs, its tables are generated, its targets exist."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from flextopo.cluster.errors import FlextopoError
from flextopo.train.report import fill

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_python_blocks_run_and_print_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(block, "README.md", "exec"), {})  # noqa: S102
        assert re.match(r"\d+\.\d (% of the )?GPU-hours", said.getvalue())


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/how-to/train-with-ppo.md"])
def test_tables_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text()
    assert fill(text, ROOT / "docs" / "results") == text


def test_a_page_without_blocks_is_refused() -> None:
    with pytest.raises(FlextopoError, match="no block"):
        fill("# nothing", ROOT)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = README + (ROOT / "CONTRIBUTING.md").read_text() + (ROOT / ".ci" / "run").read_text()
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", pages, re.MULTILINE))
    assert {"test", "compare"} <= named <= targets


@pytest.mark.parametrize("name", ["envs", "policies", "baselines", "train"])
def test_root_folders_are_links_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.resolve() == (ROOT / "flextopo" / name).resolve()
    assert (link / "__init__.py").exists()
