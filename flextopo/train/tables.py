"""Tables in columns, for people; nothing heavy is imported here."""

from __future__ import annotations


def format_table(rows: list[list[str]], numbers: bool = True) -> str:
    """Lay the rows out in columns, numbers to the right; a heading may have several lines."""
    head, *body = rows
    stacked = [cell.split("\n") for cell in head]
    height = max(map(len, stacked))
    heads = [[words[i] if i < len(words) else "" for words in stacked] for i in range(height)]
    widths = [max(len(row[i]) for row in [*heads, *body]) for i in range(len(head))]
    lines = []
    for row in [*heads, *body]:
        first, *rest = (
            cell.rjust(w) if i and numbers else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *rest]).rstrip())
    return "\n".join(lines)
