"""The network is the published one: its size by hand, its formula in plain numpy, Keras' first weights."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from pm25 import model as pm25_model
from pm25.model import Attention, BiLSTM, BiLSTMAttention, initialise
from pm25.settings import Fusion, ModelSettings

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ModelSettings(width=6, depth=3, attention_units=5)


def build(
    channels: int,
    settings: ModelSettings,
    fusion: str | None = None,
    dim: int = 0,
    seed: int = 0,
    **changes: Any,
) -> BiLSTMAttention:
    model = pm25_model.build(channels, settings, fusion, dim, **changes)
    initialise(model, torch.Generator().manual_seed(seed), settings.initialiser or "keras")
    return model.eval()


# --- Parameter counts of the published model ---------------------------------------------------------


def bilstm(inputs: int, units: int) -> int:
    """Keras: four gates with a kernel, a recurrent kernel and one bias, in two directions."""
    return 2 * 4 * units * (inputs + units + 1)


# 19 channels; 512 = 2 x 256 and 256 = 2 x 128 outputs of the Bi-LSTM layers, each normed.
BODY = bilstm(19, 256) + 2 * 512 + bilstm(512, 128) + 2 * 256 + bilstm(256, 128) + 2 * 256
ATTENTION = 256 * 256 + 512 * 256  # W and C, no biases
OUTPUT = 256 + 1


@pytest.mark.parametrize(
    ("fusion", "dim", "head", "total"),
    [
        (None, 0, 0, 1_814_785),
        ("hadamard", 512, (512 * 256 + 256) + (256 * 256 + 256), 2_011_905),
        ("concat", 512, (512 * 256 + 256) + (512 * 256 + 256), 2_077_441),
        ("film", 512, (512 * 256 + 256) + (256 * 512 + 512) + (256 * 256 + 256), 2_143_489),
        ("gated", 512, (512 * 256 + 256) + 512 * 256 + (256 * 256 + 256), 2_142_977),
    ],
)
def test_the_published_model_has_the_published_number_of_parameters(fusion, dim, head, total):
    with torch.device("meta"):
        model = pm25_model.build(19, ModelSettings(), fusion, dim)
    assert BODY + ATTENTION + head + OUTPUT == total
    # torch's second bias is held at zero: see the initial weights, below.
    assert sum(p.numel() for name, p in model.named_parameters() if "bias_hh" not in name) == total


def test_units():
    with torch.device("meta"):
        model = pm25_model.build(19, ModelSettings())
    assert [(m.input_size, m.hidden_size) for m in model.lstm] == [(19, 256), (512, 128), (256, 128)]
    assert all(m.bidirectional for m in model.lstm)
    assert [m.normalized_shape for m in model.norm] == [(512,), (256,), (256,)]
    shallow = build(7, ModelSettings(width=32, depth=1, attention_units=10))
    assert [(m.input_size, m.hidden_size) for m in shallow.lstm] == [(7, 32)]
    assert shallow.attention.vector.out_features == shallow.output.in_features == 10


# --- The forward pass in numpy -----------------------------------------------------------------------


def a(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().numpy().astype(np.float64)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lstm_direction(x: np.ndarray, lstm: nn.LSTM, suffix: str, kept: np.ndarray) -> np.ndarray:
    """x (B, T, F) -> (B, T, U); one bias, gates input, forget, cell, output; day after day.

    Where a day is not `kept (B, T)` both states, and so the output, stay what they were.
    """
    kernel, recurrent = a(getattr(lstm, f"weight_ih_l0{suffix}")), a(getattr(lstm, f"weight_hh_l0{suffix}"))
    bias = a(getattr(lstm, f"bias_ih_l0{suffix}"))
    h = c = np.zeros((len(x), lstm.hidden_size))
    out = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel.T + h @ recurrent.T + bias, 4, axis=1)
        new = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        c, h = (
            np.where(kept[:, t, None], after, before)
            for after, before in ((new, c), (sigmoid(o) * np.tanh(new), h))
        )
        out.append(h)
    return np.stack(out, axis=1)


def layer_norm(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    centred = x - x.mean(axis=2, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-3) * a(norm.weight) + a(norm.bias)


def attention(hidden: np.ndarray, layer: Attention) -> np.ndarray:
    """One sample and one day at a time: score_s = h_T . W h_s; tanh(C [context; h_T])."""
    w, c = a(layer.score.weight), a(layer.vector.weight)
    out = []
    for h in hidden:
        score = np.array([h[-1] @ (w @ day) for day in h])
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        context = sum(p * day for p, day in zip(weight, h, strict=True))
        out.append(np.tanh(c @ np.concatenate([context, h[-1]])))
    return np.stack(out)


def dense(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return x @ a(layer.weight).T + a(layer.bias)


def fuse(model: BiLSTMAttention, out: np.ndarray, place: np.ndarray) -> np.ndarray:
    if model.fusion == "film":
        made = dense(place, model.film)
        return (1 + made[:, : out.shape[1]]) * out + made[:, out.shape[1] :]
    if model.fusion == "gated":
        gate = sigmoid(np.concatenate([out, place], axis=1) @ a(model.gate.weight).T)
        return gate * out + (1 - gate) * place
    return out * place if model.fusion == "hadamard" else np.concatenate([out, place], axis=1)


def forward(
    model: BiLSTMAttention, window: np.ndarray, embedding: np.ndarray | None, mask: bool = False
) -> np.ndarray:
    hidden = window.astype(np.float64)
    kept = (window != -1).any(axis=2) if mask else np.ones(window.shape[:2], bool)
    for lstm, norm in zip(model.lstm, model.norm, strict=True):
        back = lstm_direction(hidden[:, ::-1], lstm, "_reverse", kept[:, ::-1])[:, ::-1]
        hidden = layer_norm(np.concatenate([lstm_direction(hidden, lstm, "", kept), back], axis=2), norm)
    out = attention(hidden, model.attention)
    if embedding is not None:
        embedding = embedding.astype(np.float64)
        if model.projection == "norm_tanh":
            place = np.tanh(dense(layer_norm(embedding[:, None], model.location_norm)[:, 0], model.location))
        else:
            place = np.maximum(dense(embedding, model.location), 0)
        out = np.maximum(dense(fuse(model, out, place), model.hidden), 0)
    return dense(out, model.output)[:, 0]


def stirred(model: BiLSTMAttention, rng: np.random.Generator) -> BiLSTMAttention:
    """Biases and norms away from 0 and 1; the frozen stay at 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.from_numpy(rng.normal(0, 0.3, parameter.shape)).float()
    return model


