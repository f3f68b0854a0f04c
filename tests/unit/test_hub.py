"""Policies to and from the Hub: a folder stands for it, nothing goes anywhere."""

from __future__ import annotations

import json
import shutil
import sys
import types
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from flextopo.cli.app import main
from flextopo.policies.model_card import model_card
from flextopo.policies.runtime import load_policy, read_meta
from flextopo.policies.shipped import ZOO

SHIPPED = ZOO / "deepset-imitation"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that stands for the Hub: a folder a repository."""
    root = tmp_path / "hub"

    def copy(source: Path, target: Path, patterns: list[str]) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                shutil.copy(path, target)

    class Api:
        def __init__(self, library_name: str) -> None:
            assert library_name == "flextopo"

        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> None:
            if repo.count("/") != 1:
                raise ValueError(f"Repo id must be in the form 'namespace/name': {repo!r}.\nmore")
            (root / repo).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(
            self, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
        ) -> Any:
            copy(folder_path, root / repo_id, allow_patterns)
            return types.SimpleNamespace(commit_url=f"hub/{repo_id}: {commit_message}")

    def snapshot_download(
        repo: str, *, local_dir: Path, allow_patterns: list[str], **_: Any
    ) -> None:
        if not (root / repo).is_dir():
            raise OSError(f"404: {repo} is not there")
        copy(root / repo, local_dir, allow_patterns)

    fake = types.ModuleType("huggingface_hub")
    fake.HfApi, fake.snapshot_download = Api, snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return root


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Return a folder with a policy, its card, and something that is none of it."""
    folder = tmp_path / "mine"
    shutil.copytree(SHIPPED, folder)
    folder.joinpath("README.md").write_text("# mine\n")
    folder.joinpath("secret.txt").write_text("not for others")
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command; return its status and what it said."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_what_is_pushed_comes_back(
    hub: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said(capsys, "push", str(policy), "some/policy")
    assert status == 0, text
    assert read_meta(policy)["sha256"][:12] in text
    there = sorted(path.name for path in (hub / "some/policy").iterdir())
    assert there == ["README.md", "meta.json", "ranges.json", "weights.npz"]
    status, text = said(capsys, "pull", "some/policy", "-o", str(tmp_path / "theirs"))
    assert status == 0, text
    ours, theirs = load_policy(policy), load_policy(tmp_path / "theirs")
    assert ours.weights.keys() == theirs.weights.keys()
    assert all((ours.weights[name] == theirs.weights[name]).all() for name in ours.weights)


def test_what_the_hub_refuses_is_one_sentence(
    hub: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = said(capsys, "push", str(policy), "policy")
    assert status == 2
    assert "namespace/name" in text
    assert "more" not in text
    assert "Traceback" not in text


def test_a_damaged_policy_is_neither_sent_nor_kept_silently(
    hub: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said(capsys, "push", str(policy), "some/policy")[0] == 0
    weights = hub / "some/policy/weights.npz"
    weights.write_bytes(weights.read_bytes()[:-1])
    status, text = said(capsys, "pull", "some/policy", "-o", str(tmp_path / "theirs"))
    assert status == 2
    assert "SHA-256" in text
    policy.joinpath("README.md").unlink()
    assert "no README.md" in said(capsys, "push", str(policy), "some/other")[1]
    policy.joinpath("meta.json").unlink()
    assert said(capsys, "push", str(policy), "some/other")[0] == 2
    assert not (hub / "some/other").exists()


def test_nothing_else_is_written_over(
    hub: Path, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(capsys, "push", str(policy), "some/policy")
    busy = tmp_path / "busy"
    busy.mkdir()
    busy.joinpath("notes.txt").write_text("mine")
    status, text = said(capsys, "pull", "some/policy", "-o", str(busy))
    assert status == 2
    assert "holds something else" in text
    assert [path.name for path in busy.iterdir()] == ["notes.txt"]
    assert "404" in said(capsys, "pull", "some/absent", "-o", str(tmp_path / "new"))[1]


def test_without_the_client_one_sentence_says_what_to_install(
    policy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    status, text = said(capsys, "push", str(policy), "some/policy")
    assert status == 2
    assert "flextopo[hub]" in text


def test_the_card_tells_training_ranges_and_limits() -> None:
    meta = json.loads(SHIPPED.joinpath("meta.json").read_text())
    meta |= {"inputs": [], "outputs": [], "files": {}, "environments": []}
    card = model_card(meta, "| a table |", "apache-2.0")
    head, front, body = card.split("---\n", 2)
    assert head == ""
    assert "license: apache-2.0" in front
    assert "library_name: flextopo" in front
    assert "| `validation_tapes` | 480 |" in body
    assert "| `online_peak_share` | 0.3 | 0.9 |" in body
    assert "| a table |" in body
    assert "license" not in model_card(meta).split("---\n", 2)[1]
