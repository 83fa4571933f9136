"""The speed of trainings: what is counted, what is compared, and that each variant is measured."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pm25.model import initialise, network
from sweeps.bench import training, training_worker
from sweeps.bench.harness import of_rounds
from sweeps.bench.training import MODES, Mode, Network, Speeds
from sweeps.bench.training_worker import CHANNELS, EMBEDDING_DIM, WINDOW, Workload
from tests.errors import refuses

TINY = Workload(sites=12, days=60, batch_size=8, product=16)

KERAS = """#!{python}
import json, sys
from pathlib import Path
shapes = []
for name in ("windows", "embedding", "target"):
    head = Path(sys.argv[2], name + ".npy").read_bytes()[:128].decode("latin-1")
    assert "'<f4'" in head, head
    shapes.append(head[head.index("(") : head.index(")") + 1])
assert shapes == ["(256, 21, 19)", "(256, 512)", "(256,)"], shapes
for line in sys.stdin:
    asked = json.loads(line)
    parameters = {parameters}[asked["network"]["variant"]]
    print(json.dumps(dict(done=50, seconds=2, parameters=parameters, versions="toy")), flush=True)
"""
"""Interpreter that trains 25 windows per second, whatever script it is given."""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a network of width 4 in two rounds, on one core."""
    monkeypatch.setattr(training, "WORKLOAD", TINY)
    monkeypatch.setattr(training, "EPOCH_STEPS", {4: 2})
    monkeypatch.setattr(training, "LIMITS", {4: 2.2})
    monkeypatch.setattr(training, "ROUNDS", 2)
    monkeypatch.setattr(training, "TURN_S", 0)
    monkeypatch.setattr(training, "PRODUCT_S", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})


def interpreter(folder: Path, text: str) -> Path:
    file = folder / "python"
    file.write_text(text)
    file.chmod(0o700)
    return file


