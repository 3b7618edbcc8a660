"""Vectors of CPU kernels against NumPy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from npbgpp.kernels import backend as backends
from npbgpp.kernels.backend import kernel
from npbgpp.kernels.vectors import (
    bilinear,
    exp2,
    lanes,
    largest,
    load,
    load_strided,
    log2,
    maximum,
    minimum,
    splat,
    square_root,
    store,
    store_strided,
    total,
    where_less,
)

pytestmark = pytest.mark.skipif(not backends.numba_is_available(), reason="needs numba")
TWO, THREE = np.float32(2), np.float32(3)


@kernel(fastmath={"contract"})
def _all_operations(a, b, out, sums):
    x, y = load(a, 0), load_strided(b, 1, 3)
    store(out, 0, (x + y * TWO - lanes()) / (THREE + splat(TWO)))
    store(out, 16, minimum(maximum(x, y), THREE))
    store(out, 32, where_less(x, y, splat(TWO), y))
    store(out, 48, exp2(x))
    store(out, 64, log2(y))
    store(out, 80, square_root(y))
    store_strided(out, 97, 2, x)
    sums[0], sums[1] = total(x), largest(x)


def test_operations():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=16).astype(np.float32) * 5, rng.uniform(0.001, 50, 48).astype(np.float32)
    out, sums = np.zeros(129, np.float32), np.zeros(2, np.float32)
    _all_operations(a, b, out, sums)
    x, y = a.astype(float), b[1::3].astype(float)
    expected = [(x + 2 * y - np.arange(16)) / 5, np.minimum(np.maximum(x, y), 3), np.where(x < y, 2, y), 2**x, np.log2(y), np.sqrt(y)]
    np.testing.assert_allclose(out[:96], np.concatenate(expected), rtol=1e-6, atol=1e-6)
    assert np.array_equal(out[97::2], a) and not out[96::2].any()
    np.testing.assert_allclose(sums, [x.sum(), x.max()], rtol=1e-5)


def test_nan_and_extremes():
    """NaN stays NaN and is less than nothing; powers stay finite."""
    a, b = np.full(16, np.nan, np.float32), np.ones(48, np.float32)
    a[:2] = 1000, -1000
    out, sums = np.zeros(129, np.float32), np.zeros(2, np.float32)
    _all_operations(a, b, out, sums)
    assert out[48] == np.float32(2.0**126) and out[49] == np.float32(2.0**-126) and np.isnan(out[50:64]).all()
    assert np.isnan(out[18:32]).all() and (out[34:48] == 1).all()


@kernel()
def _sample(image, begin, columns, x, y, out):
    store(out, 0, bilinear(image, begin, columns, load(x, 0), load(y, 0)))


def test_bilinear_samples():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 1 << 16, (7, 9)).astype(np.uint64)
    right, below = np.roll(picture, -1, 1), np.roll(picture, -1, 0)
    quads = picture | right << np.uint64(16) | below << np.uint64(32) | np.roll(right, -1, 0) << np.uint64(48)
    image = np.concatenate([np.zeros(5, np.uint64), quads.reshape(-1)])
    x, y = rng.uniform(0, 7.99, 16).astype(np.float32), rng.uniform(0, 5.99, 16).astype(np.float32)
    x[:2], y[:2] = (0, 7), (0, 5)
    out = np.zeros(16, np.float32)
    _sample(image, 5, 9, x, y, out)
    np.testing.assert_allclose(out, map_coordinates(picture.astype(float), [y, x], order=1), rtol=1e-5)


HALF_KEPT = """
import numpy as np
from npbgpp.kernels.backend import kernel
from npbgpp.kernels.vectors import load, store

@kernel()
def square(values):
    return load(values, 0) * load(values, 0)

@kernel()
def cube(values):
    store(values, 0, square(values) * load(values, 0))

values = np.full(16, 3, np.float32)
cube(values)
print(values[0])
"""


@pytest.mark.slow
def test_a_cache_that_lacks_some_kernels(tmp_path):
    """As an interrupted first run leaves it: what is kept has the vectors of every process."""
    script = tmp_path / "half_kept.py"
    script.write_text(HALF_KEPT)
    command, environment = [sys.executable, str(script)], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    assert subprocess.check_output(command, env=environment, text=True) == "27.0\n"
    (index,) = (tmp_path / "cache").rglob("*cube*.nbi")
    index.unlink()
    assert list((tmp_path / "cache").rglob("*square*.nbi"))
    assert subprocess.check_output(command, env=environment, text=True) == "27.0\n"
