"""Keras' HDF5 files: its own predictions again, every published shape, and one line for what is not one."""

import base64
import json
import marshal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from pm25.keras_h5 import load
from pm25.model import BiLSTMAttention
from tests.errors import refuses

pytestmark = pytest.mark.usefixtures("one_thread")

FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"no {FIXTURES}: files that Keras saved")


def predicted(model: BiLSTMAttention, x: np.ndarray, embedding: np.ndarray | None) -> np.ndarray:
    with torch.no_grad():
        given = None if embedding is None else torch.from_numpy(embedding)
        return model(torch.from_numpy(x), given).numpy()


# --- What Keras itself saved and predicted -----------------------------------------------------------


@needs_fixtures
@pytest.mark.parametrize("name", ["none", "geoclip_hadamard", "parent_layer"])
def test_keras_own_predictions(name):
    with np.load(FIXTURES / f"keras_{name}_shared_expected.npz") as file:
        expected = dict(file)
    model = load(FIXTURES / f"keras_{name}_shared.h5")
    assert not model.training
    got = predicted(model, expected["x"], expected.get("embedding"))
    assert got.shape == (64,)
    # Keras is 2e-6 from the same weights in float64, and so are we.
    np.testing.assert_allclose(got, expected["y"][:, 0], rtol=0, atol=5e-6)
    exact = model.double()(
        *(torch.from_numpy(expected[n]).double() for n in ("x", "embedding") if n in expected)
    )
    np.testing.assert_allclose(exact.detach(), expected["y"][:, 0], rtol=0, atol=3e-6)


# --- Files made here: Keras' layout, numpy's answer --------------------------------------------------

CHANNELS, DIM, DAYS = 3, 7, 5

Content = dict[str, Any]
Weights = dict[str, dict[str, np.ndarray]]


def layer(kind: str, name: str, sources: list[str], **config: Any) -> Content:
    nodes = [[[source, 0, 0, {}] for source in sources]] if sources else []
    return {
        "class_name": kind,
        "name": name,
        "config": {"name": name, **config},
        "inbound_nodes": nodes,
    }


def dense(name: str, source: str, units: int, activation: str, bias: bool = True) -> Content:
    return layer("Dense", name, [source], units=units, activation=activation, use_bias=bias)


def code() -> list[Any]:
    """What Keras saves of `lambda x: x[:, -1, :]`; were it run, it would end the test session."""
    trap = compile("raise SystemExit('the code of the file ran')", "file", "exec")
    return [base64.b64encode(marshal.dumps(trap)).decode(), None, None]


def lstm(units: int, **changes: Any) -> Content:
    config = {
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": True,
        "return_sequences": True,
    }
    return {"class_name": "LSTM", "config": {**config, **changes}}


