"""The files of a report: same bytes for the same data, self-contained, and explicit about missing cells."""

import base64
import dataclasses
import hashlib
import html
import math
import os
import pickle
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from pm25.metrics import SCORES
from sweeps.report import data, summary, tables, write
from sweeps.report.figures import Figure
from sweeps.spec.claims import Analysis, ArmChoice, Claim, EvaluationPlace, Published, PublishedValue
from sweeps.spec.design import NO_LADDERS, Ladders

HOSTILE = "ValueError: <script>alert('x')</script> | *bold*"
PAGES = ["index.html", "report.md", "cells.csv", "means.csv", "contrasts.csv"]
LATEX = [f"latex/{name}.tex" for name in ("verdicts", "wr", "oor", "contrasts", "all")]
FOLDS = {"random": 5, "spatial": 5, "clusters": 5}
ORIGINS = 6
"""Origins of the checkerboards in `grid`."""
WOBBLE = (0.05, -0.05, 0.1, -0.1, 0.0)
"""Deviation of an arm's difference by fold, zero on average over five folds."""


def grid(splits=("random", "checkerboard-16"), seeds=(0, 1), variants=("none", "latlon", "geoclip")):
    """Rows with errors that follow a rule: GeoCLIP is about 0.5 below 'none', lat/lon 0.25 above."""
    shift = {"none": 0.0, "latlon": 0.25, "geoclip": -0.5}
    lines = []
    for variant in variants:
        for split in splits:
            kind = split.split("-")[0]
            board = kind not in ("random", "spatial")
            for fold in range(2 * ORIGINS if kind == "checkerboards" else FOLDS.get(split, 2)):
                for seed in seeds:
                    error = 7.0 + shift[variant] + fold + 0.5 * seed + 2 * board
                    error += WOBBLE[fold % 5] * (variant != "none")
                    line = {
                        "key": f"{len(lines):032x}",
                        "variant": variant,
                        "fusion": "hadamard" if variant == "geoclip" else None,
                        "split": split,
                        "regime": "OoR" if board else "WR",
                        "fold": fold,
                        "folds": FOLDS.get(split, 2),
                        "kind": kind,
                        "unit": fold // 2 if kind.startswith("checkerboard") else fold,
                        "seed": seed,
                        "state": "done",
                        "n_train": 700.0,
                        "n_val": 100.0,
                        "n_test": 200.0,
                        "n_wr": 50.0 if board else math.nan,
                    }
                    for prefix, value in (("test", error), ("wr", error - 1.5 if board else math.nan)):
                        numbers = (value, 1 - value / 20, 0.75 * value, 0.1 * value)
                        line |= {f"{prefix}_{m}": v for m, v in zip(SCORES, numbers, strict=True)}
                    line |= {"best_epoch": 3.0, "epochs": 5.0, "seconds": 1.5, "error": None}
                    lines.append(line | {"marked": "", "unfair": "", "tuned": ""})
    frame = pd.DataFrame(lines)
    return frame.astype({"error": "object", "fold": "int64", "seed": "int64", "folds": "int64"})


class Stored:
    """Sums over the predictions of the rows' cells, which have the RMSE of the row at every monitor.

    There are 48 monitors and 60 days; a fold of a random split has all of them, any other its share.
    """

    def __init__(self, rows):
        lat, lon = (side.ravel() for side in np.meshgrid(np.linspace(28, 48, 6), np.linspace(-120, -70, 8)))
        self.lat, self.lon = lat, lon
        self._cells = {
            key: (0 if kind == "random" else fold % folds, 1 if kind == "random" else folds, rmse)
            for key, kind, fold, folds, rmse in zip(
                rows["key"], rows["kind"], rows["fold"], rows["folds"], rows["test_rmse"], strict=True
            )
        }

    def _sums(self, key, units):
        _, _, rmse = self._cells[key]
        wave = 1 + 0.05 * np.sin(units * rmse)  # arms differ from unit to unit
        sums = np.zeros((len(units), 6))
        sums[:, 0], sums[:, 3], sums[:, 5] = 10, 10 * (rmse * wave) ** 2, 4000
        return units, sums

    def of(self, key, part="test"):
        first, step, _ = self._cells[key]
        return self._sums(key, np.arange(first, 48, step))

    def by_day(self, key):
        return self._sums(key, np.arange(60))


def lose(rows, at, state, error=None):
    """The rows with some cells failed or missing, as the store returns them."""
    rows = rows.copy()
    rows.loc[at, [column for column in rows.columns if column.startswith(("test_", "wr_", "n_"))]] = math.nan
    rows.loc[at, "state"] = state
    rows.loc[at, "error"] = error
    return rows


FACTS = {
    "study": "toy",
    "title": "Does <location> help?",
    "question": "Where & when?",
    "protocol": "strict",
    "table": "toy.parquet",
    "data_fingerprint": "abc123",
    "sites": 12,
    "days": 30,
    "observed": 340,
    "first_day": "2021-01-01",
    "last_day": "2021-01-30",
    "encoders": {"geoclip": "f00d"},
    "numerics": 1,
    "settings": {"train": {"epochs": 5, "batch": 256}, "model": {"width": 32}},
    "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
}
PICTURES = [
    Figure("cells-rmse", b"<svg>1</svg>", b"\x89PNG 1", "svg", "Every <cell>", "One dot & one cell."),
    Figure("split-map", b"<svg>2</svg>", b"\x89PNG 2", "png", "A map", "Albers."),
]


