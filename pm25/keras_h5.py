"""The published network out of the HDF5 file that Keras 2 saved it in, without TensorFlow."""

import json
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import nn

from pm25.errors import InputError
from pm25.model import BiLSTMAttention
from pm25.settings import Fusion


def load(path: str | Path) -> BiLSTMAttention:
    """The model in eval mode: `forward(x (B, T, F), embedding (B, D) or None) -> (B,)`, as Keras predicts.

    The file holds the architecture as JSON and the weights. The JSON is followed layer by layer, from the
    windows to the one output, and a layer that has no business there is an InputError. Lambda layers hold
    Python bytecode, which is neither read nor run: one that stands between the hidden states and the
    attention, is named `last_hidden_state` and has its width is taken for h_T; any other is an InputError.
    Masking follows Keras on CPU (`pm25.model`). Dropout has the rate of the file's first.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the .h5 that Keras' model.save wrote")
    try:
        with h5py.File(path, "r") as file:
            return _model(_Graph(path, file))
    except InputError:
        raise
    except OSError as error:
        reason = "is no HDF5 file"
        if "truncated" in str(error):
            reason = "is cut short"
        elif isinstance(error, PermissionError):
            reason = "may not be read"
        raise InputError(
            f"{path}: {reason}, or is damaged; fetch it again or save it with Keras 2"
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        kind = type(error).__name__
        raise InputError(f"{path}: not what Keras 2 writes ({kind}); save it again with Keras 2") from error


class _Layer:
    """One layer of the file's JSON, and the names of the layers that feed it."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.name: str = content["name"]
        self.kind: str = content["class_name"].split(">")[-1]  # a registered class is "package>name"
        self.config: dict[str, Any] = content["config"]
        nodes = content["inbound_nodes"]
        self.calls = len(nodes)
        self.sources: list[str] = [source[0] for source in nodes[0]] if nodes else []
        self.arguments = {
            key: v for n in nodes for source in n for key, v in (*source[3:], {})[0].items() if v
        }

    def __str__(self) -> str:
        return f"layer {self.name} ({self.kind})"


class _Graph:
    """The layers of a file, handed out as they are met, and their weights."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        if "model_config" not in file.attrs:
            raise self.error("holds weights without the architecture; save it with model.save")
        version = _text(file.attrs.get("keras_version", "2"))
        if version.startswith("3"):
            raise self.error(f"written by Keras {version}; save it with Keras 2 (tf_keras)")
        model = json.loads(_text(file.attrs["model_config"]))
        if model["class_name"] not in ("Functional", "Model"):
            raise self.error(f"a {model['class_name']} model; only functional models are read")
        self.layers = {layer.name: layer for layer in map(_Layer, model["config"]["layers"])}
        self.outputs: list[str] = [output[0] for output in model["config"]["output_layers"]]
        self.feeds: dict[str, list[_Layer]] = {name: [] for name in self.layers}
        for layer in self.layers.values():
            if layer.calls > 1:
                raise self.error(f"{layer} is used {layer.calls} times; expected once")
            if layer.arguments:
                raise self.error(f"{layer} is called with {layer.arguments}; expected no arguments")
            if len(layer.sources) > 1 and layer.kind not in ("Dot", "Concatenate", "Multiply"):
                raise self.error(f"{layer} has {len(layer.sources)} inputs; expected one")
            for source in layer.sources:
                self.feeds[source].append(layer)
        self.met: set[str] = set()
        self._weights = file.get("model_weights", file)

    def error(self, text: str) -> InputError:
        return InputError(f"{self.path}: {text}")

    def meet(self, layer: _Layer, **expected: Any) -> _Layer:
        """Mark a layer as understood; its settings must be the expected ones (a tuple: one of them)."""
        for key, wanted in expected.items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if (got := layer.config.get(key)) not in allowed:
                raise self.error(f"{layer}: {key} is {got!r}; expected {' or '.join(map(repr, allowed))}")
        self.met.add(layer.name)
        return layer

    def unexpected(self, layers: list[_Layer], place: str, wanted: str) -> InputError:
        found = ", ".join(map(str, layers)) or "nothing"
        code = "; its code is not run" if any(layer.kind == "Lambda" for layer in layers) else ""
        return self.error(f"unexpected {found} after {place}, expected {wanted}{code}")

    def next(self, name: str, *kinds: str) -> _Layer:
        """The one layer that `name` feeds, which must be of one of these kinds; Dropout is walked over."""
        found = self.feeds[name]
        while len(found) == 1 and found[0].kind == "Dropout":
            self.meet(found[0])
            name = found[0].name
            found = self.feeds[name]
        if len(found) != 1 or found[0].kind not in kinds:
            raise self.unexpected(found, name, " or ".join(kinds))
        return found[0]

    def behind(self, name: str) -> str:
        """The layer whose output `name` is, Dropout aside."""
        while self.layers[name].kind == "Dropout":
            name = self.layers[name].sources[0]
        return name

    def weight(self, layer: _Layer, ending: str, shape: tuple[int, ...], part: str = "") -> torch.Tensor:
        """A weight by the end of its name and a prefix of a folder on its way; its shape must be this."""
        found = [
            dataset
            for *folders, name, dataset in self._datasets(layer)
            if name.split(":")[0] == ending and (not part or any(f.startswith(part) for f in folders))
        ]
        label = f"{layer}: weight {f'{part} ' if part else ''}{ending}".replace("_ ", " ")
        if len(found) != 1:
            raise self.error(f"{label} {'is missing' if not found else 'is there more than once'}")
        if found[0].shape != shape:
            raise self.error(f"{label} has shape {found[0].shape}; the architecture says {shape}")
        values = np.asarray(found[0][...], np.float32)
        if not np.isfinite(values).all():
            raise self.error(f"{label} is not finite")
        return torch.from_numpy(values)

    def _datasets(self, layer: _Layer) -> list[tuple[Any, ...]]:
        """Folders, name and dataset of all that is in a layer's group; links are not followed."""
        found: list[tuple[Any, ...]] = []

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
                found.append((*name.removeprefix(f"{layer.name}/").split("/"), item))

        if isinstance(self._weights.get(layer.name, getlink=True), h5py.HardLink):
            self._weights[layer.name].visititems(visit)
        return found


