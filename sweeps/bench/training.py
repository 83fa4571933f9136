"""Windows per second of trainings on all cores, beside the published Keras network and the machine's peak.

The variants of a network are measured in turn, for about a second each, and the turns are repeated. A ratio
is that of two variants in one turn, so that a machine that slows down slows both.
"""

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np

from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from sweeps.bench import training_worker
from sweeps.bench.harness import Measurement, of_rounds
from sweeps.bench.training_worker import Network, Workload
from sweeps.engine.worker import LIBRARIES

ROUNDS = 3
"""Number of turns of each variant."""
TURN_S = 1.0
"""Shortest duration of a turn."""
PRODUCT_S = 0.3
"""Shortest duration of a turn of matrix products."""
EPOCH_STEPS = {32: 16, 64: 8, 256: 2}
"""Steps of an epoch at each width: about half a second, so that what an epoch adds is below 1 %."""
VARIANTS = ("none", "geoclip")
"""Networks without an embedding, and with 512 values and Hadamard fusion."""
LIMITS = {64: 2.2, 256: 2.5}
"""Smallest speed of packed bf16 trainings over Keras, by width."""
KERAS_SCRIPT = Path(__file__).parents[2] / "tests" / "keras_reference.py"
KERAS_BATCHES = 32
"""Number of batches that are written for Keras."""
WORKLOAD = Workload()
"""Sizes of the panel, the batches and the matrices."""


class Mode(NamedTuple):
    """A way to use all cores: one training, or one on each core in a process of its own."""

    packed: bool
    precision: str

    def name(self, cores: int) -> str:
        """Describe the mode, such as `2 packed, bf16`."""
        return f"{f'{cores} packed' if self.packed else 'one training'}, {self.precision}"


MODES = tuple(Mode(packed, precision) for packed in (False, True) for precision in ("fp32", "bf16"))


def run(folder: Path, keras: Path | None = None) -> Iterator[Measurement]:
    """Measure trainings of each width, with and without an embedding; `folder` is made for Keras' arrays.

    `keras` is an interpreter that has TensorFlow. Without one, the ratios to Keras are not measured. Raises
    InputError if its process fails, and RuntimeError if one of ours does.
    """
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as cleanup:
        reference = None if keras is None else cleanup.enter_context(_Keras(keras, folder))
        alone = [cleanup.enter_context(worker(WORKLOAD._replace(threads=cores)))]
        packed = [cleanup.enter_context(worker(WORKLOAD)) for _ in range(cores)]
        peaks, networks = _rounds(alone, packed, reference)
    versions = reference.versions if reference else ""
    for mode, rates in peaks.items():
        words = f"square matrices with {WORKLOAD.product:,} rows"
        what = f"matrix products, {mode.name(cores)}"
        yield of_rounds(what, [rate / 1e9 for rate in rates], "GFLOP/s", words)
    for network in networks.values():
        yield from network.measurements(peaks, cores, versions)


class Speeds(NamedTuple):
    """Windows per second of one network in each round."""

    network: Network
    ours: dict[Mode, list[float]]
    keras: list[float]
    """Empty if Keras was not measured."""

    def measurements(
        self, peaks: dict[Mode, list[float]], cores: int, versions: str
    ) -> Iterator[Measurement]:
        """Yield the speed of Keras and of each mode, then the ratio that has a limit."""
        place = f"width {self.network.width}, {self.network.variant}"
        flops = training_flops(shape_of(self.network))
        if self.keras:
            yield of_rounds(f"Keras, {place}", self.keras, "windows/s", f"one training; {versions}")
        for mode, rates in self.ours.items():
            share = statistics.median(a * flops / b for a, b in zip(rates, peaks[mode], strict=True))
            words = [f"{share:.0%} of the peak of matrix products"]
            words += [f"{_text(_ratios(rates, self.keras))} x Keras"] if self.keras else []
            alone = self.ours[mode._replace(packed=False)]
            words += [f"{_text(_ratios(rates, alone))} x one training"] if mode.packed else []
            yield of_rounds(f"{mode.name(cores)}, {place}", rates, "windows/s", "; ".join(words))
        best = Mode(packed=True, precision="bf16")
        limit = LIMITS.get(self.network.width, math.inf)
        what = f"{best.name(cores)} over Keras, {place}"
        if self.keras:
            yield of_rounds(what, _ratios(self.ours[best], self.keras), "x", "", limit)
        else:
            missing = "give --keras PYTHON, an interpreter with TensorFlow"
            yield Measurement(what, math.nan, "x", limit, missing, at_least=True)


def shape_of(network: Network) -> NetworkShape:
    """Return the shape of a measured network."""
    cell = training_worker.cell_of(network, WORKLOAD.batch_size, 1)
    return NetworkShape.of(cell, training_worker.random_panel(Workload(sites=1, days=1)), 0)


def training_flops(shape: NetworkShape) -> int:
    """Floating-point operations of the matrix products in a training step, per window.

    The forward pass has two for each multiply-add (`NetworkShape.flops`). The backward pass has twice as
    many, for the gradients of both factors. Gradients of the windows, the embedding and the initial states
    are not computed.
    """
    inputs = shape.window * 2 * 4 * shape.units[0] * shape.channels
    inputs += sum(2 * 4 * units * units for units in shape.units)  # zero states before the first day
    inputs += shape.embedding_dim * shape.attention_units
    return 3 * shape.flops - 2 * inputs


