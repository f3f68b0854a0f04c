"""Policies to and from the Hugging Face Hub: folders as `export_policy` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder
from flextopo.policies.ranges import FILE as RANGES
from flextopo.policies.ranges import check_ranges
from flextopo.policies.runtime import MODELS, load_policy, read_meta

FILES = ("README.md", "meta.json", "model.pt2", RANGES, *MODELS)
"""What is sent and fetched; whatever else lies in a folder or a repository is left there."""


def push(folder: Path, repo: str, private: bool = False) -> str:
    """Upload an exported policy, its card included, and make the repository where it is missing.

    Args:
        folder: as `export_policy` writes it.
        repo: OWNER/NAME on the Hub; the token is that of `hf auth login`, or HF_TOKEN.
        private: the repository, if it is made.

    Returns:
        The address of the commit.

    Raises:
        ArtifactError: the folder holds no policy that loads.
        FlextopoError: there is no card, or the Hub refuses.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    from huggingface_hub import HfApi

    meta = read_meta(folder)
    if not (folder / "README.md").is_file():
        raise FlextopoError(f"{folder}: no README.md; legal: what `flextopo export` writes")
    check_ranges(folder, load_policy(folder).names)
    api = HfApi(library_name="flextopo")
    with _told(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=f"{meta['name']}, SHA-256 {meta['sha256'][:12]}",
        )
    return str(getattr(commit, "commit_url", commit))


def pull(repo: str, out: Path, revision: str | None = None) -> Path:
    """Download a policy and check that it loads.

    Args:
        repo: OWNER/NAME on the Hub.
        out: folder that gets the files; made if it is missing.
        revision: branch, tag or commit; None = the newest. A commit names the same bits for ever.

    Returns:
        The folder, which `load_policy` and `--selector` take.

    Raises:
        ArtifactError: what came is no policy, or damaged.
        FlextopoError: the Hub refuses, or there is something else in the folder.
        ModuleNotFoundError: huggingface_hub is not installed.
    """
    from huggingface_hub import snapshot_download

    if out.exists() and not (out / "meta.json").is_file() and any(out.iterdir()):
        raise FlextopoError(f"{out}: holds something else; legal: an empty folder, or a policy's")
    make_folder(out)
    with _told(repo):
        snapshot_download(
            repo,
            revision=revision,
            local_dir=out,
            allow_patterns=list(FILES),
            library_name="flextopo",
        )
    check_ranges(out, load_policy(out).names)
    return out


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Tell in one sentence what the Hub, or the way to it, objects to."""
    try:
        yield
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FlextopoError(
            f"{repo}: {why}; legal: OWNER/NAME of a repository that this token may use"
        ) from error
