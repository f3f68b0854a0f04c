"""The repository's own papers: citation, map of the code, forms and workflows."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import flextopo

ROOT = Path(flextopo.__file__).parents[1]
if not (ROOT / "CONTRIBUTING.md").exists():
    pytest.skip("installed without the repository's root", allow_module_level=True)


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version() -> None:
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == flextopo.__version__
    assert {"message", "title", "authors"} <= set(citation)
    assert "2411.11560" in citation["references"][0]["identifiers"][0]["value"]


def test_the_changelog_begins_with_this_version_and_its_date() -> None:
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    newest = next(heading for heading in headings if heading != "Unreleased")
    assert newest == f"{flextopo.__version__} - {read('CITATION.cff')['date-released']}"


def test_the_map_of_the_code_names_every_module_and_nothing_else() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| (`[^|]+`) \|", text, re.MULTILINE)
    assert rows
    left = {
        path.relative_to(ROOT / "flextopo").with_suffix("").as_posix()
        for path in (ROOT / "flextopo").rglob("*.py")
        if path.parent != ROOT / "flextopo" and path.stem != "__init__"
    }
    for folder, names in rows:
        for name in re.findall(r"`([^`]+)`", names):
            found = fnmatch.filter(left, f"{folder}/{name}")
            assert found, f"{folder}/{name}: no such module"
            left -= set(found)
    assert not left, f"not on the map in CONTRIBUTING.md: {', '.join(sorted(left))}"


def test_issue_forms_have_what_a_code_host_asks_for() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text())
        if form.name == "config.yml":
            continue
        assert {"name", "description", "body"} <= set(content)
        ids = [field["id"] for field in content["body"]]
        assert len(set(ids)) == len(ids)
        for field in content["body"]:
            assert field["type"] in ("input", "textarea", "dropdown", "checkboxes", "markdown")
            assert field["attributes"]["label"]


def test_workflows_call_make_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = {}
    for name in ("ci", "release", "nightly"):
        for job, content in read(f".github/workflows/{name}.yml")["jobs"].items():
            steps = [step["run"] for step in content["steps"] if "run" in step]
            called[job] = [step.split()[1] for step in steps if step.startswith("make ")]
            assert set(called[job]) <= targets
    assert called["build"] == ["dist"]
    assert (called["numbers"], called["links"]) == (["replay"], ["links"])
    assert (called["lowest"], called["newest"]) == (["lowest"], ["newest"])
    local = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    check = re.search(r"^check: ([a-z -]+?)  ##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert check is not None
    assert local == called["check"] == check[1].split()


def test_workflows_see_to_the_browser_without_which_tests_are_skipped() -> None:
    job = read(".github/workflows/ci.yml")["jobs"]["check"]
    ran = [step["run"] for step in job["steps"] if "run" in step]
    browser = [i for i, command in enumerate(ran) if "/usr/bin/chromium" in command]
    assert browser
    assert browser[0] < ran.index("make test")


@pytest.mark.parametrize(("tag", "right"), [(f"v{flextopo.__version__}", True), ("v0.0.9", False)])
def test_a_release_refuses_a_tag_that_is_not_the_version(tag: str, right: bool) -> None:
    steps = read(".github/workflows/release.yml")["jobs"]["build"]["steps"]
    (command,) = [step["run"] for step in steps if "GITHUB_REF_NAME" in step.get("run", "")]
    script = f"export GITHUB_REF_NAME={shlex.quote(tag)}; {command}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, check=False)
    assert (done.returncode == 0) == right


def test_nothing_is_uploaded_to_a_registry() -> None:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert not re.search(r"twine upload|pypi-publish|id-token", text)


def test_only_a_release_pushes_the_image_and_it_is_of_two_architectures() -> None:
    workflow = read(".github/workflows/image.yml")
    (job,) = workflow["jobs"].values()
    (build,) = [step["with"] for step in job["steps"] if "build-push" in step.get("uses", "")]
    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert build["push"] == "${{ github.event_name == 'release' }}"
    (login,) = [step for step in job["steps"] if "login-action" in step.get("uses", "")]
    assert login["if"] == "github.event_name == 'release'"
    assert (ROOT / build["file"]).is_file()


def test_actions_are_pinned_to_a_major_version() -> None:
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"uses: (\S+)", path.read_text())
        assert used
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", name) for name in used), path.name


def test_kernels_in_the_image_run_on_other_processors() -> None:
    _, *stages = (ROOT / "deploy" / "Dockerfile").read_text().split("\nFROM ")
    assert len(stages) == 2
    for stage in stages:
        assert "NUMBA_CPU_NAME=generic" in stage
        assert "NUMBA_CACHE_DIR=/opt/flextopo/kernels" in stage


def test_every_benchmark_is_in_the_table_beside_the_targets_that_run_it() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, _, section = text.partition("## Benchmarks: which target runs which file\n")
    rows = [
        line.split("|")[1:3] for line in section.partition("\n## ")[0].splitlines() if "|" in line
    ]
    told = {
        (target, file)
        for targets, file_cell in rows[2:]
        for file in re.findall(r"`([\w*]+\.py)`", file_cell)[:1]
        for target in re.findall(r"`(?:make )?([a-z-]+)`", targets)
    }
    makefile = (ROOT / "Makefile").read_text().replace("$(GROUP)", "python benchmarks/tables.py")
    runs = {
        (target, file)
        for target, recipe in re.findall(
            r"^([a-z-]+):[^\n]*\n((?:\t.*\n)+)", makefile, re.MULTILINE
        )
        for file in re.findall(r"benchmarks/(\w+\.py)", recipe)
    }
    assert told == runs
    named = re.findall(r"`([\w*]+\.py)`", " ".join(cell for _, cell in rows))
    files = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    assert {name for pattern in named for name in files if fnmatch.fnmatch(name, pattern)} == files
