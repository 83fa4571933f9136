"""Run the command line `sweep` with `python -m sweeps`."""

from sweeps.cli import main

main()