def made(
    units: tuple[int, ...] = (4, 3),
    attention: int = 6,
    *,
    fusion: str | None = None,
    tanh: bool = False,
    place: int = 6,
    hidden: int = 8,
    whole: bool = False,
    place_first: bool = False,
    last_first: bool = False,
    masking: float | None = None,
    epsilon: float = 1e-3,
) -> tuple[list[Content], list[str], Weights]:
    """Layers, input names and weights of a model, as Keras names and orders them."""
    rng = np.random.default_rng(0)
    weights: Weights = {}

    def draw(owner: str, **shapes: tuple[int, ...]) -> None:
        drawn = {n.replace("__", "/"): rng.normal(0, 0.5, s).astype(np.float32) for n, s in shapes.items()}
        weights.setdefault(owner, {}).update(drawn)

    layers = [layer("InputLayer", "x", [], batch_input_shape=[None, DAYS, CHANNELS])]
    current, width = "x", CHANNELS
    if masking is not None:
        layers.append(layer("Masking", "masking", [current], mask_value=masking))
        current = "masking"
    for i, u in enumerate(units):
        layers.append(layer("Bidirectional", f"bi_{i}", [current], layer=lstm(u), merge_mode="concat"))
        for way in (f"forward_lstm_{i}", f"backward_lstm_{i}"):
            shapes = {"kernel": (width, 4 * u), "recurrent_kernel": (u, 4 * u), "bias": (4 * u,)}
            draw(f"bi_{i}", **{f"{way}__lstm_cell__{n}": shape for n, shape in shapes.items()})
        layers.append(
            layer(
                "LayerNormalization",
                f"norm_{i}",
                [f"bi_{i}"],
                axis=[2],
                epsilon=epsilon,
                center=True,
                scale=True,
            )
        )
        draw(f"norm_{i}", gamma=(2 * u,), beta=(2 * u,))
        current, width = f"norm_{i}", 2 * u
        if i < len(units) - 1:
            layers.append(layer("Dropout", f"drop_{i}", [current], rate=0.25))
            current = f"drop_{i}"
    if whole:
        layers.append(layer("Attention", "attention", [current], units=attention, score="luong"))
        draw("attention", luong_w__kernel=(width, width), attention_vector__kernel=(2 * width, attention))
        current = "attention"
    else:
        both = ["context_vector", "last_hidden_state"]
        layers += [
            layer("Lambda", "last_hidden_state", [current], function=code(), output_shape=[width]),
            dense("luong_w", current, width, "linear", bias=False),
            layer("Dot", "attention_score", ["last_hidden_state", "luong_w"], axes=[1, 2]),
            layer("Activation", "attention_weight", ["attention_score"], activation="softmax"),
            layer("Dot", "context_vector", [current, "attention_weight"], axes=[1, 1]),
            layer("Concatenate", "attention_output", both[::-1] if last_first else both, axis=-1),
            dense("attention_vector", "attention_output", attention, "tanh", bias=False),
        ]
        draw("luong_w", kernel=(width, width))
        draw("attention_vector", kernel=(2 * width, attention))
        current = "attention_vector"
    layers.append(layer("Dropout", "drop_attention", [current], rate=0.25))
    current, width, inputs = "drop_attention", attention, ["x"]
    if fusion:
        inputs.append("place_in")
        layers.append(layer("InputLayer", "place_in", [], batch_input_shape=[None, DIM]))
        source = "place_in"
        if tanh:
            layers.append(
                layer(
                    "LayerNormalization",
                    "place_norm",
                    [source],
                    axis=[1],
                    epsilon=epsilon,
                    center=True,
                    scale=True,
                )
            )
            draw("place_norm", gamma=(DIM,), beta=(DIM,))
            source = "place_norm"
        layers.append(dense("place", source, place, "tanh" if tanh else "relu"))
        draw("place", kernel=(DIM, place), bias=(place,))
        sources = ["place", current] if place_first else [current, "place"]
        if fusion == "hadamard":
            layers.append(layer("Multiply", "fused", sources))
        else:
            layers.append(layer("Concatenate", "fused", sources, axis=-1))
        layers.append(dense("hidden", "fused", hidden, "relu"))
        draw("hidden", kernel=(attention + (place if fusion == "concat" else 0), hidden), bias=(hidden,))
        current, width = "hidden", hidden
    layers.append(dense("out", current, 1, "linear"))
    draw("out", kernel=(width, 1), bias=(1,))
    return layers, inputs, weights