@pytest.mark.parametrize("fusion", [None, *get_args(Fusion)])
@pytest.mark.parametrize("projection", [None, "norm_tanh"])
@pytest.mark.parametrize("depth", [1, 3])
def test_forward_is_the_published_formula(fusion, projection, depth):
    settings = SMALL.model_copy(update={"depth": depth, "projection": projection})
    rng = np.random.default_rng(1)
    model = stirred(build(4, settings, fusion, 7 if fusion else 0), rng)
    window = rng.normal(size=(5, 9, 4)).astype(np.float32)
    embedding = rng.normal(size=(5, 7)).astype(np.float32) if fusion else None
    with torch.no_grad():
        got = model(torch.from_numpy(window), None if embedding is None else torch.from_numpy(embedding))
    assert got.shape == (5,)
    np.testing.assert_allclose(got.numpy(), forward(model, window, embedding), rtol=1e-4, atol=2e-5)


def test_own_widths_and_own_names():
    model = BiLSTMAttention(
        3, [4, 2, 5], 6, 0.1, fusion="concat", embedding_dim=8, projection_units=7, hidden_units=9
    )
    assert [m.hidden_size for m in model.lstm] == [4, 2, 5]
    assert model.location.weight.shape == (7, 8)
    assert model.hidden.weight.shape == (9, 13)
    assert model.output.weight.shape == (1, 9)
    heads = {"location.weight", "location.bias", "hidden.weight", "hidden.bias"}
    names = set(build(4, SMALL).state_dict())
    assert set(build(4, SMALL, "concat", 7).state_dict()) == names | heads
    assert set(build(4, SMALL, "film", 7).state_dict()) == names | heads | {"film.weight", "film.bias"}
    assert set(build(4, SMALL, "gated", 7).state_dict()) == names | heads | {"gate.weight"}
    for fusion in ("hadamard", "film", "gated"):
        with pytest.raises(ValueError, match=f"{fusion}.* 7 and 6"):
            BiLSTMAttention(3, [4], 6, 0.1, fusion=fusion, embedding_dim=8, projection_units=7)


