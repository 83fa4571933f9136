"""Adapters of published encoders, against the published formulas evaluated by hand, on random weights."""

import io
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from pm25 import encoders
from pm25.encoders import satclip
from pm25.encoders.torchspatial import ACTIVATIONS, FEATURES
from tests.errors import refuses

RNG = np.random.default_rng(7)
LAT = np.array([40.7, -33.9, 0.0, 64.1])
LON = np.array([-74.0, 151.2, 0.0, -21.9])


def linear(outputs: int, inputs: int, scale: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias as a published file stores them, in float32."""
    return (
        RNG.normal(0, scale, (outputs, inputs)).astype(np.float32),
        RNG.normal(0, scale, outputs).astype(np.float32),
    )


def stored(path: Path, state: dict[str, np.ndarray], **more: Any) -> Path:
    """Write a checkpoint of torch."""
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    torch.save({"state_dict": tensors, **more}, path)
    return path


def named(layers: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        f"{name}.{part}": value
        for name, layer in layers.items()
        for part, value in zip(("weight", "bias"), layer, strict=True)
    }


def close(found: np.ndarray, expected: list[list[float]]) -> None:
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected), rtol=2e-6, atol=2e-6)


# Residual networks: SINR, and the kind `wrap` of TorchSpatial


def wrapped(lat: float, lon: float) -> np.ndarray:
    x, y = lon / 180, lat / 90
    turns = (math.sin(math.pi * x), math.sin(math.pi * y), math.cos(math.pi * x), math.cos(math.pi * y))
    return np.array(turns)


def residual(layers: dict[str, tuple[np.ndarray, np.ndarray]], lat: float, lon: float) -> list[float]:
    """The published network, a place at a time."""

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = layers[name]
        return np.array([float(row @ x) + float(b) for row, b in zip(weight, bias, strict=True)])

    h = np.maximum(apply("feats.0", wrapped(lat, lon)), 0)
    for i in range(2, 2 + (len(layers) - 1) // 2):
        inner = np.maximum(apply(f"feats.{i}.w1", h), 0)
        h = h + np.maximum(apply(f"feats.{i}.w2", inner), 0)
    return h.tolist()


def residual_layers(width: int, depth: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    blocks = {f"feats.{i}.{w}": linear(width, width) for i in range(2, 2 + depth) for w in ("w1", "w2")}
    return {"feats.0": linear(width, 4)} | blocks


SINR = {"model": "ResidualFCNet", "input_enc": "sin_cos", "depth": 3, "num_filts": 6, "class_to_taxa": [3, 9]}


def sinr(path: Path, layers: dict[str, tuple[np.ndarray, np.ndarray]], **changed: Any) -> Path:
    species = {"class_emb.weight": np.zeros((2, 6), np.float32)}
    return stored(path, named(layers) | species, params=SINR | changed)


def test_sinr_is_the_published_network(tmp_path: Path) -> None:
    layers = residual_layers(6, 3)
    encoder = encoders.load("sinr", checkpoint=sinr(tmp_path / "model.pt", layers))
    expected = [residual(layers, lat, lon) for lat, lon in zip(LAT, LON, strict=True)]
    close(encoder.embed(LAT, LON), expected)
    assert (encoder.dim, encoder.trained_on_target) == (6, False)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"input_enc": "env"}, "params.input_enc"),
        ({"model": "LinNet"}, "params.model"),
        ({"depth": 4}, "params.depth"),
        ({"num_filts": 5}, "params.num_filts"),
    ],
)
def test_other_models_of_sinr_are_refused(tmp_path: Path, changed: dict[str, Any], field: str) -> None:
    path = sinr(tmp_path / "model.pt", residual_layers(6, 3), **changed)
    with refuses("model.pt", field, *changed.values()):
        encoders.load("sinr", checkpoint=path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("feats.0.weight", None),
        ("feats.3.w2.bias", None),
        ("feats.2.w1.weight", np.zeros((6, 5), np.float32)),
        ("feats.0.bias", np.full(6, np.nan, np.float32)),
        ("feats.0.weight", np.zeros((6, 4), np.int32)),
    ],
)
def test_damaged_weights_are_refused(tmp_path: Path, name: str, value: np.ndarray | None) -> None:
    state = named(residual_layers(6, 3))
    if value is None:
        del state[name]
    else:
        state[name] = value
    with refuses("model.pt", name):
        encoders.load("sinr", checkpoint=stored(tmp_path / "model.pt", state, params=SINR))


# TorchSpatial

FLAT = {"freq_init": "geometric", "frequency_num": 3, "min_radius": 0.5, "max_radius": 8.0}


def features(kind: str, lat: float, lon: float) -> list[float]:
    """The published features, written out."""
    sin, cos, rad = math.sin, math.cos, math.radians
    inverse = [1 / 0.5, 1 / 2.0, 1 / 8.0]  # 3 radii from 0.5 to 8, in a geometric progression
    plain = [1.0, 8**-0.5, 1 / 8.0]
    p, q = rad(lat), rad(lon)
    if kind == "Space2Vec-grid":
        return [wave(angle * f) for angle in (lon, lat) for f in inverse for wave in (sin, cos)]
    if kind == "Space2Vec-theory":
        third = math.sqrt(3) / 2
        along = [lon, -lon / 2 + third * lat, -lon / 2 - third * lat]
        return [wave(a * f) for f in inverse for a in along for wave in (sin, cos)]
    if kind == "Sphere2Vec-sphereC":
        triples = [(sin(p * f), cos(p * f) * cos(q * f), cos(p * f) * sin(q * f)) for f in inverse]
        return [value for triple in triples for value in triple]
    if kind == "Sphere2Vec-sphereC+":
        found = []
        for f in inverse:
            found += [sin(p * f), cos(p * f), sin(q * f), cos(q * f)]
            found += [cos(p * f) * cos(q * f), cos(p * f) * sin(q * f)]
        return found
    if kind == "Sphere2Vec-sphereM":
        found = []
        for f in inverse:
            found += [sin(p * f), cos(p * f) * cos(q), cos(p) * cos(q * f)]
            found += [cos(p * f) * sin(q), cos(p) * sin(q * f)]
        return found
    if kind == "Sphere2Vec-sphereM+":
        found = []
        for f in plain:
            found += [sin(p * f), cos(p * f), sin(q * f), cos(q * f)]
            found += [cos(p * f) * cos(q), cos(p) * cos(q * f), cos(p * f) * sin(q), cos(p) * sin(q * f)]
        return found
    if kind == "Sphere2Vec-dfs":
        east = [sin(q * f) for f in plain] + [cos(q * f) for f in plain]
        north = [sin(p * f) for f in plain] + [cos(p * f) for f in plain]
        found = [a * b for a in east for b in north]
        for f in plain:
            found += [sin(p * f), cos(p * f), sin(q * f), cos(q * f)]
        return found
    x, y, z = cos(p) * cos(q), cos(p) * sin(q), sin(p)
    if kind == "xyz":
        return [x, y, z]
    if kind == "NeRF":
        return [wave(math.pi * 2**i * c) for wave in (sin, cos) for c in (x, y, z) for i in range(16)]
    assert kind == "wrap_ffn"
    return wrapped(lat, lon).tolist()


ACT = {
    "relu": lambda x: max(x, 0.0),
    "leakyrelu": lambda x: x if x > 0 else 0.2 * x,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


def through(
    x: list[float],
    layers: list[tuple[np.ndarray, np.ndarray]],
    norms: list[tuple[np.ndarray, np.ndarray]],
    act: str,
    skip: bool,
) -> list[float]:
    """The published layers: linear, activation, skip where the length stays, norm; the last has only two."""
    for i, (weight, bias) in enumerate(layers):
        h = [ACT[act](float(row @ np.array(x)) + float(b)) for row, b in zip(weight, bias, strict=True)]
        if skip and len(h) == len(x) and i < len(layers) - 1:
            h = [a + b for a, b in zip(h, x, strict=True)]
        if i < len(norms):
            mean = sum(h) / len(h)
            spread = math.sqrt(sum((v - mean) ** 2 for v in h) / len(h) + 1e-5)
            h = [(v - mean) / spread * float(g) + float(b) for v, g, b in zip(h, *norms[i], strict=True)]
        x = h
    return x


def torchspatial(
    path: Path, kind: str, act: str = "relu", norm: bool = True, skip: bool = True, **changed: Any
) -> tuple[Path, list[Any], list[Any]]:
    inputs = len(features(kind, 1.0, 1.0))
    layers = [linear(5, inputs), linear(5, 5), linear(5, 5)]
    norms = [linear(5, 1)[1:] + linear(5, 1)[1:] for _ in range(2)] if norm else []
    state = named({f"spa_enc.ffn.layers.{i}.linear": layer for i, layer in enumerate(layers)})
    state |= named({f"spa_enc.ffn.layers.{i}.layernorm": one for i, one in enumerate(norms)})
    params = FLAT | {"spa_enc_type": kind, "spa_f_act": act, "use_layn": norm, "skip_connection": skip}
    return stored(path, state, params=params | changed, epoch=3, optimizer={}), layers, norms


@pytest.mark.parametrize("kind", FEATURES)
def test_torchspatial_is_the_published_network(tmp_path: Path, kind: str) -> None:
    path, layers, norms = torchspatial(tmp_path / "model.pth.tar", kind)
    encoder = encoders.load("torchspatial", checkpoint=path)
    places = zip(LAT, LON, strict=True)
    close(encoder.embed(LAT, LON), [through(features(kind, *p), layers, norms, "relu", True) for p in places])
    assert (encoder.dim, encoder.trained_on_target) == (5, False)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("norm", "skip"), [(True, False), (False, True)])
def test_the_layers_of_torchspatial(tmp_path: Path, act: str, norm: bool, skip: bool) -> None:
    path, layers, norms = torchspatial(tmp_path / "model.pth.tar", "xyz", act, norm, skip)
    found = encoders.load("torchspatial", checkpoint=path).embed(LAT[:1], LON[:1])
    close(found, [through(features("xyz", LAT[0], LON[0]), layers, norms, act, skip)])


def test_the_kind_wrap_is_the_residual_network(tmp_path: Path) -> None:
    layers = residual_layers(6, 4)
    params = {"spa_enc_type": "wrap", "loc_encode": "encode_cos_sin", "use_date_feats": False}
    path = stored(tmp_path / "model.pth.tar", named(layers), params=params)
    found = encoders.load("torchspatial", checkpoint=path).embed(LAT, LON)
    close(found, [residual(layers, lat, lon) for lat, lon in zip(LAT, LON, strict=True)])
    with refuses("dated.pth.tar", "params.use_date_feats"):
        dated = stored(tmp_path / "dated.pth.tar", named(layers), params=params | {"use_date_feats": True})
        encoders.load("torchspatial", checkpoint=dated)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"spa_enc_type": "rbf"}, "params.spa_enc_type"),
        ({"spa_f_act": "gelu"}, "params.spa_f_act"),
        ({"freq_init": "random"}, "params.freq_init"),
        ({"frequency_num": 1}, "params.frequency_num"),
        ({"frequency_num": 4}, "spa_enc.ffn.layers.0.linear.weight"),
        ({"min_radius": 0.0}, "params.min_radius"),
        ({"max_radius": "far"}, "params.max_radius"),
        ({"use_layn": False}, "params.use_layn"),
        ({"skip_connection": None}, "params.skip_connection"),
    ],
)
def test_other_models_of_torchspatial_are_refused(
    tmp_path: Path, changed: dict[str, Any], field: str
) -> None:
    path, _, _ = torchspatial(tmp_path / "model.pth.tar", "Space2Vec-grid", **changed)
    with refuses("model.pth.tar", field):
        encoders.load("torchspatial", checkpoint=path)


# Climplicit


def climplicit(path: Path, layers: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    own = {f"location_encoder.layers.{i}": layer for i, layer in enumerate(layers[:-1])}
    state = named(own | {"location_encoder.last_layer": layers[-1], "chelsa_regressor": linear(11, 3)})
    path.write_bytes(safetensors.numpy.save(state))
    return path


def month_of(layers: list[tuple[np.ndarray, np.ndarray]], lat: float, lon: float, month: int) -> list[float]:
    """The published network for one place and month."""
    turn = 2 * math.pi * month / 12
    x = np.array([lon / 180, lat / 90, math.sin(turn), math.cos(turn)])
    weight, bias = layers[0]
    before = weight.astype(float) @ x + bias
    h = np.sin(30 * np.sinh(2 * before))
    for weight, bias in layers[1:-1]:
        before = (weight.astype(float) @ h + bias + before) / 2
        h = np.sin(before)
    weight, bias = layers[-1]
    return [float(value) for value in weight.astype(float) @ h + bias]


def test_climplicit_is_the_published_network(tmp_path: Path) -> None:
    layers = [linear(5, 4, 0.2), linear(5, 5), linear(5, 5), linear(3, 5)]
    path = climplicit(tmp_path / "model.safetensors", layers)
    places = [*zip(LAT, LON, strict=True)]
    seasons = encoders.load("climplicit", checkpoint=path)
    expected = [[v for m in (3, 6, 9, 12) for v in month_of(layers, *place, m)] for place in places]
    close(seasons.embed(LAT, LON), expected)
    assert (seasons.dim, encoders.lookup_keys("climplicit", checkpoint=path)) == (12, ())
    each = encoders.load("climplicit", checkpoint=path, months="each")
    vectors = each.embed(LAT, LON)
    assert vectors.shape == (4, 12, 3)
    assert each.dim == 3
    for month in range(1, 13):
        close(vectors[:, month - 1], [month_of(layers, *place, month) for place in places])
    assert encoders.lookup_keys("climplicit", checkpoint=path, months="each") == ("month",)
    assert seasons.fingerprint != each.fingerprint


def test_other_files_of_climplicit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors.numpy.save({"other": np.zeros(3, np.float32)}))
    with refuses("model.safetensors", "location_encoder.layers.0.weight"):
        encoders.load("climplicit", checkpoint=path)
    path.write_bytes(b"\xff" * 100)
    with refuses("model.safetensors", ""):
        encoders.load("climplicit", checkpoint=path)
    with refuses("encoder climplicit", "months", "june", "seasons", "each"):
        encoders.fingerprint("climplicit", checkpoint=path, months="june")


# RANGE


def satclip_file(path: Path, L: int = 3, width: int = 5, dim: int = 4) -> Path:
    layers = {"layers.0": linear(width, L * L), "last_layer": linear(dim, width)}
    state = named({f"model.location.nnet.{name}": layer for name, layer in layers.items()})
    settings = {"harmonics_calculation": "analytic", "legendre_polys": L, "embed_dim": dim}
    return stored(path, state, hyper_parameters=settings | {"capacity": width, "num_hidden_layers": 1})


def database(path: Path, rows: int = 30, dim: int = 4, **changed: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "locs": np.stack([RNG.uniform(-180, 180, rows), RNG.uniform(-90, 90, rows)], axis=1),
        "satclip_embeddings": RNG.normal(size=(rows, dim)),
        "image_embeddings": RNG.normal(size=(rows, 6)),
    } | changed
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    np.savez(path, **arrays)
    return arrays


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(float(vector @ vector))


def softmax(values: list[float]) -> np.ndarray:
    powers = np.exp(np.array(values) - max(values))
    return powers / powers.sum()


def point(lon: float, lat: float) -> np.ndarray:
    q, p = math.radians(lon), math.radians(lat)
    return np.array([math.cos(p) * math.cos(q), math.cos(p) * math.sin(q), math.sin(p)])


@pytest.mark.parametrize(
    ("options", "temperature", "beta"),
    [({"model": "RANGE"}, 15, 1.0), ({}, 12, 0.5), ({"model": "RANGE+", "beta": 0.2}, 12, 0.2)],
)
def test_range_is_the_published_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], temperature: float, beta: float
) -> None:
    from pm25.encoders import retrieval

    monkeypatch.setattr(retrieval, "ROWS", 7)  # the database is read in blocks
    checkpoint, path = satclip_file(tmp_path / "s.ckpt"), tmp_path / "db.npz"
    arrays = {name: value.astype(float) for name, value in database(path).items()}
    encoder = encoders.load("range", checkpoint=checkpoint, database=path, **options)
    own = satclip.LocationNetwork(checkpoint.read_bytes(), "s").embed(LAT, LON)
    expected = []
    for vector, lat, lon in zip(own, LAT, LON, strict=True):
        s = unit(vector)
        similar = softmax([temperature * float(unit(key) @ s) for key in arrays["satclip_embeddings"]])
        near = softmax([40 * float(point(*place) @ point(lon, lat)) for place in arrays["locs"]])
        mean = (beta * similar + (1 - beta) * near) @ arrays["image_embeddings"]
        expected.append([*mean, *s])
    close(encoder.embed(LAT, LON), expected)
    assert encoder.dim == 10


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"locs": np.zeros((29, 2))}, "locs"),
        ({"locs": np.full((30, 2), 100.0)}, "lat"),
        ({"satclip_embeddings": np.ones((30, 3))}, "satclip_embeddings"),
        ({"satclip_embeddings": np.zeros((30, 4))}, "satclip_embeddings"),
        ({"image_embeddings": np.full((30, 6), np.inf)}, "image_embeddings"),
    ],
)
def test_other_databases_are_refused(tmp_path: Path, changed: dict[str, np.ndarray], field: str) -> None:
    checkpoint, path = satclip_file(tmp_path / "s.ckpt"), tmp_path / "db.npz"
    database(path, **changed)
    with refuses(None, field):
        encoders.load("range", checkpoint=checkpoint, database=path)


def test_options_of_range(tmp_path: Path) -> None:
    checkpoint, path = satclip_file(tmp_path / "s.ckpt"), tmp_path / "db.npz"
    database(path)
    files = {"checkpoint": checkpoint, "database": path}
    prints = [
        encoders.fingerprint("range", **files, **more)
        for more in ({}, {"beta": 0.5}, {"beta": 0.4}, {"model": "RANGE"})
    ]
    assert prints[0] == prints[1]
    assert len({*prints}) == 3
    for wrong in ({"beta": 2}, {"beta": True}, {"model": "RANGE", "beta": 0.5}):
        with refuses("encoder range", "beta"):
            encoders.fingerprint("range", **files, **wrong)
    with refuses("encoder range", "model", "range+", "RANGE+"):
        encoders.fingerprint("range", **files, model="range+")


# All of them


class Bomb:
    """Code that a pickle runs."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import builtins; builtins.exploded = True",)


