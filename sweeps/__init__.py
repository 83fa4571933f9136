"""Studies of many trainings: the study, its cells, their run on Ray Tune, the store, MLflow and the report.

In a notebook, `sweeps.open` returns what a study's store holds as DataFrames. Importing this package loads
neither pandas nor torch nor Ray.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.notebook import OpenStudy

__all__ = ["open"]


def open(study: str | Path, /, **overrides: Any) -> "OpenStudy":  # read as `sweeps.open`
    """Open a study and its store for reading.

    `study` is a study file, or the name of a shipped study (demo, smoke, quick, paper2025). `overrides`
    replace keys of the file, as `--set` does on the command line, with values instead of YAML text. Dotted
    keys are given as a dictionary::

        quick = sweeps.open("quick.yaml", **{"data.table": "panel.parquet", "design.seed": [0, 1]})
        quick.results()                         # one row per cell
        quick.contrasts(metric="mae")           # arms against 'none', with intervals and p-values
        quick.report("report")                  # the files of `sweep report`

    A store that does not exist yet is an empty one. Nothing is trained and nothing is written, except by
    `report`.

    Raises InputError for a study file, a table or a store that cannot be used.
    """
    from sweeps.notebook import OpenStudy

    return OpenStudy(study, overrides)
