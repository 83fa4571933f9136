"""SatCLIP's location network gives the published values, for any degree, and refuses any other file."""

import argparse
import importlib
import io
import logging
import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from pm25 import encoders
from pm25.encoders import satclip
from tests.errors import refuses

FIXTURES = Path(__file__).parents[3].parent / "shared" / "fixtures"
CHECKPOINT = FIXTURES / "satclip_random_l10.ckpt"
EXPECTED = FIXTURES / "satclip_random_l10_expected.npz"
with_fixture = pytest.mark.skipif(
    not (CHECKPOINT.exists() and EXPECTED.exists()), reason=f"no shared fixture {CHECKPOINT.name}"
)


def published(L: int = 4, capacity: int = 8, layers: int = 2, dim: int = 6, seed: int = 0) -> dict[str, Any]:
    """A checkpoint in the published format with small random weights."""
    import torch

    rng = np.random.default_rng(seed)
    names = [*(f"layers.{i}" for i in range(layers)), "last_layer"]
    widths = [L * L, *[capacity] * layers, dim]
    state = {"model.logit_scale": torch.tensor(2.6)}
    for i, name in enumerate(names):
        for part, shape in (("weight", (widths[i + 1], widths[i])), ("bias", (widths[i + 1],))):
            values = torch.from_numpy(rng.normal(0, 0.1, shape))
            state[f"model.nnet.{name}.{part}"] = state[f"model.location.nnet.{name}.{part}"] = values
    settings = {
        "embed_dim": dim,
        "le_type": "sphericalharmonics",
        "pe_type": "siren",
        "legendre_polys": L,
        "harmonics_calculation": "analytic",
        "num_hidden_layers": layers,
        "capacity": capacity,
    }
    return {"state_dict": state, "hyper_parameters": settings, "epoch": 1}


def packed(content: Any) -> bytes:
    import torch

    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@with_fixture
def test_harmonics_and_embedding_agree_with_the_published_formula():
    expected = np.load(EXPECTED)
    lon, lat = expected["lonlat"].T
    harmonics = satclip.harmonics(lat, lon, 10)
    np.testing.assert_allclose(harmonics, expected["harmonics"], rtol=0, atol=1e-11)
    network = satclip.LocationNetwork(CHECKPOINT.read_bytes(), "fixture")
    assert network.dim == 256
    np.testing.assert_allclose(network.embed(lat, lon), expected["embedding"], rtol=0, atol=1e-11)


@with_fixture
def test_the_encoder_rounds_the_published_embedding_once():
    expected = np.load(EXPECTED)
    lon, lat = expected["lonlat"].T
    vectors = encoders.load("satclip", checkpoint=CHECKPOINT).embed(lat, lon)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected["embedding"], rtol=1e-7, atol=1e-9)