def test_a_silent_film_changes_nothing_and_an_open_gate_lets_one_through():
    rng = np.random.default_rng(3)
    out, place = (torch.from_numpy(rng.normal(size=(4, 5))).float() for _ in range(2))
    film, gated = build(4, SMALL, "film", 7), build(4, SMALL, "gated", 7)
    with torch.no_grad():
        film.film.weight.zero_()
        gated.gate.weight.zero_()
        assert torch.equal(film._fuse(out, place), out)
        film.film.bias.copy_(torch.tensor([1.0] * 5 + [3.0] * 5))  # gamma 1, beta 3
        assert torch.equal(film._fuse(out, place), 2 * out + 3)
        assert torch.equal(gated._fuse(out, place), (out + place) / 2)


# --- Masked days -------------------------------------------------------------------------------------

MASKS = {
    "first days": [0, 0, 0, 1, 1, 1, 1],
    "last days": [1, 1, 1, 1, 0, 0, 0],
    "days between": [1, 0, 1, 0, 0, 1, 1],
    "all but one": [0, 0, 0, 1, 0, 0, 0],
    "all": [0] * 7,
    "none": [1] * 7,
}


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("rows", [[name] for name in MASKS] + [list(MASKS)], ids=lambda r: "+".join(r))
def test_masked_days_are_stepped_over_as_keras_does(rows, depth):
    rng = np.random.default_rng(4)
    model = stirred(build(4, SMALL.model_copy(update={"depth": depth}), mask_value=-1.0), rng)
    window = rng.normal(size=(len(rows), 7, 4)).astype(np.float32)
    window[:, :, 0] = -1  # a day counts as masked only where all features are
    window[~np.array([MASKS[name] for name in rows], bool)] = -1
    with torch.no_grad():
        got = model(torch.from_numpy(window)).numpy()
    np.testing.assert_allclose(got, forward(model, window, None, mask=True), rtol=1e-4, atol=2e-5)


def test_a_mask_trains():
    model = build(4, SMALL, mask_value=-1.0)
    window = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    window[0, 2:4] = window[1] = -1
    model(window).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
    assert model.lstm[0].weight_ih_l0.grad.abs().sum() > 0


def test_without_a_masked_day_a_mask_costs_no_bit(monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("no day is masked")

    window = torch.randn(5, 9, 4, generator=torch.Generator().manual_seed(0))
    plain, masking = build(4, SMALL), build(4, SMALL, mask_value=-1.0)
    missing = window.clone()
    missing[0, 3] = -1
    assert not torch.equal(plain(missing), masking(missing))
    monkeypatch.setattr(pm25_model, "_skip_masked", never)
    assert torch.equal(plain(window), masking(window))
    plain(missing)  # -1 means nothing there


def test_attention_is_luongs():
    layer = Attention(6, 3)
    hidden = np.random.default_rng(2).normal(size=(4, 8, 6)).astype(np.float32)
    got = layer(torch.from_numpy(hidden)).detach().numpy()
    np.testing.assert_allclose(got, attention(hidden.astype(np.float64), layer), rtol=1e-5, atol=1e-6)


def test_attention_looks_where_the_score_is_high():
    layer = Attention(2, 2)
    with torch.no_grad():
        layer.score.weight.copy_(100 * torch.eye(2))
        layer.vector.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))  # the context alone
    # Day 1 is the only one along the last day's direction beside itself, and twice as long.
    hidden = torch.tensor([[[0.0, 1.0], [2.0, 0.5], [-3.0, 0.0], [1.0, 0.0]]])
    np.testing.assert_allclose(layer(hidden)[0].detach(), np.tanh([2.0, 0.5]), rtol=1e-6)


