"""The commands as Markdown: `python -m flextopo.cli.reference docs/command-line.md`.

What stands between the page's two marks is written anew.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from flextopo.cli.app import app
from flextopo.cli.commands import Command
from flextopo.cluster.files import write_whole

BLOCK = re.compile(r"(?<=<!-- generated: commands -->\n).*?(?=<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """Return a page with the commands as they are."""
    return BLOCK.sub(lambda _: write_commands(), page)


def write_commands() -> str:
    """Return every command by panel of `flextopo --help`: what it does, options, examples."""
    lines: list[str] = []
    shown = None
    for panel, name, command in walk():
        if panel != shown:
            lines += [f"## {panel}", ""]
            shown = panel
        lines += [f"### {name}", "", command.help, ""]
        if isinstance(command, Command):
            lines += [*_table(command), "", "```", *command.examples, "```", ""]
    return "\n".join(lines)


def walk() -> Iterator[tuple[str, str, Any]]:
    """Yield panel, full name and command, of groups too, in the order of the help."""
    root: Any = get_command(app)
    panels = list(dict.fromkeys(each.rich_help_panel for each in root.commands.values()))
    for panel in panels:
        for each in root.commands.values():
            if each.rich_help_panel == panel:
                yield panel, f"flextopo {each.name}", each
                for inner in getattr(each, "commands", {}).values():
                    yield panel, f"flextopo {each.name} {inner.name}", inner


def _table(command: Any) -> Iterator[str]:
    yield "| | default | |"
    yield "| --- | --- | --- |"
    for param in command.params:
        argument = param.param_type_name == "argument"
        flag = (param.metavar or param.name.upper()) if argument else ", ".join(param.opts)
        meaning = (param.help or "").strip().replace(r"\[", "[").replace("|", r"\|")
        yield f"| `{flag}` | {_default(param)} | {meaning} |"


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if isinstance(param.show_default, str):
        return f"`{param.show_default}`" if " " not in param.show_default else param.show_default
    empty = param.default is None or param.default is False or param.default == ""
    return "" if empty else f"`{param.default}`"


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_whole(target, fill(target.read_text()).encode())
