"""nsff."""
