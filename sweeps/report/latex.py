"""Tables as LaTeX, with booktabs and the packages of a plain installation."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from sweeps.report.tables import Entry, Table

WIDTH = 117
"""Characters of a footnotesize line that a page of all.tex holds, spaces between columns included."""
LONG = 20
"""Characters that a text longer than that is broken into lines of."""
LABEL = 32
"""Characters from which a line's label is broken so."""
TALL = 40
"""Lines from which a table may break over pages."""

_LINES = ">{\\raggedright\\arraybackslash}p{0.18\\linewidth}"

_TITLES = {
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
}
_LETTERS = frozenset("ßæœøåłÆŒØÅŁ")
_ACCENTS = frozenset("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")
"""Letters and accents that the fonts of any installation have (OT1)."""

_HEAD = r"""% Made by `sweep report`; compile with pdflatex.
\documentclass[10pt,a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=20mm]{geometry}
\usepackage{array}
\usepackage{booktabs}
\usepackage{longtable}
\begin{document}
"""


def files(tables: Mapping[str, Sequence[Table]]) -> dict[str, str]:
    """A file for every name, and all.tex that takes them in and compiles by itself."""
    found = {
        f"{name}.tex": "% Needs \\usepackage{array,booktabs,longtable}\n"
        + "\n".join(
            _float(part, f"tab:{name}-{i}")
            for i, part in enumerate((p for table in own for p in _parts(table)), 1)
        )
        for name, own in tables.items()
    }
    body = "".join(f"\\section*{{{_TITLES[name]}}}\n\\input{{{name}.tex}}\n\\clearpage\n" for name in tables)
    return {**found, "all.tex": f"{_HEAD}{body or 'No cell is done.'}\\end{{document}}\n"}


def escape(text: str) -> str:
    """Text that LaTeX sets as it is; a letter that the fonts have not is named by its code point."""
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
        return "".join(_SPECIAL.get(own, own) for own in plain)
    return f"[U+{ord(letter):04X}]"


def _parts(table: Table) -> Iterator[Table]:
    """The table, or as many as its columns need that each is as wide as a page."""
    label = LONG if _breaks(table) else max(len(text) for text in (table.corner, *_labels(table)))
    start, room = 0, WIDTH - label
    for i in range(len(table.heads)):
        width = _width(table, i) + 2
        if width > room and i > start:
            yield _columns(table, start, i)
            start, room = i, WIDTH - label
        room -= width
    if table.heads:
        yield _columns(table, start, len(table.heads))


def _labels(table: Table) -> list[str]:
    return [label for label, entries in table.lines if entries]


def _breaks(table: Table) -> bool:
    return any(len(label) > LABEL for label in _labels(table))


def _tall(table: Table) -> bool:
    """Whether some text takes several lines: a line of its own for the intervals would lie far below."""
    long = (len(entry.text) > LONG for _, entries in table.lines for entry in entries)
    return _breaks(table) or any(long)


def _columns(table: Table, start: int, end: int) -> Table:
    lines = [(label, entries[start:end]) for label, entries in table.lines]
    caption = table.caption if (start, end) == (0, len(table.heads)) else f"{table.caption} (In parts.)"
    return table._replace(heads=table.heads[start:end], lines=lines, caption=caption)


def _width(table: Table, column: int) -> int:
    """In characters; an interval is set smaller."""
    entries = [entries[column] for _, entries in table.lines if entries]
    texts = [len(entry.text + entry.marks) for entry in entries]
    intervals = [math.ceil(0.85 * len(entry.interval)) for entry in entries]
    return max([min(max(texts, default=0), LONG), len(table.heads[column][1]), *intervals])


def _float(table: Table, label: str) -> str:
    """One table with its caption above and its notes below."""
    columns = [_column(table, i) for i in range(len(table.heads))]
    first = _LINES if _breaks(table) else "l"
    spec = "@{}" + first + "".join(columns) + "@{}"
    counts = [_count(table, i) for i in range(len(table.heads))]
    heads, body = _heads(table, counts), list(_body(table, counts))
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
        f"\\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *(under if notes else []),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _column(table: Table, column: int) -> str:
    entries = [entries[column] for _, entries in table.lines if entries]
    if any(len(entry.text) > LONG for entry in entries):
        return _LINES
    if _tall(table) and any(entry.interval for entry in entries):
        return f">{{\\raggedleft\\arraybackslash}}p{{{0.5 * _width(table, column) + 0.5:.1f}em}}"
    numbers = [entry.text[:1] in "+−<>0123456789–" for entry in entries if entry.text and not entry.absent]
    return "r" if numbers and all(numbers) else "l"


def _count(table: Table, column: int) -> str:
    """n of the whole column, where every entry that has one has the same; it stands in the head then."""
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


def _body(table: Table, counts: Sequence[str]) -> Iterator[str]:
    tall = _tall(table)
    for i, (label, entries) in enumerate(table.lines):
        if not entries:
            if i:
                yield r"\midrule"
            yield _row(
                [f"\\multicolumn{{{len(table.heads) + 1}}}{{@{{}}l@{{}}}}{{\\emph{{{escape(label)}}}}}"]
            )
            continue
        numbers = [_number(entry) for entry in entries]
        below = [_interval(entry, count) for entry, count in zip(entries, counts, strict=True)]
        if tall:
            numbers = [r" \linebreak ".join(filter(None, pair)) for pair in zip(numbers, below, strict=True)]
        yield _row([escape(label), *numbers])
        if any(below) and not tall:
            yield _row(["", *below])
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
