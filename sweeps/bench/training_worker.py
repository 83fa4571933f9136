"""A process that trains, or multiplies matrices, for a while on request.

Each line of standard input is a request as JSON, and each line of standard output its answer. A `Workload`
as JSON is the only argument. `sweeps.bench.training` starts such processes and compares them.
"""

import json
import resource
import sys
import time
from typing import Any, NamedTuple

import numpy as np
import torch

from pm25 import stacked, trial
from pm25.cell import Cell
from pm25.panel import Panel
from pm25.splits import RandomSplit
from sweeps.engine import worker

WINDOW = 21
"""Days of a window."""
CHANNELS = 19
"""Channels of a day, as in the published study without the place."""
EMBEDDING_DIM = 512
"""Values of a location embedding, as many as GeoCLIP's."""


class Workload(NamedTuple):
    """Sizes that all processes of a comparison share, and the threads of one of them."""

    threads: int = 1
    sites: int = 400
    days: int = 365
    batch_size: int = 256
    product: int = 2048
    """Rows and columns of the square matrices whose product gives the machine's peak."""
    device: str = "cpu"
    """Device of the trainings, as PyTorch names it."""


class Network(NamedTuple):
    """A network that is trained, and how: the other settings of its cell are the defaults."""

    width: int
    variant: str = "none"
    """`none`, or `geoclip` with Hadamard fusion, whose vectors are random numbers here."""
    precision: str = "fp32"


def random_panel(work: Workload) -> Panel:
    """Draw a panel of random numbers: the speed of a training does not depend on its values."""
    rng = np.random.default_rng(0)
    shape = (work.sites, work.days)
    return Panel(
        features=rng.standard_normal((*shape, CHANNELS), dtype=np.float32),
        target=rng.gamma(2, 4, shape).astype(np.float32),
        lat=rng.uniform(26, 49, work.sites),
        lon=rng.uniform(-124, -67, work.sites),
        site_id=np.array([f"site-{i:05}" for i in range(work.sites)]),
        dates=np.datetime64("2021-01-01") + np.arange(work.days),
        channels=tuple(f"channel_{i}" for i in range(CHANNELS)),
        name="random numbers",
    )


def random_embedding(work: Workload) -> np.ndarray:
    """Draw location vectors (sites, EMBEDDING_DIM) float32."""
    shape = (work.sites, EMBEDDING_DIM)
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def cell_of(network: Network, batch_size: int, steps: int, seed: int = 0) -> Cell:
    """Return a cell whose epochs have so many steps, and which never stops early."""
    return Cell.model_validate(
        {
            "variant": network.variant,
            "fusion": "hadamard" if network.variant == "geoclip" else None,
            "split": RandomSplit(),
            "fold": 0,
            "seed": seed,
            "window": WINDOW,
            "model": {"width": network.width},
            "train": {
                "precision": network.precision,
                "batch_size": batch_size,
                "max_windows": steps * batch_size,
                "max_validation_windows": 2,
                "max_epochs": 1_000_000,
                "patience": 1_000_000,
            },
        }
    )


class Trainer:
    """Trainings of a process by network; each continues where its last request ended."""

    def __init__(self, work: Workload) -> None:
        worker.prepare_process(work.threads)
        self._work, self._panel, self._embedding = work, random_panel(work), random_embedding(work)
        self._trainings: dict[Network, trial.Training] = {}
        self._stack: stacked.StackedTraining | None = None
        self._matrices: dict[str, torch.Tensor] = {}

    def train(self, network: Network, steps: int, at_least_s: float) -> dict[str, float]:
        """Train epochs of so many steps until this time is over: windows and seconds."""
        if network not in self._trainings:
            self._trainings[network] = trial.Training(
                cell_of(network, self._work.batch_size, steps),
                self._panel,
                embedding=None if network.variant == "none" else self._embedding,
                device=self._work.device,
            )
            self._trainings[network].epoch()  # allocates memory and selects kernels
        training = self._trainings[network]
        epochs, began = 0, time.perf_counter()
        while not epochs or time.perf_counter() - began < at_least_s:
            training.epoch()
            epochs += 1
        seconds = time.perf_counter() - began
        return {"done": epochs * steps * self._work.batch_size, "seconds": seconds}

    def stack(self, network: Network, steps: int, size: int) -> None:
        """Put a stack of so many trainings in the place of all other trainings of the process."""
        self._trainings.clear()
        self._stack = None  # frees its memory before the next one is made
        worker.reset_peak_memory(self._work.device)
        cells = [cell_of(network, self._work.batch_size, steps, seed) for seed in range(size)]
        self._stack = stacked.StackedTraining(
            cells,
            self._panel,
            size=size,
            embedding=None if network.variant == "none" else self._embedding,
            device=self._work.device,
        )
        self._stack.advance()
        worker.reset_peak_memory(self._work.device)  # without what only the capture of the graph needs

    def advance(self, steps: int, size: int, at_least_s: float) -> dict[str, float]:
        """Train epochs of the stack until this time is over: windows and seconds."""
        assert self._stack is not None
        epochs, began = 0, time.perf_counter()
        while not epochs or time.perf_counter() - began < at_least_s:
            self._stack.advance()
            epochs += 1
        seconds = time.perf_counter() - began
        return {"done": epochs * steps * size * self._work.batch_size, "seconds": seconds}

    def memory_mb(self) -> float:
        """Most memory that the process had in MB; on a GPU, what PyTorch reserved."""
        if self._work.device == "cuda":
            return torch.cuda.max_memory_reserved() / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def multiply(self, precision: str, at_least_s: float) -> dict[str, float]:
        """Multiply square matrices until this time is over: floating-point operations and seconds."""
        size = self._work.product
        if precision not in self._matrices:
            generator = torch.Generator().manual_seed(0)
            kind = torch.bfloat16 if precision == "bf16" else torch.float32
            self._matrices[precision] = torch.rand(size, size, generator=generator).to(kind)
            torch.matmul(self._matrices[precision], self._matrices[precision])
        matrix = self._matrices[precision]
        out = torch.empty_like(matrix)
        products, began = 0, time.perf_counter()
        while not products or time.perf_counter() - began < at_least_s:
            torch.matmul(matrix, matrix, out=out)
            products += 1
        return {"done": products * 2.0 * size**3, "seconds": time.perf_counter() - began}


def _answer_stack(trainer: Trainer, asked: dict[str, Any]) -> dict[str, Any]:
    """Train a stack for some turns; `out_of_memory` if the GPU cannot hold it."""
    steps, size = asked["steps"], asked["stack"]
    try:
        trainer.stack(Network(**asked["network"]), steps, size)
        turns = [trainer.advance(steps, size, asked["at_least_s"]) for _ in range(asked["turns"])]
    except RuntimeError as error:
        if not worker.lacks_gpu_memory(error):
            raise
        return {"out_of_memory": True}
    return {"turns": turns, "memory_mb": trainer.memory_mb()}


def main() -> None:
    """Answer every line of standard input."""
    trainer = Trainer(Workload(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any]
        if "product" in asked:
            answer = trainer.multiply(asked["product"], asked["at_least_s"])
        elif "stack" in asked:
            answer = _answer_stack(trainer, asked)
        else:
            answer = trainer.train(Network(**asked["network"]), asked["steps"], asked["at_least_s"])
            answer["memory_mb"] = trainer.memory_mb()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
