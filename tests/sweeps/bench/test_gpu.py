"""The measurement of a GPU runs end to end without one, and then reports no number."""

import contextlib
import math
import os
import unittest.mock
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.bench import gpu, mps
from sweeps.bench.harness import Measurement
from sweeps.bench.training_worker import Network, Workload
from tests.errors import refuses


@pytest.mark.slow
def test_a_pretended_gpu_reports_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32",))
    rows = {row.what: row for row in gpu.run(pretend=True)}
    assert [*rows] == [
        *("one training, fp32", "4 processes, fp32", "stack of 4, fp32", "4 processes with MPS, fp32"),
        *("best way over one training alone in fp32", "training of the published study on one GPU"),
    ]
    assert all(math.isnan(row.value) and not row.rounds for row in rows.values())


@pytest.mark.slow
def test_each_way_trains_what_it_says() -> None:
    work = Workload(sites=40, days=60, batch_size=16)
    network = Network(4, "geoclip")
    asked = {"network": network._asdict(), "steps": gpu.STEPS, "at_least_s": 0.0}
    found = [*gpu._ways(work, network, gpu.Sizes((2,), (), (2, 3)), asked)]
    ways = [way for way in found if isinstance(way, gpu.Way)]
    names = ["one training, fp32", "2 processes, fp32", "stack of 2, fp32", "stack of 3, fp32"]
    assert [way.name for way in ways] == names
    assert all(len(way.rates) == gpu.TURNS and min(way.rates) > 0 for way in ways)
    assert all(way.memory_mb > 0 for way in ways)


def test_without_the_service_a_row_has_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ways", lambda *_: iter(()))
    monkeypatch.setenv("PATH", "")
    (row,) = gpu._all_ways(Workload(), gpu.NETWORK, gpu.Sizes(), 0.0, pretend=False)
    assert isinstance(row, Measurement)
    assert math.isnan(row.value)
    assert row.detail == "nvidia-cuda-mps-control is not installed"


def test_processes_that_the_service_refuses_do_not_end_the_measurement(
    monkeypatch: pytest.MonkeyPatch, control: Path
) -> None:
    def refused(processes: Any, request: Any, name: str) -> None:
        raise RuntimeError("Traceback\n  ...\nRuntimeError: MPS server is not ready\n")

    monkeypatch.setattr(gpu, "_ways", lambda *_: iter(()))
    monkeypatch.setattr(gpu, "_turns", refused)
    monkeypatch.setattr(gpu, "worker", lambda *_: contextlib.nullcontext(unittest.mock.Mock()))
    rows = [*gpu._all_ways(Workload(), gpu.NETWORK, gpu.Sizes(), 0.0, pretend=False)]
    assert [row.what for row in rows if isinstance(row, Measurement)] == [
        "8 processes with MPS, fp32",
        "8 processes with MPS, bf16",
    ]
    assert {row.detail for row in rows if isinstance(row, Measurement)} == {
        "RuntimeError: MPS server is not ready"
    }
    assert control.read_text().split() == ["-d", "quit"]


def test_a_stack_that_fails_does_not_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def ask(self, request: Any) -> None: ...

        def answer(self) -> Any:
            raise RuntimeError("Traceback\n  ...\ntorch.AcceleratorError: CUDA error: not permitted\nhint\n")

    monkeypatch.setattr(gpu, "_turns", lambda processes, request, name: gpu.Way(name, [1.0], 1.0))
    monkeypatch.setattr(gpu, "worker", lambda *_: contextlib.nullcontext(Failing()))
    ways = [*gpu._ways(Workload(), gpu.NETWORK, gpu.Sizes((4,), (), (4, 8)), {})]
    assert [way.name for way in ways if isinstance(way, gpu.Way)] == [
        "one training, fp32",
        "4 processes, fp32",
    ]
    (row,) = (way for way in ways if isinstance(way, Measurement))
    assert (row.what, row.detail) == (
        "stack of 4, fp32",
        "torch.AcceleratorError: CUDA error: not permitted",
    )


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the control program; the file has its arguments and commands, in a folder of the service."""
    program = tmp_path / mps.CONTROL
    program.write_text(f"""#!/bin/bash
[ -d "$CUDA_MPS_PIPE_DIRECTORY" ] || exit 3
echo "$@" $(cat) >> {tmp_path}/control
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path / "control"


def test_the_service_has_a_folder_of_its_own_and_ends(control: Path) -> None:
    with mps.service() as environment:
        folder = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
        assert folder.is_dir()
        assert control.read_text().split() == ["-d"]
    assert control.read_text().split() == ["-d", "quit"]
    assert not folder.exists()
    assert mps.without()["CUDA_MPS_PIPE_DIRECTORY"] != str(folder)


def test_without_a_gpu_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refuses("sweep bench", "--only gpu", "PyTorch sees no GPU", "--pretend"):
        next(gpu.run())


def test_the_windows_of_the_published_study() -> None:
    """980 cells; with few monitors the training sides have few samples, and 66 of 100 epochs are expected."""
    windows = gpu._published_windows({"sites": 120, "days": 60})
    assert 980 * 65.5 * 500 < windows < 980 * 65.5 * 120 * 40
