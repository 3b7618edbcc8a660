"""A small room in which things move, seen by a moving camera: what `example/make_moving_scene.py` draws and measures.

World: y up, right-handed, units of about a metre. A moment s runs from 0 (first frame) to 1 (last). Poses are (4, 4) float64 matrices on columns.
"""