def save(path: Path, layers: list[Content], inputs: list[str], weights: Weights) -> Path:
    config = {
        "class_name": "Functional",
        "config": {
            "name": "model",
            "layers": layers,
            "input_layers": [[name, 0, 0] for name in inputs],
            "output_layers": [["out", 0, 0]],
        },
    }
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = "2.15.0"
        file.attrs["model_config"] = json.dumps(config)
        for content in layers:
            file.create_group(f"model_weights/{content['name']}")
        for owner, own in weights.items():
            for name, values in own.items():
                file[f"model_weights/{owner}/{owner}/{name}:0"] = values
    return path


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def norm(x: np.ndarray, own: dict[str, np.ndarray], epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * own["gamma"] + own["beta"]


def direction(x: np.ndarray, kept: np.ndarray, own: dict[str, np.ndarray], way: str) -> np.ndarray:
    """Keras' LSTM, day by day: gates input, forget, cell, output along the kernel's second axis."""
    kernel, recurrent, bias = (own[f"{way}/lstm_cell/{n}"] for n in ("kernel", "recurrent_kernel", "bias"))
    h = c = np.zeros((len(x), len(recurrent)))
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = np.where(kept[:, t, None], sigmoid(o) * np.tanh(new), h)
        c = np.where(kept[:, t, None], new, c)
        out.append(h)
    return np.stack(out, axis=1)


def answer(weights: Weights, x: np.ndarray, embedding: np.ndarray | None, **options: Any) -> np.ndarray:
    """The prediction from Keras' own arrays, in float64; `options` as for `made`."""
    epsilon, masking = options.get("epsilon", 1e-3), options.get("masking")
    own = {o: {n: v.astype(np.float64) for n, v in w.items()} for o, w in weights.items()}
    h = x.astype(np.float64)
    kept = np.ones(x.shape[:2], bool) if masking is None else (x != masking).any(axis=2)
    for i in range(sum(name.startswith("bi_") for name in own)):
        front = direction(h, kept, own[f"bi_{i}"], f"forward_lstm_{i}")
        back = direction(h[:, ::-1], kept[:, ::-1], own[f"bi_{i}"], f"backward_lstm_{i}")[:, ::-1]
        h = norm(np.concatenate([front, back], axis=2), own[f"norm_{i}"], epsilon)
    whole = own.get("attention", {})
    w = whole["luong_w/kernel"] if whole else own["luong_w"]["kernel"]
    v = whole["attention_vector/kernel"] if whole else own["attention_vector"]["kernel"]
    last = h[:, -1]
    score = ((h @ w) * last[:, None]).sum(axis=2)
    share = np.exp(score - score.max(axis=1, keepdims=True))
    context = ((share / share.sum(axis=1, keepdims=True))[:, :, None] * h).sum(axis=1)
    both = [last, context] if options.get("last_first") else [context, last]
    out = np.tanh(np.concatenate(both, axis=1) @ v)
    if embedding is not None:
        place = embedding.astype(np.float64)
        if options.get("tanh"):
            place = np.tanh(
                norm(place, own["place_norm"], epsilon) @ own["place"]["kernel"] + own["place"]["bias"]
            )
        else:
            place = np.maximum(place @ own["place"]["kernel"] + own["place"]["bias"], 0)
        pair = [place, out] if options.get("place_first") else [out, place]
        out = out * place if options["fusion"] == "hadamard" else np.concatenate(pair, axis=1)
        out = np.maximum(out @ own["hidden"]["kernel"] + own["hidden"]["bias"], 0)
    return (out @ own["out"]["kernel"] + own["out"]["bias"])[:, 0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"whole": True},
        {"units": (5,)},
        {"units": (2, 5, 3, 4), "attention": 9},
        {"last_first": True},
        {"epsilon": 0.1},
        {"masking": -1.0},
        {"masking": 0.0, "whole": True},
        {"fusion": "hadamard"},
        {"fusion": "hadamard", "place_first": True, "whole": True},
        {"fusion": "hadamard", "tanh": True, "masking": -1.0, "epsilon": 0.05},
        {"fusion": "concat"},
        {"fusion": "concat", "place": 11, "hidden": 4},
        {"fusion": "concat", "place": 11, "place_first": True},
        {"fusion": "concat", "tanh": True, "place": 4, "place_first": True, "whole": True},
    ],
    ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()) or "plain",
)
def test_every_published_shape(tmp_path, options):
    layers, inputs, weights = made(**options)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, DAYS, CHANNELS)).astype(np.float32)
    x[0, :2] = x[1, 3:] = x[2, 1:3] = x[3] = options.get("masking", -1.0)
    embedding = rng.normal(size=(6, DIM)).astype(np.float32) if "fusion" in options else None
    expected = answer(weights, x, embedding, **options)
    assert np.ptp(expected) > 0.05  # it depends on its inputs
    model = load(save(tmp_path / "m.h5", layers, inputs, weights))
    np.testing.assert_allclose(predicted(model, x, embedding), expected, rtol=1e-5, atol=1e-5)
    assert model.dropout.p == 0.25
    # Keras lists inputs and layers in any order.
    model = load(save(tmp_path / "n.h5", layers[::-1], inputs[::-1], weights))
    np.testing.assert_allclose(predicted(model, x, embedding), expected, rtol=1e-5, atol=1e-5)


def test_the_state_dict_makes_the_model_again(tmp_path):
    options = {"fusion": "concat", "place": 5, "hidden": 8, "tanh": True, "masking": -1.0}
    model = load(save(tmp_path / "m.h5", *made(**options)))
    again = BiLSTMAttention(
        CHANNELS, [4, 3], 6, 0.25, fusion="concat", embedding_dim=DIM, projection="norm_tanh",
        projection_units=5, hidden_units=8, mask_value=-1.0,
    ).eval()  # fmt: skip
    again.load_state_dict(model.state_dict())
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, DAYS, CHANNELS)).astype(np.float32)
    embedding = rng.normal(size=(3, DIM)).astype(np.float32)
    np.testing.assert_array_equal(predicted(model, x, embedding), predicted(again, x, embedding))
    assert not any(p.any() or p.requires_grad for n, p in model.named_parameters() if "bias_hh" in n)


def test_torchs_random_state_is_left_alone(tmp_path):
    path = save(tmp_path / "m.h5", *made())
    before = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), before)


# --- What is refused, in one line --------------------------------------------------------------------


