"""Reader of the published network from a Keras 2 HDF5 file, without TensorFlow."""

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import torch
from torch import nn

from pm25.errors import InputError
from pm25.model import BiLSTMAttention
from pm25.settings import Fusion
from pm25.text import parse_json

ONLY_PUBLISHED = "give a model with the published architecture"
"""Fix of every error about another architecture."""


def load(path: str | Path) -> BiLSTMAttention:
    """Load a model in eval mode: `forward(x (B, T, F), embedding (B, D) or None) -> (B,)`, as Keras predicts.

    The file contains the architecture as JSON, and the weights. The JSON is followed layer by layer from the
    windows to the output. Any layer that the published network does not have raises InputError.

    Lambda layers contain Python bytecode, which is neither read nor run. One of them is accepted as h_T: it
    is named `last_hidden_state`, has the width of h_T, and connects the hidden states to the attention.

    Masking works as in Keras on the CPU (`pm25.model`). Dropout has the rate of the file's first layer.

    Raises InputError if the file cannot be read, or contains another model.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(str(path), "", "no such file", "give the .h5 file that Keras' model.save wrote")
    try:
        with h5py.File(path, "r") as file:
            return _model(_Graph(path, file))
    except InputError:
        raise
    except OSError as error:
        problem, fix = "not an HDF5 file, or damaged", "download it again, or save it with Keras 2"
        if "truncated" in str(error):
            problem = "the file is truncated"
        elif isinstance(error, PermissionError):
            problem, fix = "no permission to read the file", "change its permissions"
        raise InputError(str(path), "", problem, fix) from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        kind = type(error).__name__
        raise InputError(
            str(path), "", f"not a file of Keras 2 ({kind})", "save the model again with Keras 2"
        ) from error


class _Layer:
    """One layer of the file's JSON, with the names of its input layers."""

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
    """The layers of a file and their weights; records which layers were recognised."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self.path = path
        if "model_config" not in file.attrs:
            raise self.error(
                "model_config", "the file has weights but no architecture", "save it with model.save"
            )
        version = _text(file.attrs.get("keras_version", "2"))
        if version.startswith("3"):
            raise self.error(
                "keras_version", f"written by Keras {version}", "save it with Keras 2 (tf_keras)"
            )
        model = parse_json(_text(file.attrs["model_config"]))
        if model["class_name"] not in ("Functional", "Model"):
            raise self.error("model_config", f"a {model['class_name']} model", "give a functional model")
        self.layers = {layer.name: layer for layer in map(_Layer, model["config"]["layers"])}
        self.outputs: list[str] = [output[0] for output in model["config"]["output_layers"]]
        self.feeds: dict[str, list[_Layer]] = {name: [] for name in self.layers}
        for layer in self.layers.values():
            if layer.calls > 1:
                raise self.error(layer.name, f"{layer} is used {layer.calls} times", "use it once")
            if layer.arguments:
                raise self.error(layer.name, f"{layer} is called with {layer.arguments}", "use no arguments")
            if len(layer.sources) > 1 and layer.kind not in ("Dot", "Concatenate", "Multiply"):
                raise self.error(layer.name, f"{layer} has {len(layer.sources)} inputs, not one")
            for source in layer.sources:
                self.feeds[source].append(layer)
        self.recognised: set[str] = set()
        self._weights = file.get("model_weights", file)

    def error(self, field: str, problem: str, fix: str = ONLY_PUBLISHED) -> InputError:
        return InputError(str(self.path), field, problem, fix)

    def recognise(self, layer: _Layer, **expected: Any) -> _Layer:
        """Check a layer's settings (a tuple lists allowed values), and record the layer as recognised."""
        for key, wanted in expected.items():
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if (got := layer.config.get(key)) not in allowed:
                raise self.error(layer.name, f"{key} is {got!r}, not {' or '.join(map(repr, allowed))}")
        self.recognised.add(layer.name)
        return layer

    def unexpected(self, layers: list[_Layer], place: str, wanted: str) -> InputError:
        """Describe layers that follow `place` in place of the wanted ones."""
        found = ", ".join(map(str, layers)) or "nothing"
        code = " (its code is not run)" if any(layer.kind == "Lambda" for layer in layers) else ""
        name = layers[0].name if layers else place
        return self.error(name, f"unexpected {found}{code} after {place}, not {wanted}")

    def next(self, name: str, *kinds: str) -> _Layer:
        """Return the one layer after `name`, which must be of one of these kinds; Dropout is skipped."""
        found = self.feeds[name]
        while len(found) == 1 and found[0].kind == "Dropout":
            self.recognise(found[0])
            name = found[0].name
            found = self.feeds[name]
        if len(found) != 1 or found[0].kind not in kinds:
            raise self.unexpected(found, name, " or ".join(kinds))
        return found[0]

    def before_dropout(self, name: str) -> str:
        """Return the name of the layer before a chain of Dropout layers that ends in `name`."""
        while self.layers[name].kind == "Dropout":
            name = self.layers[name].sources[0]
        return name

    def weight(self, layer: _Layer, ending: str, shape: tuple[int, ...], prefix: str = "") -> torch.Tensor:
        """Read the weight whose name ends in `ending`, in an HDF5 group that starts with `prefix`."""
        found = [
            dataset
            for *folders, name, dataset in self._datasets(layer)
            if name.split(":")[0] == ending and (not prefix or any(f.startswith(prefix) for f in folders))
        ]
        label = f"weight {f'{prefix} ' if prefix else ''}{ending}".replace("_ ", " ")
        again = "save the model again with Keras 2"
        if len(found) != 1:
            how_many = "is missing" if not found else f"is stored {len(found)} times"
            raise self.error(layer.name, f"{label} {how_many}", again)
        if found[0].shape != shape:
            raise self.error(
                layer.name, f"{label} has shape {found[0].shape}, but the architecture has {shape}", again
            )
        values = np.asarray(found[0][...], np.float32)
        if not np.isfinite(values).all():
            raise self.error(layer.name, f"{label} has a value that is not finite", "train the model again")
        return torch.from_numpy(values)

    def _datasets(self, layer: _Layer) -> list[tuple[Any, ...]]:
        """List groups, name and dataset of every weight of a layer; links to other files are not followed."""
        found: list[tuple[Any, ...]] = []

        def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
                found.append((*name.removeprefix(f"{layer.name}/").split("/"), item))

        if isinstance(self._weights.get(layer.name, getlink=True), h5py.HardLink):
            self._weights[layer.name].visititems(visit)
        return found


