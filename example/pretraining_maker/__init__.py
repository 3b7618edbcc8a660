"""Random scenes of `example/make_pretraining_scenes.py`: solids, textures, ray tracer, cameras and clouds; independent of the npbgpp package.

World: Z up, right-handed. Cameras: 4x4 camera-to-world matrices with OpenGL axes (x right, y up, z backward). Colours are linear RGB unless they are said
to be sRGB.
"""
