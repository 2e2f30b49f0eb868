"""Sixteen float32 lanes as one numba value, so that kernels are written as vectors and not left to chance.

LLVM's loop vectoriser guesses at trip counts and leaves remainders to scalar code; rows of 96 values suffer
most. These few operations are generic LLVM vector instructions: one AVX-512 register, two AVX2 registers
or four NEON registers, whatever the machine has. Arrays are read and written at element offsets and need no
alignment; nothing checks bounds.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, overload, register_model

from models.vectors import (
    FLOAT,
    FLOATS,
    INTEGER,
    INTEGERS,
    WIDTH,
    broadcast,
    call,
    constant,
    fused,
    how_many,
    numbers_from,
    pointer_to,
)

FAST = {"contract", "nsz", "arcp", "reassoc"}
"""Floating-point freedoms that kernels take: contraction to FMA and reordering, but not 'no NaN'."""


READ, SECOND_LEVEL, DATA = 0, 2, 1
"""What LLVM calls a prefetch of data that will be read, and come from the second-level cache."""


class Lanes(types.Type):
    """Numba type of sixteen float32 values."""

    def __init__(self) -> None:
        super().__init__(name="f32x16")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, FLOATS)


@intrinsic
def load(typingctx, array, offset):
    """`array[offset : offset + 16]`."""

    def code(context, builder, signature, args):
        value = builder.load(pointer_to(context, builder, signature.args[0], args[0], args[1]))
        value.align = 4
        return value

    return lanes(array, types.intp), code


@intrinsic
def store(typingctx, array, offset, value):
    """`array[offset : offset + 16] = value`."""

    def code(context, builder, signature, args):
        pointer = pointer_to(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def transpose(typingctx, source, places, offset, target, at, step):
    """`target[at + step * n + i] = source[places[i] + offset + n]`, for i and n of 0..15, n by n.

    Where `step` is below 16, a row ends where the next one begins. Four times over, rows i and i + 8 are interleaved
    into rows 2i and 2i + 1: that moves an element's place in its row into the number of its row, bit by bit.
    """
    halves = [list(range(8 * half, 8 * half + 8)) for half in (0, 1)]
    mixes = [ir.Constant(INTEGERS, [n for i in half for n in (i, i + WIDTH)]) for half in halves]

    def code(context, builder, signature, args):
        source, places, offset, target, at, step = args
        numbers = context.make_array(signature.args[1])(context, builder, places).data
        rows = []
        for row in range(WIDTH):
            place = builder.add(builder.load(builder.gep(numbers, [ir.Constant(offset.type, row)])), offset)
            rows.append(builder.load(pointer_to(context, builder, signature.args[0], source, place)))
            rows[-1].align = 4
        for _ in range(4):
            pairs = zip(rows[:8], rows[8:], strict=True)
            rows = [builder.shuffle_vector(a, b, mix) for a, b in pairs for mix in mixes]
        for row, value in enumerate(rows):
            place = builder.add(at, builder.mul(step, ir.Constant(step.type, row)))
            builder.store(value, pointer_to(context, builder, signature.args[3], target, place)).align = 4
        return context.get_dummy_value()

    return types.void(source, places, types.intp, target, types.intp, types.intp), code


@intrinsic
def prefetch(typingctx, array, offset):
    """Begin to fetch the cache line of `array[offset]` into the second-level cache."""

    def code(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, INTEGER, INTEGER, INTEGER])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.bitcast(pointer_to(context, builder, signature.args[0], *args), byte)
        builder.call(function, [place, *(ir.Constant(INTEGER, n) for n in (READ, SECOND_LEVEL, DATA))])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@intrinsic
def splat(typingctx, value):
    """The same float in every lane."""
    return lanes(types.float32), lambda context, builder, signature, args: broadcast(builder, args[0])


def _binary(name: str, emit):
    @intrinsic
    def operation(typingctx, left, right):
        return lanes(lanes, lanes), lambda context, builder, signature, args: emit(builder, *args)

    operation.__name__ = name
    return operation


_FLAGS = ("contract", "nsz", "arcp", "reassoc")
add = _binary("add", lambda builder, a, b: builder.fadd(a, b, flags=_FLAGS))
subtract = _binary("subtract", lambda builder, a, b: builder.fsub(a, b, flags=_FLAGS))
multiply = _binary("multiply", lambda builder, a, b: builder.fmul(a, b, flags=_FLAGS))
maximum = _binary("maximum", lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
minimum = _binary("minimum", lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))


@intrinsic
def fma(typingctx, a, b, c):
    """`a * b + c`, rounded once."""

    def code(context, builder, signature, args):
        return fused(builder, *args)

    return lanes(lanes, lanes, lanes), code


@intrinsic
def total(typingctx, value):
    """Sum of the lanes."""

    def code(context, builder, signature, args):
        kind = ir.FunctionType(FLOAT, [FLOAT, FLOATS])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
        return builder.call(function, [ir.Constant(FLOAT, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(lanes), code


@intrinsic
def largest(typingctx, value):
    """Largest of the lanes, by halves: LLVM's own reduction minds what is no number, and takes twice as long."""

    def code(context, builder, signature, args):
        value, reach = args[0], WIDTH
        while reach > 1:
            reach //= 2
            turned = ir.Constant(INTEGERS, [(lane + reach) % WIDTH for lane in range(WIDTH)])
            other = builder.shuffle_vector(value, value, turned)
            value = builder.select(builder.fcmp_ordered(">", value, other), value, other)
        return builder.extract_element(value, ir.Constant(INTEGER, 0))

    return types.float32(lanes), code


