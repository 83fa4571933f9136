"""The study's report: what it is made of in, its files out, the same bytes for the same input."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pm25.metrics import METRICS
from sweeps.analysis import labels
from sweeps.report import latex, sections, tables
from sweeps.report import summary as answers
from sweeps.report.data import ReportData
from sweeps.report.sections import Section
from sweeps.report.tables import Table

if TYPE_CHECKING:
    from sweeps.report.figures import Figure as Picture

PAPER = "published protocol, leaks included"


def write(material: ReportData, out: Path) -> list[Path]:
    """Writes the report's files to `out`, each whole or not at all; the pictures to its folder `figures`.

    index.html, report.md, cells.csv, means.csv, contrasts.csv, claims.csv, and the tables of a paper as
    LaTeX in the folder `latex`.
    """
    parts, said = sections.sections(material), answer(material)
    cautions = answers.cautions(material)
    cells = labels.with_arm(material.rows)
    first = [*material.rows.columns[:1], "arm", *material.rows.columns[1:]]
    texts = {
        "index.html": _html(material, said, cautions, parts),
        "report.md": _markdown(material, said, cautions, parts),
        "cells.csv": tables.csv(cells[first]),
        "means.csv": tables.csv(_all_means(material)),
        "contrasts.csv": tables.csv(_all_contrasts(material)),
    }
    if len(material.claims):
        texts["claims.csv"] = tables.csv(material.claims)
    texts |= {f"latex/{name}": text for name, text in latex.files(sections.paper(material)).items()}
    drawn = {
        f"figures/{picture.name}.{kind}": content
        for picture in material.pictures
        for kind, content in (("svg", picture.svg), ("png", picture.png))
    }
    for name, content in {**drawn, **{name: text.encode() for name, text in texts.items()}}.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        unfinished = (out / name).with_name(f".{Path(name).name}.{os.getpid()}")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(out / name)
        finally:
            unfinished.unlink(missing_ok=True)
    return [out / name for name in texts]


def answer(material: ReportData) -> list[str]:
    """The answer in three sentences made from the numbers: within region, out of it, and what is open."""
    return answers.sentences(material)


def brief(material: ReportData) -> str:
    """The question, the answer and the tables of one metric in Markdown, for a page with little room."""
    question = material.facts.get("question")
    blocks = [*([str(question)] if question else []), *answer(material), *answers.cautions(material)]
    blocks = [tables.escape(block) for block in blocks]
    for table in _small(material):
        blocks += [tables.in_markdown(table), tables.notes_in_markdown(table.notes)]
    if reasons := _reasons(material):
        blocks.append("\n".join(f"- {tables.escape(reason)}" for reason in reasons))
    return "\n\n".join(blocks)


def terminal(material: ReportData) -> None:
    """Prints the tables of one metric, and the answer, to the terminal."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140  # a log has no width of its own
    styles = {0: "", 1: "bold", 2: "underline"}
    for table in _small(material):
        grid = Grid(title=table.caption, title_justify="left", title_style="bold")
        grid.add_column(Text(table.corner), no_wrap=True)
        for group, head in table.heads:
            grid.add_column(Text(f"{group}\n{head}" if group else head))
        for label, entries in table.lines:
            grid.add_row(Text(label), *(Text(entry.line(), style=styles[entry.place]) for entry in entries))
        console.print(grid)
        console.print(Text(" ".join(table.notes), style="dim"))
    for sentence in [*answer(material), *answers.cautions(material), *_reasons(material)]:
        console.print(Text(sentence))


def _small(material: ReportData) -> Iterable[Table]:
    """The means within and out of region, and the paired differences, of the answer's metric."""
    means, contrasts = material.means[material.metric], material.contrasts[material.metric]
    name = METRICS[material.metric].title
    outside = sections.outside_columns(means, means[:0])
    for title, columns in (
        ("Within region (WR)", sections.within_columns(means)),
        ("Out of region (OoR)", [("", split, split, part) for split, _, _, part in outside]),
    ):
        if columns:
            yield tables.of_means(means, columns, f"{title}: {name}", sections.legend(material, means))
    columns = [*sections.within_columns(means), *((labels.OOR, s, s, p) for s, _, _, p in outside)]
    frame = sections.against_none(contrasts)
    if len(frame):
        alpha = material.analysis.alpha
        notes = sections.legend(material, frame, ranked=False)
        yield tables.of_differences(frame, columns, alpha, f"Paired differences: {name}", notes)


def _reasons(material: ReportData) -> list[str]:
    """Why contrasts are unfair, a line each."""
    found = sections.unfair(material.contrasts[material.metric]).itertuples(index=False)
    return [
        f"{tables.UNFAIR} {arm} against {other} on {splits}: {reason}" for arm, other, splits, reason in found
    ]


def _all_means(material: ReportData) -> pd.DataFrame:
    """Of every metric: by split, then by region held out."""
    return pd.concat(
        [*material.means.values(), *material.tail.values(), *material.directions.values()], ignore_index=True
    )


def _all_contrasts(material: ReportData) -> pd.DataFrame:
    """Of every metric: by split, then by region held out."""
    regions = material.direction_contrasts.values()
    return pd.concat([*material.contrasts.values(), *regions], ignore_index=True)


def _markdown(
    material: ReportData, said: Sequence[str], cautions: Sequence[str], parts: Sequence[Section]
) -> str:
    facts = material.facts
    blocks = [f"# {tables.escape(_title(facts))}"]
    if facts.get("protocol") == "paper":
        blocks.append(f"> **Warning: {PAPER}.** These numbers are not an estimate of error on new data.")
    if facts.get("question"):
        blocks.append(tables.escape(str(facts["question"])))
    blocks += [tables.escape(sentence) for sentence in said]
    if cautions:
        blocks.append("\n".join(f"- {tables.escape(sentence)}" for sentence in cautions))
    for section in parts:
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


def _html(
    material: ReportData, said: Sequence[str], cautions: Sequence[str], parts: Sequence[Section]
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sweeps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    facts = material.facts
    return environment.get_template("report.html.j2").render(
        title=_title(facts),
        question=facts.get("question"),
        warning=PAPER if facts.get("protocol") == "paper" else None,
        sentences=said,
        cautions=cautions,
        sections=[
            (
                section,
                [(table, _groups(table)) for table in section.tables],
                [(_uri(p), p.alt, p.caption, p.name) for p in section.pictures],
            )
            for section in parts
        ],
        places={0: "", 1: "best", 2: "second"},
    )


def _groups(table: Table) -> list[tuple[str, int]]:
    """Groups of heads, with how many columns each spans; none where no head has one."""
    found: list[tuple[str, int]] = []
    for group, _ in table.heads:
        span = found.pop()[1] if found and found[-1][0] == group else 0
        found.append((group, span + 1))
    return found if any(group for group, _ in found) else []


def _uri(picture: Picture) -> str:
    kind = {"svg": "image/svg+xml", "png": "image/png"}[picture.embed]
    return f"data:{kind};base64,{base64.b64encode(getattr(picture, picture.embed)).decode()}"


def _title(facts: Mapping[str, Any]) -> str:
    return str(facts.get("title") or facts["study"])
