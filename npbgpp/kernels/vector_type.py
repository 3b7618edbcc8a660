"""The numba type of vectors.

It stands alone since compiled kernels refer to it by its module when they are kept on disk, and since numba is imported only where kernels are compiled.
"""

from numba import types


class VectorType(types.Type):
    """16 float32 values; see ``npbgpp.kernels.vectors``."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")
