"""Ray tracer, objects and cameras of `example/make_scene.py`; independent of the npbgpp package.

Layout of all vectors: component first, (3, n) float64, so that every component is contiguous. World: Z up, right-handed.
"""
