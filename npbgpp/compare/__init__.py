"""Comparison of runs: scores, costs, the settings in which they differ, and pictures of shared test views."""
