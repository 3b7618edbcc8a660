"""The room, objects and ray tracer of `example/make_moving_scene.py`.

World: y up, right-handed, units of about a metre. Time runs from 0 (first frame) to 1 (last). Poses are (4, 4) float64 matrices on columns.
"""
