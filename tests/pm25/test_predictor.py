"""A predictor gives a cell's stored predictions again, from raw windows and places alone."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from pm25 import encoders, trial
from pm25.cell import Cell
from pm25.errors import InputError
from pm25.intervals import Calibration, Radius
from pm25.neighbours import NeighbourSettings
from pm25.panel import Panel
from pm25.predictor import Predictor, _load_pyfunc
from pm25.settings import ModelSettings
from pm25.splits import CheckerboardSplit, SpatialSplit
from pm25.trial import Result
from tests import worlds
from tests.errors import refuses
from tests.worlds import cell

pytestmark = pytest.mark.usefixtures("one_thread")

SITES, DAYS, WINDOW = 12, 64, 5


def world() -> Panel:
    """Two months, six sites in each half of the country, one value in twenty missing."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(SITES, DAYS, 2)).astype(np.float32) * 30 + 200
    features = worlds.without(features, 0.05, rng)
    features[0, 10:20] = -1.0
    return worlds.panel(features, 9 + rng.normal(0, 3, (SITES, DAYS)), *worlds.two_halves(SITES))


def table(folder: Path, by: str, months: bool) -> Path:
    panel, rng = world(), np.random.default_rng(5)
    keys = {"site_id": panel.site_id} if by == "site_id" else {"lat": panel.lat, "lon": panel.lon}
    frame = pd.DataFrame({name: np.repeat(value, 12 if months else 1) for name, value in keys.items()})
    if months:
        frame["month"] = np.tile(np.arange(1, 13), SITES)
    for i in range(3):
        frame[f"v{i}"] = rng.normal(size=len(frame))
    frame.to_parquet(folder / "vectors.parquet", index=False)
    return folder / "vectors.parquet"


Trained = tuple[Panel, Result, Predictor]


def trained(made: Cell, panel: Panel, **options: Any) -> Trained:
    source = None if made.encoder is None else encoders.source(made.encoder, **options)
    inputs = {}
    if source is not None:
        inputs["embedding"] = source.encoder().embed(panel.lat, panel.lon, panel.site_id)
    result = trial.run(made, panel, **inputs)
    return panel, result, Predictor(made, result.weights, result.scaling, source)


def asked(made: Cell, panel: Panel, result: Result, part: str = "test") -> tuple[dict[str, Any], np.ndarray]:
    """Inputs of a predictor for the samples of a part, and the predictions that were stored of them."""
    rows = result.predictions["part"] == part
    site = np.searchsorted(panel.site_id, result.predictions["site_id"][rows])
    date = result.predictions["date"][rows]
    flat = site * DAYS + (date - panel.dates[0]).astype(int)
    channels, window = trial.raw_windows(made, panel, flat)
    assert channels == tuple(result.scaling["channels"])
    inputs = {"window": window, "lat": panel.lat[site], "lon": panel.lon[site]}
    if made.variant == "table":
        inputs |= {"month": date.astype("datetime64[M]").astype(int) % 12 + 1, "site_id": panel.site_id[site]}
    return inputs, result.predictions["prediction"][rows]


def as_frame(made: Cell, inputs: dict[str, Any], channels: tuple[str, ...]) -> pd.DataFrame:
    frame = pd.DataFrame({name: value for name, value in inputs.items() if name != "window"})
    for at, name in enumerate(channels):
        frame[name] = [*inputs["window"][:, :, at].astype(float).tolist()]
    return frame


CHECKERBOARD = CheckerboardSplit(degrees=30, validation=0.3)
SPATIAL = SpatialSplit(folds=3, validation=0.2)
NEAR = NeighbourSettings(k=2, distance=True, hide="test_distance")
CELLS = [
    cell(),
    cell("latlon"),
    cell("sincos", split=CHECKERBOARD),
    cell("geoclip", "hadamard", split=SPATIAL),
    cell("geoclip", "film", train={"target": "log1p"}),
    cell("none", train={"target": "log1p"}),
    cell("geoclip", "concat", train={"precision": "bf16"}),
    cell("none", split=SPATIAL, neighbours=NEAR),
    cell("latlon", protocol="paper", neighbours=NeighbourSettings(k=2)),
    cell(
        "geoclip", "gated", model=ModelSettings(width=4, depth=1, attention_units=4, projection="norm_tanh")
    ),
]


