"""The project's own measurements, as ratios of things measured side by side in one run."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pm25.cell import Cell
from pm25.panel import Panel

ROUNDS = 3
EPOCHS = 2
"""Of the 8 of `quick`: a trial's fixed costs weigh four times as much here as there."""
CALLS = 5

_RESIDENT = """
import sys
from pathlib import Path
import torch
from pm25 import panel, trial
from pm25.cell import Cell
from sweeps.bench.trial import peak_mb
torch.set_num_threads(1)
trial.run(Cell.model_validate_json(sys.argv[2]), panel.read(Path(sys.argv[1]), sys.argv[3].split(",")))
print(peak_mb() / 1024)
"""


class Measurement(NamedTuple):
    what: str
    value: float
    unit: str
    limit: float
    """What the project promises to stay below; infinite where it promises nothing."""
    detail: str
    at_least: bool = False
    """The limit is what it promises to reach."""


def run(table: Path, storage: Path) -> list[Measurement]:
    """Measure the study `quick` on `table`; `storage` is a folder to look into, not to write."""
    import torch

    from pm25 import panel as panels
    from pm25 import trial
    from sweeps.spec import study_file as studies

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    study = studies.load("quick", [f"data.table={table}", f"train.max_epochs={EPOCHS}"])
    panel = panels.read(table, study.data.channels)
    cell = study.cells()[0]
    bare = _bare_loop(cell, panel, device)
    ours = partial(trial.run, cell, panel, device=device)
    pairs = [(_seconds(ours), _seconds(bare)) for _ in range(ROUNDS)]
    mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    words = (
        f"{mine:.2f} s over {theirs:.2f} s, {EPOCHS} epochs, one thread, {device}, median of {ROUNDS} pairs"
    )
    rows = [Measurement("trial over a bare PyTorch loop", ratio, "x", 1.1, words)]

    command = [sys.executable, "-c", _RESIDENT, str(table), cell.model_dump_json(), ",".join(panel.channels)]
    resident = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows.append(
        Measurement("resident memory of a trial", float(resident), "GiB", 1.4, "peak, a process of its own")
    )

    study_arguments = ["quick", "--set", f"data.table={table}", "--set", f"storage={storage}"]
    for arguments, limit in (
        (["--help"], 0.5),
        (["plan", "--no-calibrate", *study_arguments], 2),
        (["status", *study_arguments], 2),
    ):
        call = [sys.executable, "-m", "sweeps", *arguments]
        answer = partial(subprocess.run, call, check=True, capture_output=True)
        took = statistics.median(_seconds(answer) for _ in range(CALLS))
        rows.append(Measurement(f"sweep {arguments[0]}", took, "s", limit, f"median of {CALLS} calls"))
    return rows


def peak_mb() -> float:
    """This process' largest resident memory so far, in MiB, as Linux counts it.

    The usual `ru_maxrss` is inherited: a small child of a large process would seem as large.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def machine() -> str:
    """What was measured on, and when."""
    import torch

    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    cores = len(os.sched_getaffinity(0))
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{chip}, {cores} CPU cores, {python}, {time.strftime('%Y-%m-%d')}"


def _bare_loop(cell: Cell, panel: Panel, device: str) -> Callable[[], object]:
    """The same network on the same samples, every window gathered beforehand, and nothing else."""
    import torch
    from torch import nn

    from pm25 import splits
    from pm25.fit import SCORING_BATCH
    from pm25.model import build
    from pm25.windows import Inputs

    parts = splits.cut(cell.split, cell.fold, panel, cell.window)
    train = parts.train[: cell.train.max_windows]
    validation = parts.validation[: cell.train.max_validation_windows]
    inputs = Inputs(panel, train, cell.window, cell.variant, torch.device(device))
    target = panel.target.reshape(-1)

    def gathered(flat: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.as_tensor(flat, device=device)
        return inputs.batch(rows)[0], torch.as_tensor(target[flat], device=device) / 10

    (x, y), scored = gathered(train), [gathered(validation)[0], gathered(parts.test)[0]]

    def loop() -> None:
        model = build(inputs.width, cell.model).to(device)
        optimiser = torch.optim.Adam(model.parameters(), lr=cell.train.learning_rate, fused=True)
        loss_of = nn.HuberLoss()

        def score(windows: torch.Tensor) -> torch.Tensor:
            model.eval()
            with torch.inference_mode():
                return torch.cat([model(batch) for batch in windows.split(SCORING_BATCH)]).cpu()

        for _ in range(cell.train.max_epochs):
            model.train()
            for rows in torch.randperm(len(x), device=device).split(cell.train.batch_size):
                optimiser.zero_grad()
                loss_of(model(x[rows]), y[rows]).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            score(scored[0])
        score(scored[1])

    return loop


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