def _model(graph: _Graph) -> BiLSTMAttention:
    windows, location = _inputs(graph)
    channels = windows.config["batch_input_shape"][2]
    current, mask_value = windows.name, None
    if [layer.kind for layer in graph.feeds[current]] == ["Masking"]:
        masking = graph.meet(graph.next(current, "Masking"))
        current, mask_value = masking.name, float(masking.config["mask_value"])

    recurrent: list[tuple[_Layer, _Layer]] = []
    while not recurrent or [layer.kind for layer in _after_dropout(graph, current)] == ["Bidirectional"]:
        both = _bidirectional(graph, graph.next(current, "Bidirectional"))
        norm = graph.next(both.name, "LayerNormalization")
        recurrent.append((both, _norm(graph, norm, rank=3)))
        current = norm.name
    units = [both.config["layer"]["config"]["units"] for both, _ in recurrent]
    features = 2 * units[-1]
    score, vector, context_first, attended = _attention(graph, current, features)
    attention_units = vector.config["units"]

    fusion: Fusion | None = None
    projection: Literal["relu", "norm_tanh"] = "relu"
    fused = hidden = place = place_norm = None
    if location is None:
        output = graph.next(attended, "Dense")
    else:
        place_norm, place = _place(graph, location)
        projection = "norm_tanh" if place_norm else "relu"
        fused = graph.next(attended, "Multiply", "Concatenate")
        if sorted(map(graph.behind, fused.sources)) != sorted([attended, place.name]):
            raise graph.error(f"{fused}: expected {attended} and {place.name}, found {fused.sources}")
        fusion = "hadamard" if fused.kind == "Multiply" else "concat"
        graph.meet(fused, **({"axis": (-1, 1)} if fusion == "concat" else {}))
        if fusion == "hadamard" and place.config["units"] != attention_units:
            units_of = f"{attended} {attention_units}, {place.name} {place.config['units']}"
            raise graph.error(f"{fused}: units of {units_of}; expected as many")
        graph.next(place.name, fused.kind)
        hidden = graph.meet(graph.next(fused.name, "Dense"), activation="relu", use_bias=True)
        output = graph.next(hidden.name, "Dense")
    graph.meet(output, activation="linear", use_bias=True, units=1)
    if graph.feeds[output.name]:
        raise graph.unexpected(graph.feeds[output.name], output.name, "the end")
    if graph.outputs != [output.name]:
        raise graph.error(f"outputs {graph.outputs}; expected the one of {output}")
    if left := [layer for name, layer in graph.layers.items() if name not in graph.met]:
        raise graph.error(f"unexpected {left[0]} beside the published network")

    rates = [layer.config["rate"] for layer in graph.layers.values() if layer.kind == "Dropout"]
    embedding_dim = 0 if location is None else location.config["batch_input_shape"][1]
    with torch.random.fork_rng([]):  # torch's layers draw weights before they get the file's
        model = BiLSTMAttention(
            channels,
            units,
            attention_units,
            float(rates[0]) if rates else 0.0,
            fusion=fusion,
            embedding_dim=embedding_dim,
            projection=projection,
            projection_units=place.config["units"] if place else None,
            hidden_units=hidden.config["units"] if hidden else None,
            mask_value=mask_value,
        )
    with torch.no_grad():
        for (both, norm), lstm, own_norm in zip(recurrent, model.lstm, model.norm, strict=True):
            assert isinstance(lstm, nn.LSTM)  # for mypy: a ModuleList forgets
            assert isinstance(own_norm, nn.LayerNorm)
            _fill_lstm(graph, both, lstm)
            _fill_norm(graph, norm, own_norm)
        parts = ("luong_w", "attention_vector") if score is vector else ("", "")
        model.attention.score.weight.copy_(graph.weight(score, "kernel", (features, features), parts[0]).T)
        kernel = graph.weight(vector, "kernel", (2 * features, attention_units), parts[1]).T
        model.attention.vector.weight.copy_(kernel if context_first else kernel.roll(features, dims=1))
        if place is not None and hidden is not None and fused is not None:
            if place_norm is not None:
                _fill_norm(graph, place_norm, model.location_norm)
            _fill_dense(graph, place, model.location)
            _fill_dense(graph, hidden, model.hidden)
            if fusion == "concat" and graph.behind(fused.sources[0]) == place.name:  # ours: attention first
                model.hidden.weight.copy_(model.hidden.weight.roll(attention_units, dims=1))
        _fill_dense(graph, output, model.output)
    return model.eval()


