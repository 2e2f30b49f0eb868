"""Sixteen numbers as one LLVM value: types, addresses and constants for those who write intermediate code.

What kernels are written in is one floor up: `models.lanes`, and `models.lists`.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

WIDTH = 16
"""Lanes of one value; every length that a kernel walks is a multiple of it."""

FLOAT = ir.FloatType()
INTEGER = ir.IntType(32)
FLOATS = ir.VectorType(FLOAT, WIDTH)
INTEGERS = ir.VectorType(INTEGER, WIDTH)
SHORT = ir.IntType(16)
SHORTS = ir.VectorType(SHORT, WIDTH)
LANE_NUMBERS = ir.Constant(INTEGERS, list(range(WIDTH)))


def pointer_to(context, builder, array_type, array, offset, element=FLOATS):
    """Address of `array[offset]`, as a pointer to `element`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def constant(value: float, vector=FLOATS) -> ir.Constant:
    """The same number in every lane, known when this is compiled."""
    return ir.Constant(vector, [value] * WIDTH)


def broadcast(builder, value, vector=FLOATS):
    """The same value in every lane."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(INTEGER, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(INTEGERS, [0] * WIDTH))


def call(builder, name: str, result, *arguments):
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def numbers_from(builder, first):
    """`first`, `first` + 1, ... in neighbouring lanes."""
    return builder.add(broadcast(builder, builder.trunc(first, INTEGER), INTEGERS), LANE_NUMBERS)


def how_many(builder, mask, kind):
    """In how many lanes a comparison holds, as an integer of some kind."""
    bits = ir.IntType(WIDTH)
    return builder.zext(call(builder, f"llvm.ctpop.i{WIDTH}", bits, builder.bitcast(mask, bits)), kind)


def fused(builder, a, b, c):
    """a * b + c, rounded once."""
    return call(builder, f"llvm.fma.v{WIDTH}f32", FLOATS, a, b, c)
