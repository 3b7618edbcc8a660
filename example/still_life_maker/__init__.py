"""Ray tracer, objects and cameras behind `example/make_scene.py`; it stands alone and imports nothing from the npbgpp package.

Layout of all vectors: component first, (3, n) float64, so that every component is contiguous. World: Z up, right-handed.
"""
