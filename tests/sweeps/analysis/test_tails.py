"""Metrics and repeats for heavy tails: RMSE by monitor, leverage, and claims without their episode."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from scipy import stats

from pm25.metrics import scores
from sweeps.analysis import artifacts, episodes, inference, statistics
from sweeps.analysis.episodes import CellEpisodes, Episode, Pair
from sweeps.report import data, summary, write
from sweeps.report.sections import results as results_sections
from sweeps.report.sections.claims import claims as claims_section
from sweeps.spec import study_file
from sweeps.spec.claims import Analysis, Claim
from sweeps.spec.design import NO_LADDERS
from sweeps.store.records import Store
from sweeps.tracking import parent_metrics
from tests.errors import refuses

START = 18_809  # 2021-07-01, in days since 1970
DAYS = 84
LAT, LON = (axis.reshape(-1) for axis in np.meshgrid(np.arange(27.0, 49, 5.3), np.arange(-123.0, -68, 5.7)))
SITES = [f"s{i:03d}" for i in range(len(LAT))]
ARMS = ("none", "latlon")


def world(
    store: Store,
    split: str,
    folds: int,
    error: Callable[[int, np.random.Generator, np.ndarray, np.ndarray], np.ndarray],
    seeds: int = 1,
) -> pd.DataFrame:
    """Store two arms' predictions of every site and day, and return the rows of their cells.

    `error` draws an arm's errors from its number, a generator, the sites (n,) and the days (n,).
    """
    site, day = (axis.reshape(-1) for axis in np.meshgrid(np.arange(len(SITES)), np.arange(DAYS)))
    lines = []
    for seed in range(seeds):
        noise = np.random.default_rng(seed)
        draw = np.random.default_rng(100 + seed)
        truth = draw.gamma(2, 5, len(site))
        state = noise.bit_generator.state
        for number, arm in enumerate(ARMS):
            noise.bit_generator.state = state
            prediction = truth + error(number, noise, site, day)
            for fold in range(folds):
                kind = split.split("-")[0]
                tests = {
                    "random": (site * 7 + day * 3) % folds == fold,
                    "spatial": site % folds == fold,
                    "checkerboards": (site + (fold // 2) * (site // 3)) % 2 == fold % 2,
                }[kind]
                at = np.flatnonzero(tests)
                key = f"{arm}-{fold}-{seed}"
                store.write_table(
                    key,
                    "predictions",
                    {
                        "part": pa.array(["test"] * len(at)).dictionary_encode(),
                        "site_id": pa.array([SITES[i] for i in site[at]]).dictionary_encode(),
                        "lat": LAT[site[at]],
                        "lon": LON[site[at]],
                        "date": pa.array((START + day[at]).astype("int32"), pa.date32()),
                        "truth": pa.array(truth[at], pa.float32()),
                        "prediction": pa.array(prediction[at], pa.float32()),
                    },
                )
                found = scores(truth[at].astype("float32"), prediction[at].astype("float32"))
                lines.append(
                    {
                        "key": key,
                        "variant": arm,
                        "fusion": None,
                        "split": split,
                        "regime": "OoR" if kind == "checkerboards" else "WR",
                        "kind": kind,
                        "fold": fold,
                        "seed": seed,
                        "state": "done",
                        "folds": 2 if kind == "checkerboards" else folds,
                        "unit": fold // 2 if kind == "checkerboards" else fold,
                        "marked": "",
                        "unfair": "",
                        "tuned": "",
                        "error": None,
                        **dict.fromkeys(("n_train", "n_val", "n_test", "n_wr"), float(len(at))),
                        **dict.fromkeys(("epochs", "best_epoch", "seconds"), 1.0),
                        **{f"test_{name}": value for name, value in found.items()},
                    }
                )
    return pd.DataFrame(lines)


def fire(number: int, rng: np.random.Generator, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Errors of an arm that is 10 % better but in one block and a fortnight, where it is far worse."""
    errors = rng.normal(0, 3, len(site)) * (0.9 if number else 1.0)
    burns = (LAT[site] > 40) & (LAT[site] < 47) & (LON[site] < -117) & (day >= 18) & (day < 28)
    return np.where(burns, 150.0 if number else 70.0, errors)


