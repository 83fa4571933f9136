"""Many trials: the study, its cells, their run on Ray Tune, the store, MLflow and the report."""
