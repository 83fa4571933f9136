import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm25.metrics import detailed, scores


def test_scores_by_hand():
    got = scores(np.array([1.0, 2.0, 6.0]), np.array([2.0, 2.0, 4.0]))
    # Errors 1, 0, -2; SST about the mean 3 is 4 + 1 + 9.
    assert got == pytest.approx({"rmse": np.sqrt(5 / 3), "r2": 1 - 5 / 14, "mae": 1.0, "mbe": -1 / 3})
    assert list(got) == ["rmse", "r2", "mae", "mbe"]
    assert np.isnan(scores(np.array([3.0, 3.0]), np.array([1.0, 2.0]))["r2"])


def test_the_tail_by_hand():
    truth = np.array([35.5, 50.0, 40.0, 35.4, 10.0])
    prediction = np.array([35.5, 44.0, 30.0, 36.0, 35.49])
    got = detailed(truth, prediction, np.zeros(5, int))
    assert got["n_tail"] == 3
    assert got["tail_rmse"] == pytest.approx(np.sqrt((0 + 36 + 100) / 3))
    assert got["tail_mbe"] == pytest.approx(-16 / 3)
    assert got["tail_recall"] == pytest.approx(2 / 3)
    assert got["tail_precision"] == pytest.approx(2 / 3)  # three predicted, of which 35.4 was none


def test_time_and_space_by_hand():
    truth = np.array([1.0, 3.0, 10.0, 14.0])
    prediction = np.array([3.0, 5.0, 8.0, 8.0])
    got = detailed(truth, prediction, np.array(["b", "b", "a", "a"]))
    # Anomalies -1 1 | -2 2 against -1 1 | 0 0: SSE 8 of SST 10. Means 2, 12 against 4, 8: SSE 20 of SST 50.
    assert got["temporal_r2"] == pytest.approx(1 - 8 / 10)
    assert got["spatial_r2"] == pytest.approx(1 - 20 / 50)
    assert "site_r2_median" not in got  # two samples are too few


def test_a_site_needs_twenty_samples_for_an_r2():
    truth = np.tile([0.0, 2.0], 40)
    site = np.repeat([5, 6, 7, 8], [20, 20, 20, 20])
    prediction = truth + np.repeat([0.0, 0.5, 2.0, 3.0], 20)  # R2 of each: 1, 0.75, -3, -8
    assert detailed(truth, prediction, site)["site_r2_median"] == pytest.approx((0.75 - 3) / 2)
    assert detailed(truth[:-1], prediction[:-1], site[:-1])["site_r2_median"] == pytest.approx(0.75)
    truth[20:40] = 0.1  # a site without variance has none
    assert detailed(truth, prediction, site)["site_r2_median"] == pytest.approx(-3)


def test_mape_leaves_out_what_is_below_one():
    got = detailed(np.array([1.0, 0.99, -2.0, 4.0]), np.array([1.5, 50.0, 9.0, 3.0]), np.arange(4))
    assert (got["mape"], got["n_mape"]) == (pytest.approx(37.5), 2)


def test_rmse_by_distance_includes_the_lower_edge():
    km = np.array([0.0, 24.99, 25.0, 49.9, 50.0, 100.0, 250.0, np.inf, np.nan])
    error = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    got = detailed(np.full(9, 10.0), 10 + error, np.zeros(9, int), km)
    assert {name: value for name, value in got.items() if "km" in name} == pytest.approx(
        {
            "rmse_km_0_25": np.sqrt(5 / 2),
            "rmse_km_25_50": np.sqrt(25 / 2),
            "rmse_km_50_100": 5.0,
            "rmse_km_100_250": 6.0,
            "rmse_km_250_": np.sqrt(113 / 2),
        }
    )
    few = detailed(np.ones(1), np.ones(1), np.zeros(1), np.array([60.0]))
    assert [name for name in few if "km" in name] == ["rmse_km_50_100"]