def pickled_array() -> bytes:
    """A database whose arrays are pickled objects."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("locs", "satclip_embeddings", "image_embeddings"):
            array = io.BytesIO()
            np.save(array, np.array([Bomb()], object), allow_pickle=True)
            archive.writestr(f"{name}.npy", array.getvalue())
    return packed.getvalue()


@pytest.mark.parametrize("name", ["sinr", "torchspatial", "climplicit", "range"])
@pytest.mark.parametrize("kind", ["code", "garbage", "empty"])
def test_no_file_runs_code(tmp_path: Path, name: str, kind: str) -> None:
    import builtins

    bomb = {"checkpoint": pickle.dumps({"state_dict": Bomb(), "params": Bomb()}), "database": pickled_array()}
    content = {
        "code": bomb,
        "garbage": dict.fromkeys(bomb, b"PK\x03\x04 no"),
        "empty": dict.fromkeys(bomb, b""),
    }
    options = {}
    for option in ("checkpoint", "database") if name == "range" else ("checkpoint",):
        options[option] = tmp_path / option
        options[option].write_bytes(content[kind][option])
    if name == "range":
        options["checkpoint"] = satclip_file(tmp_path / "s.ckpt")
    with refuses(str(options.get("database", options["checkpoint"])), ""):
        encoders.load(name, **options)
    assert not hasattr(builtins, "exploded")


@pytest.mark.parametrize("name", ["sinr", "torchspatial", "climplicit"])
def test_fingerprints_are_those_of_the_content(tmp_path: Path, name: str) -> None:
    one, same, other = (tmp_path / letter for letter in "abc")
    for path, content in ((one, b"x"), (same, b"x"), (other, b"y")):
        path.write_bytes(content)
    prints = [encoders.fingerprint(name, checkpoint=path) for path in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]
    with refuses(f"{tmp_path / 'gone'}"):
        encoders.fingerprint(name, checkpoint=tmp_path / "gone")
