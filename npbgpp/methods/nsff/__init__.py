"""NSFF: system, field, rendering, losses, training data and normalisation of videos."""