def test_what_is_undefined_is_absent():
    # 0.1 has no exact mean: its variance is rounding, and no R2 may come of it.
    for sites in (np.zeros(30, int), np.repeat([0, 1, 2], [20, 3, 7])):
        assert detailed(np.full(30, 0.1), np.full(30, 0.2), sites) == {"n_tail": 0, "n_mape": 0}
    alone = detailed(np.array([50.0]), np.array([20.0]), np.array(["a"]))
    assert set(alone) == {"n_tail", "tail_rmse", "tail_mbe", "tail_recall", "n_mape", "mape"}
    false_alarm = detailed(np.array([20.0]), np.array([50.0]), np.array(["a"]))
    assert false_alarm["tail_precision"] == 0
    assert "tail_recall" not in false_alarm


def r2(truth: np.ndarray, prediction: np.ndarray) -> float | None:
    total = ((truth - truth.mean()) ** 2).sum()
    return 1 - ((prediction - truth) ** 2).sum() / total if truth.std() > 1e-6 else None


def brute(truth: np.ndarray, prediction: np.ndarray, site: np.ndarray, km: np.ndarray) -> dict[str, float]:
    """Sample by sample and site by site."""
    pairs = list(zip(truth, prediction, strict=True))
    tail = [(t, p) for t, p in pairs if t >= 35.5]
    alarms = [(t, p) for t, p in pairs if p >= 35.5]
    hits = [(t, p) for t, p in tail if p >= 35.5]
    out: dict[str, float | None] = {"n_tail": len(tail)}
    if tail:
        out["tail_rmse"] = np.sqrt(sum((p - t) ** 2 for t, p in tail) / len(tail))
        out["tail_mbe"] = sum(p - t for t, p in tail) / len(tail)
        out["tail_recall"] = len(hits) / len(tail)
    if alarms:
        out["tail_precision"] = len(hits) / len(alarms)
    by_site = [(truth[site == s], prediction[site == s]) for s in sorted(set(site))]
    each = [r2(t, p) for t, p in by_site if len(t) >= 20]
    each = [value for value in each if value is not None]
    if each:
        out["site_r2_median"] = float(np.median(each))
    out["temporal_r2"] = r2(*(np.concatenate([pair[i] - pair[i].mean() for pair in by_site]) for i in (0, 1)))
    out["spatial_r2"] = r2(*(np.array([pair[i].mean() for pair in by_site]) for i in (0, 1)))
    parts = [abs(p - t) / t for t, p in pairs if t >= 1]
    out["n_mape"] = len(parts)
    if parts:
        out["mape"] = 100 * sum(parts) / len(parts)
    edges = {"0_25": (0, 25), "25_50": (25, 50), "50_100": (50, 100), "100_250": (100, 250)}
    for name, (low, high) in (edges | {"250_": (250, np.inf)}).items():
        inside = [(p - t) ** 2 for (t, p), d in zip(pairs, km, strict=True) if low <= d < high]
        if inside:
            out[f"rmse_km_{name}"] = np.sqrt(sum(inside) / len(inside))
    return {name: value for name, value in out.items() if value is not None}


@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_detailed_is_the_brute_force(seed, n, sites):
    rng = np.random.default_rng(seed)
    truth = np.round(rng.gamma(1.2, 12, n) - 2, 1).astype(np.float32)
    prediction = (0.8 * truth + rng.normal(2, 4, n)).astype(np.float32)
    site, km = rng.integers(0, sites, n), rng.gamma(1, 90, n)
    got = detailed(truth, prediction, site, km)
    expected = brute(truth.astype(float), prediction.astype(float), site, km)
    assert set(got) == set(expected)
    assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert all(type(value) is float and np.isfinite(value) for value in got.values())
    # Names of sites and the order of samples say nothing.
    order = rng.permutation(n)
    names = np.array(["x", "b", "q", "a", "m", "z"])[site]
    assert detailed(truth[order], prediction[order], names[order], km[order]) == pytest.approx(got, rel=1e-9)
