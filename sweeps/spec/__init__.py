"""Contents of a study file, as values that were checked."""