def calm(number: int, rng: np.random.Generator, site: np.ndarray, day: np.ndarray) -> np.ndarray:
    return rng.normal(0, 3, len(site)) * (0.9 if number else 1.0)


def read(store: Store, rows: pd.DataFrame) -> artifacts.Predicted:
    found = artifacts.predictions(store, rows)
    assert found is not None
    return found


def claim(split: str, metric: str = "rmse") -> Claim:
    return Claim.model_validate(
        {
            "claim": f"the place helps on {split} by {metric}",
            "better": {"variant": "latlon"},
            "than": {"variant": "none"},
            "on": {"split": split},
            "metric": metric,
        }
    )


def judged(rows: pd.DataFrame, sums: Any, *claims: Claim, **more: Any) -> pd.Series:
    metric = claims[0].metric
    frame = inference.contrasts(rows, Analysis(), claims, metric, sums, episode=True, **more)
    return inference.claims_of({metric: frame}, claims[:1]).iloc[0]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path), "toy")


# RMSE by monitor


def test_one_per_monitor_by_hand() -> None:
    totals = np.array([[20, 0, 40, 180, 5, 9], [40, 0, 10, 40, 5, 9], [19, 0, 999, 9999, 5, 9]], float)
    found = statistics.one_per_monitor(totals, 20)
    assert found[:, statistics.N].tolist() == [1, 1, 0]
    assert found[:, statistics.ABS_E].tolist() == [3, 1, 0]
    assert statistics.score(found.sum(axis=0), "site_rmse") == 2
    assert math.isnan(statistics.score(statistics.one_per_monitor(totals, 50).sum(axis=0), "site_rmse"))


def test_the_rmse_by_monitor_of_a_spatial_split(store: Store) -> None:
    rows = world(store, "spatial", 5, fire, seeds=2)
    sums = read(store, rows)
    means = inference.means(rows, Analysis(), "site_rmse", sums).set_index("arm")
    tables = {
        arm: pd.concat(
            [
                store.read_table(key, "predictions", ["site_id", "truth", "prediction"]).to_pandas()
                for key in rows.loc[rows["variant"] == arm, "key"]
            ]
        )
        for arm in ARMS
    }
    by_hand = {
        arm: table.assign(e2=(table["prediction"] - table["truth"]).astype(float) ** 2)
        .groupby("site_id", observed=True)["e2"]
        .mean()
        .pow(0.5)
        for arm, table in tables.items()
    }
    for arm, label in (("none", "none"), ("latlon", "raw lat/lon")):
        line = means.loc[label] if label in means.index else means.iloc[ARMS.index(arm)]
        assert line["mean"] == pytest.approx(by_hand[arm].mean(), rel=1e-5)
        assert line["pooled"]
        assert line["low"] < line["mean"] < line["high"]
    frame = inference.contrasts(rows, Analysis(), (), "site_rmse", sums)
    (line,) = frame.to_dict("records")
    site = by_hand["latlon"] - by_hand["none"]
    assert line["diff"] == pytest.approx(site.mean(), rel=1e-4)
    # The jackknife of a mean over monitors: leave out each block, on both grids.
    jackknives = []
    for offset in statistics.OFFSETS[2]:
        block = statistics.blocks(LAT, LON, 8.0, offset)
        left = np.array([site.to_numpy()[block != b].mean() for b in np.unique(block)])
        n = len(left)
        se = math.sqrt((n - 1) / n * ((left - site.mean()) ** 2).sum())
        df = statistics.effective_blocks(np.bincount(block).astype(float)) - 1
        jackknives.append(2 * stats.t.sf(abs(site.mean()) / se, df))
    assert line["p"] == pytest.approx(max(jackknives), rel=1e-3)


