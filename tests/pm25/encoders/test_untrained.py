"""Untrained encoders have the architecture of the trained ones, and weights that only their draw decides."""

import math
from pathlib import Path

import numpy as np
import pytest

from pm25 import encoders
from pm25.encoders import untrained
from pm25.encoders.geoclip import GeoCLIP
from tests.errors import refuses
from tests.pm25.encoders.test_satclip import packed, published

LAT, LON = [40.71, 34.05, 45.0], [-74.0, -118.24, -110.0]


def test_weights_have_the_names_shapes_and_bounds_of_a_fresh_geoclip() -> None:
    import torch

    wheel = torch.load(GeoCLIP.weights_file(), weights_only=True, map_location="cpu")
    drawn = untrained.geoclip_weights(np.random.default_rng(0))
    assert {name: tuple(value.shape) for name, value in wheel.items()} == {
        name: value.shape for name, value in drawn.items()
    }
    for name, value in drawn.items():
        if name.endswith(".b"):
            sigma = 16 ** int(name[len("LocEnc")])
            assert value.std() == pytest.approx(sigma, rel=0.1)
        else:
            inputs = drawn[f"{name.rpartition('.')[0]}.weight"].shape[1]
            bound = 1 / math.sqrt(inputs)  # PyTorch's default for a linear layer
            assert np.abs(value).max() <= bound
            assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_the_forward_pass_is_that_of_geoclip() -> None:
    encoder = encoders.load("untrained_geoclip_3")
    weights = untrained.geoclip_weights(np.random.default_rng(3))
    assert np.array_equal(encoder.embed(LAT, LON), GeoCLIP.with_weights(weights).embed(LAT, LON))
    assert encoder.dim == 512
    assert not encoder.trained_on_target


def test_a_draw_is_repeatable_and_no_two_draws_are_alike() -> None:
    first, again, other = (encoders.load(f"untrained_geoclip_{draw}") for draw in (0, 0, 1))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    vectors = first.embed(LAT, LON)
    assert np.array_equal(vectors, again.embed(LAT, LON))
    assert not np.allclose(vectors, other.embed(LAT, LON), atol=0.01)
    assert not np.allclose(vectors, encoders.load("geoclip").embed(LAT, LON), atol=0.01)
    assert len(np.unique(vectors, axis=0)) == 3  # it tells places apart


def test_a_fresh_satclip_has_the_sizes_of_the_checkpoint_and_none_of_its_weights(tmp_path: Path) -> None:
    small, wide = tmp_path / "small.ckpt", tmp_path / "wide.ckpt"
    for path, seed, dim in ((small, 0, 6), (wide, 0, 9)):
        path.write_bytes(packed(published(seed=seed, dim=dim)))
    vectors = encoders.load("untrained_satclip_0", checkpoint=small).embed(LAT, LON)
    assert vectors.shape == (3, 6)
    assert encoders.load("untrained_satclip_0", checkpoint=wide).embed(LAT, LON).shape == (3, 9)
    small.write_bytes(packed(published(seed=1)))
    again = encoders.load("untrained_satclip_0", checkpoint=small)
    assert np.array_equal(again.embed(LAT, LON), vectors)
    other = encoders.load("untrained_satclip_1", checkpoint=small).embed(LAT, LON)
    assert not np.allclose(other, vectors, atol=0.01)


def test_sine_layers_have_their_published_bounds() -> None:
    from pm25.encoders.satclip import LocationNetwork

    network = LocationNetwork(packed(published(L=10, capacity=64, layers=2, dim=32)), "here")
    layers = network.redrawn(np.random.default_rng(0))._layers
    for (weight, bias), bound in zip(layers, (1 / 100, math.sqrt(6 / 64), math.sqrt(6 / 64)), strict=True):
        assert bound * 0.99 < np.abs(weight).max() <= bound
        assert np.abs(bias).max() <= bound


def test_unknown_names_and_options_are_refused() -> None:
    for name in ("untrained_table_0", "untrained_geoclip", "untrained_geoclip_100", "untrained_geoclip_x"):
        with refuses("encoder", None, name):
            encoders.load(name)
    with refuses("encoder untrained", "checkpoint"):
        encoders.load("untrained_geoclip_0", checkpoint="x.ckpt")