def _model(graph: _Graph) -> BiLSTMAttention:
    """Follow the graph from the windows to the output, and build the model with the file's weights."""
    windows, location = _inputs(graph)
    channels = windows.config["batch_input_shape"][2]
    current, mask_value = windows.name, None
    if [layer.kind for layer in graph.feeds[current]] == ["Masking"]:
        masking = graph.recognise(graph.next(current, "Masking"))
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
        if sorted(map(graph.before_dropout, fused.sources)) != sorted([attended, place.name]):
            raise graph.error(fused.name, f"inputs {fused.sources}, not {attended} and {place.name}")
        fusion = "hadamard" if fused.kind == "Multiply" else "concat"
        graph.recognise(fused, **({"axis": (-1, 1)} if fusion == "concat" else {}))
        if fusion == "hadamard" and place.config["units"] != attention_units:
            units_of = f"{attended} {attention_units}, {place.name} {place.config['units']}"
            raise graph.error(fused.name, f"inputs of different length ({units_of})")
        graph.next(place.name, fused.kind)
        hidden = graph.recognise(graph.next(fused.name, "Dense"), activation="relu", use_bias=True)
        output = graph.next(hidden.name, "Dense")
    graph.recognise(output, activation="linear", use_bias=True, units=1)
    if graph.feeds[output.name]:
        raise graph.unexpected(graph.feeds[output.name], output.name, "the end")
    if graph.outputs != [output.name]:
        raise graph.error("output_layers", f"{graph.outputs}, not {output.name} alone")
    if left := [layer for name, layer in graph.layers.items() if name not in graph.recognised]:
        raise graph.error(left[0].name, f"unexpected {left[0]} besides the published network")

    rates = [layer.config["rate"] for layer in graph.layers.values() if layer.kind == "Dropout"]
    embedding_dim = 0 if location is None else location.config["batch_input_shape"][1]
    with torch.random.fork_rng([]):  # torch's constructors draw weights from the global generator
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
            assert isinstance(lstm, nn.LSTM)  # for mypy, which does not know what a ModuleList contains
            assert isinstance(own_norm, nn.LayerNorm)
            _fill_lstm(graph, both, lstm)
            _fill_norm(graph, norm, own_norm)
        prefixes = ("luong_w", "attention_vector") if score is vector else ("", "")
        model.attention.score.weight.copy_(graph.weight(score, "kernel", (features, features), prefixes[0]).T)
        kernel = graph.weight(vector, "kernel", (2 * features, attention_units), prefixes[1]).T
        model.attention.vector.weight.copy_(kernel if context_first else kernel.roll(features, dims=1))
        if place is not None and hidden is not None and fused is not None:
            if place_norm is not None:
                _fill_norm(graph, place_norm, model.location_norm)
            _fill_dense(graph, place, model.location)
            _fill_dense(graph, hidden, model.hidden)
            # BiLSTMAttention has the attention output first.
            if fusion == "concat" and graph.before_dropout(fused.sources[0]) == place.name:
                model.hidden.weight.copy_(model.hidden.weight.roll(attention_units, dims=1))
        _fill_dense(graph, output, model.output)
    return model.eval()