def toy_keras(folder: Path, **parameters: int) -> Path:
    return interpreter(folder, KERAS.format(python=sys.executable, parameters=parameters))


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("variant", training.VARIANTS)
@pytest.mark.parametrize("width", [4, 10])
def test_operations_are_those_that_pytorch_counts(variant: str, width: int) -> None:
    measured = Network(width, variant)
    shape = training.shape_of(measured)
    assert (shape.channels, shape.window, shape.units) == (19, 21, (width, width // 2, width // 2))
    assert (shape.attention_units, shape.batch_size) == (256, 256)
    fused = variant == "geoclip"
    model = network(training_worker.cell_of(measured, 3, 1), CHANNELS, EMBEDDING_DIM if fused else 0)
    initialise(model, torch.Generator().manual_seed(0))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert training.trained_parameters(shape) == trained
    windows, embedding = torch.ones(3, WINDOW, CHANNELS), torch.ones(3, EMBEDDING_DIM) if fused else None
    with FlopCounterMode(display=False) as counter, torch.backends.mkldnn.flags(enabled=False):
        model(windows, embedding).sum().backward()
    assert 3 * training.training_flops(shape) == counter.get_total_flops()


def test_a_ratio_is_that_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that became four times as slow in the second round changes no ratio."""
    monkeypatch.setattr(training, "training_flops", lambda shape: 10)
    fp32, bf16 = Mode(True, "fp32"), Mode(True, "bf16")
    speeds = {
        Mode(False, "fp32"): [40.0, 10.0, 20.0],
        Mode(False, "bf16"): [60.0, 15.0, 30.0],
        fp32: [60.0, 15.0, 30.0],
        bf16: [80.0, 20.0, 44.0],
    }
    peaks = {mode: [800.0, 200.0, 400.0] for mode in MODES}
    found = {
        row.what: row for row in Speeds(Network(64), speeds, [40.0, 10.0, 20.0]).measurements(peaks, 2, "toy")
    }
    assert [*found] == [
        "Keras, width 64, none",
        "one training, fp32, width 64, none",
        "one training, bf16, width 64, none",
        "2 packed, fp32, width 64, none",
        "2 packed, bf16, width 64, none",
        "2 packed, bf16 over Keras, width 64, none",
    ]
    ratio = found["2 packed, bf16 over Keras, width 64, none"]
    assert (ratio.value, ratio.limit, ratio.at_least) == (2, 2.2, True)
    assert ratio.rounds == (2, 2, 2.2)
    assert ratio.detail == "2.00 to 2.20 in 3 rounds"
    packed = found["2 packed, bf16, width 64, none"]
    assert (packed.value, packed.unit, packed.rounds) == (44, "windows/s", (80, 20, 44))
    assert packed.detail == (
        "20.00 to 80.00 in 3 rounds; 100% of the peak of matrix products; 2.00 (2.00 to 2.20) x Keras; "
        "1.33 (1.33 to 1.47) x one training"
    )
    assert found["one training, fp32, width 64, none"].detail == (
        "10.00 to 40.00 in 3 rounds; 50% of the peak of matrix products; 1.00 (1.00 to 1.00) x Keras"
    )


def test_without_keras_its_ratio_is_not_measured() -> None:
    speeds = {mode: [2.0] for mode in MODES}
    *_, last = Speeds(Network(256), speeds, []).measurements({mode: [1.0] for mode in MODES}, 2, "")
    assert last.what == "2 packed, bf16 over Keras, width 256, none"
    assert math.isnan(last.value)
    assert (last.limit, last.detail) == (2.5, "give --keras PYTHON, an interpreter with TensorFlow")


def test_rounds_have_a_median_and_a_range() -> None:
    found = of_rounds("speed", [900.0, 1200.5, 1000.0], "windows/s", "")
    assert (found.value, found.detail) == (1000, "900 to 1,200 in 3 rounds")
    assert found.limit == math.inf


@pytest.mark.slow
def test_every_variant_takes_its_turns(tmp_path: Path, tiny: None) -> None:
    none, geoclip = (
        training.trained_parameters(training.shape_of(Network(4, name))) for name in training.VARIANTS
    )
    keras = toy_keras(tmp_path, none=none, geoclip=geoclip)
    found = {row.what: row for row in training.run(tmp_path / "keras", keras)}
    names = [mode.name(1) for mode in MODES]
    rows = ("Keras", *names, "1 packed, bf16 over Keras")
    assert [*found] == [
        *(f"matrix products, {name}" for name in names),
        *(f"{row}, width 4, {variant}" for variant in training.VARIANTS for row in rows),
    ]
    assert all(row.value > 0 and len(row.rounds) == 2 for row in found.values())
    assert found["Keras, width 4, none"].rounds == (25, 25)
    bf16, ratio = (found[f"1 packed, bf16{name}, width 4, geoclip"].rounds for name in ("", " over Keras"))
    assert ratio == tuple(rate / 25 for rate in bf16)
    assert "; one training; toy" in found["Keras, width 4, none"].detail


def test_another_network_in_keras_is_refused(tmp_path: Path, tiny: None) -> None:
    keras = training._Keras(toy_keras(tmp_path, none=5), tmp_path / "keras")
    with keras, pytest.raises(RuntimeError, match=r"Keras trains 5 parameters, not \d+"):
        training._rate([keras], training._request(Network(4), 2, 0))


def test_an_interpreter_without_tensorflow_is_named(tmp_path: Path, tiny: None) -> None:
    text = f"#!{sys.executable}\nraise ModuleNotFoundError('No module named tensorflow')\n"
    keras = training._Keras(interpreter(tmp_path, text), tmp_path / "keras")
    with keras, refuses("sweep bench", "--keras", "No module named tensorflow"):
        training._rate([keras], training._request(Network(4), 2, 0))


def test_the_script_for_keras_is_not_in_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "KERAS_SCRIPT", tmp_path / "keras_reference.py")
    with refuses("sweep bench", "--keras", "keras_reference.py"):
        training._Keras(Path(sys.executable), tmp_path / "keras")


def test_a_worker_that_ends_gives_its_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise ValueError('no such precision')"]
    with (
        training.AnsweringProcess(command) as process,
        pytest.raises(RuntimeError, match="no such precision"),
    ):
        training._rate([process], {})


def test_speeds_of_processes_add_up() -> None:
    answers = [{"done": 30, "seconds": 2}, {"done": 40, "seconds": 4}]
    commands = [[sys.executable, "-c", f"input(); print('''{json.dumps(answer)}''')"] for answer in answers]
    with training.AnsweringProcess(commands[0]) as one, training.AnsweringProcess(commands[1]) as other:
        assert training._rate([one, other], {}) == 25
