"""Tables as LaTeX, with booktabs and other packages of a plain installation."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from sweeps.report.tables import Entry, Table

LONG = 32
"""Most characters of a text on one line; a column with a longer text is a paragraph column."""
TALL = 40
"""Most lines of a table on one page; a taller one is a longtable."""

_PARAGRAPH = ">{\\raggedright\\arraybackslash}p{0.25\\linewidth}"
_FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
"""Scale a table down to the width of the page; a narrower one keeps its size."""

_TITLES = {
    "verdicts": "Verdicts",
    "wr": "Within region",
    "oor": "Out of region",
    "gap": "The gap from WR to OoR",
    "contrasts": "Paired differences",
    "claims": "Claims",
    "published": "Published values",
}
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",
    "]": "{]}",
    "*": r"\textasteriskcentered{}",
    "·": r"$\cdot$",
    "−": r"$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "°": r"$^\circ$",
    "²": r"\textsuperscript{2}",
    "³": r"\textsuperscript{3}",
    "ⁿ": r"\textsuperscript{n}",
    "–": "--",
    "—": "---",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "…": r"\ldots{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "○": r"$\circ$",
}
_LETTERS = frozenset("ßæœøåłÆŒØÅŁ")
"""Letters that the fonts of any installation have (OT1)."""
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Accents that the fonts of any installation have (OT1)."""

_HEAD = r"""% Made by `sweep report`; compile with pdflatex.
\documentclass[10pt,a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=20mm]{geometry}
\usepackage{array}
\usepackage{booktabs}
\usepackage{graphicx}
\usepackage{longtable}
\begin{document}
"""


def files(tables: Mapping[str, Sequence[Table]]) -> dict[str, str]:
    """Return a LaTeX file for every name, and all.tex, which includes them and compiles."""
    found = {
        f"{name}.tex": "% Needs \\usepackage{array,booktabs,graphicx,longtable}\n"
        + "\n".join(_float(table, f"tab:{name}-{i}") for i, table in enumerate(content, 1))
        for name, content in tables.items()
    }
    body = "".join(f"\\section*{{{_TITLES[name]}}}\n\\input{{{name}.tex}}\n\\clearpage\n" for name in tables)
    return {**found, "all.tex": f"{_HEAD}{body or 'No cell is done.'}\\end{{document}}\n"}


def escape(text: str) -> str:
    """Escape a text for LaTeX; a character that the fonts lack is replaced by its code point."""
    return "".join(_letter(letter) for letter in " ".join(text.split()))


def _letter(letter: str) -> str:
    if letter in _SPECIAL:
        return _SPECIAL[letter]
    if letter.isascii() or letter in _LETTERS:
        return letter
    if letter <= "ſ" and unicodedata.normalize("NFD", letter)[1:] in _ACCENTS:
        return letter
    plain = unicodedata.normalize("NFKD", letter)
    if plain.isascii():
        return "".join(_SPECIAL.get(part, part) for part in plain)
    return f"[U+{ord(letter):04X}]"


