"""Measures how fast this machine trains the shapes of a study; runs as `python -m sweeps.plan.calibration`.

Torch is loaded only where something is measured, in a process of its own: `sweep plan`, which reads what
was measured, stays quick.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs
from pydantic import ValidationError

from pm25.errors import InputError
from sweeps.plan.cost import Calibration, Capacity
from sweeps.store import records as files
from sweeps.store.records import Store

FOLDER = "calibration"
"""Beside the cells, with a file for each device and number of threads."""


class Device(NamedTuple):
    """A GPU."""

    name: str
    memory_mb: float
    """Of the whole device."""


def devices(*, hidden: bool = False) -> list[Device]:
    """The GPUs that a run would find on this machine; all of them with those `hidden` from this process."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    visible = None if hidden else os.environ.get("CUDA_VISIBLE_DEVICES")
    found = lines if visible is None else lines[: len(list(filter(None, visible.split(","))))]
    return [Device(name, float(mib) * 2**20 / 1e6) for name, mib in (line.rsplit(", ", 1) for line in found)]


def processor() -> str:
    """The CPU's name."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def read(store: Store, room: Capacity) -> Calibration | None:
    """What was measured on this machine's device; for GPUs, where it has none, what was measured last.

    Raises InputError for a file that is no calibration.
    """
    system, folder = store.location(FOLDER)
    try:
        listed = system.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))
        paths = sorted(info.path for info in listed if info.base_name.endswith(".json"))
        found = [_parse(path, files.read(system, path)) for path in paths]
    except files.StorageError as error:
        raise store.refusal("read", error) from None
    device = "cuda" if room.gpu else "cpu"
    fitting = [c for c in found if (c.device, c.threads) == (device, room.threads)]
    here = device_name(room)
    if here or not room.gpu:
        fitting = [c for c in fitting if c.name == here]
    return max(fitting, key=lambda c: max((t.date for t in c.shapes), default=""), default=None)


def can_measure(room: Capacity) -> bool:
    """Whether this machine has the device that the plan is for."""
    return not room.gpu or bool(devices())


def _parse(path: str, content: bytes) -> Calibration:
    try:
        return Calibration.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".lstrip(": ")
        raise InputError(
            f"{path}: not a calibration ({what}); delete the file, and `sweep plan` measures again"
        ) from None


def write(store: Store, found: Calibration) -> None:
    """Whole or not at all. Raises InputError."""
    identity = json.dumps([found.device, found.name, found.threads])
    system, folder = store.location(FOLDER)
    path = f"{folder}/{hashlib.sha256(identity.encode()).hexdigest()[:20]}.json"
    try:
        files.write(system, path, found.model_dump_json(indent=1).encode())
    except files.StorageError as error:
        raise store.refusal("written", error, fix="") from None


def device_name(room: Capacity) -> str:
    """Of this machine's device that the plan is for; empty for a GPU where there is none."""
    return next((device.name for device in devices()), "") if room.gpu else processor()
