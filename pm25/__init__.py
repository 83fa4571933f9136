"""One training of a daily surface PM2.5 model, from a table to its metrics."""

NUMERICS = 1
"""Part of every cell's key; increase it whenever a change of the code moves the numbers of a training."""
