"""Measurements of this project: ratios, each beside its limit."""