def test_monitors_with_few_samples_do_not_count(store: Store) -> None:
    rows = world(store, "random", 5, calm)
    sums = read(store, rows)
    found = inference.with_site_rmse(rows, sums)
    # A monitor has 84 days in five folds: 16 or 17 samples in each, fewer than 20.
    assert found["test_site_rmse"].isna().all()
    assert inference.with_site_rmse(rows, None)["wr_site_rmse"].isna().all()
    assert inference.with_site_rmse(found, None) is found


def test_seeds_do_not_make_samples(store: Store) -> None:
    """A monitor with 12 samples has too few, although two seeds predict each: 24 predictions."""
    rows = world(store, "spatial", 5, calm, seeds=2)
    for key in rows["key"]:
        table = store.read_table(key, "predictions").to_pandas()
        few = (table["site_id"] == "s003") & (table["date"].astype("datetime64[ns]").dt.day > 4)
        table = table[~few]
        store.write_table(key, "predictions", {name: pa.array(table[name]) for name in table})
    rows = inference.with_site_rmse(rows, sums := read(store, rows))
    errors = sums.site_errors("none", "spatial").set_index("site_id")
    assert 20 <= errors.loc["s003", "n"] < 40
    mean = inference.means(rows, Analysis(), "site_rmse", sums).set_index("variant").loc["none", "mean"]
    assert mean == pytest.approx(errors["rmse"].drop("s003").mean())


def test_a_monitor_counts_where_one_of_its_seeds_is_missing(store: Store) -> None:
    """Each monitor has 30 samples, which are enough in one cell. One fold lacks a seed of both arms."""
    rows = world(store, "spatial", 5, calm, seeds=2)
    for key in rows["key"]:
        table = store.read_table(key, "predictions").to_pandas()
        table = table[table["date"].astype("datetime64[ns]").rank(method="dense") <= 30]
        store.write_table(key, "predictions", {name: pa.array(table[name]) for name in table})
    rows = rows[(rows["fold"] > 0) | (rows["seed"] == 0)].reset_index(drop=True)
    sums = read(store, rows)
    (line,) = inference.contrasts(rows, Analysis(), (), "site_rmse", sums).to_dict("records")
    errors = sums.site_errors("none", "spatial")
    assert len(errors) == len(SITES)
    assert line["mean_other"] == pytest.approx(errors["rmse"].mean())


def test_days_have_no_rmse_by_monitor(store: Store) -> None:
    rows = world(store, "random", 3, calm)  # 28 samples of each monitor and fold
    frame = inference.contrasts(rows, Analysis(), (), "site_rmse", read(store, rows))
    assert frame.loc[0, "diff"] < 0
    assert frame.loc[0, "verdict"] == "too few"
    assert "day" in frame.loc[0, "untested"]


def test_origins_test_the_rmse_by_monitor(store: Store) -> None:
    rows = world(store, "checkerboards-16", 12, calm)
    found = judged(rows, read(store, rows), claim("checkerboards-16", "site_rmse"))
    assert found["verdict"] == "supported"
    assert found["n_units"] == 6
    assert found["diff"] == pytest.approx(-0.3, abs=0.02)
    assert found["without_verdict"] == "supported"


# Leverage


