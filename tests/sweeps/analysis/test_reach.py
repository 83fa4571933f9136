"""Reach of the tests: distances by hand, samples like and unlike those of training, and their errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pm25 import splits
from pm25.panel import Panel
from sweeps.analysis import artifacts, reach
from sweeps.analysis.reach import CHANNELS, WITH_PLACE, Reach
from sweeps.report.figures.reach import distance_curves
from sweeps.report.sections.believed import believed
from sweeps.spec.study import Study
from sweeps.store.records import Store
from tests import worlds

KM = 6371.0088 * np.pi / 180
"""Kilometres of a degree."""
SITES, DAYS, WINDOW = 12, 30, 3
NO_IMPORTANCE = pd.DataFrame(columns=["arm", "split", "what", "rmse_increase"])


def study(*kinds: dict[str, Any], variants: tuple[str, ...] = ("none", "latlon")) -> Study:
    design = {"variant": [*variants], "split": [*kinds], "seed": 0}
    content = {"study": "toy", "data": {"synthetic": {}}, "design": design, "window": WINDOW}
    return Study.model_validate(content)


def meridian(shift: float = 0.0) -> Panel:
    """Sites one degree apart on a meridian; the channel of the northern half is moved by `shift`."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SITES, DAYS, 2))
    features[SITES // 2 :, :, 0] += shift
    lat = 30 + np.arange(SITES, dtype=float)
    return worlds.panel(features, rng.gamma(2, 4, (SITES, DAYS)), lat, np.full(SITES, -100.0))


def indices(panel: Panel, test: list[int], train: list[int]) -> splits.SplitIndices:
    def flat(sites: list[int]) -> np.ndarray:
        return np.concatenate([site * DAYS + np.arange(WINDOW - 1, DAYS) for site in sites])

    return splits.SplitIndices(flat(train), np.empty(0, np.int64), flat(test), None)


def measured(
    panel: Panel, folds: list[splits.SplitIndices], importance: pd.DataFrame = NO_IMPORTANCE, **more: Any
) -> Reach:
    made = study({"kind": "spatial", "folds": len(folds)})
    found = {("spatial", fold): one for fold, one in enumerate(folds)}
    return reach.measure(made, panel, found, importance, more.get("predicted"), more.get("best"))


def halves(panel: Panel) -> list[splits.SplitIndices]:
    south, north = list(range(6)), list(range(6, 12))
    return [indices(panel, south, north), indices(panel, north, south)]


def test_distances_by_hand() -> None:
    panel = worlds.panel(np.zeros((4, 5, 1)), np.ones((4, 5)), [40, 41, 43, 47], [-100] * 4)
    object.__setattr__(panel, "domain", np.array([[42.0, -100], [50, -100]]))
    made = study({"kind": "spatial", "folds": 2}, variants=("none",))
    folds = {
        ("spatial", 0): splits.SplitIndices(
            np.array([4, 9]), np.empty(0, int), np.array([14, 19]), None
        ),  # trains on 40 and 41, tests 43 and 47
        ("spatial", 1): splits.SplitIndices(np.array([14]), np.array([19]), np.array([4, 9]), None),
    }
    found = reach.measure(made, panel, folds, NO_IMPORTANCE, None, None)
    assert found.distances.domain / KM == pytest.approx([1, 3])
    assert found.distances.monitors / KM == pytest.approx([1, 1, 2, 4])
    assert found.distances.splits["spatial"] / KM == pytest.approx([2, 6, 3, 2])
    # Means of the sorted distances: 2 2 3 6 and 1 1 3 3, whose curves never cross.
    assert found.distances.w_km("spatial") / KM == pytest.approx((13 - 8) / 4)
    assert found.inside.empty, "a constant channel says nothing"


def test_one_set_of_folds_of_a_split() -> None:
    made = study(
        {"kind": "checkerboards", "degrees": 16, "origins": 3, "holdout": "rotate"},
        {"kind": "blocks", "folds": 4, "deals": 2, "fold": [5, 6]},
    )
    assert reach._first_folds(made) == {"checkerboards-16-rotate": [0, 5], "blocks-8": [5, 6]}


def test_like_halves_are_inside_and_others_outside() -> None:
    alike = measured(meridian(), halves(meridian())).inside.set_index("inputs")
    assert alike.loc[CHANNELS, "inside"] > 0.9
    assert set(alike["weights"]) == {"equal"}
    assert set(alike["samples"]) == {2 * 6 * (DAYS - WINDOW + 1)}
    # The places of one half are not those of the other.
    assert alike.loc[WITH_PLACE, "inside"] < alike.loc[CHANNELS, "inside"]
    moved = meridian(shift=50.0)
    unlike = measured(moved, halves(moved)).inside.set_index("inputs")
    assert unlike["inside"].tolist() == [0, 0]


def test_a_channel_without_importance_does_not_count() -> None:
    panel = meridian(shift=50.0)
    importance = pd.DataFrame(
        [
            ("none", "spatial", "a", -0.1),
            ("none", "spatial", "b", 2.0),
            ("lat/lon", "spatial", "a", 1.0),
            ("lat/lon", "spatial", "b", 2.0),
            ("lat/lon", "spatial", "place", 0.0),
        ],
        columns=["arm", "split", "what", "rmse_increase"],
    )
    found = measured(panel, halves(panel), importance).inside.set_index("inputs")
    assert set(found["weights"]) == {"importance"}
    assert found.loc[CHANNELS, "inside"] > 0.9  # channel a, which is moved, has no weight
    assert found.loc[WITH_PLACE, "inside"] == 0


def test_a_missing_channel_is_read_as_in_the_network() -> None:
    panel = meridian()
    panel.features[:, :, 1] = np.nan
    assert measured(panel, halves(panel)).inside["inside"].notna().all()


def test_errors_inside_and_outside(tmp_path: Path) -> None:
    panel = meridian()
    panel.features[6:8, :, 0] += 50  # two of the northern sites are unlike the southern ones
    store = Store(str(tmp_path), "toy")
    store.prepare()
    folds, lines = halves(panel), []
    for fold, one in enumerate(folds):
        site, day = np.divmod(one.test, DAYS)
        truth = panel.target.reshape(-1)[one.test]
        columns = {
            "part": np.repeat("test", len(site)),
            "site_id": panel.site_id[site],
            "lat": panel.lat[site],
            "lon": panel.lon[site],
            "date": panel.dates[day],
            "truth": truth,
            "prediction": truth + np.where(np.isin(site, [6, 7]), 9, 2).astype(np.float32),
        }
        key = f"{fold}" * 20
        store.write_table(key, "predictions", columns)
        line = {"key": key, "variant": "none", "fusion": None, "split": "spatial", "kind": "spatial"}
        lines.append({**line, "regime": "WR", "fold": fold, "seed": 0, "state": "done"})
    predicted = artifacts.predictions(store, pd.DataFrame(lines))
    inside = measured(panel, folds, predicted=predicted).inside.set_index("inputs")
    own = inside.loc[CHANNELS]
    assert own["arm"] == "none"
    assert own["n_inside"] + own["n_outside"] == own["samples"]
    assert own["n_outside"] >= 2 * (DAYS - WINDOW + 1)
    assert own["rmse_inside"] == pytest.approx(2)
    assert 2 < own["rmse_outside"] <= 9
    assert np.isnan(inside.loc[WITH_PLACE, "rmse_inside"])  # the arm has no cells


def test_the_section_names_the_numbers_for_strangers() -> None:
    panel = meridian(shift=50.0)
    object.__setattr__(panel, "domain", np.array([[30.5, -100.0], [31.5, -100], [40.5, -100]]))
    found = measured(panel, halves(panel))
    report = SimpleNamespace(reach=found, pictures=[])
    section = believed(report)  # type: ignore[arg-type]
    assert f"more than {KM / 2:,.0f} km from the nearest monitor" in section.text  # half a degree
    assert "spatial, 0% are like the training samples" in section.text
    distances, inside = section.tables
    assert dict(distances.lines)["places of the map"][0].text == f"{KM / 2:,.1f}"
    assert dict(distances.lines)["spatial"][1].text == f"{found.distances.w_km('spatial'):,.1f}"
    assert [label for label, _ in inside.lines] == [
        "spatial",
        "channels (none)",
        "channels and place (lat/lon)",
    ]
    assert believed(SimpleNamespace(reach=None)).tables == ()  # type: ignore[arg-type]


def test_the_figure_has_a_curve_for_each_split() -> None:
    panel = meridian()
    distances = measured(panel, halves(panel)).distances
    figure = distance_curves(distances)
    assert figure.name == "reach"
    assert figure.small
    assert figure.small != figure.svg
    assert distance_curves(distances) == figure
