"""Trainings of one arm in lockstep on one device: `StackedTraining(cells, panel, ...)` yields their results.

The folds, seeds and origins of an arm share the shape of their network and their panel. Their products are
batched (`pm25.stacked_model`), which fills a GPU that one training leaves idle. On a CPU, trainings in
processes of their own are faster.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pm25 import encoders
from pm25.cell import Cell
from pm25.fit import Epoch, LearningCurve
from pm25.network_shape import stack_kind
from pm25.panel import Panel
from pm25.stacked_fit import StackedFit
from pm25.trial import Prepared, Result, check_identity, identity, outcome, prepare
from pm25.windows import StackedInputs

TOLERANCE = 0.02
"""Largest relative difference of an RMSE from that of a training alone; rounding is amplified by training."""


def stackable(cells: Sequence[Cell], panel: Panel) -> list[list[Cell]]:
    """Group the cells that one `StackedTraining` can train, in their order. See `stack_kind`."""
    groups: dict[Hashable, list[Cell]] = {}
    for cell in cells:
        if (kind := stack_kind(cell, panel)) is not None:
            groups.setdefault(kind, []).append(cell)
    return list(groups.values())


class StackedTraining:
    """Trainings of cells that are `stackable`, in lockstep in `size` slots of one network.

    A slot that a training has left takes the next waiting cell. Iterating trains to the end, and yields each
    cell with its Result, or with the exception that its training raised. Other members continue.

    See `pm25.trial.Training` for the arguments. A member has the first weights, the order of samples and, on
    the CPU, the dropout masks of its training alone. Its numbers differ by the rounding of float32, which
    training amplifies. On a GPU, dropout draws from generators on the device, and its numbers are others.

    With one thread of a CPU and an equal `size`, a member's steps do not depend on the other cells. The last
    digits of its validation losses may, because members whose epochs end together are scored together.

    `found` returns the `state` from which a cell's training resumes, or None for its first epoch. It is
    called when the training gets its slot. A resumed training has the steps of an uninterrupted one.

    Raises ValueError for cells that cannot be stacked. A cell whose state belongs to another training ends
    with a ValueError.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        panel: Panel,
        *,
        size: int,
        embedding: np.ndarray | None = None,
        trained_on_target: bool = False,
        device: str = "cpu",
        found: Callable[[Cell], dict[str, Any] | None] = lambda cell: None,
    ) -> None:
        groups = stackable(cells, panel)
        if len(groups) != 1 or len(groups[0]) < len(cells):
            raise ValueError(f"{len(cells)} cells cannot be trained in one stack; group them by stackable()")
        if embedding is None and cells[0].encoder is not None:
            embedding = encoders.load(cells[0].encoder).embed(panel.lat, panel.lon, panel.site_id)
        self._panel, self._embedding, self._device = panel, embedding, device
        self._trained_on_target, self._found = trained_on_target, found
        self._waiting = deque(cells)
        self._slots = min(size, len(cells))
        self._members: dict[int, _Member] = {}
        self._stack: tuple[StackedFit, StackedInputs] | None = (
            None  # made for the first training that is ready
        )

    @property
    def finished(self) -> bool:
        """True when every cell has its result or its exception."""
        return not self._waiting and not self._members

    @property
    def running(self) -> list[tuple[Cell, list[Epoch]]]:
        """Cells in the slots, each with its epochs so far."""
        return [(member.prepared.cell, list(member.curve.history)) for member in self._members.values()]

    @property
    def between_epochs(self) -> list[Cell]:
        """Cells in the slots of which no epoch is under way."""
        if self._stack is None:
            return []
        fit, _ = self._stack
        return [member.prepared.cell for slot, member in self._members.items() if not fit.members[slot].done]

    def state(self, cell: Cell) -> dict[str, Any]:
        """Return a checkpoint of a cell that is `between_epochs`, for `found` of a new StackedTraining.

        It can be written by `torch.save` and read by `torch.load(..., weights_only=True)`.
        """
        assert self._stack is not None
        fit, _ = self._stack
        slot = next(slot for slot, member in self._members.items() if member.prepared.cell == cell)
        member = self._members[slot]
        return {"identity": identity(member.prepared), "seconds": member.seconds, "fit": fit.state(slot)}

    def __iter__(self) -> Iterator[tuple[Cell, Result | Exception]]:
        while not self.finished:
            yield from self.advance()

    def advance(self) -> list[tuple[Cell, Result | Exception]]:
        """Fill the slots, train until an epoch of a member ends, and return the cells that ended."""
        ended = self._fill()
        if self._stack is None or not self._members:
            return ended
        fit, _ = self._stack
        started = time.perf_counter()
        epochs = fit.advance()
        spent = (time.perf_counter() - started) / len(self._members)
        for member in self._members.values():
            member.seconds += spent
        for slot, epoch in epochs.items():
            member = self._members[slot]
            if isinstance(epoch, Epoch):
                if not member.curve.finished:
                    continue
                ended.append((member.prepared.cell, self._result(member, fit.best_weights(slot))))
            else:
                ended.append((member.prepared.cell, epoch))
            del self._members[slot]
            fit.free(slot)
        return ended

    def _fill(self) -> list[tuple[Cell, Result | Exception]]:
        """Start waiting cells in the idle slots; return those that could not be prepared."""
        failed: list[tuple[Cell, Result | Exception]] = []
        for slot in sorted({*range(self._slots)} - {*self._members}):
            while self._waiting and slot not in self._members:
                cell, started = self._waiting.popleft(), time.perf_counter()
                state = self._found(cell)
                try:
                    prepared = prepare(cell, self._panel, embedding=self._embedding, device=self._device)
                    if state is not None:
                        check_identity(state, prepared)
                except Exception as error:
                    failed.append((cell, error))
                    continue
                fit = self._start(slot, prepared)
                try:
                    if state is not None:
                        fit.load_state(slot, state["fit"])
                except Exception as error:  # a state that this version cannot read
                    fit.free(slot)
                    failed.append((cell, error))
                    continue
                spent = 0.0 if state is None else state["seconds"]
                curve = fit.members[slot].curve
                self._members[slot] = _Member(prepared, curve, spent + time.perf_counter() - started)
        return failed

    def _start(self, slot: int, prepared: Prepared) -> StackedFit:
        """Put a prepared training into a slot, at its first epoch."""
        settings = prepared.cell.train
        if self._stack is None:
            inputs = StackedInputs(prepared.inputs, self._slots)
            known = int(np.isfinite(self._panel.target).sum())  # no training set is larger
            fit = StackedFit(prepared.model, inputs, settings, slots=self._slots, capacity=known)
            self._stack = fit, inputs
        fit, inputs = self._stack
        inputs.load(slot, prepared.inputs)
        fit.load(
            slot,
            prepared.model,
            prepared.windows(prepared.train),
            prepared.windows(prepared.validation),
            settings,
            prepared.order,
            prepared.dropout_seed,
            prepared.scale.inverse_transform,
        )
        return fit

    def _result(self, member: "_Member", weights: dict[str, torch.Tensor]) -> Result | Exception:
        """Score a training by its network alone, or return the exception that this raises."""
        started, prepared = time.perf_counter(), member.prepared
        try:
            prepared.model.load_state_dict(weights)
            found = outcome(prepared, member.curve.history, trained_on_target=self._trained_on_target)
        except Exception as error:
            return error
        seconds = member.seconds + time.perf_counter() - started
        return replace(found, seconds=seconds, stacked=self._slots)


@dataclass
class _Member:
    """Training in a slot, with its share of the time."""

    prepared: Prepared
    curve: LearningCurve
    seconds: float