def test_leverage_is_the_brute_force(store: Store) -> None:
    rows = world(store, "spatial", 4, fire)
    frame = read(store, rows).leverage()
    assert len(frame) == 2
    tables = [
        store.read_table(key, "predictions").to_pandas() for key in rows.loc[rows["variant"] == "none", "key"]
    ]
    table = pd.concat(tables).reset_index(drop=True)
    table["e2"] = (table["prediction"].astype(float) - table["truth"].astype(float)) ** 2
    line, total = frame.iloc[0], table["e2"].sum()
    assert line["n"] == len(table) == len(SITES) * DAYS
    largest = table["e2"].sort_values(ascending=False).to_numpy()
    for name, share in (("top_permille", 0.001), ("top_percent", 0.01)):
        k = share * len(table)
        by_hand = largest[: int(k)].sum() + (k - int(k)) * largest[int(k)]
        assert line[name] == pytest.approx(by_hand / total, rel=0.02)
    by_site = table.groupby("site_id", observed=True)["e2"].sum().nlargest(10)
    assert line["monitors"] == pytest.approx(by_site.sum() / total)
    date = pd.to_datetime(table["date"].astype("datetime64[ns]"))
    weeks = table["e2"].groupby(date.dt.to_period("W-SUN")).sum()
    assert line["week"] == pytest.approx(weeks.max() / total)
    assert line["week_first"] == str(weeks.idxmax().start_time.date())
    assert line["top_percent"] > 0.7, "the fire"


def test_leverage_without_an_error(store: Store) -> None:
    rows = world(store, "spatial", 4, lambda number, rng, site, day: 0.0 * site)
    assert read(store, rows).leverage().empty


# Episodes


def test_labels_and_numbers_of_episodes() -> None:
    day = np.array([4 - 3 - 4, 0, 3, 4, 11, 18])  # 1970-01-01 was a Thursday
    numbers = episodes.of_samples(day, np.full(6, 45.0), np.full(6, -120.0), everywhere=True)
    assert numbers.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]]
    assert Episode(7, 1, 0, 0).label == "1970-01-05 to 1970-01-11, all monitors"
    (own,) = episodes.of_samples(
        np.array([START + 18]), np.array([42.0]), np.array([-121.0]), everywhere=False
    )
    found = Episode(14, *map(int, own))
    assert found.label == "2021-07-19 to 2021-08-01, 41 to 49 °N, 117 to 125 °W"
    inside = episodes.inside(
        found,
        np.array([START + 17, START + 18, START + 31, START + 32, START + 20]),
        np.array([42.0, 42, 48, 42, 40]),
        np.full(5, -121.0),
    )
    assert inside.tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
def test_the_most_influential_episode_is_the_brute_force(pooled: bool, metric: str) -> None:
    rng = np.random.default_rng(4)

    def cell() -> CellEpisodes:
        numbers = np.unique(rng.integers(0, 4, (9, 3)), axis=0)
        n = rng.integers(1, 9, len(numbers)).astype(float)
        truth = rng.gamma(2, 5, len(numbers))
        error = rng.standard_t(2, len(numbers)) * 3
        columns = [n, n * error, n * abs(error), n * error**2, n * truth, n * (truth**2 + 1)]
        return CellEpisodes(numbers, np.stack(columns, axis=1))

    pairs = [Pair(fold, cell(), cell()) for fold in (0, 0, 1, 2) for _ in range(2)]

    def difference(without: tuple[int, ...] | None) -> float:
        def total(one: CellEpisodes) -> np.ndarray:
            kept = [tuple(number) != without for number in one.episode.tolist()]
            return np.asarray(one.totals[kept].sum(axis=0))

        if pooled:
            sides = [sum(total(getattr(pair, side)) for pair in pairs) for side in ("arm", "other")]
            return float(statistics.score(sides[0], metric) - statistics.score(sides[1], metric))
        by_fold: dict[int, list[float]] = {}
        for pair in pairs:
            value = statistics.score(total(pair.arm), metric) - statistics.score(total(pair.other), metric)
            by_fold.setdefault(pair.fold, []).append(float(value))
        return float(np.mean([np.mean(values) for values in by_fold.values()]))

    every = {tuple(number) for pair in pairs for side in pair[1:] for number in side.episode.tolist()}
    moved = {one: abs(difference(one) - difference(None)) for one in every}
    found = episodes.most_influential(pairs, metric, pooled=pooled, everywhere=False)
    assert found is not None
    assert found[1:] == max(moved, key=lambda one: moved[one])
    assert found.days == 14
    by_monitor = episodes.most_influential(pairs, "site_rmse", pooled=pooled, everywhere=True)
    of_rmse = episodes.most_influential(pairs, "rmse", pooled=pooled, everywhere=True)
    assert by_monitor == of_rmse
    assert episodes.most_influential([], metric, pooled=pooled, everywhere=False) is None


