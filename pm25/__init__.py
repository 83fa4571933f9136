"""One training of a daily surface PM2.5 model, from a table to its metrics."""

NUMERICS = 2
"""Part of a cell's key; increase it whenever a change of the code moves the numbers of a training."""

HUBER_NUMERICS = 1
"""The same for cells of protocol `strict` with `train.loss: huber`, whose numbers are those of 0.1.0.

Set it to `NUMERICS` when a change moves their numbers, too. `pm25.cell.Cell.numerics` chooses one of the two.
"""

REFERENCE_NUMERICS = 1
"""The same for cells of references (`pm25.references`), whose numbers do not depend on a network."""
