"""The study's report: rows and facts in, four files out, the same bytes for the same input.

``rows`` is a frame with one row per grid cell (see ``sweeps.tables``), ``facts`` is where they come from.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sweeps import fairness, tables

if TYPE_CHECKING:
    from sweeps.figures import Figure as Picture

PAPER = "published protocol, leaks included"
_PROVENANCE = (
    "study",
    "protocol",
    "table",
    "data_fingerprint",
    "sites",
    "days",
    "observed",
    "first_day",
    "last_day",
    "encoders",
    "numerics",
    "commit",
)


class Table(NamedTuple):
    """One table of the report; ``bold`` is a mask of its shape, ``corner`` names its index."""

    frame: pd.DataFrame
    bold: pd.DataFrame | None = None
    corner: str = "arm"


class Figure(NamedTuple):
    """One picture: its bytes as a data URI, and in words."""

    uri: str
    alt: str
    caption: str


class Section(NamedTuple):
    """A heading and what stands under it."""

    anchor: str
    title: str
    text: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


def write(
    rows: pd.DataFrame,
    facts: Mapping[str, Any],
    out: Path,
    pictures: Sequence[Picture] = (),
) -> list[Path]:
    """Writes report.md, cells.csv, comparison.csv and index.html to ``out``, each whole or not at all.

    The ``pictures`` stand in the page, and beside it in the folder ``figures`` as SVG and PNG.
    """
    compared = {metric: tables.comparison(rows, metric) for metric in tables.METRICS}
    sections, sentences = _sections(rows, facts, compared), answer(rows)
    files = {
        "report.md": _markdown(facts, sentences, sections),
        "cells.csv": tables.csv(tables.measured(rows)[list(rows.columns)]),
        "comparison.csv": tables.csv(pd.concat(compared.values(), ignore_index=True)),
        "index.html": _html(facts, sentences, _with_figures(sections, pictures)),
    }
    out.mkdir(parents=True, exist_ok=True)
    if pictures:
        (out / "figures").mkdir(exist_ok=True)
    drawn = {
        f"figures/{p.name}.{suffix}": b for p in pictures for suffix, b in (("svg", p.svg), ("png", p.png))
    }
    for name, content in {**drawn, **{name: text.encode() for name, text in files.items()}}.items():
        unfinished = (out / name).with_name(f".{Path(name).name}.{os.getpid()}")
        try:
            unfinished.write_bytes(content)
            unfinished.replace(out / name)
        finally:
            unfinished.unlink(missing_ok=True)
    return [out / name for name in files]


def brief(rows: pd.DataFrame, facts: Mapping[str, Any]) -> str:
    """The question, the answer and the RMSE table in Markdown, for a page with little room."""
    compared = tables.comparison(rows)
    blocks = [str(facts["question"]), *answer(rows)] if facts.get("question") else answer(rows)
    blocks = [tables.escape(block) for block in blocks]
    blocks += [tables.markdown(tables.wide(compared), tables.best(compared))]
    if reasons := _reasons(compared):
        blocks.append("\n".join(f"- {tables.escape(reason)}" for reason in reasons))
    return "\n\n".join([*blocks, tables.NOTE])


def terminal(rows: pd.DataFrame) -> None:
    """Prints the WR and OoR tables of the RMSE, and the answer, to the terminal."""
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    compared = tables.comparison(rows)
    frame, bold = tables.wide(compared), tables.best(compared)
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a log has no width of its own
    for title, groups in (
        ("Within region (WR)", [tables.WR]),
        ("Out of region (OoR)", [tables.OOR, tables.GAP]),
    ):
        heads = [head for head in frame.columns if head[0] in groups]
        if not heads:
            continue
        grid = Grid(title=f"{title}: RMSE, µg/m³", title_justify="left", title_style="bold")
        grid.add_column("arm", no_wrap=True)
        for head in heads:
            grid.add_column(Text(head[1] if head[0] in (tables.WR, tables.OOR) else tables.flat(head)))
        for label in frame.index:
            cells = [
                Text(frame.loc[label, head], style="bold" if bold.loc[label, head] else "") for head in heads
            ]
            grid.add_row(Text(label), *cells)
        console.print(grid)
    for sentence in [*answer(rows), *_reasons(compared)]:
        console.print(Text(sentence))


def answer(rows: pd.DataFrame) -> list[str]:
    """What the RMSE says, in one sentence per regime and one on what is missing and not tested."""
    compared = tables.comparison(rows)
    heads = tables.columns(compared)
    within = [head for head in heads if head[0] == tables.WR]
    own = [head for head in within if not head[2]]
    sentences = []
    for name, mine in (
        ("within region", own or within),
        ("out of region", [head for head in heads if head[0] == tables.OOR]),
    ):
        if mine:
            found = "; ".join(f"on {split}, {_lowest(compared, split, prefix)}" for _, split, prefix in mine)
            sentences.append(f"Lowest mean RMSE {name}: {found}.")
    counts = rows["state"].value_counts()
    absent = [f"{counts[state]} {state}" for state in ("failed", "missing") if counts.get(state, 0)]
    if absent:
        sentences.append(
            f"Of {len(rows)} cells {' and '.join(absent)}: an arm without all its cells is not ranked. "
            "No significance test is made."
        )
    else:
        sentences.append(f"All {len(rows)} cells are done. No significance test is made.")
    if marked := int(compared["n_marked"].sum()):
        sentences.append(
            f"{marked} cells failed their leakage audit: {tables.MARK} stands at every mean that holds one."
        )
    if unfair := int((compared["n_unfair"] > 0).sum()):
        contrasts = int(((compared["arm"] != tables.BASELINE) & (compared["n_pairs"] > 0)).sum())
        sentences.append(
            f"{unfair} of {contrasts} contrasts with 'none' are unfair, for more differs than the declared "
            f"factor: {tables.UNFAIR} stands at their differences."
        )
    if tuned := fairness.by_name(tables.measured(rows)["tuned"]):
        sentences.append(f"Tuned by a search, arm by arm, and not as in 'none': {', '.join(sorted(tuned))}.")
    return sentences


def _reasons(compared: pd.DataFrame) -> list[str]:
    """Why contrasts are unfair, a line each."""
    found = tables.unfair(compared).itertuples(index=False)
    return [f"{tables.UNFAIR} {label} on {splits}: {reason}" for label, splits, reason in found]


def _lowest(compared: pd.DataFrame, split: str, prefix: str) -> str:
    """The arm with the lowest mean RMSE on a split, and how far from 'none'; fair only among whole arms."""
    planned = int((compared["split"] == split).sum())
    whole = tables.complete(compared, split, prefix)
    if whole.empty:
        return "no arm has all its cells"
    top = whole.iloc[0]
    text = f"'{top['arm']}' with {tables.number(top[f'{prefix}mean'], 'rmse')} µg/m³ (n={top[f'{prefix}n']})"
    pairs = top[f"{prefix}n_pairs"]
    if planned == 1:
        text += ", the only arm"
    elif len(whole) < planned:
        text += f", among {len(whole)} of {planned} arms"
    if top["arm"] == tables.BASELINE:
        return f"{text}, and no ranked arm is below it" if len(whole) > 1 else text
    if not pairs:
        return f"{text}, with no cells of 'none' to compare it with"
    difference = top[f"{prefix}diff_mean"]
    size = tables.number(abs(difference), "rmse")
    spread = tables.number(top[f"{prefix}diff_sd"], "rmse") + (tables.UNFAIR if top["n_unfair"] else "")
    side = "below" if difference <= 0 else "above"
    return f"{text}, {size} ± {spread} {side} 'none' (lower in {top[f'{prefix}n_better']} of {pairs} pairs)"


def _sections(
    rows: pd.DataFrame, facts: Mapping[str, Any], compared: Mapping[str, pd.DataFrame]
) -> list[Section]:
    return [
        Section("reading", "How to read the tables", tables.NOTE),
        *_comparisons(compared["rmse"], "rmse"),
        *_comparisons(compared["r2"], "r2"),
        *_directions(rows),
        Section(
            "errors",
            "MAE and mean bias",
            "MBE is predicted minus observed: above zero is too much. The best is the one nearest to zero.",
            tuple(table for metric in ("mae", "mbe") for table in _split_tables(compared[metric], metric)),
        ),
        Section(
            "complete",
            "Completeness",
            "How many cells each mean could have, and what became of them; samples per split as a range over "
            "its done cells.",
            (Table(tables.completeness(rows)), Table(tables.sizes(rows), corner="samples")),
        ),
        *_marks(rows),
        *_unfair(compared["rmse"]),
        *_failures(rows),
        *_tuned(rows, facts),
        Section(
            "settings",
            "Settings",
            "Fixed for every cell, unless the search chose them per arm.",
            (_pairs(facts.get("settings", {}), "setting"),),
        ),
        Section(
            "provenance",
            "Provenance",
            "The same cells and the same versions make this report again, byte for byte.",
            (
                _pairs({name: facts[name] for name in _PROVENANCE if facts.get(name) is not None}, "fact"),
                _pairs(facts.get("versions", {}), "package"),
            ),
        ),
    ]


def _comparisons(compared: pd.DataFrame, metric: str) -> Iterator[Section]:
    name = tables.title(metric)
    apart = tables.differences(compared) if (compared["arm"] == tables.BASELINE).any() else None
    for regime, title, text in (
        (
            tables.WR,
            f"Within region: {name}",
            "A column of an out-of-region split is its model on held-out sites inside its training region.",
        ),
        (
            tables.OOR,
            f"Out of region: {name}",
            "All regions held out (a checkerboard's two colours) pooled: the spread holds their difference. "
            "The gap OoR − WR "
            "is paired within a cell; it has no best value, for a model that is bad everywhere has no gap.",
        ),
    ):
        found = _split_tables(compared, metric, regime)
        if not found:
            continue
        if apart is not None and regime in apart.columns.get_level_values(0) and len(apart):
            found = (*found, Table(apart[[regime]], corner="minus 'none', paired"))
        elif apart is None:
            text += " The study has no arm 'none', so there is no difference to it."
        yield Section(f"{regime.lower()}-{metric}", title, text, found)


def _split_tables(compared: pd.DataFrame, metric: str, regime: str | None = None) -> tuple[Table, ...]:
    frame, bold = tables.wide(compared), tables.best(compared)
    found = []
    for groups in ([tables.WR], [tables.OOR, tables.GAP]):
        heads = [head for head in frame.columns if head[0] in groups]
        if heads and regime in (None, groups[0]):
            corner = "arm" if regime else tables.title(metric)
            found.append(Table(frame[heads], bold[heads], corner))
    return tuple(found)


def _directions(rows: pd.DataFrame) -> Iterator[Section]:
    cells = tables.directions(rows)
    if cells.empty:
        return
    found = []
    for metric in ("rmse", "r2"):
        compared = tables.comparison(cells, metric)
        frame, bold = tables.wide(compared), tables.best(compared)
        for split in dict.fromkeys(rows.loc[rows["regime"] == tables.OOR, "split"]):
            heads = [head for head in frame.columns if head[1].startswith(f"{split} · ")]
            found.append(Table(_by_colour(frame[heads]), _by_colour(bold[heads]), tables.title(metric)))
    text = "Each held-out region on its own; for a checkerboard it is a colour. Its model never saw it."
    yield Section("directions", "Out of region, by region held out", text, tuple(found))


def _by_colour(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns (regime, direction) as (direction, regime): what belongs to one direction side by side."""
    heads = sorted(((head[1], head[0]) for head in frame.columns.to_list()), key=lambda head: head[0])
    swapped = frame[[head[::-1] for head in heads]]
    return swapped.set_axis(pd.MultiIndex.from_tuples(heads), axis=1)


