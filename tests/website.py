"""Build the site of the documentation strictly: `python tests/website.py`.

Zensical's own strict mode stops at links to pages and headings that are not there. Warnings about
docstrings, missing pictures and pages that the navigation names or forgets are errors here, too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from links import ROOT, broken_in_site, broken_links

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def build(root: Path = ROOT) -> list[str]:
    """Build `root/mkdocs.yml` into `root/build/site`, and return what is wrong with it."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(
        [*command, "--config-file", str(root / "mkdocs.yml")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    said = COLOUR.sub("", done.stdout + done.stderr)
    warnings = re.findall(r"^(?:griffe|WARNING|Warning|Error)\b.*", said, re.MULTILINE)
    if done.returncode:
        return [said]
    config = (root / "mkdocs.yml").read_text()
    named = set(re.findall(r"[\w/-]+\.md", config.partition("\nnav:")[2]))
    there = {page.relative_to(root / "docs").as_posix() for page in root.glob("docs/**/*.md")}
    return [
        *warnings,
        *(f"mkdocs.yml names {name}, which is not there" for name in sorted(named - there)),
        *(f"mkdocs.yml does not name {name}" for name in sorted(there - named)),
        *broken_in_site(root / "build" / "site"),
    ]


def main() -> int:
    """Build the site and print what is wrong; the status is 1 if anything is."""
    said = broken_links() + build()
    print("\n".join(said) or "build/site/index.html")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main())
