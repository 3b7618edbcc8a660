"""Cameras, clouds and image warps: pure functions and frozen dataclasses on torch tensors. Imports nothing else of the package."""
