"""Strands, head and cameras behind `example/make_hair.py`; it stands alone and imports nothing from the npbgpp package.

World: Z up, right-handed, float64. Colours are in [0, 1] as they are displayed.
"""
