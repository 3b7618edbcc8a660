"""Strands, head and renderer of `example/make_hair.py`; independent of the npbgpp package.

World: Z up, right-handed, float64. Colours are in [0, 1] as they are displayed.
"""