def _marks(rows: pd.DataFrame) -> Iterator[Section]:
    cells = tables.with_arm(rows)
    cells = cells[cells["marked"] != ""]
    if cells.empty:
        return
    counts = cells.groupby(["marked", "arm", "split"], sort=False).size().rename("cells").reset_index()
    yield Section(
        "audit",
        "Leakage audit",
        f"{tables.MARK} marks every mean with a cell whose audit failed: read it as what it is, not as an "
        "error on new data.",
        (Table(counts.astype("str").set_index("marked"), corner="failed check"),),
    )


def _unfair(compared: pd.DataFrame) -> Iterator[Section]:
    reasons = tables.unfair(compared)
    if reasons.empty:
        return
    yield Section(
        "fairness",
        "Fair comparison",
        f"{tables.UNFAIR} marks every paired difference whose two arms differ in more than the declared "
        "factor and what it implies: what stands here moves the number too. Values are the arm's against "
        "those of 'none'.",
        (Table(reasons.set_index("arm")),),
    )


def _tuned(rows: pd.DataFrame, facts: Mapping[str, Any]) -> Iterator[Section]:
    chosen: Mapping[str, Mapping[str, str]] = facts.get("tuned", {})
    if not chosen:
        return
    arms = list(dict.fromkeys(tables.with_arm(rows)["arm"]))
    names = sorted({name for settings in chosen.values() for name in settings})
    values = [[chosen.get(label, {}).get(name, "not tuned") for name in names] for label in arms]
    yield Section(
        "tuned",
        "Tuned settings",
        "What each arm's search chose, on validation data. What was not tuned has its value under Settings.",
        (Table(pd.DataFrame(values, index=arms, columns=names, dtype="str")),),
    )


