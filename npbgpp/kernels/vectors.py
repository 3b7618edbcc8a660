"""Vectors of 16 float32 values in CPU kernels, where the compiler does not vectorise loops by itself.

A vector is a value of a kernel like a number: ``+``, ``-``, ``*`` and ``/`` work on two vectors, or a vector and a float32. LLVM maps it to the registers of
the machine, one with AVX-512, two with AVX2, four with NEON. Arithmetic may be reordered and contracted, and NaN is not kept.
"""

import functools
import operator
from typing import Any

from npbgpp.kernels.cpu import Kernel

LANES = 16
_FLAGS = ("contract", "arcp", "nsz", "reassoc", "nnan", "ninf")


class _Operation(Kernel):
    """A function on vectors, known to numba when a kernel that calls it is compiled."""

    def __init__(self, name: str) -> None:
        self.name, self._dispatcher = name, None

    def _make(self) -> Any:
        return _operations()[self.name]


load = _Operation("load")  # (array, begin): 16 values of a one-dimensional contiguous array
store = _Operation("store")  # (array, begin, vector)
splat = _Operation("splat")  # (value): a vector of equal values
lanes = _Operation("lanes")  # (): 0, 1, ..., 15
minimum = _Operation("minimum")  # (vector, vector or value)
maximum = _Operation("maximum")
where_less = _Operation("where_less")  # (a, value, x, y): x where a < value, y elsewhere
square_root = _Operation("square_root")
total = _Operation("total")  # (vector): the sum of the values
largest = _Operation("largest")  # (vector)


@functools.cache
def _operations() -> dict[str, Any]:
    """Registers the vector type with numba; the functions by their names."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.core.typing.templates import AbstractTemplate, infer_global, signature
    from numba.extending import intrinsic, lower_builtin, models, register_model

    llvm_float, llvm_index = ir.FloatType(), ir.IntType(32)
    llvm_vector = ir.VectorType(llvm_float, LANES)

    class VectorType(types.Type):
        def __init__(self) -> None:
            super().__init__(name="float32x16")

    @register_model(VectorType)
    class VectorModel(models.PrimitiveModel):
        def __init__(self, manager: Any, frontend_type: Any) -> None:
            super().__init__(manager, frontend_type, llvm_vector)

    vector, number = VectorType(), types.float32

    def spread(builder: Any, value: Any) -> Any:
        first = builder.insert_element(ir.Constant(llvm_vector, ir.Undefined), value, llvm_index(0))
        return builder.shuffle_vector(first, ir.Constant(llvm_vector, ir.Undefined), ir.Constant(ir.VectorType(llvm_index, LANES), [0] * LANES))

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

    def minimum(typing: Any, a: Any, other: Any) -> Any:
        return vector(vector, other), functools.partial(choose, "<")

    def maximum(typing: Any, a: Any, other: Any) -> Any:
        return vector(vector, other), functools.partial(choose, ">")

    def choose(comparison: str, context: Any, builder: Any, sig: Any, args: Any) -> Any:
        other = args[1] if sig.args[1] == vector else spread(builder, args[1])
        return builder.select(builder.fcmp_ordered(comparison, args[0], other, flags=_FLAGS), args[0], other)

    def where_less(typing: Any, a: Any, limit: Any, x: Any, y: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered("<", args[0], spread(builder, args[1]), flags=_FLAGS), args[2], args[3])

        return vector(vector, number, vector, vector), generate

    def square_root(typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            root = cgutils.get_or_insert_function(builder.module, ir.FunctionType(llvm_vector, [llvm_vector]), "llvm.sqrt.v16f32")
            return builder.call(root, args)

        return vector(vector), generate

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

    return {f.__name__: intrinsic(f) for f in (load, store, splat, lanes, minimum, maximum, where_less, square_root, total, largest)}