def check(made: Cell, found: Trained, folder: Path) -> None:
    """Predictions equal the stored ones, also after saving and loading, and from a table.

    Row by row they are close: another batch size may use another kernel, which rounds differently.
    """
    panel, result, predictor = found
    for part in np.unique(result.predictions["part"]):
        inputs, stored = asked(made, panel, result, part)
        assert np.array_equal(predictor.predict(**inputs), stored)
        single = [
            predictor.predict(**{name: value[i : i + 1] for name, value in inputs.items()}) for i in range(9)
        ]
        near = 1e-5 if made.train.precision == "fp32" else 0.02
        np.testing.assert_allclose(np.concatenate(single), stored[:9], rtol=near, atol=near)
        predictor.save(folder)
        assert np.array_equal(Predictor.load(folder).predict(**inputs), stored)
        frame = as_frame(made, inputs, predictor.channels)
        frame.index = frame.index + 7
        with pytest.warns(UserWarning, match="no prediction intervals: the model was stored before"):
            served = _load_pyfunc(str(folder)).predict(frame.assign(other="x"))
        assert [*served] == ["pm25_ugm3"]
        assert (served.index[0], served["pm25_ugm3"].dtype) == (7, np.float32)
        assert np.array_equal(served["pm25_ugm3"], stored)


@pytest.mark.parametrize("made", CELLS, ids=lambda made: f"{made.label}-{made.protocol}")
def test_predictions_are_those_that_were_stored(made: Cell, tmp_path: Path) -> None:
    found = trained(made, world())
    check(made, found, tmp_path)
    names = {"cell.json", "model.pt", *(("encoder.json", "encoder.bin") if made.encoder else ())}
    assert {path.name for path in tmp_path.iterdir()} == names


@pytest.mark.parametrize("months", [False, True])
@pytest.mark.parametrize("by", ["site_id", "lat"])
def test_a_table_travels_with_the_model(by: str, months: bool, tmp_path: Path) -> None:
    made, path = cell("table", "concat"), table(tmp_path, by, months)
    found = trained(made, world(), path=path)
    path.unlink()
    check(made, found, tmp_path / "model")
    more = [*(["month"] if months else []), *(["site_id"] if by == "site_id" else [])]
    assert found[2].columns == ("lat", "lon", *more, "a", "b")
    read = encoders.Source.read(tmp_path / "model")
    assert read is not None
    assert read.fingerprint == encoders.fingerprint("table", path=table(tmp_path, by, months))


def satclip(folder: Path) -> Path:
    """A checkpoint in the published format: 4 Legendre polynomials, one sine layer, 6 values."""
    sizes = {"layers.0": (8, 16), "last_layer": (6, 8)}
    state = {}
    for name, shape in sizes.items():
        for prefix in ("model.nnet", "model.location.nnet"):
            state[f"{prefix}.{name}.weight"] = torch.from_numpy(np.full(shape, 0.01) + np.eye(*shape))
            state[f"{prefix}.{name}.bias"] = torch.from_numpy(np.linspace(-1, 1, shape[0]))
    inputs = {
        "embed_dim": 6,
        "le_type": "sphericalharmonics",
        "pe_type": "siren",
        "legendre_polys": 4,
        "harmonics_calculation": "analytic",
        "num_hidden_layers": 1,
        "capacity": 8,
    }
    torch.save({"state_dict": state, "hyper_parameters": inputs}, folder / "satclip.ckpt")
    return folder / "satclip.ckpt"


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_satclip_travels_with_the_model(protocol: str, tmp_path: Path) -> None:
    path = satclip(tmp_path)
    made = cell("satclip", "hadamard", protocol=protocol)
    found = trained(made, world(), checkpoint=path)
    path.unlink()
    check(made, found, tmp_path / "model")
    assert ("location_norm.weight" in found[1].weights) is (protocol == "paper")


