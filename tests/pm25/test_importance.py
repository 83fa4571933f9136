"""Importance finds what a network listens to, and leaves everything as it found it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pm25 import trial
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.importance import Importance, importance
from pm25.metrics import scores
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.settings import ModelSettings
from pm25.splits import RandomSplit, SpatialSplit
from pm25.trial import Result
from pm25.windows import Inputs
from tests import worlds

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 12, 40, 3
EMBEDDING = np.eye(SITES, dtype=np.float32)


def world(target: str) -> Panel:
    """Channels: one that tells the target, one that tells nothing, and a calendar that all sites share."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SITES, DAYS, 3)).astype(np.float32)
    features[:, :, 2] = np.sin(2 * np.pi * np.arange(DAYS) / 8)
    site = rng.normal(size=SITES)
    made = {
        "weather": features[:, :, 0],
        "calendar": features[:, :, 2],
        "site": np.repeat(site[:, None], DAYS, axis=1),
    }[target]
    lat, lon = rng.uniform(28, 47, SITES), rng.uniform(-120, -70, SITES)
    return worlds.panel(features, 9 + 3 * made, lat, lon, channels=("weather", "noise", "calendar"))


def cell(variant: str = "none", fusion: str | None = None, **changes: Any) -> Cell:
    model = ModelSettings(width=8, depth=1, attention_units=8, dropout=0.0)
    train = {"max_epochs": 12, "batch_size": 16, "learning_rate": 0.02, **changes.pop("train", {})}
    fields = {"seed": 1, "window": WINDOW, "model": model, **changes}
    return worlds.cell(variant, fusion, train=train, **fields)


_TRAINED: dict[tuple[str, str], Result] = {}
"""Results by cell and panel, because many tests ask for the same network; none may change it."""


def trained(made: Cell, panel: Panel) -> Result:
    asked = made.model_dump_json(), panel.fingerprint
    if asked not in _TRAINED:
        _TRAINED[asked] = trial.run(made, panel, embedding=EMBEDDING if made.encoder else None)
    return _TRAINED[asked]


def told(made: Cell, panel: Panel, result: Result | None = None, **options: object) -> list[Importance]:
    weights = (result or trained(made, panel)).weights
    return importance(made, panel, weights, embedding=EMBEDDING if made.encoder else None, **options)


def by_name(found: list[Importance]) -> dict[str, float]:
    return {i.what: i.rmse_increase for i in found}


@pytest.mark.parametrize("split", [RandomSplit(folds=3), SpatialSplit(folds=3)], ids=lambda s: s.kind)
def test_the_channel_that_makes_the_target_comes_first(split):
    found = told(cell(split=split), world("weather"))
    assert found[0].what == "weather"
    # Exchanged for an independent value of the same spread (3 ug/m3), a good model errs by about sqrt(2) 3.
    assert found[0].rmse_increase > 2
    rest = by_name(found[1:])
    assert rest.keys() == {"noise", "calendar"}
    assert max(map(abs, rest.values())) < 0.3
    assert 0 < found[0].sd < 1


def test_a_channel_that_all_sites_share_can_matter():
    # Sites exchanged alone would leave the calendar as it is.
    found = told(cell(), world("calendar"))
    assert found[0].what == "calendar"
    assert found[0].rmse_increase > 1
    assert max(i.rmse_increase for i in found[1:]) < 0.3


def test_a_site_effect_learned_through_the_embedding():
    found = told(cell("geoclip", "concat"), world("site"))
    assert [found[0].what, {i.what for i in found[1:]}] == ["embedding", {"weather", "noise", "calendar"}]
    assert found[0].rmse_increase > 2
    assert max(i.rmse_increase for i in found[1:]) < 0.3


def test_a_site_effect_learned_through_the_place_channels():
    made = cell("sincos", train={"max_epochs": 30})
    found = told(made, world("site"))
    assert found[0].what == "place"
    assert found[0].rmse_increase > 1


def test_a_matched_head_has_nothing_to_exchange():
    made = cell("none", "concat", head="matched", train={"max_epochs": 1})
    (embedding,) = (i for i in told(made, world("site")) if i.what == "embedding")
    assert (embedding.rmse_increase, embedding.sd) == (0, 0)


def test_the_neighbour_feature_is_a_channel():
    panel = world("calendar")  # all sites agree, so neighbours tell the target of the day
    panel = replace(panel, features=panel.features[:, :, :2], channels=("weather", "noise"))
    neighbours = NeighbourSettings(k=3, distance=True)
    found = told(cell(neighbours=neighbours, split=SpatialSplit(folds=3)), panel)
    assert {i.what for i in found} == {"weather", "noise", "neighbours_pm25", "neighbours_km"}
    assert found[0].what == "neighbours_pm25"
    assert found[0].rmse_increase > 1


