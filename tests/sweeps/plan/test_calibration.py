"""The calibration: what is measured, where it is kept, and when it is measured again."""

import json
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from pm25.errors import InputError
from pm25.network_shape import NetworkShape
from pm25.sources import synthetic
from sweeps.engine import measure
from sweeps.plan import calibration
from sweeps.plan.calibration import Calibration, SplitShape
from sweeps.plan.capacity import Capacity
from sweeps.plan.cost import Estimate
from sweeps.state import StudyState
from tests.errors import refuses

STUDY = """\
study: toy
data: {table: panel.parquet}
design:
  variant: [none, geoclip]
  split: [{kind: random, folds: 3, fold: 0}, {kind: checkerboard, degrees: 16, fold: 0}]
  seed: [0, 1]
model: {width: 4, depth: 1, attention_units: 2}
train: {batch_size: 64}
"""
ONE_CPU = Capacity(cpus=1, gpus=0, cpu=1, gpu=0)
ONE_GPU = Capacity(cpus=1, gpus=1, cpu=1, gpu=1)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return synthetic.synthesize(sites=20, days=40)


@pytest.fixture
def toy(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., StudyState]]:
    """The state of a study with these overrides, on a machine without a GPU."""
    table.to_parquet(tmp_path / "panel.parquet", index=False)
    (tmp_path / "toy.yaml").write_text(STUDY)
    monkeypatch.setattr(measure, "TIMED_S", 0.01)
    monkeypatch.setattr(calibration, "devices", list)
    threads = torch.get_num_threads()
    yield lambda *overrides: StudyState(str(tmp_path / "toy.yaml"), overrides)
    torch.set_num_threads(threads)


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results" / "toy" / "calibration").glob("*"))


def other(name: str, device: str = "cpu", date: str = "2026-01-01", **more: object) -> str:
    """A calibration of one shape that no study has, as another machine may have stored it."""
    shape = {
        "channels": 1,
        "window": 1,
        "units": (1,),
        "attention_units": 1,
        "fusion": None,
        "embedding_dim": 0,
        "projection": None,
        "masked": False,
        "batch_size": 1,
    }
    timed = {"shape": shape, "step_s": (1.0,), "scored_s": 1.0, "memory_mb": 1.0, "date": date}
    return json.dumps({"device": device, "name": name, "threads": 1, "shapes": [timed], **more})