def test_it_is_loaded_where_the_encoder_is_not_installed(tmp_path: Path) -> None:
    """In a process of its own, with nothing of this one, and no package geoclip."""
    made = cell("geoclip", "hadamard")
    panel, result, predictor = trained(made, world())
    predictor.save(tmp_path / "model")
    inputs, stored = asked(made, panel, result)
    as_frame(made, inputs, predictor.channels).to_parquet(tmp_path / "asked.parquet")
    code = """
import sys
sys.modules["geoclip"] = None
import pandas as pd, torch
torch.set_num_threads(1)
from pm25.predictor import _load_pyfunc
_load_pyfunc("model").predict(pd.read_parquet("asked.parquet")).to_parquet("found.parquet")
unwanted = {"mlflow", "ray", "optuna", "scipy", "sweeps", "h5py", "requests", "torchvision"}
print(sorted(unwanted & {*sys.modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert np.array_equal(pd.read_parquet(tmp_path / "found.parquet")["pm25_ugm3"], stored)


@pytest.fixture(scope="module")
def monthly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("monthly")
    made = cell("table", "concat")
    panel, result, predictor = trained(made, world(), path=table(folder, "lat", months=True))
    inputs, _ = asked(made, panel, result)
    return predictor, as_frame(made, inputs, predictor.channels).head(4)


def changed(frame: pd.DataFrame, name: str, at: int, value: Any) -> pd.DataFrame:
    values = frame[name].tolist()
    values[at] = value
    return frame.assign(**{name: values})


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("a", [1.0] * 4, ["row 2", "4 values", "5 daily values"]),
        ("b", 1.0, ["row 2", "0 dimensions", "5 daily values"]),
        ("b", [[1.0] * 5], ["row 2", "2 dimensions", "5 daily values"]),
        ("b", "warm", ["row 2", "'warm'", "5 numbers"]),
        ("b", [1, 2, np.inf, 4, 5], ["row 2", "infinite", "NaN"]),
        ("lat", "north", ["number"]),
        ("month", 13, ["row 2", "13", "1 to 12"]),
        ("month", 1.5, ["row 2", "1.5", "1 to 12"]),
    ],
)
def test_bad_input_is_named(
    monthly: tuple[Predictor, pd.DataFrame], name: str, value: Any, shown: list[str]
) -> None:
    predictor, frame = monthly
    with refuses("model input", name, *shown):
        predictor.predict_frame(changed(frame, name, 2, value))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [("lat", 95.0, ["lat", "95"]), ("lat", None, ["lat", "nan"]), ("lon", 260.0, ["lon", "260", "360"])],
)
def test_a_place_that_is_none_on_earth_is_named(
    monthly: tuple[Predictor, pd.DataFrame], name: str, value: Any, shown: list[str]
) -> None:
    predictor, frame = monthly
    with pytest.raises(InputError) as caught:
        predictor.predict_frame(changed(frame, name, 2, value))
    assert all(value in str(caught.value) for value in [*shown, "2"]), str(caught.value)


@pytest.mark.parametrize("name", ["lat", "month", "a"])
def test_a_missing_column_is_named(monthly: tuple[Predictor, pd.DataFrame], name: str) -> None:
    predictor, frame = monthly
    with refuses("model input", name, "lat, lon, month, a, b"):
        predictor.predict_frame(frame.drop(columns=name))


def test_shapes_that_do_not_fit_are_refused(monthly: tuple[Predictor, pd.DataFrame]) -> None:
    predictor, _ = monthly
    window, lat, lon = np.zeros((3, 5, 2)), np.full(3, 28.0), np.full(3, -120.0)
    for wrong, field, shown in (
        ((window[:, 1:], lat, lon), "window", ["(3, 4, 2)", "(n, 5, 2)"]),
        ((window, lat[:2], lon[:2]), "lat, lon", ["2 places", "3 windows"]),
        ((window, lat, lon), "month", ["0 months", "3 windows"]),
    ):
        with refuses("model input", field, *shown):
            predictor.predict(*wrong)


def test_missing_values_are_training_means_whatever_stands_for_them(
    monthly: tuple[Predictor, pd.DataFrame],
) -> None:
    predictor, frame = monthly
    mean = predictor._scaler.mean[0]
    found = [
        predictor.predict_frame(changed(frame, "a", 1, [1.0, 2.0, 3.0, 4.0, last]))["pm25_ugm3"][1]
        for last in (None, np.nan, float(np.float32(mean)))
    ]
    assert found[0] == found[1] == found[2]


def test_no_rows_no_predictions(monthly: tuple[Predictor, pd.DataFrame]) -> None:
    predictor, frame = monthly
    assert len(predictor.predict_frame(frame.head(0))) == 0


def test_a_calibrated_model_predicts_intervals(tmp_path: Path) -> None:
    """The fold's training monitors have the first radius, and its test monitors are farther away."""
    made = cell("latlon", split=SPATIAL)
    panel, result, _ = trained(made, world())
    sites = np.setdiff1d(panel.site_id, result.predictions["site_id"])
    places = [
        (float(panel.lat[site == panel.site_id][0]), float(panel.lon[site == panel.site_id][0]))
        for site in sites
    ]
    radii = Radius("random", "WR", 0.0, 0.5, 20), Radius("spatial", "WR", 10.0, 1.0, 20)
    calibration = Calibration(0.9, 0.0, tuple(places), radii)
    predictor = Predictor(made, result.weights, result.scaling, None, calibration)
    inputs, stored = asked(made, panel, result)
    predictor.save(tmp_path)
    served = _load_pyfunc(str(tmp_path)).predict(as_frame(made, inputs, predictor.channels))
    assert [*served] == ["pm25_ugm3", "lower", "upper"]
    assert {str(dtype) for dtype in served.dtypes} == {"float32"}
    assert np.array_equal(served["pm25_ugm3"], stored)
    exact = stored.astype(float)
    np.testing.assert_allclose(served["upper"], exact + np.hypot(exact, 5), rtol=1e-6)
    np.testing.assert_allclose(
        served["lower"], np.maximum(exact - np.hypot(exact, 5), 0), rtol=1e-5, atol=1e-5
    )
    at_monitor = {
        **inputs,
        "lat": np.full(len(stored), places[0][0]),
        "lon": np.full(len(stored), places[0][1]),
    }
    near = predictor.predict_frame(as_frame(made, at_monitor, predictor.channels)).astype(float)
    np.testing.assert_allclose(
        near["upper"] - near["pm25_ugm3"], np.hypot(near["pm25_ugm3"], 5) / 2, rtol=1e-4
    )