def quadrature(L: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places and weights that integrate products of two harmonics below degree L over the sphere exactly."""
    sine_lat, weight = np.polynomial.legendre.leggauss(L)
    lon = -180 + 360 * np.arange(2 * L) / (2 * L)
    lat = np.rad2deg(np.arcsin(sine_lat))
    return np.repeat(lat, 2 * L), np.tile(lon, L), np.repeat(weight * math.pi / L, 2 * L)


@pytest.mark.parametrize("kind", satclip.KINDS)
def test_harmonics_are_orthonormal_up_to_degree_39_but_for_the_published_factor_pi(kind):
    L = 40
    lat, lon, weight = quadrature(L)
    values = satclip.harmonics(lat, lon, L, kind)
    length = np.ones(L * L)
    if kind == "analytic":
        length[[degree * degree + degree for degree in range(L)]] = math.pi
    np.testing.assert_allclose((values.T * weight) @ values, np.diag(length**2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", satclip.KINDS)
def test_harmonics_are_finite_and_exact_at_degree_99_and_at_the_poles(kind):
    L = 100
    lat = np.array([-90.0, -89.9999, -45.0, 0.0, 37.3, 89.9999, 90.0])
    values = satclip.harmonics(lat, np.linspace(-180, 180, len(lat)), L, kind)
    assert np.isfinite(values).all()
    # Unsoeld: over the orders of one degree the squares add up to (2l + 1) / 4 pi, at any place.
    degree = np.floor(np.sqrt(np.arange(L * L))).astype(int)
    squares = values**2
    if kind == "analytic":
        squares[:, [k * k + k for k in range(L)]] /= math.pi**2
    for l in (0, 1, 40, 99):  # noqa: E741
        np.testing.assert_allclose(
            squares[:, degree == l].sum(axis=1), (2 * l + 1) / (4 * math.pi), rtol=1e-11
        )


def test_closed_form_harmonics_are_scipys():
    L = 40
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-89, 89, 30), rng.uniform(-180, 180, 30)
    theta, phi = np.deg2rad(lat + 90), np.deg2rad(lon + 180)
    values = satclip.harmonics(lat, lon, L, "closed-form")
    for degree in range(L):
        for m in range(-degree, degree + 1):
            y = special.sph_harm_y(degree, abs(m), theta, phi)
            real = math.sqrt(2) * (y.real if m > 0 else y.imag) if m else y.real
            np.testing.assert_allclose(values[:, degree * degree + degree + m], real, rtol=0, atol=1e-11)


def test_the_two_kinds_differ_in_phase_and_in_the_factor_only():
    lat, lon = [40.0, -12.5], [-100.0, 33.0]
    analytic, closed = (satclip.harmonics(lat, lon, 4, kind) for kind in satclip.KINDS)
    m = np.array([m for degree in range(4) for m in range(-degree, degree + 1)])
    np.testing.assert_allclose(analytic, closed * np.where(m == 0, math.pi, (-1.0) ** np.abs(m)), atol=1e-14)
    # Y00 = 1 / sqrt(4 pi); Y10 = sqrt(3 / 4 pi) cos(theta), theta = lat + 90.
    np.testing.assert_allclose(closed[:, 0], 0.28209479177387814, rtol=1e-14)
    np.testing.assert_allclose(
        closed[0, 2], math.sqrt(3 / 4 / math.pi) * math.cos(math.radians(130)), rtol=1e-14
    )


def test_the_network_is_a_siren_computed_by_hand():
    content = published(L=2, capacity=1, layers=2, dim=2)
    state = content["state_dict"]
    w1, b1, w2, b2, w3, b3 = (
        state[f"model.location.nnet.{name}.{part}"].numpy()
        for name in ("layers.0", "layers.1", "last_layer")
        for part in ("weight", "bias")
    )
    x = satclip.harmonics([40.0], [-100.0], 2)[0]
    first = math.sin(30 * (w1[0] @ x + b1[0]))
    second = math.sin(w2[0, 0] * first + b2[0])
    vector = satclip.LocationNetwork(packed(content), "toy").embed([40.0], [-100.0])
    np.testing.assert_allclose(vector, [w3[:, 0] * second + b3], rtol=1e-13)


def test_fingerprint_is_of_the_bytes_and_not_of_the_path(tmp_path):
    one, same, other = (tmp_path / name for name in ("one.ckpt", "same.ckpt", "other.ckpt"))
    one.write_bytes(packed(published()))
    same.write_bytes(one.read_bytes())
    other.write_bytes(packed(published(seed=1)))
    encoder = encoders.load("satclip", checkpoint=str(one))
    assert encoder.dim == 6
    assert encoders.fingerprint("satclip", checkpoint=same) == encoder.fingerprint
    assert encoders.fingerprint("satclip", checkpoint=other) != encoder.fingerprint


def changed(**settings: Any) -> dict[str, Any]:
    content = published()
    content["hyper_parameters"].update(settings)
    return content


def without(key: str) -> dict[str, Any]:
    content = published()
    del content["state_dict"][key]
    return content


def poisoned() -> dict[str, Any]:
    content = published()
    content["state_dict"]["model.location.nnet.layers.1.bias"][0] = math.nan
    return content


@pytest.mark.parametrize(
    ("content", "field", "values"),
    [
        ([1, 2], "state_dict", ()),
        ({"state_dict": {}}, "hyper_parameters", ()),
        ({"state_dict": {}, "hyper_parameters": argparse.Namespace(capacity=8)}, "", ("UnpicklingError",)),
        (changed(le_type="grid"), "hyper_parameters.le_type", ("grid", "sphericalharmonics")),
        (changed(pe_type="fcnet"), "hyper_parameters.pe_type", ("fcnet", "siren")),
        (
            changed(harmonics_calculation="discretized"),
            "hyper_parameters.harmonics_calculation",
            ("discretized", *satclip.KINDS),
        ),
        (changed(legendre_polys=101), "hyper_parameters.legendre_polys", (101, "1..100")),
        (changed(capacity=None), "hyper_parameters.capacity", (None,)),
        (changed(capacity=9), "model.location.nnet.layers.0.weight", ((8, 16), (9, 16))),
        (changed(num_hidden_layers=3), "model.location.nnet.layers.2.weight", ()),
        (changed(num_hidden_layers=1), "model.location.nnet.layers.1.weight", ("num_hidden_layers is 1",)),
        (without("model.location.nnet.last_layer.bias"), "model.location.nnet.last_layer.bias", ()),
        (poisoned(), "model.location.nnet.layers.1.bias", ("finite",)),
    ],
)
def test_a_file_that_is_not_a_satclip_checkpoint_is_refused(tmp_path, content, field, values):
    file = tmp_path / "odd.ckpt"
    file.write_bytes(packed(content))
    with refuses(str(file), field, *values):
        encoders.load("satclip", checkpoint=file)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_pickled_code_never_runs(tmp_path, form):
    went_off = tmp_path / "went_off"
    content = published() | {"callbacks": Bomb(went_off)}
    file = tmp_path / "bomb.ckpt"
    file.write_bytes(packed(content) if form == "torch" else pickle.dumps(Bomb(went_off)))
    with refuses(str(file), "", "pickled code"):
        encoders.load("satclip", checkpoint=file)
    assert not went_off.exists()


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.95])
def test_a_truncated_or_foreign_file_is_named(tmp_path, keep):
    whole = packed(published())
    file = tmp_path / "cut.ckpt"
    file.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with refuses(str(file), ""):
        encoders.load("satclip", checkpoint=file)


def test_bad_requests_are_named(tmp_path):
    with refuses("encoder satclip", "checkpoint, model", "checkpoint=", "model="):
        encoders.fingerprint("satclip")
    with refuses("encoder satclip", "checkpoint, model", "checkpoint=", "model="):
        encoders.load("satclip", checkpoint="x", model=satclip.MODELS[0])
    with refuses("gone.ckpt", "", "No such file"):
        encoders.load("satclip", checkpoint=tmp_path / "gone.ckpt")
    with refuses("encoder satclip", "model", "'SatCLIP-L10'", *satclip.MODELS):
        encoders.load("satclip", model="SatCLIP-L10")
    with refuses("spherical harmonics", "kind", "'closed'", *satclip.KINDS):
        satclip.harmonics([0.0], [0.0], 2, "closed")


def test_a_hub_model_is_taken_from_the_cache_and_offline_is_said_in_one_line(tmp_path, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = "microsoft/SatCLIP-ViT16-L40"
    huggingface_hub.logging.set_verbosity_warning()
    with refuses("encoder satclip", "model", "satclip-vit16-l40.ckpt", model, "checkpoint=FILE"):
        encoders.load("satclip", model=model)
    retries = logging.getLogger("huggingface_hub.utils._http")  # logs two lines for each retry
    assert not retries.isEnabledFor(logging.WARNING)
    # The files that the hub's library leaves in its cache after a download.
    revision = "0" * 40
    repository = tmp_path / "models--microsoft--SatCLIP-ViT16-L40"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    (repository / "snapshots" / revision / "satclip-vit16-l40.ckpt").write_bytes(packed(published()))
    real, local = huggingface_hub.hf_hub_download, []

    def recording(*args: Any, local_files_only: bool = False) -> str:
        local.append(local_files_only)
        return real(*args, local_files_only=local_files_only)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", recording)
    vector = encoders.load("satclip", model=model).embed([40.0], [-100.0])
    assert local == [True]  # the hub was not asked
    (tmp_path / "same.ckpt").write_bytes(packed(published()))
    same = encoders.load("satclip", checkpoint=tmp_path / "same.ckpt").embed([40.0], [-100.0])
    np.testing.assert_array_equal(vector, same)


def test_six_models_are_known_by_their_published_names():
    assert len(satclip.MODELS) == 6
    assert {"microsoft/SatCLIP-ResNet18-L10", "microsoft/SatCLIP-ViT16-L40"} <= set(satclip.MODELS)