def _failures(rows: pd.DataFrame) -> Iterator[Section]:
    failed = tables.with_arm(rows.loc[rows["state"] == "failed"])
    if failed.empty:
        return
    frame = failed[["arm", "split", "fold", "seed", "error"]].astype("str")
    frame.index = pd.Index(failed["key"].astype("str").str.slice(0, 12))
    yield Section(
        "failures",
        "Failures",
        "A failure is counted, and never becomes a number.",
        (Table(frame, corner="key"),),
    )


def _with_figures(sections: list[Section], pictures: Sequence[Picture]) -> list[Section]:
    """The sections with the pictures before the directions."""
    kinds = {"svg": "image/svg+xml", "png": "image/png"}
    found = tuple(Figure(_uri(kinds[p.embed], getattr(p, p.embed)), p.alt, p.caption) for p in pictures)
    if not found:
        return sections
    at = next(i for i, section in enumerate(sections) if section.anchor in ("directions", "errors"))
    text = "As SVG and PNG in the folder figures beside this page."
    return [*sections[:at], Section("figures", "Figures", text, figures=found), *sections[at:]]


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _markdown(facts: Mapping[str, Any], sentences: list[str], sections: list[Section]) -> str:
    blocks = [f"# {tables.escape(_title(facts))}"]
    if facts.get("protocol") == "paper":
        blocks.append(f"> **Warning: {PAPER}.** These numbers are not an estimate of error on new data.")
    if facts.get("question"):
        blocks.append(tables.escape(str(facts["question"])))
    blocks.append("\n".join(f"- {tables.escape(sentence)}" for sentence in sentences))
    for section in sections:
        blocks += [f"## {tables.escape(section.title)}", tables.escape(section.text)]
        blocks += [
            tables.markdown(table.frame.rename_axis(index=table.corner), table.bold)
            for table in section.tables
            if len(table.frame)
        ]
    return "\n\n".join(blocks) + "\n"


