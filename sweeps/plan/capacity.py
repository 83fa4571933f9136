"""The machine or cluster that a plan is for: its CPUs and GPUs, and how many cells run side by side."""

import math
from typing import NamedTuple

from pm25.errors import InputError
from sweeps.spec.study import Study


class Capacity(NamedTuple):
    """CPUs and GPUs that a plan is for, and the shares of them that one cell takes."""

    cpus: float
    gpus: float
    cpu: float
    gpu: float
    gain: float = 1.0
    """Measured speed of cells that are stacked on a GPU, over that of one alone; 1 without stacks."""

    @classmethod
    def of(cls, study: Study, cpus: float, gpus: float) -> "Capacity":
        """Combine a machine's CPUs and GPUs with the study's shares. Raises InputError if no cell fits."""
        cpu, gpu = study.resources.cpu, study.resources.gpu
        if gpu == "auto":
            gpu = 1.0 if gpus else 0.0
        if cpu > cpus or gpu > gpus:
            raise InputError(
                "study file",
                "resources",
                f"a cell needs {cpu:g} CPU, {gpu:g} GPU, and the plan is for {cpus:g} CPU, {gpus:g} GPU",
                "give --cpus and --gpus, or --set resources.cpu=1 --set resources.gpu=0",
            )
        return cls(cpus, gpus, cpu, gpu)

    def packed(self, per_gpu: int) -> "Capacity":
        """Return the capacity with this number of cells on each GPU; Ray counts shares in ten-thousandths."""
        return self._replace(gpu=math.floor(10_000 / per_gpu) / 10_000)

    @property
    def slots(self) -> int:
        """Number of cells that run side by side."""
        by_cpu = math.floor(self.cpus / self.cpu + 1e-9)
        return min(by_cpu, math.floor(self.gpus / self.gpu + 1e-9)) if self.gpu else by_cpu

    @property
    def unit(self) -> str:
        """Unit of the scarce resource."""
        return "GPU-hours" if self.gpu else "CPU-hours"

    @property
    def threads(self) -> int:
        """CPU threads of one cell, as `sweeps.engine.trainable` sets them."""
        return max(1, int(self.cpu))
