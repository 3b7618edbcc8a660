"""Learned basis functions of viewing directions (NPBG++, section 3.3): a small network of harmonics, without gradients, on the CPU.

One pass over blocks of points that stay in the cache, in place of a dozen operations on all points. PyTorch serves gradients and other devices.
Symbols: v points, i inputs of the network, m basis functions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from npbgpp.kernels.cpu import kernel, run_threads, spans, thread_count

_BLOCK = 64  # points
_UNROLLED = 4  # inputs added at a time
_SMALLEST_DISTANCE = np.float32(1e-7)
_ONE, _TWO = np.float32(1), np.float32(2)
_LEAST_POINTS = 512  # per thread


def learned_basis_numba(
    offset: Float[Tensor, "v 3"],
    frequency: float,
    reads_distance: bool,
    layers: Sequence[tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]],
    slope: float,
) -> Float[Tensor, "v m"]:
    """Output of an MLP with leaky ReLUs whose inputs are the distance, if it is read, and 18 harmonics of the direction.

    Args:
        offset: point minus camera centre, scene units, float32 on the CPU.
        frequency: base frequency of the harmonics: the sines, then the cosines, of every coordinate at 1, 2 and 4 times it, by the formulas of double angles.
        reads_distance: the first input is the length of the offset.
        layers: weights (outputs, inputs) and biases.
        slope: of the leaky ReLU for negative values.
    """
    parts, shapes = [], []
    for weight, bias in layers:
        outputs, inputs = weight.shape
        padded = -(-inputs // _UNROLLED) * _UNROLLED
        packed = torch.zeros(outputs, 1 + padded)
        packed[:, 0], packed[:, 1 : 1 + inputs] = bias, weight
        parts.append(packed.flatten())
        shapes.append((outputs, padded))
    numbers, sizes = torch.cat(parts).numpy(), np.array(shapes, dtype=np.int64)
    out = torch.empty(len(offset), shapes[-1][0])
    arrays = (offset.contiguous().numpy(), np.float32(frequency), reads_distance, numbers, sizes, np.float32(slope), out.numpy())
    chunks = spans(len(out), thread_count(len(out), _LEAST_POINTS))
    run_threads(lambda k: _evaluate(*arrays, *chunks[k]), len(chunks))
    return out


@kernel(fastmath={"contract"})
def _evaluate(offset, frequency, reads_distance, numbers, sizes, slope, out, begin, end):
    rows = 20
    for layer in range(len(sizes)):
        rows = max(rows, sizes[layer, 0] + 3, sizes[layer, 1])
    x, y = np.zeros((rows, _BLOCK), np.float32), np.zeros((rows, _BLOCK), np.float32)
    first = 1 if reads_distance else 0
    for start in range(begin, end, _BLOCK):
        count = min(_BLOCK, end - start)
        for p in range(count):
            dx, dy, dz = offset[start + p, 0], offset[start + p, 1], offset[start + p, 2]
            distance = np.sqrt(dx * dx + dy * dy + dz * dz)
            if reads_distance:
                x[0, p] = distance
            scale = frequency / (distance + _SMALLEST_DISTANCE)
            for axis in range(3):
                phase = offset[start + p, axis] * scale
                sine, cosine = np.sin(phase), np.cos(phase)
                at = first + 3 * axis
                for octave in range(3):
                    x[at + octave, p], x[at + octave + 9, p] = sine, cosine
                    sine, cosine = _TWO * sine * cosine, _ONE - _TWO * sine * sine
        for row in range(first + 18, sizes[0, 1]):  # padding must be finite
            for p in range(_BLOCK):
                x[row, p] = 0
        at = 0
        for layer in range(len(sizes)):
            outputs, inputs = sizes[layer, 0], sizes[layer, 1]
            last = layer == len(sizes) - 1
            for row in range(outputs):
                target = y[row]
                for p in range(_BLOCK):
                    target[p] = numbers[at]
                at += 1
                for i in range(0, inputs, 4):
                    a, b, c, d = numbers[at + i], numbers[at + i + 1], numbers[at + i + 2], numbers[at + i + 3]
                    u, v, w, z = x[i], x[i + 1], x[i + 2], x[i + 3]
                    for p in range(_BLOCK):
                        target[p] += (a * u[p] + b * v[p]) + (c * w[p] + d * z[p])
                at += inputs
                if not last:
                    for p in range(_BLOCK):
                        target[p] = target[p] if target[p] > 0 else slope * target[p]
            for row in range(outputs, outputs + 3):
                for p in range(_BLOCK):
                    y[row, p] = 0
            x, y = y, x
        for p in range(count):
            for row in range(out.shape[1]):
                out[start + p, row] = x[row, p]
