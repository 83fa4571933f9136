"""Plans: the cost of a run, and the differences that it could detect."""