def _html(facts: Mapping[str, Any], sentences: list[str], sections: list[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sweeps"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(
        title=_title(facts),
        question=facts.get("question"),
        warning=PAPER if facts.get("protocol") == "paper" else None,
        sentences=sentences,
        sections=[(section, [_drawn(table) for table in section.tables]) for section in sections],
    )


def _drawn(table: Table) -> dict[str, Any]:
    """A table as the template wants it: heads as (group, span), lines as (label, [(text, class)])."""
    groups: list[tuple[str, int]] = []
    if table.frame.columns.nlevels > 1:
        for group in table.frame.columns.get_level_values(0):
            span = groups.pop()[1] if groups and groups[-1][0] == group else 0
            groups.append((group, span + 1))
    lines = []
    for i, label in enumerate(table.frame.index):
        cells = []
        for j, value in enumerate(table.frame.iloc[i]):
            best = table.bold is not None and bool(table.bold.iloc[i, j])
            absent = str(value).startswith(("missing (", "failed (", "undefined ("))
            cells.append((str(value), "best" if best else "absent" if absent else ""))
        lines.append((str(label), cells))
    heads = [column[-1] if groups else column for column in table.frame.columns]
    return {"corner": table.corner, "groups": groups, "heads": heads, "lines": lines}


def _pairs(values: Mapping[str, Any], corner: str) -> Table:
    flat = dict(_flattened(values))
    return Table(
        pd.DataFrame({"value": pd.Series(flat, dtype="object")}, index=pd.Index(list(flat), dtype="object")),
        corner=corner,
    )


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """('train.epochs', '100') for every leaf, sorted by name."""
    for name in sorted(values, key=str):
        value = values[name]
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            yield f"{prefix}{name}", text


def _title(facts: Mapping[str, Any]) -> str:
    return str(facts.get("title") or facts["study"])
