"""Models of one arm for a map: the winning seed on every fold that has weights, and where they apply."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pm25 import suggest
from pm25.errors import InputError
from sweeps.engine.worker import WEIGHTS, stored_weights
from sweeps.spec.design import Arm
from sweeps.store.records import Record
from sweeps.tracking import winners

if TYPE_CHECKING:
    from pm25.cell import Cell
    from pm25.grids.predicted import Area
    from pm25.predictor import Predictor
    from sweeps.state import StudyState

MOST_TRAINING = 20_000
"""Most training samples with which an area of applicability is fitted; of more, evenly spaced ones."""


@dataclass(frozen=True)
class ArmModels:
    """Models of an arm, one for each fold, trained on different monitors or days."""

    label: str
    """Label of the arm in tables."""
    name: str
    """Label of the arm in commands: `none`, `geoclip-hadamard`."""
    keys: tuple[str, ...]
    cells: "tuple[Cell, ...]"
    predictors: "tuple[Predictor, ...]"
    lost: int
    """Number of done folds whose weights should be stored, and are not."""


def load(state: "StudyState", records: Mapping[str, Record], name: str) -> ArmModels:
    """Load the models of the arm `name`.

    Raises InputError for an arm that the study does not have, and for an arm without stored weights. It is
    raised too for a control, and for an arm that reads the PM2.5 of its neighbours.
    """
    from pm25 import encoders
    from pm25.predictor import Predictor
    from sweeps.analysis import labels

    study = state.study
    arms = {arm.label: arm for arm in study.arms()}
    if name not in arms:
        raise InputError("map", "--arm", f"{study.study} has no arm {name!r}", suggest.fix(name, arms))
    held = state.store.holding(WEIGHTS)
    keys = winners.ensemble(study, state.cells, records, held, arms[name])
    cells = [state.cells[key] for key in keys]
    if not keys:
        winner = winners.best(study, state.cells, records).get(arms[name])
        if winner is None:
            problem, fix = "no cell of this arm is done", "run `sweep run STUDY`"
        else:
            problem = "no weights of this arm are stored"
            fix = "a done cell is not trained again, so run the study in another storage: "
            fix += "`sweep run STUDY --set keep_weights=folds --set storage=FOLDER`"
        raise InputError(state.shown_storage, name, problem, fix)
    if cells[0].neighbours is not None:
        problem = "it reads the PM2.5 of monitors near a place, which a grid does not have"
        raise InputError(study.study, f"arm {name}", problem, "take a study without neighbours")
    encoder = cells[0].encoder
    source = None if encoder is None else encoders.source(encoder, **study.encoder_options(encoder))
    predictors = []
    for key, cell in zip(keys, cells, strict=True):
        kept = stored_weights(key, state.store)
        assert kept is not None
        predictors.append(Predictor(cell, *kept, source))
    label = labels.arm(arms[name].variant, arms[name].fusion)
    lost = _without_weights(state, records, held, cells[0]) if study.keep_weights == "folds" else 0
    return ArmModels(label, name, tuple(keys), tuple(cells), tuple(predictors), lost)


def _without_weights(
    state: "StudyState", records: Mapping[str, Record], held: Collection[str], one: "Cell"
) -> int:
    """Count the done folds of a cell's arm, split and seed without weights; `held` are keys with them."""
    folds = {
        key
        for key, cell in state.cells.items()
        if (Arm.of(cell), cell.split, cell.seed) == (Arm.of(one), one.split, one.seed)
        and records.get(key, {}).get("state") == "done"
    }
    return len(folds.difference(held))


def area(state: "StudyState", models: ArmModels) -> "Area":
    """Fit the area of applicability to the training samples of all models of an arm.

    Predictors are weighted by the permutation importance of the first model that has one stored, and
    otherwise equally. An arm that knows the place has latitude and longitude among its predictors.
    """
    from pm25 import trial
    from pm25.applicability import (
        Applicability,
        evenly_spaced,
        monitor_folds,
        predictor_weights,
        window_predictors,
    )
    from pm25.grids.predicted import Area

    panel, first = state.panel, models.predictors[0]
    flat = np.unique(np.concatenate([trial.training_samples(cell, panel) for cell in models.cells]))
    flat = flat[evenly_spaced(len(flat), MOST_TRAINING)]
    _, windows = trial.raw_windows(models.cells[0], panel, flat)
    site = flat // len(panel.dates)
    with_place = models.cells[0].variant != "none"
    place = np.stack([panel.lat[site], panel.lon[site]], axis=1) if with_place else None
    predictors = window_predictors(windows, missing=first.means, place=place)
    importance = _importance(state, models.keys)
    weights = predictor_weights(first.channels, importance, with_place=with_place) if importance else None
    if weights is not None and not weights.any():  # no input has an importance
        weights = None
    fitted = Applicability.fit(predictors, weights, monitor_folds(site))
    return Area(fitted, first.means, with_place, weights is not None)


def _importance(state: "StudyState", keys: Sequence[str]) -> dict[str, float]:
    """Read the increase of RMSE by input of the first of the cells that has it stored; else empty."""
    from sweeps.analysis import artifacts

    for key in keys:
        if (table := artifacts.cell_importance(state.store, key)) is not None:
            return dict(zip(*(table[name].to_pylist() for name in ("what", "rmse_increase")), strict=True))
    return {}
