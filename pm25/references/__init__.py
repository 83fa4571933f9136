"""References: predictions without a network, beside which the scores of every arm are read.

Each is a function of the targets that training may know and, for boosting, of the inputs of the arms:

- `idw`: inverse-distance mean of the nearest training monitors of the same day;
- `climatology`: mean of the day plus the site's mean deviation from the means of its days;
- `persistence`: last known target of the same site;
- `kriging`: ordinary kriging of each day from its training monitors;
- `boosting`, `boosting-place`: boosted trees on the channels of an arm, without and with the coordinates.

A sample without a basis, such as one on a day without training monitors, gets the mean of its day. On a day
without a known target, it gets the mean of all known targets.
"""

import numpy as np

from pm25.panel import Panel
from pm25.references import boosting, monitors
from pm25.settings import Reference

MOST_WINDOWS = {"boosting": boosting.MOST_WINDOWS, "boosting-place": boosting.MOST_WINDOWS}
"""Largest number of training samples that a reference is fitted on, for those that have a limit."""

WITHOUT_CHANNELS = frozenset({"idw", "climatology", "persistence", "kriging"})
"""References that use known targets alone, and no channel of the panel."""


def predict(
    name: Reference,
    known: Panel,
    train: np.ndarray,
    flat: np.ndarray,
    *,
    window: int,
    seed: int = 0,
    threads: int = 1,
) -> np.ndarray:
    """Predict the samples `flat` (flat indices): (n,) float32 in ug/m3.

    `known` has the targets that training may know, and NaN in place of all others. So nothing else can be
    used. Boosting is fitted on the samples `train`, with `seed`, on at most `threads` threads.
    """
    days = len(known.dates)
    site, day = flat // days, flat % days
    if name in ("boosting", "boosting-place"):
        place = name == "boosting-place"
        return boosting.predict(known, train, flat, window, place=place, seed=seed, threads=threads)
    found = {
        "idw": monitors.inverse_distance_mean,
        "climatology": monitors.climatology,
        "persistence": monitors.persistence,
        "kriging": monitors.kriging,
    }[name](known, site, day)
    return monitors.or_mean(found, known.target, day).astype(np.float32)
