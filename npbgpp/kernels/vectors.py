"""Vectors of 16 float32 values in CPU kernels, where the compiler does not vectorise loops by itself.

A vector is a value of a kernel like a number: ``+``, ``-``, ``*`` and ``/`` work on two vectors, or a vector and a float32. LLVM maps it to the registers of
the machine, one with AVX-512, two with AVX2, four with NEON. Arithmetic may be reordered and contracted; division goes through an approximate reciprocal and
one step of Newton's method where the machine has one, with 1e-7 of relative error. NaN stays NaN, and fails comparisons.
"""

import functools
import math
import operator
from typing import Any

from npbgpp.kernels.backend import Kernel

LANES = 16
_FLAGS = ("contract", "arcp", "nsz", "reassoc")
# 2^x on [-1, 0], relative error 2e-9: weighted least squares, reweighted to the smallest largest error
_EXP2 = (
    0.9999999981443965,
    0.693147012783838,
    0.24022396717377217,
    0.05548942243795319,
    0.009577011603014699,
    0.0012730520454651648,
    0.0001085112741719273,
)


class _Operation(Kernel):
    """A function on vectors, known to numba when a kernel that calls it is compiled."""

    def __init__(self, name: str) -> None:
        self.name, self._dispatcher = name, None

    def _make(self) -> Any:
        return _operations()[self.name]


load = _Operation("load")  # (array, begin): 16 values of a one-dimensional contiguous array
store = _Operation("store")  # (array, begin, vector)
load_strided = _Operation("load_strided")  # (array, begin, step): every ``step``-th value
store_strided = _Operation("store_strided")  # (array, begin, step, vector)
splat = _Operation("splat")  # (value): a vector of equal values
lanes = _Operation("lanes")  # (): 0, 1, ..., 15
minimum = _Operation("minimum")  # (vector, vector or value)
maximum = _Operation("maximum")
where_less = _Operation("where_less")  # (a, b, x, y): x where a < b, y elsewhere; b is a vector or a value
exp2 = _Operation("exp2")  # (vector): arguments are clamped to [-126, 126]; relative error 2e-7
log2 = _Operation("log2")  # (vector), positive; absolute error 1e-7 plus rounding
square_root = _Operation("square_root")
total = _Operation("total")  # (vector): the sum of the values
largest = _Operation("largest")  # (vector)
# (image, begin, columns, x, y): bilinear samples of an image of ``columns`` pixels per row at x, y >= 0, counted from the centre of its first pixel; every
# element of ``image`` (uint64, from ``begin`` on) has 16 bits each of the pixel, of that to its right, of that below, and of that below and to the right
bilinear = _Operation("bilinear")


