"""The documentation keeps its promises: its code runs, its output is true, its site builds."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import gymnasium
import links
import numpy as np
import pytest
import website
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
    made = with_output(text, tmp_path)
    assert on_any_processor(made) == on_any_processor(text)
    assert made.count(f"\n{TRAINED}  ") == text.count(f"\n{TRAINED}  ") > 0


TRAINED = "runs/first/policy"


def on_any_processor(text: str) -> list[list[str]]:
    """Return the words of each line, without those about the policy trained there.

    Its figures vary as processors round, the widths of columns with them, and whether a weight changes
    the order or how often two selectors differ.
    """
    lines = [line.split() for line in text.splitlines()]
    return [
        words
        for words in lines
        if words
        and words[0].rstrip(":") != TRAINED
        and words[:2] != ["order", "changes"]
        and words[1:] != ["differences"]
    ]


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the site is made of, built."""
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings")
    root = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", root)
    shutil.copytree(DOCS, root / "docs")
    leave_out = shutil.ignore_patterns("__pycache__", "zoo", "replay_assets")
    shutil.copytree(ROOT / "flextopo", root / "flextopo", ignore=leave_out)
    assert website.build(root) == []
    return root


def test_the_site_has_all_pages_and_loads_nothing_from_elsewhere(site: Path) -> None:
    built = site / "build" / "site"
    pages = {page.relative_to(built).as_posix() for page in built.rglob("*.html")}
    assert {page.replace(".md", ".html") for page in PAGES} | {"404.html"} == pages
    assert not [*built.rglob("*.py"), *(built / "results").rglob("*.json")]
    for page in pages:
        assert "mermaid" not in re.findall(r'class="(\w+)"', (built / page).read_text())
    for sheet in built.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\W*(?:https?:)?//", sheet.read_text())
    api = (built / "api" / "envs.html").read_text()
    assert "Choose the victims for one pending online pod after another" in api


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("needs a browser")
    sync_api = pytest.importorskip("playwright.sync_api")
    options = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}
    with sync_api.sync_playwright() as driver, driver.chromium.launch(**options) as browser:
        yield browser


def test_search_works_in_a_page_opened_from_a_folder(site: Path, browser: Any) -> None:
    asked: list[str] = []
    with browser.new_page() as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "build" / "site" / "api" / "envs.html").as_uri())
        page.wait_for_selector(".md-search__button")
        page.keyboard.press("/")
        page.keyboard.type("requeue-aware")
        page.get_by_text(re.compile(r"^\d+ results$")).wait_for(timeout=10_000)
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: "/envs.html" not in url, timeout=10_000)
    assert asked
    assert all(url.startswith("file:") for url in asked)


def test_tables_hide_no_columns(site: Path, browser: Any) -> None:
    hidden = """() => [...document.querySelectorAll('.md-typeset__scrollwrap')].filter(
        box => box.scrollWidth > box.clientWidth).map(box => box.innerText.split('\\n')[0])"""
    tables = 0
    with browser.new_page(viewport={"width": 1280, "height": 900}) as page:
        for name in PAGES:
            page.goto((site / "build" / "site" / name.replace(".md", ".html")).as_uri())
            assert page.evaluate(hidden) == [], name
            tables += page.locator(".md-typeset__scrollwrap").count()
    assert tables > 50


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"docs/citing.md": "[x](nowhere.md) [x](faq.md#no-heading) [x][flextopo.api.nobody]"},
            ["nowhere.md", "#no-heading", "flextopo.api.nobody", "strict"],
        ),
        ({"docs/api/api.md": "::: flextopo.api.nobody"}, ["flextopo.api.nobody"]),
        (
            {
                "docs/citing.md": "![x](figures/none.png) <img src='https://example.com/x.png'>",
                "docs/more.md": "# A page that nobody finds",
                "flextopo/api.py": 'def f() -> None:\n    """Do.\n\n    Args:\n        x: y.\n    """',
                "docs/api/api.md": "::: flextopo.api.f",
            },
            [
                "griffe: flextopo/api.py",
                "citing.html: figures/none.png leads to no file",
                "citing.html: loads https://example.com/x.png",
                "mkdocs.yml does not name more.md",
            ],
        ),
    ],
)
def test_a_site_with_mistakes_is_noticed(
    site: Path, wrong: dict[str, str], said: list[str]
) -> None:
    before = {name: (site / name).read_text() if (site / name).exists() else "" for name in wrong}
    for name, text in wrong.items():
        (site / name).write_text(f"{before[name]}\n\n{text}\n")
    try:
        problems = "\n".join(website.build(site))
    finally:
        for name, text in before.items():
            (site / name).write_text(text) if text else (site / name).unlink()
    assert [words for words in said if words not in problems] == []


def test_links_between_pages_lead_somewhere() -> None:
    assert links.broken_links() == []
    assert len(links.external_links()) > 3


def test_a_link_that_leads_nowhere_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(
        "# One `two`-three\n\n## Same\n\n## Same\n\n[good](#one-two-three) [good](b.md#x_1)\n\n"
        "`[code](none.md)`\n\n```\n[code](none.md)\n```\n\n[bad](b.md#y) [bad](../README.md)\n"
    )
    (tmp_path / "docs" / "b.md").write_text("# X\n\n# X\n\n::: some.module\n")
    (tmp_path / "README.md").write_text(
        "# A & b\n\n[good](#a--b) [good](docs/b.md#x-1) [good](docs) [site](https://a.example/b#c)\n\n"
        "[bad](docs/none.md) ![bad](none.png) [bad](#a-b) [bad](../x.md)\n\n[ref]: docs/none.txt\n"
    )
    assert links.broken_links(tmp_path) == [
        "README.md: docs/none.md leads to no file",
        "README.md: none.png leads to no file",
        "README.md: #a-b names no heading",
        "README.md: ../x.md leads out of the repository",
        "README.md: docs/none.txt leads to no file",
        "docs/a.md: b.md#y names no heading",
        "docs/a.md: ../README.md is no page of the site",
    ]
    assert links.external_links(tmp_path) == {"https://a.example/b": "README.md"}


def test_hosts_are_asked_whether_a_page_is_there() -> None:
    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(int(self.path[1:]))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever).start()
        there = f"http://127.0.0.1:{server.server_port}"
        answers = [links.unanswered(f"{there}/{status}") for status in (200, 403, 404)]
        server.shutdown()
    assert answers == [None, None, "status 404"]
    assert links.unanswered(f"{there}/200", timeout_s=1) is not None


@pytest.mark.parametrize("page", PAGES)
def test_every_page_ends_in_a_next_step(page: str) -> None:
    last = (DOCS / page).read_text().rstrip().rpartition("\n")[2]
    assert re.match(r"Next: .*\[[^\]]+\]\([\w./-]+\.md(?:#[\w-]+)?\)", last), last