def test_everything_is_measured_once(
    toy: Callable[..., StudyState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, said = toy(), list[str]()
    assert calibration.read(state.store, ONE_CPU) is None
    measure.measure(state, ONE_CPU, said.append)
    assert [line.split(": ")[0] for line in said] == [f"calibrating {i} of 5" for i in range(1, 6)]
    found = calibration.read(state.store, ONE_CPU)
    assert found is not None
    assert (found.device, found.name, found.threads) == ("cpu", calibration.processor(), 1)
    cells = [*state.cells.values()]
    shapes = [NetworkShape.of(cell, state.panel, state.study.encoders) for cell in cells]
    largest = max(shapes, key=lambda shape: shape.flops)  # geoclip's, in the other precision too
    other = largest.model_copy(update={"precision": "bf16"})
    assert {t.shape for t in found.shapes} == {*shapes, other}
    assert sum(line.endswith(", bf16") for line in said) == 1
    assert {t.cut for t in found.cuts} == {SplitShape.of(cell, state.panel) for cell in cells}
    for timed in found.shapes:
        assert len(timed.step_s) >= 2
        assert 0 < min(timed.step_s) < 1
        assert 0 < timed.scored_s < 0.01
        assert 50 < timed.memory_mb < 10_000
    assert all(0 < t.fixed_s < 10 for t in found.cuts)
    whole = Estimate(state, {}, state.split_indices(), ONE_CPU, found)
    assert whole.uncalibrated() == ({}, {})
    assert whole.wall_hours() is not None
    least = {t.shape: min(t.step_s) for t in found.shapes}
    ratio = pytest.approx(least[other] / least[largest], rel=0.05)  # of two digits
    assert whole.other_precision() == {"precision": "bf16", "step": ratio, "arm": "geoclip-hadamard"}
    (path,) = stored(tmp_path)

    before = path.read_bytes()
    monkeypatch.setattr(measure, "time_shape", None)  # raises when it is called
    measure.measure(toy("train.learning_rate=0.1", "design.seed=[5, 6]"), ONE_CPU, said.append)
    assert (len(said), path.read_bytes()) == (5, before)


def test_only_what_is_new_is_measured(toy: Callable[..., StudyState], tmp_path: Path) -> None:
    measure.measure(toy("design.variant=none"), ONE_CPU, lambda line: None)
    said: list[str] = []
    measure.measure(toy(), ONE_CPU, said.append)
    assert len(said) == 2
    assert all("geoclip" in line for line in said)
    found = calibration.read(toy().store, ONE_CPU)
    assert found is not None
    assert (len(found.shapes), len(found.cuts), len(stored(tmp_path))) == (4, 2, 1)


def test_the_other_precision_is_measured_for_a_study_of_one_precision(
    toy: Callable[..., StudyState],
) -> None:
    def pair(*overrides: str) -> list[str]:
        state = toy("design.variant=none", *overrides)
        whole = Estimate(state, {}, state.split_indices(), ONE_CPU)
        assert whole.other_precision() is None  # nothing is measured yet
        return [cell.train.precision for cell in whole.precision_pair]

    assert pair() == ["fp32", "bf16"]
    assert pair("train.precision=bf16") == ["bf16", "fp32"]
    both = "search={trials: 2, split: {kind: random}, space: {train.precision: {choice: [fp32, bf16]}}}"
    assert pair(both) == []


@pytest.mark.parametrize(
    ("listed", "lacks"),
    [
        ("model name : Abacus\nflags : fpu avx512f avx512_bf16\n", ""),
        ("model name : Abacus\nflags : fpu amx_bf16 amx_tile\n", ""),
        ("model name : Abacus\nflags : fpu avx512f\n", "Abacus"),
        ("Features : fp asimd bf16\n", ""),
        ("processor : 0\n", ""),
    ],
)
def test_a_processor_without_bf16_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, lacks: str
) -> None:
    monkeypatch.setattr(calibration, "CPUS", tmp_path / "cpuinfo")
    assert calibration.without_bf16(gpu=False) == ""  # another system
    (tmp_path / "cpuinfo").write_text(listed)
    assert calibration.without_bf16(gpu=False) == lacks
    assert calibration.bf16_notice(lacks).startswith(lacks)


def test_a_gpu_without_bf16_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert calibration.without_bf16(gpu=True) == ""
    tool = tmp_path / "nvidia-smi"
    tool.touch(mode=0o755)
    for versions, lacks in (("8.0, A100", ""), ("7.5, Tesla T4", "Tesla T4"), ("10.0, B200", "")):
        tool.write_text(f"#!/bin/sh\necho {versions}\n")
        assert calibration.without_bf16(gpu=True) == lacks


def test_the_trainings_of_a_search_are_measured(toy: Callable[..., StudyState]) -> None:
    declared = (
        "search={trials: 2, split: {kind: random, folds: 3, fold: 0, inner: {kind: random, folds: 2}}, "
        "space: {model.width: {int: [4, 8], step: 2}}}"
    )
    state = toy(declared, "design.variant=none")
    measure.measure(state, ONE_CPU, lambda line: None)
    whole = Estimate(state, {}, state.split_indices(), ONE_CPU, calibration.read(state.store, ONE_CPU))
    assert [job.trial for job in whole.tasks] == [True] * 2 + [False] * 4
    assert whole.wall_hours() is not None


def test_another_machine_is_no_measure_for_a_cpu(toy: Callable[..., StudyState], tmp_path: Path) -> None:
    store = toy().store
    folder = tmp_path / "results" / "toy" / "calibration"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(other("Abacus"))
    (folder / "b.json").write_text(other(calibration.processor(), threads=4))
    assert calibration.read(store, ONE_CPU) is None
    (folder / "c.json").write_text(other(calibration.processor()))
    assert calibration.read(store, ONE_CPU) == Calibration.model_validate_json(other(calibration.processor()))
    assert calibration.read(store, ONE_GPU) is None


def test_a_gpu_elsewhere_is_better_than_none(
    toy: Callable[..., StudyState], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = toy().store
    folder = tmp_path / "results" / "toy" / "calibration"
    folder.mkdir(parents=True)
    (folder / "a.json").write_text(other("Tesla T4", "cuda", "2026-03-01"))
    (folder / "b.json").write_text(other("NVIDIA H200", "cuda", "2026-02-01"))
    found = calibration.read(store, ONE_GPU)
    assert found is not None
    assert found.name == "Tesla T4"  # the last that was measured
    assert not calibration.can_measure(ONE_GPU)
    monkeypatch.setattr(calibration, "devices", lambda: [calibration.Device("NVIDIA H200", 1.5e5)])
    found = calibration.read(store, ONE_GPU)
    assert found is not None
    assert found.name == "NVIDIA H200"  # this machine's own
    assert calibration.can_measure(ONE_GPU)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Invalid JSON"),
        ("", "Invalid JSON"),
        (other("Abacus", "abacus"), "device"),
        (other("Abacus", bogus=1), "bogus"),
        (other("Abacus").replace("step_s", "steps"), "shapes.0.step_s"),
    ],
    ids=["cut", "empty", "device", "unknown key", "missing key"],
)
def test_a_file_that_is_no_calibration_is_named(
    toy: Callable[..., StudyState], tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "results" / "toy" / "calibration" / "a.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with refuses(str(path), None, "`sweep plan`") as raised:
        calibration.read(toy().store, ONE_CPU)
    assert said in str(raised.value)


def test_a_store_of_another_file_system(toy: Callable[..., StudyState], tmp_path: Path) -> None:
    state = toy(f"storage=file://{tmp_path}/elsewhere", "design.variant=none")
    measure.measure(state, ONE_CPU, lambda line: None)
    assert calibration.read(state.store, ONE_CPU) is not None
    assert len([*(tmp_path / "elsewhere" / "toy" / "calibration").glob("*.json")]) == 1


def test_a_store_that_cannot_be_written_is_refused(toy: Callable[..., StudyState], tmp_path: Path) -> None:
    state = toy("storage=/proc/results", "design.variant=none")
    with pytest.raises(InputError) as raised:
        measure.measure(state, ONE_CPU, lambda line: None)
    assert "/proc/results" in str(raised.value)


def test_a_probe_that_fails_is_no_measure(
    toy: Callable[..., StudyState], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> dict[str, object]:
        return {"state": "failed", "error": {"type": "ValueError", "message": "no such thing"}}

    monkeypatch.setattr("sweeps.engine.worker.train_and_record", fails)
    with refuses("calibration", "", "none", "ValueError: no such thing"):
        measure.measure(toy("design.variant=none"), ONE_CPU, lambda line: None)


def test_the_child_measures_and_says_what_is_wrong(
    toy: Callable[..., StudyState], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = str(tmp_path / "toy.yaml")
    measure.in_child(reference, ["design.variant=none"], ONE_CPU)
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 4
    found = calibration.read(toy().store, ONE_CPU)
    assert found is not None
    assert len(found.shapes) == 2
    # What the parent reads is bit for bit what the child measured.
    assert stored(tmp_path)[0].read_text() == found.model_dump_json(indent=1)

    with pytest.raises(InputError) as raised:
        measure.in_child(reference, ["design.variant=nothing"], ONE_CPU)
    assert "design.variant" in str(raised.value)
    assert "--no-calibrate" in raised.value.fix
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["NVIDIA H200", "NVIDIA H200"]),
        ("1", ["NVIDIA H200"]),
        ("", []),
        ("0,1", ["NVIDIA H200", "NVIDIA H200"]),
    ],
)
def test_gpus_are_those_that_a_run_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert calibration.devices() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho NVIDIA H200, 1000\necho NVIDIA H200, 1000\n")
    tool.chmod(0o755)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert calibration.devices() == [(name, 1048.576) for name in names]  # nvidia-smi counts in MiB
    assert len(calibration.devices(hidden=True)) == 2
    tool.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert calibration.devices() == []


def test_the_processor_has_a_name() -> None:
    assert calibration.processor()
    if platform.machine() == "x86_64" and os.path.exists("/proc/cpuinfo"):
        assert calibration.processor() in Path("/proc/cpuinfo").read_text()