def trained_parameters(shape: NetworkShape) -> int:
    """Number of parameters that are trained: all but the second bias of each gate, which Keras lacks."""
    return shape.parameters - sum(2 * 4 * units for units in shape.units)


class AnsweringProcess:
    """A process that answers requests, one line of JSON each, until the end of the context."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str] = os.environ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        pipe = subprocess.PIPE
        words = [*map(str, command)]
        self._process = subprocess.Popen(
            words, stdin=pipe, stdout=pipe, stderr=self._errors, text=True, env=environment
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer is then missing, with the reason
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the oldest request. Raises RuntimeError if the process has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(self._errors.read().decode(errors="replace")[-2000:])
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Keras(AnsweringProcess):
    """The process that trains the published network in Keras, on the windows of our panel."""

    versions = ""
    """Versions of TensorFlow and Keras, from the first answer on."""

    def __init__(self, python: Path, folder: Path) -> None:
        if not KERAS_SCRIPT.is_file():
            problem = f"{KERAS_SCRIPT.name} is missing, because it is not in an installed package"
            raise InputError("sweep bench", "--keras", problem, "run the bench in a clone of the repository")
        folder.mkdir()
        for name, values in _arrays().items():
            np.save(folder / f"{name}.npy", values)
        super().__init__([python, KERAS_SCRIPT, folder, WORKLOAD.batch_size])

    def ask(self, request: dict[str, Any]) -> None:
        """Send a request."""
        self._parameters = trained_parameters(shape_of(Network(**request["network"])))
        super().ask(request)

    def answer(self) -> dict[str, Any]:
        """Wait for the answer. Raises InputError if the process has ended, or trains another network."""
        try:
            answer = super().answer()
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or ["the process ended"]
            fix = "install tensorflow for this interpreter, or leave the option out"
            raise InputError("sweep bench", "--keras", lines[-1], fix) from None
        if answer["parameters"] != self._parameters:
            raise RuntimeError(f"Keras trains {answer['parameters']} parameters, not {self._parameters}")
        self.versions = answer["versions"]
        return answer


def _arrays() -> dict[str, np.ndarray]:
    """Gather windows (n, days, channels), embeddings (n, values) and targets (n,) for Keras, all float32."""
    panel = training_worker.random_panel(WORKLOAD)
    rng = np.random.default_rng(2)
    n, length = KERAS_BATCHES * WORKLOAD.batch_size, training_worker.WINDOW
    site = rng.integers(0, WORKLOAD.sites, n)
    day = rng.integers(length - 1, WORKLOAD.days, n)
    return {
        "windows": panel.features[site[:, None], day[:, None] + np.arange(1 - length, 1)],
        "embedding": training_worker.random_embedding(WORKLOAD)[site],
        "target": panel.target[site, day] / panel.target.std(),
    }


def worker(work: Workload, environment: Mapping[str, str] = MappingProxyType({})) -> AnsweringProcess:
    """Start a process that trains, with these further variables of its environment."""
    command = [sys.executable, "-W", "ignore", "-m", "sweeps.bench.training_worker"]
    return AnsweringProcess(
        [*command, json.dumps(work._asdict())], {**LIBRARIES, **os.environ, **environment}
    )


def _rounds(
    alone: Sequence[AnsweringProcess], packed: Sequence[AnsweringProcess], keras: _Keras | None
) -> tuple[dict[Mode, list[float]], dict[Network, Speeds]]:
    """Give each variant its turn, round after round: peaks in operations a second by mode, and speeds."""
    peaks: dict[Mode, list[float]] = defaultdict(list)
    speeds: dict[Network, Speeds] = {}
    for turn in range(-1, ROUNDS):  # the first turn of each is short, and is not counted
        for mode in MODES:
            request = {"product": mode.precision, "at_least_s": PRODUCT_S if turn >= 0 else 0}
            rate = _rate(packed if mode.packed else alone, request)
            peaks[mode] += [rate] if turn >= 0 else []
        for width, steps in EPOCH_STEPS.items():
            for variant in VARIANTS:
                network = Network(width, variant)
                found = speeds.setdefault(network, Speeds(network, defaultdict(list), []))
                for mode in MODES:
                    request = _request(network._replace(precision=mode.precision), steps, turn)
                    rate = _rate(packed if mode.packed else alone, request)
                    found.ours[mode] += [rate] if turn >= 0 else []
                if keras is not None:
                    rate = _rate([keras], _request(network, steps, turn))
                    found.keras.extend([rate] if turn >= 0 else [])
    return peaks, speeds


def _request(network: Network, steps: int, turn: int) -> dict[str, Any]:
    return {"network": network._asdict(), "steps": steps, "at_least_s": TURN_S if turn >= 0 else 0}


def _rate(processes: Sequence[AnsweringProcess], request: dict[str, Any]) -> float:
    """Ask all processes at once, and add up what each has done per second of its own."""
    for process in processes:
        process.ask(request)
    answers = [process.answer() for process in processes]
    return sum(answer["done"] / answer["seconds"] for answer in answers)


def _ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Ratios of each round."""
    return [x / y for x, y in zip(a, b, strict=True)]


def _text(values: Sequence[float]) -> str:
    """Format the median and the range of some rounds."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
