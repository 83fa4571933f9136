"""Largest sizes of a study, its search and its command line."""

MOST_CELLS = 500_000
"""Most cells of a grid, with all that adaptive designs may add: to list them needs 3 GB."""
MOST_SEEDS = 10_000
"""Most seeds of a study or a search trial, and largest `max` of an adaptive design."""
MOST_LISTED = 1_000
"""Most splits, claims, choices or first points: each is tested, drawn or shown by itself."""
MOST_TEXT = 1_000
"""Most characters of a claim or a citation: each is a line of a table."""
MOST_TRIALS = 100_000
"""Most trials of one arm: Optuna's samplers need minutes for each trial long before this number."""
MOST_TRAININGS = 10_000
"""Most trainings of one trial: placements times folds times seeds."""
MOST_DEVICES = 1_000_000
"""Most CPUs or GPUs of a training or a plan."""
MOST_DRAWS = 100
"""Most draws of an untrained encoder: their numbers have two digits."""
LEAST_SHARE = 1e-4
"""Smallest share of a CPU or a GPU: Ray counts resources in this unit."""
MOST_GPU_GB = 10_000
"""Most GB of a pretended GPU."""
MOST_HOURS = 1_000_000
"""Most hours of a duration: a century."""
MOST_BYTES = 1_000_000
"""Most bytes of a study file: about 20,000 lines, which take seconds to read."""
MOST_YAML_VALUES = 100_000
"""Most values of a study file after its anchors are repeated wherever they are used."""
MOST_DIGITS = 100
"""Most characters of a number, a date or a time in YAML: a 64-bit float has 17 significant digits."""
MOST_CHARACTERS = 10_000
"""Most characters of a filter: each of its values is looked for in all cells."""
