"""Trainings on one GPU, alone, in several processes and in stacks, and the time of the published study."""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch

from pm25.errors import InputError
from sweeps.bench.harness import Measurement, of_rounds
from sweeps.bench.training import AnsweringProcess, worker
from sweeps.bench.training_worker import Network, Workload
from sweeps.plan.speed import epochs_of
from sweeps.spec import study_file

NETWORK = Network(256, "geoclip")
"""The published network, with its embedding."""
PRECISIONS = ("fp32", "bf16")
PACKED: tuple[int, ...] = (4, 8, 16)
"""Numbers of processes that share the GPU."""
STACKED: tuple[int, ...] = (4, 8, 16, 32, 64)
"""Numbers of trainings in a stack."""
STEPS = 32
"""Training steps of an epoch."""
TURNS, TURN_S = 3, 2.0
"""Number of turns of each kind, and the shortest duration of one."""
LEAST_GAIN = 10
"""Speed of the best way over one training alone in fp32 that the project aims at."""
STUDY = "paper2025"
"""The published study."""
PANEL = {"sites": 1414, "days": 365}
"""Size of the 2021 table."""


class Way(NamedTuple):
    """Speed of one way to use the GPU."""

    name: str
    rates: list[float]
    """Windows per second of each turn."""
    memory_mb: float
    """Memory of one training, without the CUDA context."""


def run(*, pretend: bool = False) -> Iterator[Measurement]:
    """Measure every way in either precision, then the gain of the best and the time of the published study.

    With `pretend`, everything runs on the CPU with a small network, and nothing is reported as measured.
    Raises InputError without a GPU.
    """
    if not pretend and not torch.cuda.is_available():
        fix = "run the command on a machine with a GPU, or add --pretend to try it"
        raise InputError("sweep bench", "--only gpu", "PyTorch sees no GPU", fix)
    work = Workload(device="cpu" if pretend else "cuda")
    network, packed, stacked = NETWORK, PACKED, STACKED
    if pretend:
        work, network = work._replace(sites=40, days=60, batch_size=16), Network(8, "geoclip")
        packed, stacked = packed[:1], stacked[:1]
    turn_s = 0.0 if pretend else TURN_S
    ways: list[Way] = []
    for precision in PRECISIONS:
        own = network._replace(precision=precision)
        for way in _ways(work, own, packed, stacked, turn_s):
            ways.append(way)
            words = f"{way.memory_mb / 1000:.2f} GB for each training; width {own.width}, {own.variant}"
            yield _reported(of_rounds(way.name, way.rates, "windows/s", words), pretend)
    first, best = ways[0], max(ways, key=lambda way: sum(way.rates))
    ratios = [a / b for a, b in zip(best.rates, first.rates, strict=True)]
    gain = of_rounds("best way over one training alone in fp32", ratios, "x", best.name, LEAST_GAIN)
    yield _reported(gain, pretend)
    windows = _published_windows({"sites": 120, "days": 60} if pretend else PANEL)
    hours = [windows / rate / 3600 for rate in best.rates]
    words = f"{best.name}; {windows:.3g} windows with the expected number of epochs; validation is left out"
    yield _reported(of_rounds("training of the published study on one GPU", hours, "h", words), pretend)


def _reported(row: Measurement, pretend: bool) -> Measurement:
    """Return a measurement, without its numbers if the GPU is pretended."""
    if not pretend:
        return row
    return row._replace(value=math.nan, rounds=(), detail="a GPU is needed; this ran on the CPU")


def _ways(
    work: Workload, network: Network, packed: tuple[int, ...], stacked: tuple[int, ...], turn_s: float
) -> Iterator[Way]:
    """Measure one training, processes side by side, and stacks, until one does not fit into the memory."""
    request = {"network": network._asdict(), "steps": STEPS, "at_least_s": turn_s}
    with worker(work) as alone:
        yield _turns([alone], request, f"one training, {network.precision}")
    for count in packed:
        with contextlib.ExitStack() as cleanup:
            processes = [cleanup.enter_context(worker(work)) for _ in range(count)]
            try:
                yield _turns(processes, request, f"{count} processes, {network.precision}")
            except RuntimeError as error:
                if "OutOfMemoryError" not in str(error):
                    raise
                break
    with worker(work) as process:
        for size in stacked:
            process.ask(request | {"stack": size, "turns": TURNS})
            answer = process.answer()
            if "out_of_memory" in answer:
                break
            rates = [turn["done"] / turn["seconds"] for turn in answer["turns"]]
            yield Way(f"stack of {size}, {network.precision}", rates, answer["memory_mb"] / size)


def _turns(processes: list[AnsweringProcess], request: dict[str, Any], name: str) -> Way:
    """Give all processes some turns at the same time, after one that is not counted."""
    rates, memory_mb = [], 0.0
    for _ in range(TURNS + 1):
        for process in processes:
            process.ask(request)
        answers = [process.answer() for process in processes]
        rates.append(sum(answer["done"] / answer["seconds"] for answer in answers))
        memory_mb = max(answer["memory_mb"] for answer in answers)
    return Way(name, rates[1:], memory_mb)


def _published_windows(panel: Mapping[str, int]) -> float:
    """Training windows of all cells and epochs of the published study, on a synthetic panel of this size."""
    study = study_file.load(STUDY, [f"data.synthetic={json.dumps(dict(panel))}"])
    made = study.panel()
    trained = {
        (factor.split.label, fold): len(study.cut(factor.split, fold, made).train)
        for factor in study.design.split
        for fold in factor.folds
    }
    cells = study.cells()
    epochs = epochs_of(cells[0].train, []).expected
    return epochs * sum(trained[cell.split.label, cell.fold] for cell in cells)