@functools.cache
def _operations() -> dict[str, Any]:
    """Registers the vector type with numba; the functions by their names."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.registry import cpu_target
    from numba.core.typing.templates import AbstractTemplate, infer_global, signature
    from numba.extending import intrinsic, lower_builtin, models, register_model

    from npbgpp.kernels.vector_type import VectorType

    llvm_float, llvm_index = ir.FloatType(), ir.IntType(32)
    llvm_vector = ir.VectorType(llvm_float, LANES)

    @register_model(VectorType)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, frontend_type: Any) -> None:
            super().__init__(manager, frontend_type, llvm_vector)

    vector, number = VectorType(), types.float32

    def spread(builder: Any, value: Any) -> Any:
        first = builder.insert_element(ir.Constant(llvm_vector, ir.Undefined), value, llvm_index(0))
        return builder.shuffle_vector(
            first, ir.Constant(llvm_vector, ir.Undefined), ir.Constant(ir.VectorType(llvm_index, LANES), [0] * LANES)
        )

    def define_operator(function: Any, instruction: str) -> None:
        @infer_global(function)
        class Template(AbstractTemplate):
            def generic(self, args: Any, kws: Any) -> Any:
                if len(args) == 2 and vector in args and all(a in (vector, number) for a in args):
                    return signature(vector, *args)
                return None

        for left, right in ((vector, vector), (vector, number), (number, vector)):

            def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                operands = [value if kind == vector else spread(builder, value) for kind, value in zip(sig.args, args, strict=True)]
                return getattr(builder, instruction)(*operands, flags=_FLAGS)

            lower_builtin(function, left, right)(lower)

    for functions, instruction in (
        ((operator.add, operator.iadd), "fadd"),
        ((operator.sub, operator.isub), "fsub"),
        ((operator.mul, operator.imul), "fmul"),
        ((operator.truediv, operator.itruediv), "fdiv"),
    ):
        for function in functions:
            define_operator(function, instruction)

    def pointer(context: Any, builder: Any, array_type: Any, array: Any, begin: Any) -> Any:
        data = context.make_array(array_type)(context, builder, array).data
        return builder.bitcast(builder.gep(data, [begin]), llvm_vector.as_pointer())

    def load(typing: Any, array: Any, begin: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.load(pointer(context, builder, sig.args[0], *args), align=4)

        return vector(array, types.intp), generate

    def store(typing: Any, array: Any, begin: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(args[2], pointer(context, builder, sig.args[0], *args[:2]), align=4)
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), generate

    def splat(typing: Any, value: Any) -> Any:
        return vector(number), lambda context, builder, sig, args: spread(builder, args[0])

    def lanes(typing: Any) -> Any:
        return vector(), lambda context, builder, sig, args: ir.Constant(llvm_vector, [float(k) for k in range(LANES)])

    def load_strided(typing: Any, array: Any, begin: Any, step: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = context.make_array(sig.args[0])(context, builder, args[0]).data
            value, at = ir.Constant(llvm_vector, ir.Undefined), args[1]
            for k in range(LANES):
                value = builder.insert_element(value, builder.load(builder.gep(data, [at])), llvm_index(k))
                at = builder.add(at, args[2])
            return value

        return vector(array, types.intp, types.intp), generate

    def store_strided(typing: Any, array: Any, begin: Any, step: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data, at = context.make_array(sig.args[0])(context, builder, args[0]).data, args[1]
            for k in range(LANES):
                builder.store(builder.extract_element(args[3], llvm_index(k)), builder.gep(data, [at]))
                at = builder.add(at, args[2])
            return context.get_dummy_value()

        return types.void(array, types.intp, types.intp, vector), generate

    def widen(builder: Any, value: Any, kind: Any) -> Any:
        return value if kind == vector else spread(builder, value)

    def minimum(typing: Any, a: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            other = widen(builder, args[1], sig.args[1])
            return builder.select(builder.fcmp_ordered("<", other, args[0]), other, args[0])

        return vector(vector, other), generate

    def maximum(typing: Any, a: Any, other: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            other = widen(builder, args[1], sig.args[1])
            return builder.select(builder.fcmp_ordered("<", args[0], other), other, args[0])

        return vector(vector, other), generate

    def where_less(typing: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", args[0], widen(builder, args[1], sig.args[1])), args[2], args[3])

        return vector(vector, b, vector, vector), generate

    llvm_integers = ir.VectorType(llvm_index, LANES)

    def constant(value: float) -> Any:
        return ir.Constant(llvm_vector, [value] * LANES)

    def integers(value: int) -> Any:
        return ir.Constant(llvm_integers, [value] * LANES)

    def unary(builder: Any, name: str, value: Any) -> Any:
        kind = ir.FunctionType(llvm_vector, [llvm_vector])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v16f32"), [value])

    def polynomial(builder: Any, x: Any, coefficients: Any) -> Any:
        value = constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = builder.fadd(builder.fmul(value, x, flags=_FLAGS), constant(coefficient), flags=_FLAGS)
        return value

    def exp2(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            (x,) = args
            for comparison, limit in (("<", -126.0), (">", 126.0)):
                x = builder.select(builder.fcmp_ordered(comparison, x, constant(limit)), constant(limit), x)
            above = unary(builder, "ceil", x)
            exponent = builder.add(builder.fptosi(above, llvm_integers), integers(127))
            power = builder.bitcast(builder.shl(exponent, integers(23)), llvm_vector)
            return builder.fmul(polynomial(builder, builder.fsub(x, above), _EXP2), power)

        return vector(vector), generate

    def log2(typing: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            bits, root_half = builder.bitcast(args[0], llvm_integers), integers(0x3F3504F3)
            exponent = builder.ashr(builder.sub(bits, root_half), integers(23))
            mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, integers(23))), llvm_vector)  # from sqrt(1/2) to sqrt(2)
            t = builder.fdiv(builder.fsub(mantissa, constant(1.0)), builder.fadd(mantissa, constant(1.0)), flags=_FLAGS)
            series = polynomial(builder, builder.fmul(t, t), [2 / (k * math.log(2)) for k in (1, 3, 5, 7, 9)])  # of 2 artanh(t) / ln 2
            return builder.fadd(builder.fmul(series, t), builder.sitofp(exponent, llvm_vector))

        return vector(vector), generate

    def square_root(typing: Any, a: Any) -> Any:
        return vector(vector), lambda context, builder, sig, args: unary(builder, "sqrt", args[0])

    def total(typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(llvm_float, [llvm_float, llvm_vector])
            reduction = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
            return builder.call(reduction, [llvm_float(0.0), args[0]], fastmath=_FLAGS)

        return number(vector), generate

    def largest(typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = ir.FunctionType(llvm_float, [llvm_vector])
            reduction = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fmax.v16f32")
            return builder.call(reduction, [args[0]], fastmath=_FLAGS)

        return number(vector), generate

    def bilinear(typing: Any, image: Any, begin: Any, columns: Any, x: Any, y: Any) -> Any:
        wide = ir.IntType(64)
        quads_type = ir.VectorType(wide, LANES)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            data = builder.gep(context.make_array(sig.args[0])(context, builder, args[0]).data, [args[1]])
            across, down = (builder.fptosi(value, llvm_integers) for value in args[3:])
            width = builder.trunc(args[2], llvm_index)
            at = ir.Constant(llvm_integers, ir.Undefined)
            for k in range(LANES):
                at = builder.insert_element(at, width, llvm_index(k))
            at = builder.add(builder.mul(down, at), across)
            first = builder.insert_element(ir.Constant(quads_type, ir.Undefined), builder.ptrtoint(data, wide), llvm_index(0))
            start = builder.shuffle_vector(first, ir.Constant(quads_type, ir.Undefined), ir.Constant(llvm_integers, [0] * LANES))
            address = builder.add(start, builder.shl(builder.sext(at, quads_type), ir.Constant(quads_type, [3] * LANES)))
            places = builder.inttoptr(address, ir.VectorType(wide.as_pointer(), LANES))
            kind = ir.FunctionType(quads_type, [places.type, llvm_index, ir.VectorType(ir.IntType(1), LANES), quads_type])
            gather = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.gather.v16i64.v16p0")
            all_lanes = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [True] * LANES)
            quads = builder.call(gather, [places, llvm_index(8), all_lanes, ir.Constant(quads_type, ir.Undefined)])
            upper = builder.trunc(quads, llvm_integers)
            lower = builder.trunc(builder.lshr(quads, ir.Constant(quads_type, [32] * LANES)), llvm_integers)
            right, below = (builder.fsub(value, builder.sitofp(cell, llvm_vector)) for value, cell in ((args[3], across), (args[4], down)))

            def mixed(a: Any, b: Any, share: Any) -> Any:
                return builder.fadd(a, builder.fmul(share, builder.fsub(b, a, flags=_FLAGS), flags=_FLAGS), flags=_FLAGS)

            rows = []
            for pair in (upper, lower):
                left, beside = builder.and_(pair, integers(0xFFFF)), builder.lshr(pair, integers(16))
                rows.append(mixed(builder.sitofp(left, llvm_vector), builder.sitofp(beside, llvm_vector), right))
            return mixed(rows[0], rows[1], below)

        return vector(image, types.intp, types.intp, vector, vector), generate

    exported = (
        bilinear,
        load,
        store,
        load_strided,
        store_strided,
        splat,
        lanes,
        minimum,
        maximum,
        where_less,
        exp2,
        log2,
        square_root,
        total,
        largest,
    )
    # numba installs what is new when it compiles, but two threads that compile at the same time may see a part of it
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    return {f.__name__: intrinsic(f) for f in exported}
