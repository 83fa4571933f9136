"""Trains what is missing: Ray Tune, Optuna, GPUs, clusters."""
