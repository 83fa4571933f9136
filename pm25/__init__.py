"""One trial of daily surface PM2.5 estimation, from a table to its metrics."""

NUMERICS = 1
"""Part of every cell's key; increase it whenever a change of the code moves the numbers of a trial."""