def _float(table: Table, label: str) -> str:
    """Return one table with its caption above and its notes below."""
    columns = [_column(table, i) for i in range(len(table.heads))]
    labels = [text for text, entries in table.lines if entries]
    first = _PARAGRAPH if any(len(text) > LONG for text in labels) else "l"
    spec = "@{}" + first + "".join(columns) + "@{}"
    counts = [_count(table, i) for i in range(len(table.heads))]
    inline = _PARAGRAPH in (first, *columns)
    heads, body = _heads(table, counts), list(_body(table, counts, inline=inline))
    notes = [escape(note) for note in table.notes]
    caption = f"\\caption{{{escape(table.caption)}}}\\label{{{label}}}"
    if len(body) > TALL:
        lines = [
            r"{\footnotesize\setlength{\tabcolsep}{4pt}",
            f"\\begin{{longtable}}{{{spec}}}",
            f"{caption}\\\\",
            r"\toprule",
            *heads,
            r"\midrule",
            r"\endfirsthead",
            r"\toprule",
            *heads,
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *body,
            r"\end{longtable}",
            *([r"\noindent " + " ".join(notes) + r"\par"] if notes else []),
            "}",
        ]
        return "\n".join(lines) + "\n"
    under = [r"\par\smallskip", r"\parbox{\linewidth}{\footnotesize " + " ".join(notes) + "}"]
    lines = [
        r"\begin{table}[htbp]",
        r"\centering",
        caption,
        r"\footnotesize\setlength{\tabcolsep}{4pt}",
        _FIT,
        f"\\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        *(under if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _column(table: Table, column: int) -> str:
    """Return the type of a column: paragraphs, or numbers to the right, or texts to the left."""
    entries = [entries[column] for _, entries in table.lines if entries]
    if any(len(entry.text) > LONG for entry in entries):
        return _PARAGRAPH
    numbers = [entry.text[:1] in "+−<>0123456789–" for entry in entries if entry.text and not entry.absent]
    return "r" if numbers and all(numbers) else "l"


def _count(table: Table, column: int) -> str:
    """Return the n that all entries of a column share, for its head; '' if they differ."""
    found = {entries[column].n for _, entries in table.lines if entries and entries[column].n}
    return found.pop() if len(found) == 1 else ""


def _heads(table: Table, counts: Sequence[str]) -> list[str]:
    lines = []
    groups: list[tuple[str, int]] = []
    for group, _ in table.heads:
        span = groups.pop()[1] if groups and groups[-1][0] == group else 0
        groups.append((group, span + 1))
    if any(group for group, _ in groups):
        cells, rules, at = [""], [], 2
        for group, span in groups:
            cells.append(f"\\multicolumn{{{span}}}{{c}}{{{escape(group)}}}")
            if group:
                rules.append(f"\\cmidrule(lr){{{at}-{at + span - 1}}}")
            at += span
        lines += [_row(cells), "".join(rules)]
    centred = [f"\\multicolumn{{1}}{{c}}{{{escape(head)}}}" for _, head in table.heads]
    lines.append(_row([escape(table.corner), *centred]))
    if any(counts):
        small = [f"\\multicolumn{{1}}{{c}}{{\\scriptsize $n={n}$}}" if n else "" for n in counts]
        lines.append(_row(["", *small]))
    return lines


def _body(table: Table, counts: Sequence[str], *, inline: bool) -> Iterator[str]:
    """Yield the rows; intervals are below their numbers, or beside them if `inline`."""
    for i, (label, entries) in enumerate(table.lines):
        if not entries:
            if i:
                yield r"\midrule"
            yield _row(
                [f"\\multicolumn{{{len(table.heads) + 1}}}{{@{{}}l@{{}}}}{{\\emph{{{escape(label)}}}}}"]
            )
            continue
        numbers = [_number(entry) for entry in entries]
        intervals = [_interval(entry, count) for entry, count in zip(entries, counts, strict=True)]
        if inline:
            pairs = zip(numbers, intervals, strict=True)
            yield _row([escape(label), *(" ".join(filter(None, pair)) for pair in pairs)])
            continue
        yield _row([escape(label), *numbers])
        if any(intervals):
            yield _row(["", *intervals])
            if i + 1 < len(table.lines) and table.lines[i + 1][1]:
                yield r"\addlinespace[2pt]"


def _number(entry: Entry) -> str:
    text = escape(entry.text)
    if entry.place:
        text = f"\\{'textbf' if entry.place == 1 else 'underline'}{{{text}}}"
    if entry.absent:
        text = f"\\emph{{{text}}}"
    return text + (f"\\textsuperscript{{{escape(entry.marks)}}}" if entry.marks else "")


def _interval(entry: Entry, count: str) -> str:
    n = f"$n={entry.n}$" if entry.n and not count else ""
    text = " ".join(filter(None, [escape(entry.interval), n]))
    return f"{{\\scriptsize {text}}}" if text else ""


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
