"""The code blocks of a page of the documentation: find them, run them, compare what they print.

`python tests/pages.py PAGE` runs a page with full sizes and writes its output blocks anew.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from typer.main import get_command

from flextopo.cli.app import app, main

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
NOT_RUN = "# not run in tests: "
"""The first line of a block that needs what a test does not have, with the reason."""

SMALLER = {"--seeds": "2", "--timesteps": "64", "--tapes": "4", "--rounds": "1", "--trials": "1"}
"""What a test runs instead of the sizes on the page."""


class Block(NamedTuple):
    """A fenced block: its language, text, the line of text before it, and where its text starts."""

    language: str
    text: str
    lead: str
    start: int

    @property
    def file(self) -> str | None:
        """The file that the reader is told to save it as, if so."""
        found = re.search(r"`([\w./-]+\.\w+)`:$", self.lead)
        return found[1] if found else None


def read_blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(page):
        before = page[: match.start()].rstrip().rpartition("\n")[2]
        found.append(Block(match[2], match[3], before, match.start(3)))
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command, without where it is redirected to."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        kept = takewhile(lambda word: not re.match(r"\d?>", word), words)
        if words:
            yield list(kept)


def check_command(words: list[str]) -> None:
    """Raise unless a command line has a `flextopo` command's options or names a make target."""
    name, *rest = words
    if name == "flextopo":
        command: Any = get_command(app)
        while hasattr(command, "commands"):
            if rest[0] == "--version":
                return
            command = command.commands[rest[0]]
            rest = rest[1:]
        command.make_context(" ".join(words), rest)
    elif name == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest[:1]) <= set(targets), words


def make_smaller(words: list[str]) -> list[str]:
    """Return a `flextopo` command with the sizes of `SMALLER`, in one process."""
    found = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*found, "--workers", "1"] if words[0] in ("compare", "train", "evaluate") else found


class Reader:
    """Somebody who follows one page, from top to bottom, in one folder.

    Args:
        folder: where files are saved and commands run; must be the working directory.
        small: run commands with the sizes of `SMALLER`, whose output then says nothing, nor does
            that of later commands, which may read what they wrote.
    """

    def __init__(self, folder: Path, small: bool) -> None:
        self.folder, self.small, self.exact = folder, small, True
        self.names: dict[str, Any] = {"__name__": "page"}
        if not (folder / "examples").exists():
            (folder / "examples").symlink_to(ROOT / "examples")

    def follow(self, block: Block) -> str | None:
        """Save or run a block; return what it prints, None if that was not to be compared."""
        if block.text.startswith(NOT_RUN):
            if block.language == "bash":
                for words in commands(block.text):
                    check_command(words)
            return None
        if block.language != "bash" and block.file is not None:
            target = self.folder / block.file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
            return None
        said = io.StringIO()
        if block.language == "python":
            with redirect_stdout(said):
                exec(compile(block.text, "page", "exec"), self.names)  # noqa: S102
            return said.getvalue()
        if block.language != "bash":
            return None
        for words in commands(block.text):
            self._run(words, said)
        return said.getvalue() if self.exact else None

    def _run(self, words: list[str], said: io.StringIO) -> None:
        """Run a command, smaller if that is asked for."""
        if words[0] == "python":
            command = [sys.executable, *words[1:]]
            path = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, check=False,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            said.write(done.stdout)
            return
        assert words[0] == "flextopo", f"{words[0]}: the block is not marked with {NOT_RUN!r}"
        check_command(words)
        smaller = make_smaller(words[1:]) if self.small else words[1:]
        self.exact = self.exact and smaller == words[1:]
        with redirect_stdout(said):
            try:
                main(smaller)
            except SystemExit as stop:  # the command line always ends with one
                if stop.code:
                    raise AssertionError(f"{words}: exit status {stop.code}") from None


def with_output(page: str, folder: Path, small: bool = False) -> str:
    """Return a page with each `text` block replaced by what the block before it prints."""
    reader, said, parts, at = Reader(folder, small), None, [], 0
    for block in read_blocks(page):
        if block.language != "text":
            said = reader.follow(block)
        elif said is not None:
            shown = "".join(f"{line.rstrip()}\n" for line in said.strip("\n").splitlines())
            parts += [page[at : block.start], shown]
            at = block.start + len(block.text)
    return "".join([*parts, page[at:]])


if __name__ == "__main__":
    for path in [Path(name).resolve() for name in sys.argv[1:]]:
        with tempfile.TemporaryDirectory() as scratch:
            os.chdir(scratch)
            sys.path.insert(0, scratch)
            path.write_text(with_output(path.read_text(), Path(scratch)))