def test_most_important_first_and_each_once():
    for made, panel in ((cell(), world("weather")), (cell("geoclip", "concat"), world("site"))):
        found = told(made, panel)
        increases = [i.rmse_increase for i in found]
        assert increases == sorted(increases, reverse=True)
        assert len({i.what for i in found}) == len(found)


def test_the_same_seed_gives_the_same_numbers():
    panel, made = world("weather"), cell()
    result = trained(made, panel)
    torch_state = torch.get_rng_state()
    one = told(made, panel, result, seed=3)
    assert one == told(made, panel, result, seed=3)
    assert one != told(made, panel, result, seed=4)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_increases_stand_on_the_rmse_of_the_result():
    # With nothing to exchange and no shift the permuted RMSE is that of the result.
    panel, made = world("weather"), cell()
    result = trained(made, panel)
    ready = trial.prepare(made, panel)
    ready.model.load_state_dict(result.weights)
    test = ready.indices.test
    rmse = scores(panel.target.reshape(-1)[test], ready.predict(test))["rmse"]
    assert rmse == result.metrics["test_rmse"]
    with ready.inputs.permuted("weather", np.arange(SITES), 0):
        assert np.array_equal(ready.predict(test), result.predictions["prediction"])


def test_one_repeat_has_no_deviation():
    assert all(np.isnan(i.sd) for i in told(cell(), world("weather"), repeats=1))


def test_a_sample_of_the_test_set_is_enough():
    found = told(cell(), world("weather"), max_samples=40)
    assert found[0].what == "weather"
    assert found[0].rmse_increase > 2


def test_weights_and_panel_are_left_as_they_were():
    panel, made = world("site"), cell("geoclip", "concat")
    result = trained(made, panel)
    features, target = panel.features.tobytes(), panel.target.tobytes()
    weights = {name: value.clone() for name, value in result.weights.items()}
    told(made, panel, result)
    assert (panel.features.tobytes(), panel.target.tobytes()) == (features, target)
    assert all(torch.equal(weights[name], value) for name, value in result.weights.items())
    assert np.array_equal(EMBEDDING, np.eye(SITES))


def test_a_network_of_other_channels_is_no_answer():
    panel = world("weather")
    with pytest.raises((RuntimeError, InputError)):
        importance(cell(), panel, trained(cell("latlon"), panel).weights)


# --- Inputs.permuted ---------------------------------------------------------------------------------


def fed(inputs: Inputs) -> tuple[bytes, ...]:
    """Every window and embedding that the inputs can give."""
    flat = np.add.outer(np.arange(SITES) * DAYS, np.arange(WINDOW - 1, DAYS)).reshape(-1)
    return tuple(part.numpy().tobytes() for part in inputs.batch(torch.from_numpy(flat)) if part is not None)


@pytest.mark.parametrize("what", ["weather", "noise", "calendar", "embedding", "place"])
def test_permuted_puts_back_what_it_took(what):
    made = cell("geoclip", "concat") if what == "embedding" else cell("latlon")
    ready = trial.prepare(made, world("weather"), embedding=EMBEDDING if made.encoder else None)
    test = ready.indices.test
    before, predicted = fed(ready.inputs), ready.predict(test)
    with ready.inputs.permuted(what, np.roll(np.arange(SITES), 1), 5):
        assert fed(ready.inputs) != before
        assert not np.array_equal(ready.predict(test), predicted)
    assert fed(ready.inputs) == before
    assert np.array_equal(ready.predict(test), predicted)

    def fails() -> None:
        with ready.inputs.permuted(what, np.roll(np.arange(SITES), 1), 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert fed(ready.inputs) == before


def test_permuted_moves_whole_series_and_one_channel_only():
    panel = world("weather")
    inputs = trial.prepare(cell(), panel).inputs
    last = torch.from_numpy(np.arange(SITES) * DAYS + DAYS - 1)
    source, shift = np.roll(np.arange(SITES), 1), 4
    before = inputs.batch(last)[0]
    # Four days late: the last three days of a site are now days 33 to 35 of the site before it.
    earlier = inputs.batch(last - shift)[0]
    with inputs.permuted("noise", source, shift):
        during = inputs.batch(last)[0]
    assert torch.equal(during[:, :, 1], earlier[torch.from_numpy(source), :, 1])
    assert torch.equal(during[:, :, [0, 2]], before[:, :, [0, 2]])


def test_permuted_embedding_by_month_keeps_its_month():
    panel = world("weather")
    monthly = np.arange(SITES * 12, dtype=np.float32).reshape(SITES, 12, 1)
    inputs = trial.prepare(cell("table", "concat"), panel, embedding=monthly).inputs
    february = torch.tensor([3 * DAYS + 35])
    assert inputs.batch(february)[1].item() == monthly[3, 1, 0]
    with inputs.permuted("embedding", np.roll(np.arange(SITES), 1), 7):
        assert inputs.batch(february)[1].item() == monthly[2, 1, 0]