# --- The architecture --------------------------------------------------------------------------------


def _inputs(graph: _Graph) -> tuple[_Layer, _Layer | None]:
    """The windows (B, T, F) and the embedding (B, D), told apart by their rank."""
    inputs = [layer for layer in graph.layers.values() if layer.kind == "InputLayer"]
    ranks = sorted(len(layer.config["batch_input_shape"]) for layer in inputs)
    sizes = [layer.config["batch_input_shape"][-1] for layer in inputs]
    if ranks not in ([3], [2, 3]) or not all(isinstance(size, int) for size in sizes):
        shapes = ", ".join(f"{layer.name} {layer.config['batch_input_shape']}" for layer in inputs)
        raise graph.error(f"inputs {shapes}; expected windows (B, T, F) and at most one embedding (B, D)")
    by_rank = {len(layer.config["batch_input_shape"]): graph.meet(layer) for layer in inputs}
    return by_rank[3], by_rank.get(2)


def _after_dropout(graph: _Graph, name: str) -> list[_Layer]:
    found = graph.feeds[name]
    while len(found) == 1 and found[0].kind == "Dropout":
        found = graph.feeds[found[0].name]
    return found


def _bidirectional(graph: _Graph, both: _Layer) -> _Layer:
    graph.meet(both, merge_mode="concat", backward_layer=None)
    inner = _Layer({**both.config["layer"], "name": both.name, "inbound_nodes": []})
    if inner.kind != "LSTM":
        raise graph.error(f"{both}: unexpected {inner.kind} in it, expected LSTM")
    graph.meet(
        inner,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias=True,
        return_sequences=True,
        go_backwards=(False, None),
        stateful=(False, None),
        time_major=(False, None),
        zero_output_for_mask=(False, None),
    )
    return both


def _norm(graph: _Graph, norm: _Layer, rank: int) -> _Layer:
    return graph.meet(norm, axis=(-1, rank - 1, [-1], [rank - 1]), center=True, scale=True)


