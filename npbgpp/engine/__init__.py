"""Runs: building them from a config, training, evaluation, resuming, and opening them again."""
