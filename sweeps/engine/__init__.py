"""The engine: trains what a study is missing, with Ray Tune and Optuna, on any number of GPUs."""