# --- Precision ---------------------------------------------------------------------------------------


def test_where_autocast_has_no_bf16_lstm_it_stays_in_32_bits(monkeypatch):
    """A GPU is such a device: autocast would compute its LSTM layers in float16."""
    layer = BiLSTM(3, 4, batch_first=True, bidirectional=True)
    value = torch.randn(2, 5, 3)
    packed = pack_padded_sequence(value, torch.tensor([5, 3]), batch_first=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(value)[0].dtype == torch.bfloat16
    full = layer(value)[0], layer(packed)[0].data
    monkeypatch.setattr(BiLSTM, "IN_BF16", frozenset())
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(value)[0], layer(packed)[0].data
        assert layer(value.bfloat16())[0].dtype == torch.float32
        assert torch.is_autocast_enabled("cpu")
    for one, other in zip(found, full, strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


@pytest.mark.parametrize("fusion", [None, *get_args(Fusion)])
def test_bf16_is_close_to_the_formula_and_its_gradients_are_in_32_bits(fusion):
    rng = np.random.default_rng(1)
    settings = SMALL.model_copy(update={"dropout": 0.0})
    model = stirred(build(4, settings, fusion, 7 if fusion else 0, precision="bf16"), rng)
    window = rng.normal(size=(50, 9, 4)).astype(np.float32)
    embedding = rng.normal(size=(50, 7)).astype(np.float32) if fusion else None
    got = model(torch.from_numpy(window), None if embedding is None else torch.from_numpy(embedding))
    exact = forward(model, window, embedding)
    assert got.dtype == torch.float32
    # Not rounded to the 8 bits of a bfloat16: the last 16 bits are not 0.
    assert (got.detach().numpy().view(np.uint32) & 0xFFFF).all()
    error = np.abs(got.detach().numpy() - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 0.05
    got.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}


def test_attention_tells_scores_apart_that_are_one_bfloat16():
    layer = Attention(2, 2)
    with torch.no_grad():
        layer.score.weight.copy_(torch.eye(2))
        layer.vector.weight.copy_(torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]]))  # the context's second
    # Scores 256 and 257; the nearest bfloat16 of both is 256, and the days would have equal weights.
    hidden = torch.tensor([[[16.0, 0.0], [16.0, 1.0]]])
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(hidden)[0, 0].item()
    assert got == pytest.approx(np.tanh(np.e / (1 + np.e)), abs=0.005)


# --- Dropout -----------------------------------------------------------------------------------------


def test_dropout_acts_in_training_only_and_nowhere_else():
    window = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    model = build(4, SMALL)
    assert torch.equal(model(window), model(window))
    assert model.dropout.p == 0.2
    model.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(window), model(window))
    dry = build(4, SMALL.model_copy(update={"dropout": 0.0})).train()
    assert torch.equal(dry(window), dry(window))


def test_dropout_follows_the_first_layers_and_the_attention():
    model = build(4, SMALL).train()
    seen = []
    model.dropout.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    with torch.random.fork_rng():
        model(torch.zeros(2, 9, 4))
    assert seen == [(2, 9, 12), (2, 9, 6), (2, 5)]  # not after the third Bi-LSTM layer


# --- Keras' initial weights --------------------------------------------------------------------------


