"""One self-contained HTML page, and its figures as PNGs, from saved results."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.files import make_folder, write_whole
from flextopo.train.differences import flip_rows
from flextopo.train.report_data import Comparison, ReportData, read_report_data
from flextopo.train.report_figures import FIGURES
from flextopo.train.results import paired_notes, paired_rows, tables
from flextopo.train.stress_run import stress_notes, stress_rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; background: #fff }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block;
  overflow-x: auto }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right;
  white-space: pre-line }
th:first-child, td:first-child { text-align: left; white-space: nowrap }
figure { margin: 1.5rem 0 } img { max-width: 100% } figcaption { color: #555 }
code { background: #f3f3f3; padding: 0 0.2rem }
"""


FLIPS = (
    "Cells: by how much a term's weight is to be multiplied for the two mean losses to be the same, "
    "choices unchanged, with the 95 % bootstrap interval over seeds; none = the order is the same "
    "whatever the term weighs. Waiting is multiplied whole: within the deadline, beyond it, and starting up."
)


def write_report(paths: Sequence[Path], out: Path, dpi: int = 120) -> list[Path]:
    """Write `report.html` and a PNG a figure into a folder.

    Args:
        paths: results files of `flextopo compare` and `stress`, files with `learning_curves` or `importance`
            (see `ReportData`), or folders of such files.
        out: made where it is missing.
        dpi: of the figures.

    Returns:
        The files written, the page first.

    Raises:
        FlextopoError: nothing to show, a file that is no results file, or an unwritable folder.
    """
    data = read_report_data(paths)
    if not data.names and not data.learning_curves and not data.importance and not data.stress:
        raise FlextopoError("no selector in the results; legal: a file of `flextopo compare`")
    pictures: dict[str, bytes] = {}
    for stem, (_, draw) in FIGURES.items():
        figure = draw(data)
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=dpi)
            pictures[stem] = content.getvalue()
    page = out / "report.html"
    make_folder(out)
    written = [page]
    write_whole(page, render(data, pictures).encode())
    for stem, picture in pictures.items():
        written.append(out / f"{stem}.png")
        write_whole(written[-1], picture)
    return written


def render(data: ReportData, pictures: dict[str, bytes]) -> str:
    """Return the page; pictures by the names of `FIGURES` are embedded."""
    parts = ["<h1>flextopo: comparison of victim selectors</h1>", _summary(data)]
    for stem, picture in pictures.items():
        caption = html.escape(FIGURES[stem][0])
        encoded = base64.b64encode(picture).decode()
        parts.append(
            f'<figure id="{stem}"><img alt="{caption}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{caption}.</figcaption></figure>"
        )
    parts += [_section(comparison) for comparison in data.comparisons]
    parts += [_stress(stem, found) for stem, found in data.stress.items()]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>flextopo report</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _summary(data: ReportData) -> str:
    items = []
    for comparison in data.comparisons:
        means = {
            name: row["weighted_loss"]["mean"]
            for name, row in comparison.results["selectors"].items()
            if row["weighted_loss"]["mean"] is not None
        }
        verdicts = {row[0]: row[-1] for row in paired_rows(comparison.results)[1:]}
        better, worse = (
            [name for name, said in verdicts.items() if said == what]
            for what in ("better", "worse")
        )
        best = min(means, key=lambda name: means[name]) if means else "none"
        text = f"{comparison.label}: lowest mean loss {best}"
        text += f"; better than {comparison.reference}: {', '.join(better) or 'none'}"
        text += f"; worse: {', '.join(worse) or 'none'}"
        items.append(f"<li>{html.escape(text)}.</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _section(comparison: Comparison) -> str:
    config = comparison.config
    facts = [
        ("servers", config["servers"]),
        ("seeds", f"{config['seeds']} ({config['split']})"),
        ("workload", config.get("source", "generated workload")),
        ("online peak", f"{config['workload']['online_peak_share']:g} of all GPUs"),
        ("admission", config["scenario"]["admission"]),
        ("weights", _pairs(config["scenario"]["weights"])),
        ("versions", _pairs(config.get("versions", {}))),
    ]
    if config.get("interrupted"):
        facts.append(("interrupted", "the seeds that were finished"))
    listed = "".join(f"<li>{html.escape(f'{name}: {value}')}</li>" for name, value in facts)
    text = f"<h2>{html.escape(comparison.label)}</h2><ul>{listed}</ul>"
    text += "".join(map(_table, tables(comparison.results)))
    if comparison.results["paired"]:
        heading = f"Against {comparison.reference} on the same tapes"
        text += f"<h3>{html.escape(heading)}</h3>" + _table(paired_rows(comparison.results))
        text += "".join(f"<p>{html.escape(note)}.</p>" for note in paired_notes(comparison.results))
    flips = flip_rows(comparison.results)
    if len(flips) > 1:
        text += f"<h3>Where orders change</h3>{_table(flips)}<p>{html.escape(FLIPS)}</p>"
    return text + "<p>Cells: mean over seeds ± half of the 95 % bootstrap interval.</p>"


def _stress(stem: str, results: dict[str, Any]) -> str:
    notes = "".join(f"<p>{html.escape(note)}.</p>" for note in stress_notes(results))
    heading = html.escape(f"Disturbed worlds ({stem})")
    return f"<h2>{heading}</h2>{_table(stress_rows(results))}{notes}"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _table(table: list[list[str]]) -> str:
    head, *body = table
    text = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    for row in body:
        text += "</tr><tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
    return f"<table><tr>{text}</tr></table>"
