"""npbgpp."""