def _attention(graph: _Graph, hidden: str, features: int) -> tuple[_Layer, _Layer, bool, str]:
    """Layers of W and of C (the same where attention is one layer), context before h_T, and the output."""
    found = _after_dropout(graph, hidden)
    if [layer.kind for layer in found] == ["Attention"]:
        whole = graph.meet(graph.next(hidden, "Attention"), score=("luong", None))
        return whole, whole, True, whole.name
    while len(graph.feeds[hidden]) == 1:  # Dropout before the attention
        hidden = graph.meet(graph.feeds[hidden][0]).name
        if graph.layers[hidden].kind != "Dropout":
            raise graph.unexpected([graph.layers[hidden]], graph.layers[hidden].sources[0], "attention")
    parts = {layer.kind: layer for layer in graph.feeds[hidden]}
    if sorted(layer.kind for layer in graph.feeds[hidden]) != ["Dense", "Dot", "Lambda"]:
        raise graph.unexpected(graph.feeds[hidden], hidden, "Luong attention")
    last, score, context = parts["Lambda"], parts["Dense"], parts["Dot"]
    if last.name != "last_hidden_state":
        raise graph.unexpected([last], hidden, "last_hidden_state")
    graph.meet(last, output_shape=([features], None))
    graph.meet(score, activation="linear", use_bias=False, units=features)
    product = graph.next(score.name, "Dot")
    _dot(graph, product, {last.name: 1, score.name: 2})
    softmax = graph.meet(graph.next(product.name, "Activation"), activation="softmax")
    if graph.next(softmax.name, "Dot") is not context:
        raise graph.unexpected(graph.feeds[softmax.name], softmax.name, context.name)
    _dot(graph, context, {hidden: 1, softmax.name: 1})
    both = graph.meet(graph.next(context.name, "Concatenate"), axis=(-1, 1))
    if sorted(both.sources) != sorted([context.name, last.name]):
        raise graph.error(f"{both}: expected {context.name} and {last.name}, found {both.sources}")
    if {layer.name for layer in graph.feeds[last.name]} != {product.name, both.name}:
        raise graph.unexpected(graph.feeds[last.name], last.name, f"{product.name} and {both.name}")
    vector = graph.meet(graph.next(both.name, "Dense"), activation="tanh", use_bias=False)
    return score, vector, both.sources[0] == context.name, vector.name


def _dot(graph: _Graph, dot: _Layer, axes: dict[str, int]) -> None:
    if sorted(dot.sources) != sorted(axes):
        raise graph.error(f"{dot}: expected {' and '.join(axes)}, found {dot.sources}")
    graph.meet(dot, axes=([axes[name] for name in dot.sources],), normalize=(False, None))


def _place(graph: _Graph, location: _Layer) -> tuple[_Layer | None, _Layer]:
    """The projection of the embedding: Dense(ReLU), or LayerNormalization and Dense(tanh)."""
    first = graph.next(location.name, "Dense", "LayerNormalization")
    if first.kind == "Dense":
        return None, graph.meet(first, activation="relu", use_bias=True)
    dense = graph.meet(graph.next(first.name, "Dense"), activation="tanh", use_bias=True)
    return _norm(graph, first, rank=2), dense


# --- The weights -------------------------------------------------------------------------------------


def _fill_lstm(graph: _Graph, both: _Layer, lstm: nn.LSTM) -> None:
    """Keras' gates stand as input, forget, cell, output, like torch's; its one bias is torch's first."""
    gates = 4 * lstm.hidden_size
    for part, suffix in (("forward_", ""), ("backward_", "_reverse")):
        kernel = graph.weight(both, "kernel", (lstm.input_size, gates), part)
        recurrent = graph.weight(both, "recurrent_kernel", (lstm.hidden_size, gates), part)
        getattr(lstm, f"weight_ih_l0{suffix}").copy_(kernel.T)
        getattr(lstm, f"weight_hh_l0{suffix}").copy_(recurrent.T)
        getattr(lstm, f"bias_ih_l0{suffix}").copy_(graph.weight(both, "bias", (gates,), part))
        getattr(lstm, f"bias_hh_l0{suffix}").zero_().requires_grad_(False)


def _fill_norm(graph: _Graph, layer: _Layer, norm: nn.LayerNorm) -> None:
    norm.eps = float(layer.config["epsilon"])
    norm.weight.copy_(graph.weight(layer, "gamma", tuple(norm.normalized_shape)))
    norm.bias.copy_(graph.weight(layer, "beta", tuple(norm.normalized_shape)))


def _fill_dense(graph: _Graph, layer: _Layer, dense: nn.Linear) -> None:
    dense.weight.copy_(graph.weight(layer, "kernel", (dense.in_features, dense.out_features)).T)
    dense.bias.copy_(graph.weight(layer, "bias", (dense.out_features,)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