def test_a_model_without_intervals_says_why(tmp_path: Path) -> None:
    made = cell()
    _, result, plain = trained(made, world())
    assert plain.without_intervals == "the model was stored before models had intervals"
    absent = Calibration(0.9, 0.0, (), (), "spatial: 4 regions of 8 degrees, and 10 are needed")
    Predictor(made, result.weights, result.scaling, None, absent).save(tmp_path)
    with pytest.warns(UserWarning, match="4 regions of 8 degrees, and 10 are needed"):
        _load_pyfunc(str(tmp_path))


@pytest.mark.parametrize(
    "made", [cell("random", "concat"), cell("shuffled", "concat"), cell("none", "concat", head="matched")]
)
def test_a_control_is_no_model_to_serve(made: Cell) -> None:
    with refuses(made.label, "", "control"):
        Predictor(made, {}, {})


def test_weights_of_another_cell_are_refused() -> None:
    made = cell()
    _, result, _ = trained(made, world())
    with pytest.raises(RuntimeError, match="size mismatch"):  # torch's own words
        Predictor(
            cell(model=ModelSettings(width=8, depth=2, attention_units=4)), result.weights, result.scaling
        )
    with pytest.raises(ValueError, match=r"geoclip.*None"):
        Predictor(cell("geoclip", "concat"), result.weights, result.scaling)


def test_the_raw_windows_of_a_sample_are_the_panels() -> None:
    panel = world()
    channels, found = trial.raw_windows(cell(), panel, np.array([3 * DAYS + 10, 5 * DAYS + WINDOW - 1]))
    assert channels == ("a", "b")
    assert np.array_equal(found[0], panel.features[3, 6:11], equal_nan=True)
    assert np.array_equal(found[1], panel.features[5, :WINDOW], equal_nan=True)
