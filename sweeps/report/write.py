"""Files of the report: HTML, Markdown, CSV, LaTeX and figures, the same bytes for the same data."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.files import write_atomically
from pm25.metrics import METRICS
from sweeps.analysis import labels
from sweeps.report import latex, summary, tables
from sweeps.report.data import ReportData
from sweeps.report.sections import paper, sections
from sweeps.report.sections.provenance import confounded
from sweeps.report.sections.results import oor_columns, wr_columns
from sweeps.report.sections.section import Section, legend
from sweeps.report.sections.verdicts import verdict_table
from sweeps.report.tables import Table

if TYPE_CHECKING:
    from sweeps.report.figures import Figure as Picture

PAPER = "published protocol, leaks included"


def write(report: ReportData, out: Path) -> list[Path]:
    """Write the files of the report to `out`, each atomically, and return their paths without the figures.

    These are index.html, report.md, cells.csv, means.csv, contrasts.csv and claims.csv. Where predictions are
    stored, leverage.csv, monitors.csv and coverage.csv are written too, and applicability.csv for a study.
    The folder `latex` has the tables for a paper, and the folder `figures` the figures as SVG and PNG.
    """
    content = sections(report)
    cells = labels.with_arm(report.rows)
    first = [*report.rows.columns[:1], "arm", *report.rows.columns[1:]]
    texts = {
        "index.html": _html(report, content),
        "report.md": _markdown(report, content),
        "cells.csv": tables.csv(cells[first]),
        "means.csv": tables.csv(_all_means(report)),
        "contrasts.csv": tables.csv(_all_contrasts(report)),
    }
    if report.leverage is not None:
        texts["leverage.csv"] = tables.csv(report.leverage)
    if report.reach is not None:
        texts["applicability.csv"] = tables.csv(report.reach.inside)
    if report.monitors is not None:
        texts["monitors.csv"] = tables.csv(report.monitors)
    if report.coverage is not None:
        texts["coverage.csv"] = tables.csv(report.coverage)
    if len(report.claims):
        texts["claims.csv"] = tables.csv(report.claims)
    texts |= {f"latex/{name}": text for name, text in latex.files(paper(report)).items()}
    drawn = {
        f"figures/{picture.name}.{kind}": data
        for picture in report.pictures
        for kind, data in (("svg", picture.svg), ("png", picture.png))
    }
    for name, data in {**drawn, **{name: text.encode() for name, text in texts.items()}}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out / name, partial(Path.write_bytes, data=data))
    return [out / name for name in texts]


def markdown_summary(report: ReportData) -> str:
    """Return the question, the answer and the tables of one metric in Markdown, for a small page."""
    question = report.facts.get("question")
    sentences = [*([str(question)] if question else []), *summary.answer(report), *summary.cautions(report)]
    blocks = [tables.escape(sentence) for sentence in sentences]
    for table in _small(report):
        blocks += [tables.in_markdown(table), tables.notes_in_markdown(table.notes)]
    if reasons := _reasons(report):
        blocks.append("\n".join(f"- {tables.escape(reason)}" for reason in reasons))
    return "\n\n".join(blocks)


def print_summary(report: ReportData) -> None:
    """Print the tables of one metric and the answer to the terminal."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log file has no width
    styles = {0: "", 1: "bold", 2: "underline"}
    colours = {"better": "bold green", "worse": "bold red", "equivalent": "bold"}
    for table in _small(report):
        grid = Grid(title=table.caption, title_justify="left", title_style="bold")
        grid.add_column(Text(table.corner), no_wrap=True)
        for group, head in table.heads:
            grid.add_column(Text(f"{group}\n{head}" if group else head))
        for label, entries in table.lines:
            grid.add_row(
                Text(label),
                *(
                    Text(entry.line(), style=colours.get(entry.verdict, styles[entry.place]))
                    for entry in entries
                ),
            )
        console.print(grid)
        console.print(Text(" ".join(table.notes), style="dim"))
    for sentence in [*summary.answer(report), *summary.cautions(report), *_reasons(report)]:
        console.print(Text(sentence))