def test_predictions_are_read_again_without_an_episode(store: Store) -> None:
    rows = world(store, "spatial", 4, fire)
    sums = read(store, rows)
    key = "none-0-0"
    cells = sums.by_episode([key], everywhere=False)
    assert cells is not None
    of_cell = sums.of(key)
    assert of_cell is not None
    assert cells[key].totals.sum(axis=0) == pytest.approx(of_cell[1].sum(axis=0))
    number = int(np.argmax(cells[key].totals[:, 3]))
    episode = Episode(14, *map(int, cells[key].episode[number]))
    rest = sums.without([key], episode).of(key)
    assert rest is not None
    assert rest[1].sum(axis=0) == pytest.approx(of_cell[1].sum(axis=0) - cells[key].totals[number])
    assert set(rest[0]) <= set(of_cell[0])
    assert sums.by_episode(["unknown"], everywhere=False) is None
    assert sums.by_episode([key], "wr", everywhere=False) is None
    assert sums.without([key], episode, "wr").of(key, "wr") is None


@pytest.mark.parametrize(("split", "folds"), [("spatial", 5), ("checkerboards-16", 12), ("random", 5)])
def test_a_claim_that_one_fire_decides_changes(store: Store, split: str, folds: int) -> None:
    rows = world(store, split, folds, fire)
    sums = read(store, rows)
    found = judged(rows, sums, claim(split))
    assert found["verdict"] in ("undecided", "refuted")
    assert found["diff"] > 1
    week = "2021-07-19 to 2021-07-25" if split == "random" else "2021-07-19 to 2021-08-01"
    place = "all monitors" if split == "random" else "41 to 49 °N, 117 to 125 °W"
    assert found["without"] == f"{week}, {place}"
    if split == "random":  # the second week of the fire is left
        assert found["without_diff"] < found["diff"]
        return
    assert found["without_verdict"] == "supported"
    assert found["without_diff"] == pytest.approx(-0.3, abs=0.03)
    assert found["without_low"] < found["without_diff"] < found["without_high"] < 0
    assert found["without_p_adjusted"] == found["without_p"] < 0.001


def test_a_claim_that_no_episode_decides_stays(store: Store) -> None:
    rows = world(store, "spatial", 5, calm)
    found = judged(rows, read(store, rows), claim("spatial"))
    assert found["without"]
    assert (found["verdict"], found["without_verdict"]) == ("supported", "supported")
    assert found["without_diff"] == pytest.approx(found["diff"], abs=0.02)


def test_without_its_episode_a_claim_stays_in_its_family(store: Store) -> None:
    """Holm's method multiplies the smaller p of the two claims by 2; the other claim keeps its samples."""
    rows = world(store, "spatial", 5, fire)
    found = judged(rows, read(store, rows), claim("spatial"), claim("spatial", "mae"))
    other = judged(rows, read(store, rows), claim("spatial", "mae"))
    assert found["without_p"] < other["p"]
    assert found["without_p_adjusted"] == pytest.approx(2 * found["without_p"], abs=0)
    assert found["without_p"] > 0


def test_the_repeat_is_for_declared_contrasts_that_were_tested(store: Store) -> None:
    rows = world(store, "spatial", 5, calm)
    sums = read(store, rows)
    plain = inference.contrasts(rows, Analysis(), (), "rmse", sums)
    assert plain["without"].tolist() == [""]
    exploratory = inference.contrasts(rows, Analysis(), (), "mae", sums, episode=True)
    assert exploratory["without"].tolist() == [""]
    few = inference.contrasts(rows, Analysis(), (), "rmse", None, episode=True)
    assert few["without"].tolist() == [""]
    assert few["without_verdict"].tolist() == [""]