def digests(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


_COMPUTED = {}
"""Report data by its input, because many tests report the same rows."""


def made(
    rows, facts=FACTS, claims=(), *, analysis=None, looks=NO_LADDERS, brief=False, stored=False, **fields
):
    key = pickle.dumps((rows, claims, analysis, looks, brief, stored))
    if key not in _COMPUTED:
        sums = Stored(rows) if stored else None
        _COMPUTED[key] = data.build_report_data(
            rows, {}, analysis, claims, sums=sums, looks=looks, brief=brief
        )
    return dataclasses.replace(_COMPUTED[key], facts=facts, **fields)


def written(tmp_path, rows, facts=FACTS, claims=(), **more):
    write.write(made(rows, facts, claims, **more), tmp_path)
    return (tmp_path / "index.html").read_text(), (tmp_path / "report.md").read_text()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_its_files_and_nothing_else(tmp_path):
    out = tmp_path / "new" / "folder"
    paths = write.write(made(grid()), out)
    assert [path.relative_to(out).as_posix() for path in paths] == PAGES + LATEX
    assert names(out) == sorted(PAGES + LATEX)


def backwards(facts):
    """The same facts, their keys in the opposite order at every depth."""
    return {k: backwards(v) if isinstance(v, dict) else v for k, v in reversed(facts.items())}


def test_same_bytes_in_one_process(tmp_path):
    rows = lose(grid(seeds=(0,)), 3, "failed", HOSTILE)
    write.write(made(rows, pictures=PICTURES), tmp_path / "a")
    again = data.build_report_data(rows.copy(), backwards(FACTS), pictures=PICTURES)
    write.write(again, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


_ELSEWHERE = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("toy", sys.argv[1])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
rows = toy.lose(toy.grid(seeds=(0,)), 3, "failed", toy.HOSTILE)
toy.write.write(toy.made(rows, pictures=toy.PICTURES), pathlib.Path(sys.argv[2]))
print(*sorted(name for name in ("ray", "mlflow", "torch", "matplotlib.pyplot") if name in sys.modules))
"""


def test_same_bytes_in_two_processes_and_nothing_heavy_is_loaded(tmp_path):
    write.write(made(lose(grid(seeds=(0,)), 3, "failed", HOSTILE), pictures=PICTURES), tmp_path / "here")
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _ELSEWHERE, __file__, str(tmp_path / "elsewhere")],
        env={**os.environ, "PYTHONHASHSEED": other_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
    assert digests(tmp_path / "here") == digests(tmp_path / "elsewhere")


def test_tables_load_no_figure_library():
    code = "import sys, sweeps.report.write; print('matplotlib' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


class _Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.urls = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


def test_the_page_loads_nothing_and_runs_nothing(tmp_path):
    page, text = written(tmp_path, lose(grid(), 3, "failed", HOSTILE), pictures=PICTURES)
    loads = _Loads()
    loads.feed(page)
    assert all(url.startswith(("data:", "#")) for url in loads.urls)
    assert sum(url.startswith("data:image/svg") for url in loads.urls) == 1
    assert sum(url.startswith("data:image/png") for url in loads.urls) == 1
    assert not {"script", "iframe", "object", "b"} & set(loads.tags)
    assert not re.search(r"https?://|@import|url\(", page)
    assert "&lt;script&gt;alert(" in page
    assert "Does &lt;location&gt; help?" in page
    assert "<script" not in text
    anchors = {url[1:] for url in loads.urls if url.startswith("#")}
    assert anchors
    assert all(f'id="{anchor}"' in page for anchor in anchors)


# The answer


def declared(better="geoclip", than="none", split="random", metric="rmse", part="test"):
    arms = (
        ArmChoice(variant=name, fusion="hadamard" if name == "geoclip" else None) for name in (better, than)
    )
    place = EvaluationPlace(split=split, part=part)
    return Claim(
        claim=f"{better} beats {than}, {split}", better=next(arms), than=next(arms), on=place, metric=metric
    )


def shows(text, *facts):
    """Assert that the text shows every fact: a number, the name of an arm, or the word of a verdict."""
    for fact in facts:
        assert fact in text, fact


EVERY = ("random", "spatial", "checkerboard-16", "checkerboards-16")


def test_the_answer_is_made_from_the_numbers():
    within, out, rest = summary.answer(made(grid(splits=EVERY), stored=True))
    shows(within, "With 'GeoCLIP · Hadamard', predictions for other places inside the network are better")
    shows(within, "spatial: RMSE 0.", "random, at these monitors: better")
    shows(out, "predictions for regions without monitors are better", "checkerboards-16: RMSE 0.5")
    shows(out, "checkerboard-16: not tested")
    shows(rest, "of 8 declared comparisons", "2 not tested", "144 cells")


def test_the_first_screen_has_the_verdicts_the_figure_and_the_sentences(tmp_path):
    picture = PICTURES[0]._replace(name="forest-rmse", small=b"<svg>small</svg>")
    page, text = written(tmp_path, grid(splits=EVERY), stored=True, pictures=[picture])
    first = page.partition("<nav")[0]
    table, figure, answer = (first.index(mark) for mark in ('class="stacked"', "<figure", 'class="answer"'))
    assert table < figure < answer
    small = base64.b64encode(b"<svg>small</svg>").decode()
    assert f'<source media="(max-width: 36rem)" srcset="data:image/svg+xml;base64,{small}">' in first
    lines = {line[0]: line[1:] for line in lines_of(text.partition("\n## ")[0])}
    assert lines["arm"] == [
        "WR: other days at these monitors · random",
        "WR: other places inside the network · spatial",
        "OoR: regions without monitors · checkerboard-16",
        "OoR: regions without monitors · checkerboards-16",
    ]
    random, spatial, board, boards = lines["GeoCLIP · Hadamard"]
    assert random.startswith("**better −0.")
    assert "; spatial: better −0." in random  # beside each other: this is about these monitors alone
    assert spatial.startswith("**better −0.")
    assert "; spatial" not in spatial
    assert board == "not tested −0.50"
    assert boards.startswith("**better −0.")
    assert lines["lat/lon"][2] == "not tested +0.25"
    for verdict in ("better", "worse", "not-tested"):
        assert f"verdict v-{verdict}" in first
        assert re.search(rf"\.v-{verdict} span::before {{ content: ", page)  # distinct without colour
    shows(first, "{kind: checkerboards, degrees: 16, origins: 15}", "share days and monitors")
    shows(first, "6 origins, df 5 to 11 of the test with the larger p.", "60 days, df ")
    shows(first, "jackknife over blocks of monitors; ")
    assert "Differs from zero" not in first


def sentences_of(page):
    """Sentences of the page outside of its tables, without what stands in brackets."""
    body = re.sub(r"<style>.*?</style>|<table.*?</table>|<nav.*?</nav>", "", page, flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "\n", body))
    text = re.sub(r"\([^()]*\)|\[[^\]]*\]|\{[^}]*\}", "", text)
    return [
        one.strip() for line in text.splitlines() for one in re.split(r"(?<=[.:;])\s", line) if one.strip()
    ]


def test_every_sentence_of_the_page_is_short(tmp_path):
    rows = second_encoder(grid(splits=EVERY))
    rows["test_tail_rmse"], rows["test_tail_recall"] = 10 * rows["test_rmse"], 0.5
    page, _ = written(tmp_path, rows, claims=[declared(), declared(split="spatial")], stored=True)
    found = sentences_of(page)
    assert len(found) > 60
    assert [one for one in found if len(one.split()) > 25] == []


def test_one_origin_is_reported_as_such(tmp_path):
    page, text = written(tmp_path, grid(splits=("checkerboard-16",)))
    contrast, _ = (
        made(grid(splits=("checkerboard-16",)))
        .contrasts["rmse"]
        .query("part == 'test' and other == 'none'")
        .to_dict("records")
    )
    assert contrast["verdict"] == "too few"
    assert "{kind: checkerboards, degrees: 16, origins: 15}" in contrast["untested"]
    assert "The gap from WR to OoR" not in page + text  # both scores are those of other monitors
    shows(section(text, "How it was tested"), "halves of one origin")
    shows(section(text, "Out of region (OoR)"), "halves of one origin")


def test_missing_cells_are_the_reason_where_the_split_has_enough_units():
    rows = grid(splits=("checkerboards-16",))
    lost = rows.index[(rows["unit"] < 3) & (rows["variant"] == "geoclip")]
    contrasts = made(lose(rows, lost, "missing")).contrasts["rmse"]
    reasons = contrasts[(contrasts["part"] == "test") & (contrasts["verdict"] == "too few")]["untested"]
    (reason,) = {*reasons}
    assert "3 origins" in reason
    assert "missing or failed" in reason
    assert "kind" not in reason


def test_the_interval_and_p_of_the_answer_by_hand():
    """Five folds' mean differences -0.5 + wobble: sd sqrt(0.025 / 4), se with 1/5 + 1/4; t(4) 2.776."""
    contrasts = made(grid(splits=("clusters",))).contrasts["rmse"]
    line = contrasts[(contrasts["arm"] == "GeoCLIP · Hadamard") & (contrasts["part"] == "test")].iloc[0]
    half = 2.7764451 * math.sqrt(0.45 * 0.025 / 4)
    assert line["low"] == pytest.approx(-0.5 - half)
    assert line["high"] == pytest.approx(-0.5 + half)


@pytest.mark.parametrize(
    ("shift", "verdict", "words"),
    [
        (-1.0, "better", "With 'lat/lon', predictions for other regions are better than without location"),
        (1.0, "worse", "With 'lat/lon', predictions for other regions are worse than without location"),
        (-0.1, "undecided", "It is undecided whether predictions for other regions are better with 'lat"),
        (0.0, "equal", "With 'lat/lon', predictions for other regions are as good as without location"),
    ],
)
def test_the_answer_has_the_verdict_of_the_test(shift, verdict, words):
    rows = grid(variants=("none", "latlon"), splits=("clusters",))
    at = rows["variant"] == "latlon"
    wobble = rows["fold"].map(dict(enumerate(WOBBLE)))
    own = rows["test_rmse"] + shift - 0.25 - (wobble * 0.95 if verdict == "equal" else 0)
    rows["test_rmse"] = rows["test_rmse"].where(~at, own)
    report = made(rows)
    contrasts = report.contrasts["rmse"]
    assert contrasts[contrasts["part"] == "test"]["verdict"].tolist() == [verdict]
    out, rest = summary.answer(report)
    shows(out, words, "95% interval", "p ")
    assert ("margin 0." in out) is (verdict == "equal")
    shows(rest, "20 of 20 cells done")


def test_what_is_not_declared_is_exploratory():
    out, _ = summary.answer(made(grid(splits=("clusters",)), claims=[declared(split="clusters", part="wr")]))
    shows(out, "'GeoCLIP · Hadamard'", "in a comparison that was not declared", "not adjusted")


def test_a_claim_that_none_is_better_is_reversed(tmp_path):
    rows, claims = grid(splits=("clusters",)), [declared("none", "latlon", split="clusters")]
    report = made(rows, claims=claims)
    out, _ = summary.answer(report)
    shows(out, "With 'lat/lon', predictions for other regions are worse than without", "[+0.10, +0.40]")
    (line,) = report.claims.to_dict("records")
    assert (line["verdict"], line["arm"], line["other"]) == ("supported", "none", "lat/lon")
    _, text = written(tmp_path, rows, claims=claims)
    first = {line[0]: line[1] for line in lines_of(text.partition("\n## ")[0])}
    assert first["lat/lon"].startswith("worse +0.25")
    assert first["GeoCLIP · Hadamard"].startswith("exploratory −0.50")


def test_the_answers_metric_is_that_of_the_claims():
    report = made(grid(splits=("clusters",)), claims=[declared(split="clusters", metric="r2")])
    assert report.metric == "r2"
    shows(summary.answer(report)[0], "R² 0.025 higher")
    assert made(grid(), claims=[declared(metric="r2"), declared()]).metric == "rmse"


def test_missing_cells_are_counted():
    rows = grid()
    first = rows.index[(rows["variant"] == "geoclip") & (rows["split"] == "random")][0]
    *_, rest = summary.answer(made(lose(rows, first, "missing")))
    shows(rest, "41 of 42 cells done, 1 missing")
    within, out, rest = summary.answer(made(lose(rows, rows.index, "missing")))
    shows(within, "Within region, no two arms can be compared yet")
    shows(out, "Out of region, no two arms")


def test_the_answer_without_a_baseline(tmp_path):
    rows = grid(variants=("latlon", "geoclip"))
    page, _ = written(tmp_path, rows)
    assert "The study has no arm &#39;none&#39;" in page
    assert 'class="stacked"' not in page.partition("<nav")[0]
    first, rest = summary.answer(made(rows))
    shows(first, "no arm 'none'")
    shows(rest, "No comparison was declared", "28 of 28 cells")


# What is not there


def test_a_failed_cell_is_named_and_never_a_number(tmp_path):
    rows = lose(grid(), [2, 3], "failed", HOSTILE)
    rows.loc[2, "test_rmse"] = 123456.789
    page, text = written(tmp_path, rows)
    everything = "".join((tmp_path / name).read_text() for name in names(tmp_path))
    assert "123456" not in everything
    assert "1.23e" not in everything
    assert "n=8/10" in page
    assert "(n=8/10)" in text
    assert "Failures" in page
    assert "8 done, 2 failed" in page
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert list(cells.columns) == ["key", "arm", *rows.columns[1:]]
    assert cells.loc[[2, 3], "test_rmse"].isna().all()
    assert list(cells.loc[[2, 3], "error"]) == [HOSTILE, HOSTILE]


@pytest.mark.parametrize("state", ["done", "missing"])
def test_empty_sections_do_not_appear_and_completeness_does(tmp_path, state):
    page, text = written(tmp_path, lose(grid(), grid().index, state) if state == "missing" else grid())
    for title in ("Completeness", "How it was tested", "Provenance"):
        assert f"<h2>{title}</h2>" in page
        assert f"## {title}" in text
    for title in (
        "Failures",
        "Claims",
        "Search",
        "Published values",
        "Controls",
        "Comparability",
        "Maps",
        "Ranks",
    ):
        assert f"<h2>{title}</h2>" not in page
        assert f"## {title}\n" not in text
    assert "Leakage audit" not in page + text
    assert tables.AUDIT_FAILED not in page + text


@pytest.mark.parametrize(
    "rows",
    [
        grid(seeds=(0,)),
        grid(splits=("random", "spatial")),
        grid(splits=("checkerboard-8",)),
        grid(variants=("latlon", "geoclip")),
        grid(variants=("none",)),
        lose(grid(), grid().index, "missing"),
        lose(grid(), grid().index, "failed", HOSTILE),
        grid(splits=("random", "spatial", "checkerboard-8", "checkerboard-16", "checkerboard-30")),
        grid().iloc[:1],
        grid().iloc[:0],
    ],
    ids=[
        "one seed",
        "no board",
        "no WR",
        "no none",
        "one arm",
        "missing",
        "failed",
        "all",
        "one cell",
        "none",
    ],
)
def test_every_kind_of_study_has_a_report(tmp_path, rows, capsys):
    page, text = written(tmp_path, rows)
    has_board = bool((rows["regime"] == "OoR").any())
    assert ("Out of region" in page) is has_board
    assert ("Out of region" in text) is has_board
    assert not re.search(r"\b(nan|<na>|inf)\b", re.sub(r"title=\"[^\"]*\"", "", page + text).lower())
    write.print_summary(made(rows, brief=True))
    assert ("Out of region" in capsys.readouterr().out) is has_board


def test_facts_may_be_few(tmp_path):
    page, text = written(tmp_path, grid(), {"study": "toy", "protocol": "strict"})
    assert "<h1>toy</h1>" in page
    assert text.startswith("# toy\n")


# Its tables


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def lines_of(text):
    return [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


def test_means_have_their_interval_and_best(tmp_path):
    page, text = written(tmp_path, grid())
    head, _, *lines = lines_of(section(text, "Within region (WR)"))
    assert head[1:] == ["WR splits · random, at these monitors", "OoR splits · checkerboard-16"]
    found = {line[0]: line[1:] for line in lines[:3]}
    assert found["none"][0].startswith("*9.25 ± ")
    assert found["GeoCLIP · Hadamard"][0].startswith("**8.75 ± ")
    assert found["lat/lon"][0].startswith("9.50 ± ")
    assert found["none"][1] == "*8.25 ± 0.65 (n=4)*"  # WR sites of checkerboard-16: one origin
    assert "±: standard deviation" in text
    assert 'title="10 of 10 cells, 5 folds, 2 seeds (cells.csv: arm none, split random' in page
    assert re.search(r'<td class="best"[^>]*><span>8\.75</span>', page)
    assert re.search(r'<td class="second"[^>]*><span>9\.25</span>', page)


def test_out_of_region_by_size_and_direction(tmp_path):
    _, text = written(tmp_path, grid(splits=("checkerboard-8", "checkerboard-16")))
    head, _, none, *_ = lines_of(section(text, "Out of region (OoR)"))
    assert head[1:] == [
        f"checkerboard-{size} · {what}" for size in (8, 16) for what in ("all", "colour 0", "colour 1")
    ]
    assert none[1:4] == ["*9.75 ± 0.65 (n=4)*", "*9.25 ± 0.35 (n=2)*", "*10.25 ± 0.35 (n=2)*"]


def test_scores_of_stored_predictions_are_pooled_and_have_an_interval(tmp_path):
    _, text = written(tmp_path, grid(splits=("random", "spatial")), stored=True)
    own = section(text, "Within region (WR)")
    found = {line[0]: line[1:] for line in lines_of(own)[2:5]}
    # Squares average: sqrt of the mean of (7 + fold + seed / 2)^2 over five folds and two seeds.
    squares = [(7 + fold + seed / 2) ** 2 for fold in range(5) for seed in (0, 1)]
    pooled = float(found["none"][0].strip("*").partition(" ")[0])
    assert pooled == pytest.approx(math.sqrt(sum(squares) / 10), abs=0.05)
    assert all("\\[" in entry for entry in found["none"])
    shows(own, "pooled", "share days and monitors")


def rotating():
    """Rows of checkerboards whose held-out part rotates: both scores are those of the same monitors."""
    rows = grid(splits=("checkerboards-16",))
    parts = [
        rows.assign(fold=5 * rows["fold"] + part, key=rows["key"].str[:31] + f"{part}") for part in range(5)
    ]
    board = pd.concat(parts, ignore_index=True)
    same = board["fold"] // 5 % 2  # both colours of an origin have one error, so that a gap has one value
    for name in ("test_rmse", "wr_rmse"):
        board[name] -= same
    return board.assign(split="checkerboards-16-rotate")


def test_the_gap_needs_a_rotation_and_has_no_best(tmp_path):
    _, text = written(tmp_path, rotating())
    own = section(text, "The gap from WR to OoR")
    assert lines_of(own)[2][:2] == ["none", "+1.50 (n=120)"]
    assert "**+1" not in own
    _, text = written(tmp_path / "other", grid(splits=("checkerboards-16",)))
    assert "The gap from WR to OoR" not in text


def test_differences_name_their_estimand_unit_df_and_test(tmp_path):
    _, text = written(tmp_path, grid(splits=("clusters", "checkerboard-16")))
    own = section(text, "Paired differences")
    lines = {line[0]: line[1:] for line in lines_of(own)}
    heading = next(name for name in lines if name.startswith("**OoR: clusters"))
    shows(heading, "other regions; corrected t over folds")
    legacy = next(name for name in lines if name.startswith("**OoR: checkerboard-16"))
    shows(legacy, "regions without monitors", "without a test")
    geoclip = [line for line in lines_of(own) if line[0] == "GeoCLIP · Hadamard"]
    assert geoclip[0][1:11] == [
        "−0.50\\* \\[−0.65, −0.35\\]", "10 of 10", "5", "4", "<0.001".replace("<", "&lt;"), "0.001",
        "&gt;0.99", "&lt;0.01", "&lt;0.01", "better",
    ]  # fmt: skip
    shows(own, "\\* Differs from zero", "p ≤ 0.05 after Holm")
    contrasts = pd.read_csv(tmp_path / "contrasts.csv", keep_default_na=False)
    for name in ("estimand", "unit", "n_units", "se", "df", "test", "untested", "sensitivity"):
        assert name in contrasts
    tested = contrasts[contrasts["p"] != ""]
    assert (tested[["estimand", "unit", "df", "test"]] != "").all(axis=None)


def test_every_number_leads_to_its_cells(tmp_path):
    rows = grid()
    written(tmp_path, rows, claims=[declared()])
    contrasts = pd.read_csv(tmp_path / "contrasts.csv", keep_default_na=False)
    line = contrasts[
        (contrasts["arm"] == "GeoCLIP · Hadamard")
        & (contrasts["split"] == "random")
        & (contrasts["metric"] == "rmse")
        & (contrasts["other"] == "none")
    ].iloc[0]
    cells = pd.read_csv(tmp_path / "cells.csv", keep_default_na=False).set_index("key")
    of_arm, of_other = (cells.loc[line[name].split("; ")] for name in ("keys_arm", "keys_other"))
    assert (of_arm["arm"] == "GeoCLIP · Hadamard").all()
    assert (of_other["arm"] == "none").all()
    assert of_arm["test_rmse"].mean() - of_other["test_rmse"].mean() == pytest.approx(float(line["diff"]))
    claims = pd.read_csv(tmp_path / "claims.csv", keep_default_na=False)
    assert claims["keys_arm"].tolist() == [line["keys_arm"]]
    page = (tmp_path / "index.html").read_text()
    assert "cells.csv: arm GeoCLIP · Hadamard, split random, part test" in page
    assert "cells.csv: arm GeoCLIP · Hadamard, split checkerboard-16, fold 1, part test" in page
    means = pd.read_csv(tmp_path / "means.csv", keep_default_na=False)
    assert {*means["metric"]} == {*SCORES}
    assert "checkerboard-16 · colour 1 held out" in {*means["split"]}


def second_encoder(rows):
    """The rows with a second fusion of GeoCLIP and its shuffled and random controls."""
    own = rows[rows["variant"] == "geoclip"]
    more = [
        own.assign(fusion="concat"),
        own.assign(variant="shuffled"),
        own.assign(variant="random"),
        rows[rows["variant"] == "none"].assign(fusion="hadamard"),
    ]
    for i, frame in enumerate(more):
        frame["key"] = f"x{i}" + frame["key"].str.slice(2)
        frame["test_rmse"] += 0.25 * (i + 1)
    return pd.concat([rows, *more], ignore_index=True)


def test_ablations_and_controls(tmp_path):
    _, text = written(tmp_path, second_encoder(grid()))
    fusion = lines_of(section(text, "Fusion ablation"))
    assert [line[0] for line in fusion[2:]] == ["GeoCLIP · concat"]
    assert fusion[0][0] == "arm minus 'GeoCLIP · Hadamard'"
    assert fusion[2][1].startswith("+0.25 ")
    encoder = [line[0] for line in lines_of(section(text, "Encoder ablation"))[2:]]
    assert encoder == ["GeoCLIP · Hadamard", "GeoCLIP · concat"]  # minus lat/lon
    controls = {line[0]: line[1] for line in lines_of(section(text, "Controls"))[2:]}
    assert list(controls) == [
        f"GeoCLIP · Hadamard − {other}"
        for other in ("shuffled GeoCLIP · Hadamard", "random · Hadamard", "none · matched Hadamard")
    ]
    assert controls["GeoCLIP · Hadamard − random · Hadamard"].startswith("−0.75 ")
    assert "exploratory unless a claim declares them" in section(text, "Controls")


def test_the_tail_has_a_section_where_cells_have_its_scores(tmp_path):
    rows = grid()
    rows["test_tail_rmse"], rows["test_tail_recall"] = 10 * rows["test_rmse"], 0.5
    rows.loc[0, ["state", "error"]] = "failed", "E: x"
    rows.loc[0, "test_tail_rmse"] = 123456.0  # left behind by a failure: no number
    _, text = written(tmp_path, rows)
    own = section(text, "The tail")
    lines = {line[0]: line[1:] for line in lines_of(own)[2:5]}
    assert lines["none"][0].startswith("95.0 ")  # nine cells, without the one of 70
    assert lines["none"][0].endswith("(n=9/10)")
    assert lines["lat/lon"][0].startswith("*95.0 ")
    assert "recall" in own
    assert "tail: precision" not in own
    assert "**0.500" not in own  # all alike: none is best
    _, text = written(tmp_path / "without", grid())
    assert "## The tail" not in text


def test_claims_have_their_verdicts(tmp_path):
    claims = [
        declared(split="clusters"),
        declared("latlon", split="clusters"),
        declared(split="checkerboard-16"),
        declared("latlon", split="no"),
    ]
    _, text = written(tmp_path, grid(splits=("clusters", "checkerboard-16")), claims=claims)
    own = lines_of(section(text, "Claims"))[2:]
    assert [line[:2] for line in own] == [
        ["geoclip beats none, clusters", "supported"],
        ["latlon beats none, clusters", "refuted"],
        ["geoclip beats none, checkerboard-16", "not tested"],
        ["latlon beats none, no", "no pairs yet"],
    ]
    assert own[0][2].endswith("RMSE on clusters: other regions")
    assert own[0][5:] == ["corrected t over folds 5 regions (df 4)"]
    shows(own[2][-1], "{kind: checkerboards, degrees: 16, origins: 15}")
    assert (tmp_path / "latex" / "claims.tex").exists()


def test_a_claim_at_these_monitors_says_what_the_spatial_split_says(tmp_path):
    _, text = written(tmp_path, grid(splits=("random", "spatial")), claims=[declared()], stored=True)
    (line,) = lines_of(section(text, "Claims"))[2:]
    assert line[1].startswith("supported spatial: exploratory −0.")
    assert "RMSE on random, at these monitors" in line[2]


def test_published_values_are_marked_and_in_no_mean(tmp_path):
    value = {"variant": "none", "metric": "r2"}
    published = Published(
        source="A paper, second-hand",
        values=(
            PublishedValue(**value, split="random", value=0.73, sd=0.035),
            PublishedValue(**value, split="checkerboard-16", fold=1, value=0.64),
            PublishedValue(variant="satclip", fusion="hadamard", split="random", metric="r2", value=0.68),
        ),
    )
    page, text = written(tmp_path, grid(), published=published)
    first, second, third = lines_of(section(text, "Published values"))[2:]
    assert first[3] == "0.73 ± 0.035¶"
    assert first[4].startswith("0.537 ")
    assert first[5] == "−0.193"
    assert second[1] == "checkerboard-16 · colour 1 held out"
    assert second[4].startswith("0.487 ")
    assert third[4] == "not in this study"
    own = page.split('id="published"')[1].split("</section>")[0]
    assert re.search("<caption><span>[^<]*second-hand[^<]*</span></caption>", own)
    assert ">published (second-hand)</th>" in own
    assert "second-hand" in (tmp_path / "latex" / "published.tex").read_text()
    assert "second-hand" not in (tmp_path / "means.csv").read_text()


def test_adaptive_seeds_and_the_rule_are_reported(tmp_path):
    one = {
        "arm": "latlon", "variant": "latlon", "fusion": None, "other": "none", "other_variant": "none",
        "other_fusion": None, "split": "random", "part": "test", "metric": "rmse", "looks": [1, 2],
        "seeds": 2, "max": 2, "stopped": "decided",
    }  # fmt: skip
    _, text = written(tmp_path, grid(), seeds=[one], rule="Every arm has 1 seed.", looks=Ladders((1, 2)))
    own = section(text, "How it was tested")
    shows(own, "Every arm has 1 seed.", "Each p is multiplied by 2")
    assert ["lat/lon − none", "random, at these monitors", "RMSE", "1, 2", "2 of 2", "decided"] in lines_of(
        own
    )


def test_how_it_was_tested_names_the_studys_own_settings(tmp_path):
    _, text = written(tmp_path, grid(), analysis=Analysis(alpha=0.1, rope=0.02))
    own = section(text, "How it was tested")
    shows(own, "90%", "0.02", "Holm", "practical equivalence", "4 declared contrasts")
    lines = {line[0]: line[1:] for line in lines_of(own)}
    random = lines["random, at these monitors"]
    assert random[:4] == ["other days at these monitors", "day", "56", tables.ABSENT]
    assert lines["checkerboard-16"][:4] == ["regions without monitors", "origin", "5", "1"]


def test_searches_show_their_budget_and_importance(tmp_path):
    searches = pd.DataFrame(
        [["none", "8 of 8", 1, 0, 40, "0:06:00", "RMSE WR 7.00 (trial 3)"]],
        columns=["arm", "trials", "pruned", "failed", "epochs", "time (h:min:s)", "best"],
    )
    importance = pd.DataFrame(
        [["none", "train.learning_rate", 0.75], ["none", "model.dropout", 0.25]],
        columns=["arm", "parameter", "importance"],
    )
    _, text = written(tmp_path, grid(), searches=searches, parameters=importance)
    own = section(text, "Search")
    assert ["none", "8 of 8", "1", "0", "40", "0:06:00", "RMSE WR 7.00 (trial 3)"] in lines_of(own)
    assert ["none", "0.75", "0.25"] in lines_of(own)


def test_a_matched_head_is_compared_with_the_plain_none(tmp_path):
    rows = second_encoder(grid())
    rows = rows[~rows["variant"].isin(["shuffled", "random"])].reset_index(drop=True)
    _, text = written(tmp_path, rows)
    own = section(text, "Paired differences")
    assert any(line[0] == "none · matched Hadamard" and line[1].startswith("+1.00") for line in lines_of(own))


# Marks


def test_cells_that_failed_their_audit_are_marked_and_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = grid()
    rows.loc[rows["variant"] == "geoclip", "marked"] = "encoder_trained_on_target"
    rows.loc[rows.index[rows["variant"] == "latlon"][:3], "marked"] = "shared_sites; fitted_scalers_test"
    page, text = written(tmp_path, rows)
    (caution,) = summary.cautions(made(rows))
    shows(caution, "17 cells", "failed the leakage audit", "†")
    write.print_summary(made(rows, brief=True))
    for content in (text, write.markdown_summary(made(rows, brief=True)), capsys.readouterr().out):
        assert "8.75†" in content
        assert "9.50†" in content
        assert "9.25 " in content
    lines = lines_of(section(text, "Leakage audit"))
    assert lines[0] == ["failed check", "arm", "split", "cells"]
    assert sorted(lines[2:]) == [
        ["encoder\\_trained\\_on\\_target", "GeoCLIP · Hadamard", "checkerboard-16", "4"],
        ["encoder\\_trained\\_on\\_target", "GeoCLIP · Hadamard", "random", "10"],
        ["shared\\_sites; fitted\\_scalers\\_test", "lat/lon", "random", "3"],
    ]
    assert page.split('id="audit"')[1].split("</section>")[0].count("encoder_trained_on_target") == 2
    assert r"8.75}\textsuperscript{\textdagger{}}" in (tmp_path / "latex" / "wr.tex").read_text()


TORCH = "torch 2.12.0 against 2.13.0"


def unequal(rows):
    """The rows with another torch in lat/lon's cells of fold 0, and in all of GeoCLIP's."""
    at = (rows["variant"] == "geoclip") | ((rows["variant"] == "latlon") & (rows["fold"] == 0))
    return rows.assign(unfair=at.map({True: TORCH, False: ""}))


def test_confounded_contrasts_are_marked_and_explained(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    rows = unequal(grid())
    page, text = written(tmp_path, rows)
    assert "−0.50‡ (n=4)" in text
    assert "5.4% lower‡" in text
    (caution,) = summary.cautions(made(rows))
    shows(caution, "6 of 6 contrasts", "confounded (‡)")
    head, _, *lines = lines_of(section(text, "Comparability"))
    assert head == ["arm", "against", "split", "other difference"]
    assert sorted(lines) == [
        # By how either differs from 'none': in the pairs in which lat/lon has the same torch as 'none'.
        ["GeoCLIP · Hadamard", "lat/lon", "checkerboard-16", f"in 2 of 4 pairs: {TORCH}"],
        ["GeoCLIP · Hadamard", "lat/lon", "random", f"in 8 of 10 pairs: {TORCH}"],
        ["GeoCLIP · Hadamard", "none", "random, checkerboard-16", f"in every pair: {TORCH}"],
        ["lat/lon", "none", "checkerboard-16", f"in 2 of 4 pairs: {TORCH}"],
        ["lat/lon", "none", "random", f"in 2 of 10 pairs: {TORCH}"],
    ]
    assert page.split('id="comparability"')[1].split("</section>")[0].count(TORCH) == 5
    reason = f"‡ GeoCLIP · Hadamard against none on random, checkerboard-16: in every pair: {TORCH}"
    write.print_summary(made(rows, brief=True))
    assert reason in capsys.readouterr().out.splitlines()
    assert f"\n- {reason}" in write.markdown_summary(made(rows, brief=True))


def test_tuned_settings_are_declared_and_not_marked(tmp_path):
    rows = grid()
    tuned = rows["variant"].map({"geoclip": "train.learning_rate 0.003 against 0.001"}).fillna("")
    chosen = {
        "GeoCLIP · Hadamard": {"train.learning_rate": "0.003", "model.width": "64"},
        "none": {"train.learning_rate": "0.001"},
    }
    page, text = written(tmp_path, rows.assign(tuned=tuned), {**FACTS, "tuned": chosen})
    assert tables.CONFOUNDED not in page + text
    assert "Comparability" not in page + text
    assert re.search(r"^- .*'none': train\.learning\\_rate\.$", text, re.MULTILINE)
    assert lines_of(section(text, "Search"))[2:] == [
        ["none", "not tuned", "0.001"],
        ["lat/lon", "not tuned", "not tuned"],
        ["GeoCLIP · Hadamard", "64", "0.003"],
    ]


@pytest.mark.parametrize("protocol", ["paper", "strict"])
def test_the_published_protocol_carries_its_warning(tmp_path, protocol):
    page, text = written(tmp_path, grid(), {**FACTS, "protocol": protocol})
    assert ("published protocol, leaks included" in page) is (protocol == "paper")
    assert ("published protocol, leaks included" in text) is (protocol == "paper")


# Small outputs


def test_the_brief_and_the_terminal_show_one_metric_with_the_answer(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    report = made(lose(grid(), [0, 1, 2, 3], "failed", "E: [red]x"), brief=True)
    assert {*report.means} == {"rmse"}
    text = write.markdown_summary(report)
    write.print_summary(report)
    shown = capsys.readouterr().out
    assert text.startswith("Where &amp; when?\n\nWith '")
    for content in (text, shown):
        assert "n=6/10" in content
        assert "declared comparisons" in content
        assert "R²" not in content
        assert "other days at these monitors" in content
        assert "{kind: checkerboards, degrees: 16, origins: 15}" in content
    assert "Out of region (OoR): RMSE (µg/m³)" in shown


def test_pictures_stand_in_the_page_and_beside_it(tmp_path):
    page, _ = written(tmp_path, grid(), pictures=PICTURES)
    for picture in PICTURES:
        assert (tmp_path / "figures" / f"{picture.name}.svg").read_bytes() == picture.svg
        assert (tmp_path / "figures" / f"{picture.name}.png").read_bytes() == picture.png
    assert page.count(base64.b64encode(PICTURES[0].svg).decode()) == 1
    assert page.count(base64.b64encode(PICTURES[1].png).decode()) == 1
    assert 'alt="Every &lt;cell&gt;"' in page
    assert "One dot &amp; one cell." in page


def test_a_stopped_write_leaves_the_old_report(tmp_path, monkeypatch):
    write.write(made(grid()), tmp_path)
    before = digests(tmp_path)

    def full_disk(path, data):
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write.write(made(grid(seeds=(5,))), tmp_path)
    assert digests(tmp_path) == before