def test_initial_lstm_weights_are_kerass():
    model = build(19, ModelSettings(width=32, attention_units=16))
    for lstm in model.lstm:
        units = lstm.hidden_size
        for suffix in ("", "_reverse"):
            bias = a(getattr(lstm, f"bias_ih_l0{suffix}")).reshape(4, units)
            assert bias.tolist() == [[0] * units, [1] * units, [0] * units, [0] * units]  # forget gate
            recurrent_bias = getattr(lstm, f"bias_hh_l0{suffix}")
            assert not recurrent_bias.any()
            assert not recurrent_bias.requires_grad
            recurrent = a(getattr(lstm, f"weight_hh_l0{suffix}"))
            assert recurrent.shape == (4 * units, units)
            np.testing.assert_allclose(recurrent.T @ recurrent, np.eye(units), atol=1e-5)
            kernel = a(getattr(lstm, f"weight_ih_l0{suffix}"))
            limit = np.sqrt(6 / (lstm.input_size + 4 * units))  # Keras' kernel is (inputs, 4 units)
            assert 0.97 * limit < np.abs(kernel).max() <= limit * (1 + 1e-6)
            assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)


def test_initial_dense_weights_are_kerass():
    model = build(19, ModelSettings(width=32, attention_units=64), "concat", 40)
    shapes = {"location": (64, 40), "hidden": (64, 128), "output": (1, 64)}
    for name, shape in shapes.items():
        layer = getattr(model, name)
        assert layer.weight.shape == shape
        limit = np.sqrt(6 / sum(shape))
        assert 0.9 * limit < layer.weight.abs().max() <= limit * (1 + 1e-6)
        assert not layer.bias.any()
    assert model.attention.score.bias is None
    assert model.attention.vector.bias is None
    for norm in model.norm:
        assert norm.eps == 1e-3
        assert (norm.weight == 1).all()
        assert not norm.bias.any()


def test_the_frozen_bias_stays_zero_in_training():
    model = build(4, SMALL).train()
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = model.lstm[0].bias_ih_l0.clone()
    with torch.random.fork_rng():
        model(torch.ones(3, 5, 4)).sum().backward()
    optimiser.step()
    assert not torch.equal(model.lstm[0].bias_ih_l0, before)
    assert not any(p.any() for n, p in model.named_parameters() if "bias_hh" in n)


def test_initial_weights_come_from_the_generator_alone():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = build(4, SMALL, "hadamard", 3, seed=5).state_dict()
        torch.manual_seed(2)
        again = build(4, SMALL, "hadamard", 3, seed=5).state_dict()
        other = build(4, SMALL, "hadamard", 3, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    kernels = [name for name in first if "weight" in name and "norm" not in name]
    assert not any(torch.equal(first[name], other[name]) for name in kernels)


# --- torch's initial weights -------------------------------------------------------------------------


def test_initial_weights_can_be_torchs():
    settings = ModelSettings(width=32, attention_units=64, initialiser="torch", projection="norm_tanh")
    model = build(19, settings, "film", 40)
    fans = {f"lstm.{i}": lstm.hidden_size for i, lstm in enumerate(model.lstm)}
    fans |= {n: m.in_features for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
            continue
        limit = fans[name.rpartition(".")[0]] ** -0.5
        parameter = parameter.detach()
        assert parameter.abs().max() <= limit
        if parameter.numel() > 60:
            assert parameter.std() == pytest.approx(limit / np.sqrt(3), rel=0.25)
            assert parameter.abs().max() > 0.9 * limit
    with torch.random.fork_rng():
        torch.manual_seed(1)
        again = build(19, settings, "film", 40).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_torchs_initial_weights_have_torchs_own_distribution():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = pm25_model.build(19, ModelSettings(width=64), "concat", 40).state_dict()
    ours = build(19, ModelSettings(width=64, initialiser="torch"), "concat", 40).state_dict()
    for name, value in own.items():
        if value.numel() > 500:
            assert ours[name].std() == pytest.approx(float(value.std()), rel=0.1), name
            assert ours[name].abs().max() == pytest.approx(float(value.abs().max()), rel=0.02), name
