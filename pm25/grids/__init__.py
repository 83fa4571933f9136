"""Covariates on a grid of cells, for maps: from a table, from the synthetic world, or between monitors."""