def _small(report: ReportData) -> Iterable[Table]:
    """Yield the verdicts, and the means within and out of region, in the primary metric."""
    verdicts = verdict_table(report)
    if verdicts.lines:
        yield verdicts
    means = report.means[report.metric]
    name = METRICS[report.metric].title
    oor = oor_columns(means, means[:0])
    for title, columns in (
        ("Within region (WR)", wr_columns(means)),
        ("Out of region (OoR)", [("", split, split, part) for _, _, split, part in oor]),
    ):
        if columns:
            yield tables.of_means(means, columns, f"{title}: {name}", legend(report, means))


def _reasons(report: ReportData) -> list[str]:
    """Return the reasons for confounded contrasts, a line each."""
    found = confounded(report.contrasts[report.metric]).itertuples(index=False)
    return [
        f"{tables.CONFOUNDED} {arm} against {other} on {splits}: {reason}"
        for arm, other, splits, reason in found
    ]


def _all_means(report: ReportData) -> pd.DataFrame:
    """Return the means of every metric by split, then by held-out region."""
    return pd.concat(
        [*report.means.values(), *report.tail.values(), *report.directions.values()], ignore_index=True
    )


def _all_contrasts(report: ReportData) -> pd.DataFrame:
    """Return the contrasts of every metric by split, then by held-out region."""
    regions = report.direction_contrasts.values()
    return pd.concat([*report.contrasts.values(), *regions], ignore_index=True)


def _markdown(report: ReportData, content: Sequence[Section]) -> str:
    facts = report.facts
    blocks = [f"# {tables.escape(_title(facts))}"]
    if facts.get("protocol") == "paper":
        blocks.append(f"> **Warning: {PAPER}.** These numbers are not an estimate of error on new data.")
    blocks += [
        tables.escape(text) for text in (str(facts.get("question") or ""), summary.data_line(report)) if text
    ]
    first = [section for section in content if section.anchor == "verdicts"]
    for table in (table for section in first for table in section.tables):
        blocks += [f"**{tables.escape(table.caption)}**", tables.in_markdown(table)]
        blocks.append(tables.notes_in_markdown(table.notes))
    blocks += [tables.escape(text) for text in summary.answer(report)]
    if cautions := summary.cautions(report):
        blocks.append("\n".join(f"- {tables.escape(sentence)}" for sentence in cautions))
    for section in (section for section in content if section not in first):
        if not section.tables and not section.paragraphs:
            continue
        blocks.append(f"## {tables.escape(section.title)}")
        blocks += [tables.escape(text) for text in (section.text, *section.paragraphs) if text]
        for table in section.tables:
            if not table.lines:
                continue
            blocks += [f"**{tables.escape(table.caption)}**"] if table.caption else []
            blocks.append(tables.in_markdown(table))
        if section.notes:
            blocks.append(tables.notes_in_markdown(section.notes))
    return "\n\n".join(blocks) + "\n"


def _html(report: ReportData, content: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sweeps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = report.facts
    return environment.get_template("report.html.j2").render(
        title=_title(facts),
        question=facts.get("question"),
        data=summary.data_line(report),
        warning=PAPER if facts.get("protocol") == "paper" else None,
        answer=summary.answer(report),
        cautions=summary.cautions(report),
        first=next((_drawn(section) for section in content if section.anchor == "verdicts"), None),
        sections=[_drawn(section) for section in content if section.anchor != "verdicts"],
        places={0: "", 1: "best", 2: "second"},
    )


def _drawn(section: Section) -> tuple[Any, ...]:
    """Return a section with its tables under their groups of heads, and its figures as data addresses.

    A figure has a second address, or '', for a small screen.
    """
    return (
        section,
        [(table, _groups(table)) for table in section.tables],
        [(*_uris(picture), picture.alt, picture.caption, picture.name) for picture in section.pictures],
    )


def _groups(table: Table) -> list[tuple[str, int]]:
    """Return the groups of heads with their numbers of columns; empty if heads are not grouped."""
    found: list[tuple[str, int]] = []
    for group, _ in table.heads:
        span = found.pop()[1] if found and found[-1][0] == group else 0
        found.append((group, span + 1))
    return found if any(group for group, _ in found) else []


def _uris(picture: Picture) -> tuple[str, str]:
    """Return the address of a figure, and that of the one for a small screen."""
    kind = {"svg": "image/svg+xml", "png": "image/png"}[picture.embed]
    small = _uri("image/svg+xml", picture.small) if picture.small else ""
    return _uri(kind, getattr(picture, picture.embed)), small


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _title(facts: Mapping[str, Any]) -> str:
    return str(facts.get("title") or facts["study"])
