"""The measurement of a GPU runs end to end without one, and then reports no number."""

import math

import pytest
import torch

from sweeps.bench import gpu
from sweeps.bench.training_worker import Network, Workload
from tests.errors import refuses


@pytest.mark.slow
def test_a_pretended_gpu_reports_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(gpu, "PACKED", (2,))
    rows = {row.what: row for row in gpu.run(pretend=True)}
    assert [*rows] == [
        *("one training, fp32", "2 processes, fp32", "stack of 4, fp32"),
        *("best way over one training alone in fp32", "training of the published study on one GPU"),
    ]
    assert all(math.isnan(row.value) and not row.rounds for row in rows.values())


@pytest.mark.slow
def test_each_way_trains_what_it_says() -> None:
    work = Workload(sites=40, days=60, batch_size=16)
    ways = [*gpu._ways(work, Network(4, "geoclip"), (2,), (2, 3), 0.0)]
    names = ["one training, fp32", "2 processes, fp32", "stack of 2, fp32", "stack of 3, fp32"]
    assert [way.name for way in ways] == names
    assert all(len(way.rates) == gpu.TURNS and min(way.rates) > 0 for way in ways)
    assert all(way.memory_mb > 0 for way in ways)


def test_without_a_gpu_the_option_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refuses("sweep bench", "--only gpu", "PyTorch sees no GPU", "--pretend"):
        next(gpu.run())


def test_the_windows_of_the_published_study() -> None:
    """980 cells; with few monitors the training sides have few samples, and 66 of 100 epochs are expected."""
    windows = gpu._published_windows({"sites": 120, "days": 60})
    assert 980 * 65.5 * 500 < windows < 980 * 65.5 * 120 * 40