# The report


def test_the_report_says_what_changes_without_the_episode(store: Store, tmp_path: Path) -> None:
    rows = world(store, "spatial", 5, fire)
    facts = {"study": "toy", "title": "Toy", "question": "", "protocol": "strict"}
    gathered = data.build_report_data(rows, facts, None, [claim("spatial")], sums=read(store, rows))
    (line,) = gathered.claims.to_dict("records")
    ((_, entries),) = claims_section(gathered).tables[0].lines
    assert "supported" in entries[-1].text
    assert line["without"] in entries[-1].text
    (caution,) = (text for text in summary.cautions(gathered) if "episode" in text)
    assert line["without"] in caution
    assert "then better" in caution
    for section in (results_sections.within_region, results_sections.differences):
        captions = " ".join(table.caption for table in section(gathered).tables)
        assert all(name in captions for name in ("RMSE (", "RMSE by monitor", "MAE"))
    leverage = results_sections.leverage(gathered).tables[0]
    assert next(label for label, _ in leverage.lines) == "spatial"
    assert len(leverage.lines) == 3
    brief = data.build_report_data(rows, facts, None, [claim("spatial")], sums=read(store, rows), brief=True)
    assert brief.leverage is None
    assert brief.claims["without"].tolist() == [""], "the episode is not searched"
    assert not [text for text in summary.cautions(brief) if "episode" in text]
    write.write(gathered, tmp_path / "report")
    stored = pd.read_csv(tmp_path / "report" / "leverage.csv")
    assert stored["arm"].tolist() == gathered.leverage["arm"].tolist()
    written = pd.read_csv(tmp_path / "report" / "claims.csv")
    assert written["without_verdict"].tolist() == ["supported"]
    assert {"site_rmse"} <= {*pd.read_csv(tmp_path / "report" / "means.csv")["metric"]}


def test_a_claim_that_none_is_better_is_reversed_without_its_episode(store: Store) -> None:
    rows = world(store, "spatial", 5, fire)
    turned = claim("spatial").model_copy(
        update={"better": claim("spatial").than, "than": claim("spatial").better}
    )
    frame = inference.contrasts(rows, Analysis(), [turned], "rmse", read(store, rows), episode=True)
    (line,) = summary.against_none(frame[frame["arm"] == "none"].to_dict("records"))
    (plain,) = inference.contrasts(
        rows, Analysis(), [claim("spatial")], "rmse", read(store, rows), episode=True
    ).to_dict("records")
    for name in ("without_diff", "without_low", "without_high", "without_verdict", "without_p"):
        assert line[name] == pytest.approx(plain[name])


def test_parent_runs_have_the_rmse_by_monitor(store: Store) -> None:
    rows = world(store, "spatial", 5, calm)
    found = parent_metrics.of_rows(rows, Analysis(), (), NO_LADDERS, read(store, rows))
    for metrics in found.values():
        assert metrics["wr_site_rmse_ci_low"] < metrics["wr_site_rmse_mean"]
    assert sum("diff_site_rmse" in metrics for metrics in found.values()) == 1


def test_a_claim_by_monitor_on_days_is_refused(tmp_path: Path) -> None:
    study = {
        "study": "toy",
        "data": {"synthetic": {"sites": 20, "days": 60}},
        "design": {
            "variant": ["none", "latlon"],
            "split": [{"kind": "random"}, {"kind": "spatial"}],
            "seed": [0],
        },
    }
    path = tmp_path / "toy.yaml"
    for split in ("spatial", "random"):
        one = claim(split, "site_rmse").model_dump(mode="json", exclude_none=True)
        path.write_text(yaml.safe_dump({**study, "claims": [one]}))
        if split == "spatial":
            assert study_file.load(str(path)).claims[0].metric == "site_rmse"
            continue
        with refuses(None, "claims.0.metric", "random"):
            study_file.load(str(path))
