"""Time and memory of one training, next to a bare PyTorch loop, and the time of short commands."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from pm25.cell import Cell
from pm25.panel import Panel
from sweeps.bench import harness
from sweeps.bench.harness import Measurement

ROUNDS = 3
"""Number of pairs of a training and a bare loop."""
EPOCHS = 2
"""Epochs of a training; `quick` has 8, so the fixed costs weigh four times as much here."""
CALLS = 5
"""Number of calls of each command."""

_RESIDENT = """
import sys
from pathlib import Path
import torch
from pm25 import panel, trial
from pm25.cell import Cell
from sweeps.bench.harness import peak_mb
torch.set_num_threads(1)
trial.run(Cell.model_validate_json(sys.argv[2]), panel.read(Path(sys.argv[1]), sys.argv[3].split(",")))
print(peak_mb() / 1024)
"""


def run(table: Path, storage: Path) -> list[Measurement]:
    """Measure a training of the study `quick` on `table`; `storage` is only read, by commands."""
    import torch

    from pm25 import panel as panels
    from pm25 import trial
    from sweeps.spec import study_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    study = study_file.load("quick", [f"data.table={table}", f"train.max_epochs={EPOCHS}"])
    panel = panels.read(table, study.data.channels)
    cell = study.cells()[0]
    bare = _bare_loop(cell, panel, device)
    ours = partial(trial.run, cell, panel, device=device)
    pairs = [(harness.seconds(ours), harness.seconds(bare)) for _ in range(ROUNDS)]
    ours_s, bare_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    pairs_text = harness.times(ROUNDS, "pair")
    words = f"{ours_s:.2f} s over {bare_s:.2f} s, {EPOCHS} epochs, one thread, {device}, {pairs_text}"
    rows = [Measurement("trial over a bare PyTorch loop", ratio, "x", 1.1, words)]

    channels = ",".join(panel.channels)
    resident = harness.run_python("-c", _RESIDENT, table, cell.model_dump_json(), channels).last_number
    rows.append(Measurement("resident memory of a trial", resident, "GiB", 1.4, "peak of its own process"))

    study_arguments = ["quick", "--set", f"data.table={table}", "--set", f"storage={storage}"]
    for arguments, limit in (
        (["--help"], 0.5),
        (["plan", "--no-calibrate", *study_arguments], 2),
        (["status", *study_arguments], 2),
    ):
        took = statistics.median(harness.run_sweep(*arguments).seconds for _ in range(CALLS))
        rows.append(Measurement(f"sweep {arguments[0]}", took, "s", limit, harness.times(CALLS, "call")))
    return rows


def _bare_loop(cell: Cell, panel: Panel, device: str) -> Callable[[], object]:
    """Build a plain loop: the same network on the same samples, with all windows gathered beforehand."""
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
        loss_of = nn.MSELoss()

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
