"""Figures from small frames: the same bytes twice, legible text, and no figure without data."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from pm25.metrics import SCORES
from pm25.splits import BlocksSplit, CheckerboardSplit, CheckerboardsSplit, GroupSplit
from sweeps.analysis import artifacts
from sweeps.analysis.artifacts import Curves
from sweeps.analysis.reach import Distances
from sweeps.analysis.results import SplitMap
from sweeps.report import figures
from sweeps.report.figures import Figure, maps, style
from sweeps.report.figures.cells import distances, points, wr_to_oor
from sweeps.report.figures.contrasts import forest, wr_against_oor
from sweeps.report.figures.maps import difference_map, error_map, error_maps, map_limits, split_map
from sweeps.report.figures.predictions import density, tail
from sweeps.report.figures.training import learning, parameter_importance, permutations, search_history
from sweeps.store.records import Store

BOARD = "checkerboard-16"
ARMS = {"none": ("none", None), "lat/lon": ("latlon", None), "GeoCLIP · Hadamard": ("geoclip", "hadamard")}
SHIFT = {"none": 0.0, "lat/lon": 0.25, "GeoCLIP · Hadamard": -0.5}
OUTLINES = [np.array([[-100.0, 40.0], [-99.0, 40.0], [-99.0, 41.0], [-100.0, 40.0]])]


def rows(state: str = "done") -> pd.DataFrame:
    lines = []
    for arm, (variant, fusion) in ARMS.items():
        for split, folds in (("random", 3), (BOARD, 2)):
            for fold in range(folds):
                board = split == BOARD
                rmse = 7.0 + SHIFT[arm] + fold + board
                line: dict[str, Any] = {
                    "key": f"{variant}-{split}-{fold}",
                    "variant": variant,
                    "fusion": fusion,
                    "split": split,
                    "regime": "OoR" if board else "WR",
                    "kind": "checkerboard" if board else "random",
                    "unit": 0 if board else fold,
                    "fold": fold,
                    "folds": folds,
                    "seed": 0,
                    "state": state,
                }
                for part, value in (("test", rmse), ("wr", rmse - 1.5 if board else math.nan)):
                    numbers = (value, 1 - value / 20, 0.75 * value, 0.1 * value)
                    line |= {f"{part}_{m}": v for m, v in zip(SCORES, numbers, strict=True)}
                    line |= {f"{part}_rmse_km_0_25": value, f"{part}_rmse_km_250_": value + 1}
                lines.append(line)
    return pd.DataFrame(lines)


PLACES = [("WR", "random", "test", 3), ("WR", BOARD, "wr", 2), ("OoR", BOARD, "test", 2)]


def contrast_lines() -> pd.DataFrame:
    lines = []
    for (regime, split, part, n), arm in ((p, a) for p in PLACES for a in ARMS if a != "none"):
        few = n < 3
        line = {"arm": arm, "other": "none", "split": split, "part": part, "regime": regime, "metric": "rmse"}
        line |= {"estimand": "a place with a name that does not fit on one line of a panel"}
        line |= {"fold": pd.NA, "n_units": n, "diff": SHIFT[arm], "rope": 0.07, "declared": True}
        line |= {"low": math.nan if few else SHIFT[arm] - 0.2, "high": math.nan if few else SHIFT[arm] + 0.2}
        lines.append(line | {"verdict": "too few" if few else "better" if SHIFT[arm] < 0 else "undecided"})
    return pd.DataFrame(lines)


def means() -> pd.DataFrame:
    lines = []
    for (regime, split, part, n), arm in ((p, a) for p in PLACES for a in ARMS):
        line = {"arm": arm, "split": split, "part": part, "regime": regime, "metric": "rmse", "n_units": n}
        line |= {"mean": 7 + SHIFT[arm] + (part == "wr"), "low": math.nan, "high": math.nan}
        lines.append(line)
    return pd.DataFrame(lines)


def curves() -> Curves:
    lines = [
        (arm, split, epoch, 8 - epoch / 4 + SHIFT[arm], 7 - epoch / 4, 9 - epoch / 4, 2)
        for arm in ARMS
        for split in ("random", BOARD)
        for epoch in range(1, 5)
    ]
    columns = ["arm", "split", "epoch", "mean", "low", "high", "n"]
    return Curves(pd.DataFrame(lines, columns=columns), 10, 15)


def importance() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "split": "random", "what": what, "rmse_increase": rise, "sd": 0.1, "n": 1}
            for arm in ARMS
            for what, rise in (("wind", 0.5), ("place", 0.2), ("day_cos", -0.01))
        ]
    )


def trials() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "number": i, "state": state, "objective": "WR RMSE (µg/m³)"}
            | {"value": 8 - i / 2 if state == "done" else math.nan, "smaller_is_better": True}
            | {"fold": ""}
            for arm in ARMS
            for i, state in enumerate(("done", "pruned", "done", "failed"))
        ]
    )


def parameters() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"arm": arm, "parameter": name, "importance": share}
            for arm in ARMS
            for name, share in (("train.learning_rate", 0.7), ("model.width", 0.3))
        ]
    )


def cuts() -> list[SplitMap]:
    lat, lon = (grid.ravel() for grid in np.meshgrid([30.0, 38.0, 46.0], [-118.0, -102.0, -86.0, -70.0]))
    names = np.array(["train", "validation", "wr", "test"])
    frame = pd.DataFrame(
        {"site_id": np.arange(12).astype("str"), "lat": lat, "lon": lon, "role": np.resize(names, 12)}
    )
    return [
        SplitMap(CheckerboardSplit(degrees=16, origin=(4.0, 2.0)), {0: frame, 1: frame}),
        SplitMap(GroupSplit(column="state", values=("CA", "TX", "NY")), {0: frame}),
    ]


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> artifacts.Predicted:
    store, rng = Store(str(tmp_path_factory.mktemp("store")), "toy"), np.random.default_rng(0)
    cells = rows()[rows()["variant"] != "latlon"]  # two arms are enough for the maps
    for key in cells["key"]:
        truth = rng.gamma(2, 8, 400)
        site = rng.integers(0, 6, 400)
        store.write_table(
            key,
            "predictions",
            {
                "part": np.where(np.arange(400) % 4, "test", "wr"),
                "site_id": np.array(list("abcdef"))[site],
                "date": np.datetime64("2021-01-01") + np.arange(400) % 90,
                "lat": 30.0 + 3 * site,
                "lon": -120.0 + 9 * site,
                "truth": truth.astype("float32"),
                "prediction": (truth * rng.uniform(0.4, 1.2, 400)).astype("float32"),
            },
        )
    found = artifacts.predictions(store, cells)
    assert found is not None
    return found


def draw_all(sums: artifacts.Predicted) -> list[Figure]:
    return figures.draw(
        rows(),
        contrasts=contrast_lines(),
        means=means(),
        predicted=sums,
        curves=curves(),
        importance=importance(),
        reach=nearest(),
        trials=trials(),
        parameters=parameters(),
        monitors=by_monitor(),
        coverage=covered(),
        cuts=cuts(),
        outlines=OUTLINES,
    )


def nearest() -> Distances:
    """Distances of a map and of two splits, one with a long name and longer distances."""
    rng = np.random.default_rng(0)
    splits = {"random": rng.gamma(2, 10, 60), "checkerboard-16-shift4x2-buffer100": rng.gamma(2, 300, 60)}
    return Distances(rng.gamma(2, 40, 200), rng.gamma(2, 12, 80), splits)


def by_monitor() -> pd.DataFrame:
    """Groups of monitors of both splits, one of which has no interval."""
    groups = [
        {
            "split": split,
            "arm": "GeoCLIP · Hadamard",
            "factor": factor,
            "group": group,
            "monitors": 1414,
            "diff": -0.4,
            "low": low,
            "high": low + 0.6,
        }
        for split in ("random", BOARD)
        for factor, group, low in (
            ("setting", "URBAN AND CENTER CITY", -0.7),
            ("setting", "RURAL", math.nan),
            ("nearest training monitor", "315 to 365 km", -0.8),
        )
    ]
    return pd.DataFrame(groups)


def covered() -> pd.DataFrame:
    """Coverage of two arms in three regions; the second arm has none out of region."""
    places = [
        (regime, split, part) for regime, split, part in (("WR", "random", "test"), ("OoR", BOARD, "test"))
    ]
    lines = [
        {"arm": arm, "regime": regime, "split": split, "part": part, "level": 0.9, "region": region}
        | {
            "coverage": math.nan if arm == "none" and regime == "OoR" else value,
            "low": low,
            "high": low + 0.1,
        }
        for arm in ("none", "GeoCLIP · Hadamard")
        for regime, split, part in places
        for region, value, low in (("all regions", 0.9, 0.85), ("a", 0.7, math.nan), ("b", 1.0, math.nan))
    ]
    return pd.DataFrame(lines)


NAMES = [
    *("forest-rmse", "wr-oor-rmse", "cells-rmse", "wr-to-oor-rmse", "cells-r2", "wr-to-oor-r2"),
    *("distance", "distance-wr", "reach", "split-checkerboard-16-shift4x2", "split-group-state-ca-tx-ny"),
    "monitors",
    "coverage-by-region",
    "difference-geoclip-hadamard",
    *(f"errors-checkerboard-16-{arm}" for arm in ("none", "geoclip-hadamard")),
    *("density-random", "tail-random", "density-checkerboard-16", "tail-checkerboard-16"),
    *("learning", "importance", "search-history", "search-importance"),
]


class Drawn(NamedTuple):
    """Every figure, with what is written in it."""

    figures: list[Figure]
    texts: list[tuple[str, float]]
    """Texts with their sizes in points."""
    beyond: list[str]
    """Texts that leave the page."""
    widths: list[float]
    """Widths of the figures in inches."""


@pytest.fixture(scope="module")
def drawn(sums: artifacts.Predicted) -> Drawn:
    """All figures, drawn once for all tests of this module."""
    found = Drawn([], [], [], [])
    draw = style.FigureCanvasAgg.print_png

    def recorded(backend: Any, *arguments: Any, **named: Any) -> None:
        draw(backend, *arguments, **named)
        canvas = backend.figure
        found.widths.append(canvas.get_figwidth())
        page = canvas.bbox
        for text in {*canvas.findobj(Text)} - _not_drawn(canvas):
            if text.get_visible() and text.get_text().strip():
                found.texts.append((text.get_text(), text.get_fontsize()))
                box = text.get_window_extent()
                within = page.x0 - 2 <= box.x0 and box.x1 <= page.x1 + 2
                if not (within and page.y0 - 2 <= box.y0 and box.y1 <= page.y1 + 2):
                    found.beyond.append(text.get_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style.FigureCanvasAgg, "print_png", recorded)
        found.figures.extend(draw_all(sums))
    return found


def test_every_figure_is_legible(drawn: Drawn) -> None:
    """Text has at least 7 points and stays on the page on all sides; a figure is at most a page wide."""
    assert [figure.name for figure in drawn.figures] == NAMES
    assert max(drawn.widths) <= style.WIDTH
    assert len(drawn.texts) > 300
    assert [text for text, size in drawn.texts if size < 7] == []
    assert drawn.beyond == []
    for figure in drawn.figures:
        assert figure.svg.startswith(b"<?xml")
        assert figure.png.startswith(b"\x89PNG")
        assert figure.alt
        assert figure.caption.endswith(".")
        assert b"<dc:date>" not in figure.svg


def test_every_kind_of_figure_has_the_same_bytes_twice(sums: artifacts.Predicted, drawn: Drawn) -> None:
    arms = list(ARMS)
    again = [
        forest(contrast_lines()),
        wr_against_oor(means(), arms=arms),
        points(rows()),
        wr_to_oor(rows()),
        distances(rows()),
        split_map(cuts()[0], OUTLINES),
        difference_map(sums, arms[-1], ["random", BOARD], OUTLINES),
        *error_maps(sums, [BOARD], OUTLINES)[:1],
        density(sums, BOARD),
        tail(sums, BOARD, arms),
        learning(curves(), arms),
        permutations(importance(), arms),
        search_history(trials()),
        parameter_importance(parameters(), arms),
    ]
    first = {figure.name: figure for figure in drawn.figures}
    assert len({figure.name for figure in again if figure}) == 14
    assert all(figure and figure == first[figure.name] for figure in again)


def _not_drawn(canvas: Any) -> set[Any]:
    """Texts of panels that are left out, and of ticks beyond the ends of their axis."""
    found: set[Any] = set()
    for ax in canvas.axes:
        if not ax.get_visible():
            found |= {*ax.findobj(Text)}
        for axis, limits, at in ((ax.xaxis, ax.get_xlim(), 0), (ax.yaxis, ax.get_ylim(), 1)):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                for text in (tick.label1, tick.label2):
                    if not ax.axison or not min(limits) <= text.get_position()[at] <= max(limits):
                        found.add(text)
    return found


def test_the_name_of_an_arm_cannot_break_a_figure(sums: artifacts.Predicted) -> None:
    assert style.slug("GeoCLIP · Hadamard/<b>") == "geoclip-hadamard-b"
    frame = sums.site_errors("none", "random")
    assert error_map(frame, "<&> $x_1$", "random").name == "errors-random-x-1"


def test_no_figure_without_data() -> None:
    empty = rows("missing")
    assert figures.draw(empty) == []
    assert figures.draw(empty.iloc[:0]) == []
    nothing = pd.DataFrame
    assert (
        figures.draw(
            empty,
            contrasts=contrast_lines().assign(diff=math.nan),
            means=means().assign(mean=math.nan),
            curves=Curves(nothing(columns=curves().frame.columns), 0, 0),
            importance=nothing(columns=importance().columns),
            trials=trials().assign(value=math.nan),
            parameters=nothing(columns=parameters().columns),
        )
        == []
    )
    for make, frame in (
        (forest, contrast_lines()),
        (wr_against_oor, means()),
    ):
        draw: Callable[[pd.DataFrame], Figure | None] = make
        assert draw(frame.iloc[:0]) is None


@pytest.mark.usefixtures("undrawn")
def test_a_figure_for_every_metric_given() -> None:
    both = pd.concat([contrast_lines(), contrast_lines().assign(metric="r2", verdict="equal")])
    names = [figure.name for figure in figures.draw(rows(), contrasts=both)]
    assert names[:2] == ["forest-rmse", "forest-r2"]
    claimed = contrast_lines().assign(fold=1)  # a single direction: the claims have its line
    assert forest(claimed) is None
    assert forest(contrast_lines().assign(verdict="")) is None  # a bias has no better


@pytest.mark.usefixtures("undrawn")
def test_one_arm_alone(sums: artifacts.Predicted) -> None:
    alone = rows()[rows()["variant"] == "none"]
    assert figures.best_encoder(alone) is None
    names = [figure.name for figure in figures.draw(alone, predicted=sums)]
    assert not any(name.startswith("difference") for name in names)


def test_the_best_encoder_is_complete_and_not_a_control() -> None:
    frame = rows()
    assert figures.best_encoder(frame) == "GeoCLIP · Hadamard"
    control = frame[frame["variant"] == "geoclip"].assign(variant="random", test_rmse=1.0)
    assert figures.best_encoder(pd.concat([frame, control])) == "GeoCLIP · Hadamard"
    better = frame[frame["variant"] == "geoclip"].assign(fusion="film", test_rmse=1.0, test_r2=0.1)
    both = pd.concat([frame, better], ignore_index=True)
    assert figures.best_encoder(both) == "GeoCLIP · film"
    assert figures.best_encoder(both, "r2") == "GeoCLIP · Hadamard"
    lost = both["fusion"].eq("film") & both["split"].eq(BOARD) & both["fold"].eq(1)
    both.loc[lost, "state"] = "failed"
    assert figures.best_encoder(both) == "GeoCLIP · Hadamard"


@pytest.mark.usefixtures("undrawn")
def test_captions_say_what_was_left_out() -> None:
    curve = learning(curves())
    assert curve is not None
    assert {"10", "15"} <= {*re.findall(r"\d+", curve.caption)}  # cells read, of cells done
    few = permutations(importance(), most=2)
    assert few is not None
    assert {"2", "3"} <= {*re.findall(r"\d+", few.caption)}
    region = split_map(cuts()[1])
    assert region is not None
    assert {"1", "3"} <= {*re.findall(r"\d+", region.caption)}


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("split", "folds"),
    [(CheckerboardsSplit(degrees=16, origins=3), 6), (BlocksSplit(folds=4, deals=2), 8)],
)
def test_a_map_of_a_repeated_split_shades_what_each_fold_holds_out(
    monkeypatch: pytest.MonkeyPatch, split: Any, folds: int
) -> None:
    drawn: list[list[np.ndarray]] = []
    collection = maps.PolyCollection

    def draw(shapes: list[np.ndarray], **options: Any) -> Any:
        if options["facecolors"] != "none":
            drawn.append(shapes)
        return collection(shapes, **options)

    monkeypatch.setattr(maps, "PolyCollection", draw)
    frame = cuts()[0].roles[0]
    found = split_map(SplitMap(split, {1: frame, folds - 1: frame}))
    assert found is not None
    assert str(folds) in re.findall(r"\d+", found.caption)
    first, last = drawn
    assert first
    assert last
    assert {shape.tobytes() for shape in first} != {shape.tobytes() for shape in last}  # another grid
    if isinstance(split, BlocksSplit):
        assert len(first) == 3  # one around each test site


def test_map_limits_are_shared_and_robust() -> None:
    frame = pd.DataFrame({"bias": [-1.0, 2.0, math.nan], "rmse": [3.0, 5.0, math.inf]})
    assert map_limits([frame]) == (pytest.approx(1.98), pytest.approx(4.96))
    assert map_limits([]) == (1.0, 1.0)
    assert map_limits([frame.iloc[2:]]) == (1.0, 1.0)


def test_the_projection_is_albers() -> None:
    """Snyder (1987), p. 292: 35 N 75 W on the unit sphere, origin 23 N 96 W; here the origin is 37.5 N."""
    x, y = maps._albers(np.array([35.0, 23.0]), np.array([-75.0, -96.0]))
    radius = 6371.0088
    assert x[0] / radius == pytest.approx(0.2952720, abs=2e-7)
    assert (y[0] - y[1]) / radius == pytest.approx(0.2416774, abs=2e-7)


def test_sites_elsewhere_are_not_cut_off() -> None:
    frame = pd.DataFrame(
        {"site_id": ["hi"], "lat": [21.3], "lon": [-157.8], "n": [1], "bias": [0.0], "rmse": [1.0]}
    )
    with_hawaii, without = (error_map(f, "none", "random") for f in (frame, frame.iloc[:0]))
    assert with_hawaii.svg.count(b"PathCollection") == without.svg.count(b"PathCollection") == 2
    assert with_hawaii.svg != without.svg


def test_the_user_s_matplotlibrc_changes_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl

    plain = points(rows())
    with mpl.rc_context({"font.size": 20, "svg.hashsalt": None, "axes.facecolor": "red"}):
        assert points(rows()) == plain
        assert mpl.rcParams["font.size"] == 20


def test_every_arm_has_its_own_look() -> None:
    looks = style.arm_looks(["none", *map(str, range(36))])
    assert len({*looks.values()}) == 37
    assert style.arm_looks(["7", "none"], list(map(str, range(36)))) == {
        "7": looks["7"],
        "none": looks["none"],
    }


def test_svg_letters_are_paths(sums: artifacts.Predicted) -> None:
    figure = density(sums, "random")
    assert figure is not None
    assert not re.search(rb"<text\b", figure.svg)
