"""The report is understood without the code: its words, marks, regions, settings and truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

from pm25.metrics import METRICS
from sweeps.analysis import labels, results
from sweeps.analysis.reach import Distances, Reach
from sweeps.report import summary, tables
from sweeps.report.figures import style
from sweeps.report.figures.style import Figure
from sweeps.report.sections import methods, sections
from sweeps.spec.search_space import Search
from tests.sweeps.report import test_coverage_section, test_figures, test_write
from tests.sweeps.report.test_write import declared, grid, lines_of, made, section, shows, written


@pytest.mark.parametrize("metric", ["rmse", "r2", "mae"])
def test_the_first_screen_explains_its_words(tmp_path: Path, metric: str) -> None:
    page, _ = written(tmp_path, grid(), claims=[declared(metric=metric)])
    first = page.partition("<nav")[0]
    shows(first, "Arm: ", "WR, within region: ", "OoR, out of region: ", METRICS[metric].meaning)
    shows(first, "Data: toy.parquet, 12 sites, 2021-01-01 to 2021-01-30, 340 daily observations.")


def test_a_study_without_facts_on_its_data_has_no_line_about_them() -> None:
    assert summary.data_line(made(grid(), {"study": "toy"})) == ""
    synthetic = {**test_write.FACTS, "synthetic": {"sites": 12}, "observed": 12345}
    shows(summary.data_line(made(grid(), synthetic)), "a synthetic panel", "12,345 daily observations")


@pytest.mark.parametrize(
    ("truth", "counts"),
    [
        ((True, False), "2 agree with it, 0 contradict it, and 0 leave it open"),
        ((False, False), "1 agree with it, 1 contradict it, and 0 leave it open"),
        ((True, None), "1 agree with it, 0 contradict it, and 0 leave it open"),
    ],
)
def test_a_known_truth_stands_beside_the_verdicts(
    tmp_path: Path, truth: tuple[bool | None, ...], counts: str
) -> None:
    """GeoCLIP is better and lat/lon is worse, so the second claim is refuted."""
    pair = declared(split="clusters"), declared("latlon", split="clusters")
    claims = [claim.model_copy(update={"truth": is_so}) for claim, is_so in zip(pair, truth, strict=True)]
    _, text = written(tmp_path, grid(splits=("clusters",)), claims=claims, declared=claims)
    shows(text.partition("\n## ")[0], counts)
    own = section(text, "Claims")
    shows(own, "Known truth: ")
    words = {True: "true", False: "not true", None: tables.ABSENT}
    assert [line[2] for line in lines_of(own)[2:]] == [words[is_so] for is_so in truth]


def test_no_truth_is_claimed_where_none_is_known() -> None:
    claims = [declared(split="clusters")]
    found = summary.cautions(made(grid(splits=("clusters",)), claims=claims, declared=claims))
    assert not any("truth" in sentence for sentence in found)


def test_a_difference_that_was_not_declared_is_marked_where_no_verdict_stands(tmp_path: Path) -> None:
    _, text = written(tmp_path, grid(splits=("clusters",)), claims=[declared(split="clusters")])
    own = section(text, "Out of region (OoR)")
    differences = [line for line in lines_of(own) if line[0] in ("lat/lon", "GeoCLIP · Hadamard")]
    marked = {line[0] for line in differences if tables.EXPLORATORY in line[1]}
    assert marked == {"lat/lon", "GeoCLIP · Hadamard"}  # GeoCLIP by the metrics that no claim is about
    (rmse,) = [line for line in differences if line[0] == "GeoCLIP · Hadamard" and "\\*" in line[1]]
    assert tables.EXPLORATORY not in rmse[1]
    shows(own, f"{tables.EXPLORATORY} Exploratory: not declared")


def test_an_interval_without_width_is_not_shown() -> None:
    blank = {"metric": "tail_recall", "arm": "none", "split": "random", "part": "test", "n_marked": 0}
    blank |= {"n": 5, "n_expected": 5, "n_units": 5, "n_seeds": 1, "mean": 0.0, "sd": 0.0}
    assert tables.mean({**blank, "low": 0.0, "high": 0.0}).line() == "0.000 (n=5)"
    assert tables.mean({**blank, "low": math.nan, "high": math.nan}).line() == "0.000 (n=5)"


def test_every_figure_is_in_one_section() -> None:
    pictures = [Figure(name, b"", b"", "svg", "", "") for name in test_figures.NAMES]
    covered = pd.DataFrame([test_coverage_section.line("none", "random", "WR")])
    nearest = Distances(np.ones(3), np.ones(2), {"random": np.ones(2)})
    report = made(grid(), pictures=pictures, coverage=covered, reach=Reach(nearest, pd.DataFrame()))
    shown = [picture.name for one in sections(report) for picture in one.pictures]
    assert sorted(shown) == sorted(test_figures.NAMES)


@pytest.mark.parametrize(
    ("split", "regions"),
    [
        ("checkerboards-16", [("origin", 0), ("origin", 0), ("origin", 1), ("origin", 1)]),
        ("checkerboards-16-rotate", [("origin", 0)] * 4),
        ("checkerboard-16", [("colour", 0), ("colour", 1), ("colour", 2), ("colour", 3)]),
        ("clusters", [("region", 0), ("region", 1), ("region", 2), ("region", 3)]),
    ],
)
def test_both_halves_of_an_origin_have_one_look(split: str, regions: list[tuple[str, int]]) -> None:
    assert [labels.region(split, fold) for fold in range(4)] == regions
    looks = [style.fold_look(split, fold) for fold in range(4)]
    assert [looks.index(look) for look in looks] == [regions.index(region) for region in regions]


def test_the_legend_of_regions_names_every_region_of_a_look() -> None:
    cells = pd.DataFrame({"regime": "OoR", "split": "checkerboards-16", "fold": range(16)})
    canvas = Canvas(layout="constrained")
    ax = canvas.subplots()
    style.fold_legend(canvas, ax, cells, "")
    assert ax.get_legend_handles_labels()[1] == [
        "origins 0, 6", "origins 1, 7", "origin 2", "origin 3", "origin 4", "origin 5",
    ]  # fmt: skip


def test_the_settings_of_a_search_name_its_split_and_the_shares_by_split() -> None:
    search = Search.model_validate(
        {
            "trials": 1,
            "space": {"train.learning_rate": {"float": [0.001, 0.1]}},
            "split": [{"kind": "random", "folds": 5, "fold": [0]}],
            "seed": 100,
        }
    )
    shares = {("spatial", fold): 0.0 for fold in range(11)} | {("random", 0): 0.25, ("random", 1): 0.5}
    found = results._search(search, shares)
    assert found["split"][0]["split"]["kind"] == "random"
    assert found["test samples used by the search"] == {
        "spatial": "0% in each fold",
        "random": "fold 0: 25%, fold 1: 50%",
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("0.014808620655062938", "0.01481"),
        ("0.005", "0.005"),
        ("128", "128"),
        ("not tuned", "not tuned"),
        ("1, 2", "1, 2"),
    ],
)
def test_tuned_numbers_are_short_and_exact_on_hover(text: str, shown: str) -> None:
    entry = methods._tuned(text)
    assert entry.text == shown
    assert entry.source == ("" if text == shown else text)


def test_a_wide_table_of_texts_is_stacked_on_a_small_screen(tmp_path: Path) -> None:
    page, _ = written(tmp_path, grid(splits=("clusters",)), claims=[declared(split="clusters")])
    for anchor in ("claims", "testing"):
        own = page.split(f'id="{anchor}"')[1].split("</section>")[0]
        assert 'class="stacked"' in own
        assert 'data-head="' in own
        assert 'data-head=" ·' not in own
