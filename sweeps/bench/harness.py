"""Measurements and the processes behind them, with time, output and peak memory."""

import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Measurement(NamedTuple):
    """One measured value next to its limit."""

    what: str
    value: float
    """NaN if it was not measured; `detail` then says what is needed."""
    unit: str
    limit: float
    """Largest value that the project promises; infinite if it promises nothing."""
    detail: str
    at_least: bool = False
    """True if `limit` is the smallest value that the project promises."""
    rounds: tuple[float, ...] = ()
    """Values of the rounds in which several things were measured in turn; `value` is their median."""


class FinishedProcess(NamedTuple):
    """Time and output of a process that ended without an error."""

    seconds: float
    """Wall time from its start to its end, imports included."""
    output: str

    @property
    def last_number(self) -> float:
        """Number at the end of the output, such as a peak memory."""
        return float(self.output.split()[-1])


def run_python(*arguments: object, environment: Mapping[str, str] | None = None) -> FinishedProcess:
    """Run Python in a new process, without warnings; raises RuntimeError if it fails."""
    command = [sys.executable, "-W", "ignore", *map(str, arguments)]
    began = time.perf_counter()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if ended.returncode:
        raise RuntimeError(ended.stderr[-2000:])
    return FinishedProcess(took, ended.stdout)


def run_sweep(*arguments: object) -> FinishedProcess:
    """Run the command line `sweep` in a new process."""
    return run_python("-m", "sweeps", *arguments)


def seconds(call: Callable[[], object]) -> float:
    """Measure the wall time of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_mb() -> float:
    """Largest resident memory of this process so far, in MiB.

    `ru_maxrss` is not used, since it is inherited: a small child of a large process would appear large.
    """
    return _status_mb("VmHWM")


def resident_mb() -> float:
    """Resident memory of this process now, in MiB."""
    return _status_mb("VmRSS")


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def machine() -> str:
    """Describe this machine, its Python and PyTorch, and today's date."""
    import torch

    from sweeps.plan import calibration

    cuda = torch.cuda.is_available()
    chip = torch.cuda.get_device_name() if cuda else calibration.processor() + _instructions()
    cores = len(os.sched_getaffinity(0))
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{chip}, {cores} CPU cores, {python}, {time.strftime('%Y-%m-%d')}"


def of_rounds(
    what: str, rounds: Sequence[float], unit: str, words: str, at_least: float = math.inf
) -> Measurement:
    """Return the median of some rounds, with their range before the other words.

    `at_least` is the smallest value that the project promises; infinite if it promises nothing.
    """
    digits = 2 if max(rounds) < 100 else 0
    low, high = (f"{value:,.{digits}f}" for value in (min(rounds), max(rounds)))
    detail = "; ".join(filter(None, (f"{low} to {high} in {len(rounds)} rounds", words)))
    return Measurement(what, statistics.median(rounds), unit, at_least, detail, True, tuple(rounds))


def _instructions() -> str:
    """Name the processor's instructions for products of bfloat16 matrices, such as ` with AMX`."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
    found = [name for flag, name in known.items() if flag in flags]
    return f" with {' and '.join(found)}" if found else ""


def times(number: int, what: str) -> str:
    """Format how often something was measured, such as `median of 3 calls`."""
    return f"one {what}" if number == 1 else f"median of {number} {what}s"
