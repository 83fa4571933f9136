"""Trainings on one GPU, alone, in several processes and in stacks, and the time of the published study."""

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from pm25.errors import InputError
from sweeps.bench import mps
from sweeps.bench.harness import Measurement, of_rounds
from sweeps.bench.training import AnsweringProcess, worker
from sweeps.bench.training_worker import Network, Workload
from sweeps.engine.measure import reason
from sweeps.engine.worker import lacks_gpu_memory
from sweeps.plan.speed import epochs_of
from sweeps.spec import study_file

NETWORK = Network(256, "geoclip")
"""The published network, with its embedding."""
PRECISIONS = ("fp32", "bf16")
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


class Sizes(NamedTuple):
    """Numbers of trainings that share the GPU, by the way in which they do."""

    processes: tuple[int, ...] = (4, 8, 16)
    """Processes that take turns."""
    with_mps: tuple[int, ...] = (8, 16)
    """Processes that share it through the Multi-Process Service."""
    stacks: tuple[int, ...] = (4, 8, 16, 32, 64)
    """Trainings in lockstep in one process."""


class Way(NamedTuple):
    """Speed of one way to use the GPU."""

    name: str
    rates: list[float]
    """Windows per second of each turn."""
    memory_mb: float
    """Memory of one training, without the CUDA context."""


def run(*, pretend: bool = False) -> Iterator[Measurement]:
    """Measure every way in either precision, then the gain of the best and the time of the published study.

    The Multi-Process Service is started for some of the ways. Where it cannot be, a row has the reason.

    With `pretend`, everything runs on the CPU with a small network, and nothing is reported as measured.
    Raises InputError without a GPU.
    """
    if not pretend and not torch.cuda.is_available():
        fix = "run the command on a machine with a GPU, or add --pretend to try it"
        raise InputError("sweep bench", "--only gpu", "PyTorch sees no GPU", fix)
    work = Workload(device="cpu" if pretend else "cuda")
    network, sizes, turn_s = NETWORK, Sizes(), TURN_S
    if pretend:
        work, network = work._replace(sites=40, days=60, batch_size=16), Network(8, "geoclip")
        sizes, turn_s = Sizes((4,), (4,), (4,)), 0.0
    ways: list[Way] = []
    for found in _all_ways(work, network, sizes, turn_s, pretend=pretend):
        if isinstance(found, Measurement):
            yield found
            continue
        ways.append(found)
        words = f"{found.memory_mb / 1000:.2f} GB for each training; width {network.width}, {network.variant}"
        yield _reported(of_rounds(found.name, found.rates, "windows/s", words), pretend)
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


def _all_ways(
    work: Workload, network: Network, sizes: Sizes, turn_s: float, *, pretend: bool
) -> Iterator[Way | Measurement]:
    """Measure every way in either precision, and last those that need the Multi-Process Service.

    Where the service does not work, there is one row with the reason. It is not started if `pretend`.
    """
    request = {"steps": STEPS, "at_least_s": turn_s}
    networks = [network._replace(precision=precision) for precision in PRECISIONS]
    for own in networks:
        yield from _ways(work, own, sizes, request | {"network": own._asdict()})
    service: contextlib.AbstractContextManager[Mapping[str, str]]
    service = contextlib.nullcontext({}) if pretend else mps.service()
    try:
        with service as environment:
            with worker(work, environment) as first:  # the service starts with its first process
                first.ask(request | {"network": network._asdict()})
                first.answer()
            for own in networks:
                asked = request | {"network": own._asdict()}
                name = f"processes with MPS, {own.precision}"
                yield from _packed(work, sizes.with_mps, asked, name, environment)
    except RuntimeError as error:
        yield _failed("processes with MPS", error)


def _failed(name: str, error: Exception) -> Measurement:
    """Return a row without a number for a way that ends with an error."""
    return Measurement(name, math.nan, "windows/s", math.inf, reason(error))


def _ways(
    work: Workload, network: Network, sizes: Sizes, request: dict[str, Any]
) -> Iterator[Way | Measurement]:
    """Measure one training, processes side by side, and stacks."""
    with worker(work, mps.without()) as alone:
        yield _turns([alone], request, f"one training, {network.precision}")
    yield from _packed(work, sizes.processes, request, f"processes, {network.precision}", mps.without())
    with worker(work, mps.without()) as process:
        for size in sizes.stacks:
            process.ask(request | {"stack": size, "turns": TURNS})
            try:
                answer = process.answer()
            except RuntimeError as error:
                yield _failed(f"stack of {size}, {network.precision}", error)
                break
            if "out_of_memory" in answer:
                break
            rates = [turn["done"] / turn["seconds"] for turn in answer["turns"]]
            yield Way(f"stack of {size}, {network.precision}", rates, answer["memory_mb"] / size)


def _packed(
    work: Workload, counts: Iterable[int], request: dict[str, Any], name: str, environment: Mapping[str, str]
) -> Iterator[Way | Measurement]:
    """Measure numbers of processes side by side, until they fail or do not fit into the memory."""
    for count in counts:
        with contextlib.ExitStack() as cleanup:
            processes = [cleanup.enter_context(worker(work, environment)) for _ in range(count)]
            try:
                yield _turns(processes, request, f"{count} {name}")
            except RuntimeError as error:
                if not lacks_gpu_memory(error):
                    yield _failed(f"{count} {name}", error)
                break


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
