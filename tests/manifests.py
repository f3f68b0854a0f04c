"""The objects of `deploy/`, and nothing where it is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import flextopo

DEPLOY = Path(flextopo.__file__).parents[1] / "deploy"
if not DEPLOY.is_dir():
    pytest.skip("installed without the repository's root", allow_module_level=True)

Document = dict[str, Any]


def documents(*folders: str) -> list[Document]:
    found: list[Document] = []
    for folder in folders:
        for path in sorted((DEPLOY / folder).glob("*.yaml")):
            found += [entry for entry in yaml.safe_load_all(path.read_text()) if entry]
    return found


def objects(kind: str, *folders: str) -> list[Document]:
    return [entry for entry in documents(*folders) if entry["kind"] == kind]