def named(layers: list[Content], name: str) -> Content:
    return next(content for content in layers if content["name"] == name)


def change(name: str, **config: Any) -> Callable[[list[Content], Weights], None]:
    return lambda layers, _: named(layers, name)["config"].update(config)


def change_lstm(**config: Any) -> Callable[[list[Content], Weights], None]:
    return lambda layers, _: named(layers, "bi_0")["config"]["layer"]["config"].update(config)


def insert(after: str, content: Content) -> Callable[[list[Content], Weights], None]:
    """The layer between `after` and all that it feeds."""

    def edit(layers: list[Content], _: Weights) -> None:
        for other in layers:
            for node in other["inbound_nodes"]:
                for source in node:
                    if source[0] == after:
                        source[0] = content["name"]
        content["inbound_nodes"] = [[[after, 0, 0, {}]]]
        layers.append(content)

    return edit


def lose(owner: str, name: str) -> Callable[[list[Content], Weights], None]:
    return lambda _, weights: weights[owner].pop(name)


def reshape(owner: str, name: str, *shape: int) -> Callable[[list[Content], Weights], None]:
    return lambda _, weights: weights[owner].update({name: np.zeros(shape, np.float32)})


def call(name: str, **arguments: Any) -> Callable[[list[Content], Weights], None]:
    return lambda layers, _: named(layers, name)["inbound_nodes"][0][0].__setitem__(3, arguments)


Edit = Callable[[list[Content], Weights], Any]
REFUSED: list[tuple[Edit, str, list[str]]] = [
    (change_lstm(recurrent_activation="hard_sigmoid"), "bi_0", ["recurrent_activation", "'hard_sigmoid'"]),
    (change_lstm(activation="relu"), "bi_0", ["activation", "'relu'"]),
    (change_lstm(return_sequences=False), "bi_0", ["return_sequences", "False"]),
    (change_lstm(use_bias=False), "bi_0", ["use_bias", "False"]),
    (change_lstm(zero_output_for_mask=True), "bi_0", ["zero_output_for_mask", "True"]),
    (change_lstm(go_backwards=True), "bi_0", ["go_backwards", "True"]),
    (change("bi_0", merge_mode="sum"), "bi_0", ["merge_mode", "'sum'"]),
    (change("bi_1", layer={"class_name": "GRU", "config": {}}), "bi_1", ["GRU", "LSTM"]),
    (change("norm_0", axis=[1]), "norm_0", ["axis", "[1]"]),
    (change("norm_0", center=False), "norm_0", ["center", "False"]),
    (change("luong_w", activation="relu"), "luong_w", ["activation", "'relu'"]),
    (change("attention_vector", activation="linear"), "attention_vector", ["activation", "'linear'"]),
    (change("attention_score", axes=[1, 1]), "attention_score", ["axes", "[1, 1]"]),
    (change("attention_score", normalize=True), "attention_score", ["normalize", "True"]),
    (change("attention_weight", activation="sigmoid"), "attention_weight", ["activation", "'sigmoid'"]),
    (change("last_hidden_state", output_shape=[2]), "last_hidden_state", ["output_shape", "[2]"]),
    (change("place", activation="sigmoid"), "place", ["activation", "'sigmoid'"]),
    (change("place", units=5), "fused", ["attention_vector 6", "place 5"]),
    (change("hidden", activation="tanh"), "hidden", ["activation", "'tanh'"]),
    (change("out", units=2), "out", ["units", "2"]),
    (change("out", activation="relu"), "out", ["activation", "'relu'"]),
    (change("x", batch_input_shape=[None, CHANNELS]), "input_layers", ["x", "(B, T, F)"]),
    (change("x", batch_input_shape=[None, DAYS, None]), "input_layers", ["x", "(B, T, F)"]),
    (change("x", batch_input_shape=[None, DAYS, 4]), "bi_0", ["forward kernel", "(3, 16)", "(4, 16)"]),
    (insert("x", layer("Conv1D", "conv", [])), "conv", ["Conv1D", "after x", "Bidirectional"]),
    (insert("norm_1", layer("GRU", "gru", [])), "gru", ["GRU", "after norm_1"]),
    (insert("place_in", dense("extra", "", 6, "relu")), "fused", ["attention_vector", "extra"]),
    (
        insert("x", layer("Lambda", "odd", [], function=code())),
        "odd",
        ["Lambda", "code is not run", "after x"],
    ),
    (
        insert("drop_attention", layer("Lambda", "odd", [], function=code())),
        "odd",
        ["Lambda", "code is not run"],
    ),
    (insert("out", dense("more", "", 1, "linear")), "more", ["after out"]),
    (call("bi_0", initial_state=["x", 0, 0]), "bi_0", ["initial_state"]),
    (call("drop_0", training=True), "drop_0", ["training"]),
    (
        lambda layers, _: named(layers, "place")["inbound_nodes"].append([["x", 0, 0, {}]]),
        "place",
        ["2 times"],
    ),
    (lambda layers, _: layers.remove(named(layers, "norm_0")), "", ["Keras 2"]),
    (lambda layers, _: named(layers, "out").pop("config"), "", ["Keras 2"]),
    (lambda layers, _: layers.append(layer("Embedding", "lone", [])), "lone", ["Embedding"]),
    (lose("bi_0", "backward_lstm_0/lstm_cell/bias"), "bi_0", ["backward bias", "missing"]),
    (lose("place", "kernel"), "place", ["kernel", "missing"]),
    (lose("luong_w", "kernel"), "luong_w", ["kernel", "missing"]),
    (reshape("norm_0", "gamma", 3), "norm_0", ["gamma", "(3,)", "(8,)"]),
    (reshape("hidden", "kernel", 7, 8), "hidden", ["kernel", "(7, 8)"]),
    (lambda _, weights: weights["out"]["bias"].fill(np.nan), "out", ["bias", "finite"]),
]