@intrinsic
def keep_below(typingctx, value, first, limit, otherwise):
    """Lane i of `value` where `first + i < limit`, else `otherwise`."""

    def code(context, builder, signature, args):
        value, first, limit, otherwise = args
        inside = builder.icmp_signed(
            "<", numbers_from(builder, first), broadcast(builder, builder.trunc(limit, INTEGER), INTEGERS)
        )
        return builder.select(inside, value, broadcast(builder, otherwise))

    return lanes(lanes, types.intp, types.intp, types.float32), code


@intrinsic
def keep_from(typingctx, value, scores, limit):
    """Lane i of `value` where `scores` is at least `limit` there, else 0."""

    def code(context, builder, signature, args):
        value, scores, limit = args
        return builder.select(builder.fcmp_ordered(">=", scores, broadcast(builder, limit)), value, constant(0.0))

    return lanes(lanes, lanes, types.float32), code


@intrinsic
def zeros(typingctx, value):
    """How many lanes are 0."""

    def code(context, builder, signature, args):
        return how_many(builder, builder.fcmp_ordered("==", args[0], constant(0.0)), context.get_value_type(types.intp))

    return types.intp(lanes), code


@intrinsic
def exp(typingctx, value):
    """e to the power of each lane, for lanes <= 0 and above; below -87 it is 0. Relative error under 2e-7.

    Cody and Waite's reduction by multiples of ln 2, then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
    """

    def code(context, builder, signature, args):
        x = builder.select(builder.fcmp_ordered(">", args[0], constant(-87.0)), args[0], constant(-87.0))
        whole = call(builder, f"llvm.rint.v{WIDTH}f32", FLOATS, builder.fmul(x, constant(1.4426950408889634)))
        rest = fused(builder, whole, constant(-0.693359375), x)
        rest = fused(builder, whole, constant(2.12194440e-4), rest)
        result = constant(1 / 720)
        for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
            result = fused(builder, result, rest, constant(factor))
        exponent = builder.shl(builder.fptosi(whole, INTEGERS), constant(23, INTEGERS))
        scaled = builder.bitcast(builder.add(builder.bitcast(result, INTEGERS), exponent), FLOATS)
        return builder.select(builder.fcmp_ordered(">", args[0], constant(-87.0)), scaled, constant(0.0))

    return lanes(lanes), code


LOGARITHM = (
    0.07149754, -0.11571201, 0.11661511, -0.12411051, 0.14249937, -0.1666848, 0.20000708, -0.2499999, 0.33333331,
)  # fmt: skip
"""Of (ln(1 + f) - f + f^2 / 2) / f^3, highest power first: fitted at the Chebyshev nodes of [sqrt(1/2) - 1, sqrt(2) -
1] (`numpy.polynomial.Chebyshev.fit`), where f^3 times it is off by 1e-9 at most."""


@intrinsic
def log1p(typingctx, value):
    """ln(1 + x) of each lane, for finite lanes >= 0. Error under 2e-7, relative above 1 and absolute below.

    1 + x = 2^n (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), then a polynomial of degree 8 in f.
    """

    def code(context, builder, signature, args):
        bits = builder.bitcast(builder.fadd(args[0], constant(1.0)), INTEGERS)
        power = builder.ashr(builder.sub(bits, constant(0x3F3504F3, INTEGERS)), constant(23, INTEGERS))
        rest = builder.bitcast(builder.sub(bits, builder.shl(power, constant(23, INTEGERS))), FLOATS)
        rest = builder.fsub(rest, constant(1.0))
        square, whole = builder.fmul(rest, rest), builder.sitofp(power, FLOATS)
        result = constant(LOGARITHM[0])
        for factor in LOGARITHM[1:]:
            result = fused(builder, result, rest, constant(factor))
        result = builder.fmul(builder.fmul(result, rest), square)
        result = fused(builder, whole, constant(-2.12194440e-4), result)
        result = builder.fadd(fused(builder, square, constant(-0.5), result), rest)
        return fused(builder, whole, constant(0.693359375), result)

    return lanes(lanes), code


def _overload(operation, function):
    """Let `operation` on two `Lanes` mean `function`."""

    @overload(operation)
    def overloaded(left, right):
        def call(left, right):
            return function(left, right)

        return call if isinstance(left, Lanes) and isinstance(right, Lanes) else None


_overload(operator.add, add)
_overload(operator.sub, subtract)
_overload(operator.mul, multiply)
