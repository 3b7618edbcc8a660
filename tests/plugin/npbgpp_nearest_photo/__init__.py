"""A baseline method and a dataset layout for npbgpp, as an example of a separate distribution."""