@pytest.mark.parametrize(
    ("edit", "field", "shown"), REFUSED, ids=[f"{field} {' '.join(shown)}" for _, field, shown in REFUSED]
)
def test_another_model_is_refused(tmp_path, edit, field, shown):
    layers, inputs, weights = made(fusion="hadamard")
    edit(layers, weights)
    path = save(tmp_path / "m.h5", layers, inputs, weights)
    with refuses(str(path), field, *shown):
        load(path)


def test_a_lambda_of_another_name_is_not_taken_for_the_last_day(tmp_path):
    """`lambda x: x[:, 0]` would look the same but for its bytecode, which nobody reads."""
    layers, inputs, weights = made()
    renamed = json.loads(json.dumps(layers).replace("last_hidden_state", "first_day"))
    with refuses("m.h5", "first_day", "Lambda", "code is not run"):
        load(save(tmp_path / "m.h5", renamed, inputs, weights))


def test_another_score_is_refused(tmp_path):
    layers, inputs, weights = made(whole=True)
    change("attention", score="bahdanau")(layers, weights)
    with refuses("m.h5", "attention", "score", "'bahdanau'"):
        load(save(tmp_path / "m.h5", layers, inputs, weights))


def test_files_that_are_no_model(tmp_path):
    def refused(path: Path, *shown: str, field: str = "") -> None:
        with refuses(str(path), field, *shown):
            load(path)

    refused(tmp_path / "none.h5", "no such file", ".h5")
    refused(tmp_path, "no such file")
    (tmp_path / "text.h5").write_text("not HDF5")
    refused(tmp_path / "text.h5", "HDF5")
    (tmp_path / "empty.h5").touch()
    refused(tmp_path / "empty.h5", "HDF5")
    whole = save(tmp_path / "whole.h5", *made()).read_bytes()
    for share in (0.01, 0.3, 0.6, 0.99):
        (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
        refused(tmp_path / "cut.h5", "truncated")

    def edited(edit: Callable[[h5py.File], None]) -> Path:
        path = save(tmp_path / "edited.h5", *made())
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    refused(edited(lambda f: f.attrs.pop("model_config")), "model.save", field="model_config")
    refused(edited(lambda f: f.attrs.update(keras_version="3.3.3")), "Keras 3.3.3", field="keras_version")
    refused(edited(lambda f: f.attrs.update(model_config="{")), "Keras 2")
    refused(edited(lambda f: f.attrs.update(model_config="[]")), "Keras 2")
    sequential = json.dumps({"class_name": "Sequential", "config": {"layers": []}})
    refused(edited(lambda f: f.attrs.update(model_config=sequential)), "Sequential", field="model_config")
    refused(edited(lambda f: f.pop("model_weights")), "missing", field="bi_0")
    refused(edited(lambda f: f["model_weights"].pop("bi_1")), "missing", field="bi_1")


def test_weights_are_not_read_from_other_files(tmp_path):
    save(tmp_path / "other.h5", *made())
    path = save(tmp_path / "m.h5", *made())
    with h5py.File(path, "r+") as file:
        del file["model_weights/out"]
        file["model_weights/out"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "model_weights/out")
    with refuses("m.h5", "out", "missing"):
        load(path)
