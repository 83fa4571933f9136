"""The negative control of a study: a few stored cells of each arm, trained on exchanged targets."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pm25 import negative_control
from pm25.fit import Diverged
from pm25.negative_control import Control
from sweeps.engine import worker
from sweeps.spec.design import Arm
from sweeps.state import StudyState


class ArmControl(NamedTuple):
    """Outcome of the negative control of one arm."""

    arm: str
    cells: int
    """Number of cells that were trained."""
    worst: Control | None
    """Result with the largest skill beyond chance; None if every training diverged."""

    @property
    def passed(self) -> bool:
        """True if no result beats the reference."""
        return self.worst is not None and not self.worst.found

    @property
    def line(self) -> str:
        """Summary of the outcome in one line."""
        if self.worst is None:
            return f"{self.arm}: {self.cells} cells, every training diverged"
        worst = self.worst
        outcome = "beats the reference: a leak" if worst.found else "nothing found"
        return (
            f"{self.arm}: {self.cells} cells, {worst.part} R2 {worst.r2:.3f}, reference "
            f"{worst.reference_r2:.3f}, skill {worst.skill:+.3f} (at least {worst.least:+.3f}): {outcome}"
        )


def run(state: StudyState, done: Sequence[str], per_arm: int) -> Iterator[ArmControl]:
    """Train `per_arm` of the cells `done` (keys) for each arm on exchanged targets.

    The cells are drawn at random, from as many splits as possible. Each has an exchange of its own.
    """
    for arm, keys in draw(state, done, per_arm).items():
        found: list[Control] = []
        for number, key in enumerate(keys):
            cell = state.cells[key]
            arguments = worker.trial_arguments(state.embedded(cell))
            try:
                found += negative_control.control(cell, state.panel, seed=number, arguments=arguments)
            except Diverged:
                continue
        yield ArmControl(arm.label, len(keys), max(found, key=lambda one: one.least, default=None))


def draw(state: StudyState, done: Sequence[str], per_arm: int) -> dict[Arm, list[str]]:
    """Draw keys of each arm: one of every split in turn, each split's own in random order."""
    shuffled = random.Random(0).sample(sorted(done), len(done))
    chosen: dict[Arm, list[str]] = {arm: [] for arm in state.study.arms()}
    for arm, keys in chosen.items():
        by_split: dict[str, list[str]] = {}
        for key in shuffled:
            if Arm.of(state.cells[key]) == arm:
                by_split.setdefault(state.cells[key].split.label, []).append(key)
        turns = [keys[turn : turn + 1] for turn in range(len(shuffled)) for keys in by_split.values()]
        keys += [key for turn in turns for key in turn][:per_arm]
    return {arm: keys for arm, keys in chosen.items() if keys}
