"""A study beside its store: the samples of its folds are those that its cells train and test on."""

from pathlib import Path

import numpy as np
import pytest

from pm25 import trial
from sweeps.state import StudyState

STUDY = """\
study: toy
data: {synthetic: {sites: 40, days: 40}}
design:
  variant: none
  split: [{kind: random, folds: 3}, {kind: spatial, folds: 3}, {kind: checkerboard, degrees: 16}]
  seed: 0
model: {width: 4, attention_units: 4}
"""


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_the_samples_of_a_fold_are_those_of_its_cell(protocol: str, tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(STUDY)
    state = StudyState(str(tmp_path / "toy.yaml"), [f"protocol={protocol}"])
    indices = state.split_indices()
    assert len(indices) == len(state.grid) == 8
    for cell in state.grid:
        parts, ready = indices[cell.split.label, cell.fold], trial.prepare(cell, state.panel)
        for name in ("train", "validation", "test"):
            assert np.array_equal(getattr(parts, name), getattr(ready.indices, name))
    for label, shared in (("random", True), ("spatial", True), ("checkerboard-16", False)):
        first, second = (indices[label, fold].test for fold in (0, 1))
        assert np.array_equal(first, second) == (shared and protocol == "paper")
