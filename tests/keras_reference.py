"""The published network in Keras, trained by `model.fit` for a while on request, beside our own training.

    python tests/keras_reference.py FOLDER BATCH_SIZE

Needs TensorFlow and NumPy, and nothing of this project: `sweep bench --only training --keras PYTHON` runs it
with another interpreter. FOLDER has `windows.npy` (n, days, channels), `embedding.npy` (n, dim) and
`target.npy` (n,), all float32. Each line of standard input is a request as JSON, such as

    {"network": {"width": 64, "variant": "none"}, "steps": 8, "at_least_s": 1.0}

and each line of standard output its answer: the windows that were trained, the seconds, the windows per
second, the number of trained parameters, and the versions. The variant `geoclip` has the embedding and the
Hadamard product. TF_USE_LEGACY_KERAS=1 takes Keras 2 (`tf_keras`).

The network, the loss and the optimiser are the published ones (Karimzadeh, Wang, Crooks 2025), without the
Masking layer, whose mask slows Keras down. TensorFlow takes as many threads as it likes.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

keras = tf.keras
layers = tf.keras.layers

ATTENTION_UNITS = 256
DROPOUT = 0.2


def network(days, channels, embedding_dim, width):
    """Three Bi-LSTM layers, Luong attention, and the Hadamard product if there is an embedding."""
    windows = keras.Input((days, channels))
    hidden = windows
    for depth, units in enumerate((width, width // 2, width // 2)):
        hidden = layers.Bidirectional(layers.LSTM(units, return_sequences=True))(hidden)
        hidden = layers.LayerNormalization()(hidden)
        if depth < 2:
            hidden = layers.Dropout(DROPOUT)(hidden)
    # Luong et al. (2015): score_s = h_T . W h_s, and tanh(C [context; h_T]).
    last = hidden[:, -1]
    score = layers.Dot((2, 1))([layers.Dense(width, use_bias=False)(hidden), last])
    context = layers.Dot((1, 1))([layers.Softmax()(score), hidden])
    attended = layers.Concatenate()([context, last])
    out = layers.Dense(ATTENTION_UNITS, activation="tanh", use_bias=False)(attended)
    out = layers.Dropout(DROPOUT)(out)
    inputs = [windows]
    if embedding_dim:
        inputs.append(keras.Input((embedding_dim,)))
        place = layers.Dense(ATTENTION_UNITS, activation="relu")(inputs[1])
        out = layers.Dense(ATTENTION_UNITS, activation="relu")(layers.Multiply()([out, place]))
    model = keras.Model(inputs, layers.Dense(1)(out))
    rate = keras.optimizers.schedules.ExponentialDecay(1e-3, 30_000, 0.8, staircase=True)
    model.compile(optimizer=keras.optimizers.Adam(rate), loss=keras.losses.Huber())
    return model


class Clock(keras.callbacks.Callback):
    """Stops `fit` after so many steps and seconds; its start and its end are not counted."""

    def __init__(self, steps, at_least_s):
        super().__init__()
        self.least, self.at_least_s, self.steps, self.seconds = steps, at_least_s, 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if not self.steps:
            self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        self.seconds = time.perf_counter() - self.began
        self.model.stop_training = self.steps >= self.least and self.seconds >= self.at_least_s


def fit(model, inputs, target, batch_size, clock):
    """Train until the clock stops."""
    model.fit(inputs, target, batch_size=batch_size, epochs=1_000_000, verbose=0, callbacks=[clock])


def main():
    """Answer every line of standard input."""
    folder, batch_size = Path(sys.argv[1]), int(sys.argv[2])
    windows, embedding, target = (
        np.load(folder / f"{name}.npy") for name in ("windows", "embedding", "target")
    )
    versions = f"TensorFlow {tf.__version__}, Keras {keras.__version__}"
    models = {}
    for line in sys.stdin:
        asked = json.loads(line)
        width, fused = asked["network"]["width"], asked["network"]["variant"] == "geoclip"
        inputs = [windows, embedding] if fused else [windows]
        if (width, fused) not in models:
            keras.utils.set_random_seed(0)
            model = network(*windows.shape[1:], embedding.shape[1] if fused else 0, width)
            models[width, fused] = model
            fit(model, inputs, target, batch_size, Clock(1, 0.0))  # traces the graph
        model, clock = models[width, fused], Clock(asked["steps"], asked["at_least_s"])
        fit(model, inputs, target, batch_size, clock)
        done = clock.steps * batch_size
        answer = {
            "done": done,
            "seconds": clock.seconds,
            "windows_per_s": done / clock.seconds,
            "parameters": model.count_params(),
            "versions": versions,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
