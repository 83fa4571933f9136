"""Differences by group of monitors, against hand-computed ones, and how monitors are divided."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pm25 import panel, splits
from pm25.geo import great_circle_km
from pm25.sources import synthetic
from sweeps.analysis import by_monitor, statistics
from sweeps.analysis.artifacts import Predicted, PredictionGroup
from sweeps.analysis.by_monitor import Monitors
from sweeps.spec.claims import Analysis
from sweeps.store.records import Store
from tests import worlds
from tests.errors import refuses

LAT, LON = (grid.ravel() for grid in np.meshgrid(np.arange(26.0, 49, 4), np.arange(-122.0, -67, 4)))
SITES = len(LAT)
NAMES = np.array([f"s{i:03d}" for i in range(SITES)])
ARM, OTHER = "lat/lon", "none"


def rows(kind: str, folds: int, seeds: int = 1) -> pd.DataFrame:
    """Done cells of two arms on one split; two folds of checkerboards make an origin."""
    return pd.DataFrame(
        {
            "key": f"{variant}-{fold}-{seed}",
            "arm": arm,
            "variant": variant,
            "fusion": None,
            "split": kind,
            "kind": kind,
            "regime": "OoR" if kind.startswith("checker") else "WR",
            "fold": fold,
            "seed": seed,
            "unit": fold // 2 if kind.startswith("checker") else fold,
            "state": "done",
        }
        for variant, arm in (("none", OTHER), ("latlon", ARM))
        for fold in range(folds)
        for seed in range(seeds)
    )


def sums_of(cells: pd.DataFrame, rng: np.random.Generator) -> Predicted:
    """Random sums of every cell at every site, ten samples each."""
    sums, pools = {}, {}
    for key, arm, split in zip(cells["key"], cells["arm"], cells["split"], strict=True):
        totals = np.zeros((SITES, 6))
        totals[:, statistics.N] = 10
        totals[:, statistics.E2] = rng.gamma(2, 50, SITES)
        sums[key, "test"] = np.arange(SITES, dtype=np.int32), totals
        pools[PredictionGroup(arm, split, "test")] = None
    store = Store("nowhere", "toy")
    return Predicted(NAMES, LAT, LON, sums, {}, pools, cells, store)  # type: ignore[arg-type]


def monitors(**changes: Any) -> Monitors:
    nothing = Monitors(NAMES, {}, np.zeros(SITES, int), {})
    return nothing._replace(**changes)


def group(frame: pd.DataFrame, factor: str, name: str) -> dict[Any, Any]:
    (line,) = frame[(frame["factor"] == factor) & (frame["group"] == name)].to_dict("records")
    return line


def test_the_difference_of_a_group_is_that_of_its_pooled_rmse() -> None:
    cells = rows("spatial", 2, seeds=2)
    sums = sums_of(cells, np.random.default_rng(0))
    frame = by_monitor.differences(sums, cells, Analysis(), monitors())
    line = group(frame, "region", "Northwest")
    own = (LAT >= 39) & (LON < -98)
    squares = {
        variant: sum(
            sums.of(f"{variant}-{fold}-{seed}")[1][own, statistics.E2] for fold in (0, 1) for seed in (0, 1)
        )  # type: ignore[index]
        for variant in ("none", "latlon")
    }
    n = 4 * 10 * own.sum()
    rmse = {variant: math.sqrt(total.sum() / n) for variant, total in squares.items()}
    assert (line["monitors"], line["n"]) == (own.sum(), n)
    assert line["rmse"] == pytest.approx(rmse["none"])
    assert line["diff"] == pytest.approx(rmse["latlon"] - rmse["none"])
    assert line["gain"] == (squares["latlon"] < squares["none"]).mean()


def test_the_interval_of_a_group_is_that_of_the_jackknife_over_its_blocks() -> None:
    cells = rows("spatial", 2)
    sums = sums_of(cells, np.random.default_rng(1))
    setting = np.where(LON < -116, "COAST", np.where(np.arange(SITES) % 3 == 0, "RURAL", "URBAN"))
    frame = by_monitor.differences(sums, cells, Analysis(alpha=0.1), monitors(columns={"setting": setting}))
    own = setting == "RURAL"
    a, b = (totals[own] for totals in sums.pair(ARM, OTHER, "spatial"))
    known = statistics.block_jackknife_of_totals(
        a, b, LAT[own], LON[own], degrees=8, metric="rmse", offsets=4, level=0.9
    )
    line = group(frame, "setting", "RURAL")
    assert (line["diff"], line["low"], line["high"]) == (known.estimate, known.low, known.high)
    assert math.isnan(group(frame, "setting", "COAST")["low"])  # two columns of three blocks


def test_on_checkerboards_the_origins_are_the_units() -> None:
    cells = rows("checkerboards", 10)
    sums = sums_of(cells, np.random.default_rng(2))
    line = group(by_monitor.differences(sums, cells, Analysis(), monitors()), "region", "Southwest")
    own = (LAT < 39) & (LON < -98)

    def rmse(variant: str, fold: int) -> float:
        return math.sqrt(sums.of(f"{variant}-{fold}-0")[1][own, statistics.E2].mean() / 10)  # type: ignore[index]

    by_fold = [rmse("latlon", fold) - rmse("none", fold) for fold in range(10)]
    by_origin = np.reshape(by_fold, (5, 2)).mean(axis=1)
    half = stats.t.ppf(0.975, 4) * math.sqrt((1 / 5 + 1) * by_origin.var(ddof=1))
    assert line["diff"] == pytest.approx(by_origin.mean())
    assert (line["low"], line["high"]) == pytest.approx((by_origin.mean() - half, by_origin.mean() + half))


def test_with_four_origins_there_is_no_interval() -> None:
    cells = rows("checkerboards", 8)
    frame = by_monitor.differences(sums_of(cells, np.random.default_rng(3)), cells, Analysis(), monitors())
    assert frame["low"].isna().all()
    assert frame["diff"].notna().all()


def test_monitors_without_a_value_and_small_groups_are_left_out() -> None:
    cells = rows("spatial", 2)
    setting = np.where(np.arange(SITES) < 40, "RURAL", "")
    setting[-4:] = "URBAN"
    frame = by_monitor.differences(
        sums_of(cells, np.random.default_rng(4)), cells, Analysis(), monitors(columns={"setting": setting})
    )
    of_setting = frame[frame["factor"] == "setting"]
    assert of_setting[["group", "monitors"]].to_numpy().tolist() == [["RURAL", 40]]


@given(st.lists(st.one_of(st.integers(0, 6), st.floats(0, 3000)), min_size=1, max_size=60))
def test_thirds_hold_every_number_between_their_edges(numbers: list[float]) -> None:
    values = np.array(numbers, float)
    factor = by_monitor._in_thirds("distance", values, "km")
    assert len(factor.groups) <= 3
    for value, number in zip(values, factor.group, strict=True):
        low, _, high = factor.groups[number].removeprefix("below ").removesuffix(" or more").partition(" to ")
        edges = [float(text.removesuffix(" km").replace(",", "")) for text in (low, high) if text]
        if factor.groups[number].startswith("below"):
            assert value < edges[0]
        elif factor.groups[number].endswith("more"):
            assert value >= edges[0]
        else:
            assert edges[0] <= value < edges[1]


def test_distances_and_numbers_of_monitors_are_those_of_the_panel() -> None:
    world = worlds.synthetic_panel(sites=30, days=60)
    split = splits.SpatialSplit(folds=3)
    cut = {("spatial", fold): splits.cut(split, fold, world, 21) for fold in range(3)}
    found = by_monitor.monitors(world, {}, cut)
    km = great_circle_km(world.lat[:, None], world.lon[:, None], world.lat, world.lon)
    for site in range(30):
        folds = [indices for indices in cut.values() if site in indices.test // 60]
        nearest = [km[site, np.unique(indices.train // 60)].min() for indices in folds]
        assert found.nearest_km["spatial"][site] == pytest.approx(
            np.mean(nearest) if folds else math.nan, nan_ok=True
        )
        others = np.isfinite(world.target).any(axis=1) & (np.arange(30) != site)
        assert found.around[site] == (km[site, others] <= 100).sum()


def test_columns_of_the_sites_are_read_beside_the_panel(tmp_path: Path) -> None:
    path = tmp_path / "panel.parquet"
    frame = synthetic.synthesize(sites=9, days=30)
    setting = dict(zip(sorted(frame["site_id"].unique()), [*"RRUUSSRU", None], strict=True))
    frame["setting"] = frame["site_id"].map(setting)
    frame.loc[frame.index[0], "setting"] = None  # a site's other rows have it
    frame.sample(frac=1, random_state=0).to_parquet(path)
    assert panel.site_values(path, ["setting"])["setting"].tolist() == [*"RRUUSSRU", ""]
    with refuses(path.name, "settings"):
        panel.site_values(path, ["settings"])
    frame.loc[frame.index[5], "setting"] = "X"
    frame.to_parquet(path)
    with refuses(path.name, "setting", "'R' and 'X'"):
        panel.site_values(path, ["setting"])


def test_a_group_of_places_without_monitors_around_is_called_none() -> None:
    found = by_monitor._in_thirds("monitors within 100 km", np.array([0, 0, 0, 1, 1, 2.0]), "")
    assert [found.groups[i] for i in found.group] == ["none"] * 3 + ["1 or more"] * 3
    assert by_monitor._in_thirds("distance", np.array([0, 0, 0, 1, 1, 2.0]), "km").groups[1] == "0 to 1 km"
