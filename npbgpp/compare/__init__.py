"""Runs side by side: scores, costs, what their command lines changed, and their pictures."""
