"""The LaTeX files of a report: always well-formed, and compiled if pdflatex is installed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sweeps.report import latex
from sweeps.report.tables import Entry, Table

HOSTILE = r"50 % of $x_1 & {y} \z ~ ^ # <a> [b] *c* \"d\" | Zoë ł 中 µg/m³ ± × ≤ “q”"


def table(columns: int = 2, lines: int = 3, text: str = "7.42", caption: str = "A caption.") -> Table:
    entry = Entry(text, "[7.10, 7.74]", "5", "†*", place=1)
    body = [("WR: random", []), *((f"arm {i}", [entry] * columns) for i in range(lines))]
    return Table(
        "RMSE (µg/m³)", [("group", f"head {i}") for i in range(columns)], body, caption, ["† A note."]
    )


TABLES = {
    "wr": [table(), table(9)],
    "oor": [table(1, 60)],
    "gap": [Table("x", [("", "plain")], [("−1", [Entry("missing (0/3)", absent=True)])])],
    "contrasts": [table(3, 2, HOSTILE, HOSTILE)],
    "claims": [
        Table("claim", [("", "verdict")], [(HOSTILE * 2, [Entry("supported")])], "Claims.", [HOSTILE])
    ],
}


def check(text: str) -> None:
    """Raises AssertionError unless braces and environments close and every row fills its columns."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text.replace(r"\\", "  ")):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    open_ = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    for spec, body in re.findall(
        r"\\begin\{(?:tabular|longtable)\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{(?:tabular|longtable)\}",
        text,
        re.DOTALL,
    ):
        columns = len(re.findall(r"[lrp]", re.sub(r">\{.*?\}p\{.*?\}", "p", spec)))
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert rows
        for row in rows:
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
            cells = len(re.findall(r"(?<!\\)&", row)) + 1
            assert cells - len(spans) + sum(spans) == columns, row


def test_every_file_is_well_formed() -> None:
    files = latex.files(TABLES)
    assert set(files) == {*(f"{name}.tex" for name in TABLES), "all.tex"}
    for text in files.values():
        check(text)
    assert all(f"\\input{{{name}.tex}}" in files["all.tex"] for name in TABLES)


@pytest.mark.parametrize("broken", ["{", r"\begin{tabular}", r"\end{table}", r"\begin{a}\end{b}"])
def test_the_check_can_fail(broken: str) -> None:
    with pytest.raises((AssertionError, IndexError)):
        check(latex.files(TABLES)["wr.tex"] + broken)
    with pytest.raises(AssertionError):
        check(latex.files(TABLES)["wr.tex"].replace(r"\textbf{7.42}", r"\textbf{7.42} & x", 1))


def test_every_character_is_escaped() -> None:
    text = latex.escape(HOSTILE)
    assert text.startswith(
        r"50 \% of \$x\_1 \& \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{} \# "
    )
    assert r"\textless{}a\textgreater{} {[}b{]} \textasteriskcentered{}c" in text
    assert r"Zoë ł [U+4E2D] $\mu$g/m\textsuperscript{3} $\pm$ $\times$ $\leq$" in text
    assert latex.escape("a\n  b") == "a b"


def test_the_best_is_bold_and_the_second_underlined() -> None:
    line = [Entry("1", place=1, marks="†"), Entry("2", place=2), Entry("3", "[2, 4]§")]
    text = latex.files({"wr": [Table("arm", [("", name) for name in "abc"], [("x", line)], "c")]})["wr.tex"]
    assert r"x & \textbf{1}\textsuperscript{\textdagger{}} & \underline{2} & 3 \\" in text
    assert r" &  &  & {\scriptsize {[}2, 4{]}\S{}} \\" in text


def test_a_shared_n_is_in_the_head() -> None:
    def of(*counts: str) -> str:
        lines = [(str(i), [Entry("1", "[0, 2]", n)]) for i, n in enumerate(counts)]
        return latex.files({"wr": [Table("arm", [("", "a")], lines, "c")]})["wr.tex"]

    assert of("5", "5").count("$n=5$") == 1
    assert r"{\scriptsize {[}0, 2{]} $n=4/5$}" in of("5", "4/5")


def test_a_tall_table_breaks_over_pages() -> None:
    files = latex.files(TABLES)
    assert files["wr.tex"].count(r"\begin{table}") == 2
    assert r"\begin{longtable}" in files["oor.tex"]
    assert r"\begin{table}" not in files["oor.tex"]


def test_an_interval_is_beside_its_number_in_a_table_with_long_texts() -> None:
    entry = Entry("−0.39", "[−0.48, −0.31]", "5", "*")
    lines = [("One beats another, on a split whose name is long", [Entry("supported"), entry])]
    text = latex.files({"claims": [Table("claim", [("", "verdict"), ("", "difference")], lines)]})[
        "claims.tex"
    ]
    row = next(line for line in text.splitlines() if "beats" in line)
    assert r"supported & $-$0.39\textsuperscript{\textasteriskcentered{}} {\scriptsize {[}$-$0.48" in row
    below = latex.files({"wr": [table()]})["wr.tex"]
    assert "& {\\scriptsize {[}7.10, 7.74{]}}" in below


def test_without_tables_all_tex_says_so() -> None:
    assert "No cell is done." in latex.files({})["all.tex"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex (texlive-latex-base) is not installed")
@pytest.mark.parametrize("tables", [TABLES, {}], ids=["tables", "nothing"])
def test_it_compiles(tmp_path: Path, tables: dict[str, list[Table]]) -> None:
    for name, text in latex.files(tables).items():
        (tmp_path / name).write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    for _ in range(2):  # longtable wants its widths from the first
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:]
    log = (tmp_path / "all.log").read_text(errors="replace")
    assert "LaTeX Warning" not in log
    assert not re.search(r"Overfull \\hbox \((\d{2,})\.", log)  # of ten points or more