# --- The architecture --------------------------------------------------------------------------------


def _inputs(graph: _Graph) -> tuple[_Layer, _Layer | None]:
    """Return the input layers of the windows (B, T, F) and the embedding (B, D), by their rank."""
    inputs = [layer for layer in graph.layers.values() if layer.kind == "InputLayer"]
    ranks = sorted(len(layer.config["batch_input_shape"]) for layer in inputs)
    sizes = [layer.config["batch_input_shape"][-1] for layer in inputs]
    if ranks not in ([3], [2, 3]) or not all(isinstance(size, int) for size in sizes):
        shapes = ", ".join(f"{layer.name} {layer.config['batch_input_shape']}" for layer in inputs)
        raise graph.error("input_layers", f"{shapes}, not windows (B, T, F) and at most one embedding (B, D)")
    by_rank = {len(layer.config["batch_input_shape"]): graph.recognise(layer) for layer in inputs}
    return by_rank[3], by_rank.get(2)


def _after_dropout(graph: _Graph, name: str) -> list[_Layer]:
    found = graph.feeds[name]
    while len(found) == 1 and found[0].kind == "Dropout":
        found = graph.feeds[found[0].name]
    return found


def _bidirectional(graph: _Graph, both: _Layer) -> _Layer:
    graph.recognise(both, merge_mode="concat", backward_layer=None)
    inner = _Layer({**both.config["layer"], "name": both.name, "inbound_nodes": []})
    if inner.kind != "LSTM":
        raise graph.error(both.name, f"a bidirectional {inner.kind}, not LSTM")
    graph.recognise(
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
    return graph.recognise(norm, axis=(-1, rank - 1, [-1], [rank - 1]), center=True, scale=True)


def _attention(graph: _Graph, hidden: str, features: int) -> tuple[_Layer, _Layer, bool, str]:
    """Recognise Luong attention over the hidden states, either one layer or one layer for each operation.

    Returns the layers of the weights W and C, which are the same if there is a single layer. Also returns
    True if the context is the first input of C, and the name of the output.
    """
    found = _after_dropout(graph, hidden)
    if [layer.kind for layer in found] == ["Attention"]:
        single = graph.recognise(graph.next(hidden, "Attention"), score=("luong", None))
        return single, single, True, single.name
    while len(graph.feeds[hidden]) == 1:  # Dropout before the attention
        hidden = graph.recognise(graph.feeds[hidden][0]).name
        if graph.layers[hidden].kind != "Dropout":
            raise graph.unexpected([graph.layers[hidden]], graph.layers[hidden].sources[0], "attention")
    by_kind = {layer.kind: layer for layer in graph.feeds[hidden]}
    if sorted(layer.kind for layer in graph.feeds[hidden]) != ["Dense", "Dot", "Lambda"]:
        raise graph.unexpected(graph.feeds[hidden], hidden, "Luong attention")
    last, score, context = by_kind["Lambda"], by_kind["Dense"], by_kind["Dot"]
    if last.name != "last_hidden_state":
        raise graph.unexpected([last], hidden, "last_hidden_state")
    graph.recognise(last, output_shape=([features], None))
    graph.recognise(score, activation="linear", use_bias=False, units=features)
    product = graph.next(score.name, "Dot")
    _dot(graph, product, {last.name: 1, score.name: 2})
    softmax = graph.recognise(graph.next(product.name, "Activation"), activation="softmax")
    if graph.next(softmax.name, "Dot") is not context:
        raise graph.unexpected(graph.feeds[softmax.name], softmax.name, context.name)
    _dot(graph, context, {hidden: 1, softmax.name: 1})
    both = graph.recognise(graph.next(context.name, "Concatenate"), axis=(-1, 1))
    if sorted(both.sources) != sorted([context.name, last.name]):
        raise graph.error(both.name, f"inputs {both.sources}, not {context.name} and {last.name}")
    if {layer.name for layer in graph.feeds[last.name]} != {product.name, both.name}:
        raise graph.unexpected(graph.feeds[last.name], last.name, f"{product.name} and {both.name}")
    vector = graph.recognise(graph.next(both.name, "Dense"), activation="tanh", use_bias=False)
    return score, vector, both.sources[0] == context.name, vector.name


def _dot(graph: _Graph, dot: _Layer, axes: dict[str, int]) -> None:
    if sorted(dot.sources) != sorted(axes):
        raise graph.error(dot.name, f"inputs {dot.sources}, not {' and '.join(axes)}")
    graph.recognise(dot, axes=([axes[name] for name in dot.sources],), normalize=(False, None))


def _place(graph: _Graph, location: _Layer) -> tuple[_Layer | None, _Layer]:
    """Return the layers of the embedding's projection: Dense(ReLU), or LayerNormalization and Dense(tanh)."""
    first = graph.next(location.name, "Dense", "LayerNormalization")
    if first.kind == "Dense":
        return None, graph.recognise(first, activation="relu", use_bias=True)
    dense = graph.recognise(graph.next(first.name, "Dense"), activation="tanh", use_bias=True)
    return _norm(graph, first, rank=2), dense


# --- The weights -------------------------------------------------------------------------------------


def _fill_lstm(graph: _Graph, both: _Layer, lstm: nn.LSTM) -> None:
    """Copy LSTM weights. Keras and torch have the same order of gates; Keras' only bias is torch's first."""
    gates = 4 * lstm.hidden_size
    for prefix, suffix in (("forward_", ""), ("backward_", "_reverse")):
        kernel = graph.weight(both, "kernel", (lstm.input_size, gates), prefix)
        recurrent = graph.weight(both, "recurrent_kernel", (lstm.hidden_size, gates), prefix)
        getattr(lstm, f"weight_ih_l0{suffix}").copy_(kernel.T)
        getattr(lstm, f"weight_hh_l0{suffix}").copy_(recurrent.T)
        getattr(lstm, f"bias_ih_l0{suffix}").copy_(graph.weight(both, "bias", (gates,), prefix))
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
