"""Scores of predictions against the truth, in the target's unit."""

import numpy as np


def scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """RMSE, MAE and MBE (mean of prediction - truth) in ug/m3, and R2 = 1 - SSE / SST.

    `truth` and `prediction` are (n,), n >= 1. R2 is NaN where the truth has no variance.
    """
    truth, prediction = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    error = prediction - truth
    total = float(np.sum((truth - truth.mean()) ** 2))
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": 1 - float(np.sum(error**2)) / total if total > 0 else float("nan"),
        "mae": float(np.mean(np.abs(error))),
        "mbe": float(np.mean(error)),
    }
