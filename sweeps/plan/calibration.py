"""The calibration of a machine: its devices, and the measured times that a study's store keeps.

`sweeps.engine.measure` measures the times. This module reads and writes them without torch, so that
`sweep plan` starts quickly.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.fs
from pydantic import ValidationError

from pm25.cell import Cell
from pm25.errors import InputError
from pm25.neighbours import NeighbourSettings
from pm25.network_shape import NetworkShape
from pm25.panel import Panel
from pm25.protocol import Protocol
from pm25.settings import Settings
from pm25.splits import Split
from sweeps.plan.capacity import Capacity
from sweeps.store import records as files
from sweeps.store.records import Store

FOLDER = files.CALIBRATION_FOLDER
"""Folder beside the cells, with a file for each device and number of threads."""

CPUS = Path("/proc/cpuinfo")
"""File in which Linux lists the names and the instructions of its processors."""


class Device(NamedTuple):
    """A GPU of this machine."""

    name: str
    memory_mb: float
    """Total memory of the GPU."""


class SplitShape(Settings):
    """All that decides how long a cell takes beside its network: split, scaling, audit, metrics, storing."""

    split: Split
    window: int
    protocol: Protocol
    neighbours: NeighbourSettings | None
    data: str

    @classmethod
    def of(cls, cell: Cell, panel: Panel) -> "SplitShape":
        """Take the fields from a cell and its panel."""
        return cls(
            split=cell.split,
            window=cell.window,
            protocol=cell.protocol,
            neighbours=cell.neighbours,
            data=panel.fingerprint,
        )


class NetworkTime(Settings):
    """Measured times of one network shape."""

    shape: NetworkShape
    step_s: tuple[float, ...]
    """Seconds of a training step, one value for each timed epoch."""
    scored_s: float
    """Seconds of a scored window."""
    memory_mb: float
    """Peak memory of the process in MB; on a GPU, that of the GPU, CUDA's context included."""
    date: str


class SplitTime(Settings):
    """Measured time of a cell beside its network."""

    cut: SplitShape
    fixed_s: float
    date: str


class Calibration(Settings):
    """Everything that was measured on one device."""

    device: Literal["cpu", "cuda"]
    name: str
    """Name of the processor, or of the GPU."""
    threads: int
    shapes: tuple[NetworkTime, ...] = ()
    cuts: tuple[SplitTime, ...] = ()


def devices(*, hidden: bool = False) -> list[Device]:
    """List the GPUs that a run on this machine would use, or all GPUs with `hidden`."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    visible = None if hidden else os.environ.get("CUDA_VISIBLE_DEVICES")
    found = lines if visible is None else lines[: len(list(filter(None, visible.split(","))))]
    return [Device(name, float(mib) * 2**20 / 1e6) for name, mib in (line.rsplit(", ", 1) for line in found)]


def processor() -> str:
    """Name of the CPU."""
    lines = CPUS.read_text(encoding="utf-8").splitlines() if CPUS.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def without_bf16(gpu: bool) -> str:
    """Name this machine's CPU, or its first GPU, if it has no bfloat16 instructions.

    Empty if it has them, or if the system does not say. GPUs have them from compute capability 8.0 on.
    """
    if gpu:
        if shutil.which("nvidia-smi") is None:
            return ""
        query = ["nvidia-smi", "--query-gpu=compute_cap,name", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found = (line.partition(", ") for line in answer.stdout.splitlines() if answer.returncode == 0)
        return next((name for version, _, name in found if int(version.split(".")[0]) < 8), "")
    if not CPUS.exists():
        return ""
    lines = CPUS.read_text(encoding="utf-8").splitlines()
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), None)
    lacks = flags is not None and not {"avx512_bf16", "amx_bf16", "bf16"} & {*flags}
    return processor() if lacks else ""


def bf16_notice(name: str) -> str:
    """Say that the processor of this name has no bfloat16 instructions; empty without a name."""
    return f"{name} has no bf16 instructions, so train.precision fp32 is faster there" if name else ""


def read(store: Store, capacity: Capacity) -> Calibration | None:
    """Read the calibration of this machine's device; None if there is none.

    On a machine without a GPU, a plan for GPUs uses the latest calibration of any GPU. Raises InputError for
    a file that is not a calibration.
    """
    system, folder = store.location(FOLDER)
    try:
        listed = system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
        paths = sorted(info.path for info in listed if info.base_name.endswith(".json"))
        found = [_parse(path, files.read(system, path)) for path in paths]
    except files.StorageError as error:
        raise store.refusal("read", error) from None
    device = "cuda" if capacity.gpu else "cpu"
    fitting = [c for c in found if (c.device, c.threads) == (device, capacity.threads)]
    here = device_name(capacity)
    if here or not capacity.gpu:
        fitting = [c for c in fitting if c.name == here]
    return max(fitting, key=lambda c: max((t.date for t in c.shapes), default=""), default=None)


def can_measure(capacity: Capacity) -> bool:
    """Return True if this machine has the kind of device that the plan is for."""
    return not capacity.gpu or bool(devices())


def _parse(path: str, content: bytes) -> Calibration:
    try:
        return Calibration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            path,
            ".".join(map(str, first["loc"])),
            f"not a calibration ({first['msg']})",
            "delete the file, and `sweep plan` measures again",
        ) from None


def write(store: Store, found: Calibration) -> None:
    """Write a calibration atomically. Raises InputError."""
    identity = json.dumps([found.device, found.name, found.threads])
    system, folder = store.location(FOLDER)
    path = f"{folder}/{hashlib.sha256(identity.encode()).hexdigest()[:20]}.json"
    try:
        files.write(system, path, found.model_dump_json(indent=1).encode())
    except files.StorageError as error:
        raise store.refusal("written", error) from None


def device_name(capacity: Capacity) -> str:
    """Name of this machine's CPU or GPU, whichever the plan is for; empty without a GPU."""
    return next((device.name for device in devices()), "") if capacity.gpu else processor()
