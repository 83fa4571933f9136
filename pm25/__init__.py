"""One trial of daily surface PM2.5 estimation, from a table to its metrics."""

NUMERICS = 1
"""Raised whenever a change moves the numbers of a trial; part of every cell's key."""
