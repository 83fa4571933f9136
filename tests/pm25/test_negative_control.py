"""The negative control finds nothing in the code as it is, and a target that reaches the features."""

from dataclasses import replace

import numpy as np
import pytest

from pm25 import negative_control, trial
from pm25.negative_control import compare, control, exchanged, reference
from pm25.splits import CheckerboardSplit, RandomSplit, SpatialSplit, TemporalSplit
from tests import worlds

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_site_gets_the_series_of_another():
    panel = worlds.synthetic_panel(sites=20, days=30)
    silent = panel.target.copy()
    silent[3] = np.nan
    panel = replace(panel, target=silent)
    found = exchanged(panel, np.random.default_rng(0))
    own = np.where(np.isnan(panel.target), -99, panel.target)
    new = np.where(np.isnan(found.target), -99, found.target)
    assert sorted(map(tuple, own)) == sorted(map(tuple, new))
    same = [site for site in range(20) if np.array_equal(own[site], new[site])]
    assert same == [3]
    assert np.array_equal(found.features, panel.features, equal_nan=True)
    assert found.site_id.tolist() == panel.site_id.tolist()
    again = exchanged(panel, np.random.default_rng(0))
    assert again.fingerprint == found.fingerprint
    assert exchanged(panel, np.random.default_rng(1)).fingerprint != found.fingerprint


def test_the_reference_is_additive_and_blind_to_its_own_target():
    rng = np.random.default_rng(0)
    panel = worlds.synthetic_panel(sites=15, days=40)
    day, site = rng.normal(10, 3, 40), rng.normal(0, 3, (15, 1))
    target = (day + site + rng.normal(0, 0.1, (15, 40))).astype(np.float32)
    train = np.flatnonzero(rng.random(600) < 0.8)
    test = np.setdiff1d(np.arange(600), train)
    panel = replace(panel, target=target)
    found = reference(panel, train).reshape(-1)[test]
    truth = target.reshape(-1)[test]
    assert 1 - np.square(found - truth).mean() / truth.var() > 0.99

    moved = target.copy()
    moved.reshape(-1)[test[0]] += 50
    assert reference(replace(panel, target=moved), train).reshape(-1)[test[0]] == pytest.approx(
        found[0], abs=1.5
    )


def test_the_comparison_by_hand():
    truth, base = np.array([1.0, 2, 3, 4]), np.array([2.0, 2, 2, 2])
    found = compare("test", truth, truth, base, np.arange(4), np.arange(4))
    assert (found.r2, found.skill) == (1, 1)
    assert found.reference_r2 == pytest.approx(1 - 6 / 5)
    assert found.found
    none = compare("test", truth, base, base, np.arange(4), np.arange(4))
    assert (none.skill, none.least, none.found) == (0, 0, False)
    # Sites of two samples, base 1 and 5 of 6, model 0.5 and 1 of 1.5: the jackknife leaves out one of two.
    model = truth + np.sqrt([0.25, 0.25, 0.5, 0.5])
    half = compare("test", truth, model, base, np.array([0, 0, 1, 1]), np.zeros(4, int))
    assert half.least == pytest.approx(1 - np.exp(50) / 4)  # a single day
    days = compare("test", truth, model, base, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]))
    error = np.log(5 / 1) - np.log(1 / 0.5)
    assert days.least == pytest.approx(1 - 0.25 * np.exp(3 * error / 2))
    assert not half.found  # a single day has no error to judge by


def test_equal_models_are_not_findings():
    """Models as good as the reference, heavy tails: the share of findings over 500 null studies."""
    rng = np.random.default_rng(0)
    site, day = np.divmod(np.arange(30 * 60), 60)
    found = 0
    for _ in range(500):
        truth = rng.standard_t(4, (30, 60)) + 3 * rng.standard_t(4, 60)
        model, base = (truth + rng.standard_t(4, (30, 60)) + rng.standard_t(4, (30, 1)) for _ in range(2))
        found += compare("test", truth.ravel(), model.ravel(), base.ravel(), site, day).found
    assert found <= 8


SPLITS = [
    RandomSplit(folds=3),
    SpatialSplit(folds=3),
    TemporalSplit(test_from="2021-02-20"),
    CheckerboardSplit(degrees=16),
]


def toy(split, epochs=4):
    settings = {"max_epochs": epochs, "learning_rate": 0.02, "batch_size": 32}
    return worlds.cell(split=split, train=settings)


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
def test_nothing_is_found(split):
    panel = worlds.synthetic_panel(sites=40, days=80)
    found = control(toy(split), panel)
    assert [one.part for one in found] == ["test", "wr"][: 1 + (split.regime == "OoR")]
    assert not any(one.found for one in found)


def leaky(cell, panel, indices):
    """The neighbour feature with a fault: it has the target of the sample itself."""
    return {"neighbours_pm25": panel.target}


@pytest.mark.parametrize("split", SPLITS, ids=lambda split: split.kind)
def test_a_target_that_reaches_the_features_is_found(split, monkeypatch):
    monkeypatch.setattr(trial, "_neighbour_channels", leaky)
    found = control(toy(split, epochs=25), worlds.synthetic_panel(sites=40, days=80))
    assert any(one.found for one in found)
    assert max(one.skill for one in found) > 0.2


def test_the_seed_draws_the_exchange():
    panel = worlds.synthetic_panel(sites=20, days=40)
    first, second, third = (control(toy(SPLITS[0]), panel, seed=seed) for seed in (0, 0, 1))
    assert first == second != third
    assert negative_control.MARGIN < 0.05
