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

WIDTH = 16
"""Lanes of one value; every length that a kernel walks is a multiple of it."""

FAST = {"contract", "nsz", "arcp", "reassoc"}
"""Floating-point freedoms that kernels take: contraction to FMA and reordering, but not 'no NaN'."""

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_VECTOR = ir.VectorType(_F32, WIDTH)
_IVECTOR = ir.VectorType(_I32, WIDTH)
_HVECTOR = ir.VectorType(ir.HalfType(), WIDTH)


class Lanes(types.Type):
    """Numba type of sixteen float32 values."""

    def __init__(self) -> None:
        super().__init__(name="f32x16")


lanes = Lanes()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


def _pointer(context, builder, array_type, array, offset, element=_VECTOR):
    """Address of `array[offset]`, as a pointer to `element`."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), element.as_pointer())


def _constant(value: float, vector=_VECTOR) -> ir.Constant:
    return ir.Constant(vector, [value] * WIDTH)


def _splat(builder, value, vector=_VECTOR):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(_IVECTOR, [0] * WIDTH))


def _call(builder, name: str, result, *arguments):
    """Call an LLVM intrinsic by its full name."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def load(typingctx, array, offset):
    """`array[offset : offset + 16]`."""

    def code(context, builder, signature, args):
        value = builder.load(_pointer(context, builder, signature.args[0], args[0], args[1]))
        value.align = 4
        return value

    return lanes(array, types.intp), code


@intrinsic
def store(typingctx, array, offset, value):
    """`array[offset : offset + 16] = value`."""

    def code(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], pointer).align = 4
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


@intrinsic
def gather(typingctx, array, offset, stride):
    """`array[offset : offset + 16 * stride : stride]`."""

    def code(context, builder, signature, args):
        places = ir.VectorType(args[1].type, WIDTH)
        steps = builder.mul(_splat(builder, args[2], places), ir.Constant(places, list(range(WIDTH))))
        index = builder.add(_splat(builder, args[1], places), steps)
        value = ir.Constant(_VECTOR, ir.Undefined)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        for lane in range(WIDTH):
            number = ir.Constant(_I32, lane)
            element = builder.load(builder.gep(data, [builder.extract_element(index, number)]))
            value = builder.insert_element(value, element, number)
        return value

    return lanes(array, types.intp, types.intp), code


@intrinsic
def splat(typingctx, value):
    """The same float in every lane."""
    return lanes(types.float32), lambda context, builder, signature, args: _splat(builder, args[0])


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


@intrinsic
def fma(typingctx, a, b, c):
    """`a * b + c`, rounded once."""

    def code(context, builder, signature, args):
        return _call(builder, f"llvm.fma.v{WIDTH}f32", _VECTOR, *args)

    return lanes(lanes, lanes, lanes), code


@intrinsic
def total(typingctx, value):
    """Sum of the lanes."""

    def code(context, builder, signature, args):
        kind = ir.FunctionType(_F32, [_F32, _VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
        return builder.call(function, [ir.Constant(_F32, 0.0), args[0]], fastmath=("reassoc",))

    return types.float32(lanes), code


@intrinsic
def largest(typingctx, value):
    """Largest of the lanes."""

    def code(context, builder, signature, args):
        return _call(builder, f"llvm.vector.reduce.fmax.v{WIDTH}f32", _F32, args[0])

    return types.float32(lanes), code


@intrinsic
def keep_below(typingctx, value, first, limit, otherwise):
    """Lane i of `value` where `first + i < limit`, else `otherwise`."""

    def code(context, builder, signature, args):
        value, first, limit, otherwise = args
        place = builder.add(
            _splat(builder, builder.trunc(first, _I32), _IVECTOR), ir.Constant(_IVECTOR, list(range(WIDTH)))
        )
        inside = builder.icmp_signed("<", place, _splat(builder, builder.trunc(limit, _I32), _IVECTOR))
        return builder.select(inside, value, _splat(builder, otherwise))

    return lanes(lanes, types.intp, types.intp, types.float32), code


@intrinsic
def keep_from(typingctx, value, scores, limit):
    """Lane i of `value` where `scores` is at least `limit` there, else 0."""

    def code(context, builder, signature, args):
        value, scores, limit = args
        return builder.select(builder.fcmp_ordered(">=", scores, _splat(builder, limit)), value, _constant(0.0))

    return lanes(lanes, lanes, types.float32), code


@intrinsic
def zeros(typingctx, value):
    """How many lanes are 0."""

    def code(context, builder, signature, args):
        bits = builder.bitcast(builder.fcmp_ordered("==", args[0], _constant(0.0)), ir.IntType(WIDTH))
        ones = _call(builder, f"llvm.ctpop.i{WIDTH}", ir.IntType(WIDTH), bits)
        return builder.zext(ones, context.get_value_type(types.intp))

    return types.intp(lanes), code


@intrinsic
def move(typingctx, values, value_offset, held, held_offset, theta, index, change, count, first):
    """The delta gate on sixteen channels.

    Compares `values` with `held`; where they differ by more than theta, updates `held` and appends channel
    numbers (`first` + lane) to `index` and differences to `change` from place `count` on.

    Returns:
        `count` plus the channels that moved. `index` and `change` need sixteen places of room behind.
    """

    def code(context, builder, signature, args):
        def at(array, offset, element=_VECTOR):
            return _pointer(context, builder, signature.args[array], args[array], args[offset], element)

        held_at = at(2, 3)
        new, old = builder.load(at(0, 1)), builder.load(held_at)
        for loaded in (new, old):
            loaded.align = 4
        delta = builder.fsub(new, old)
        size = _call(builder, f"llvm.fabs.v{WIDTH}f32", _VECTOR, delta)
        moved = builder.fcmp_ordered(">", size, _splat(builder, args[4]))
        builder.store(builder.select(moved, new, old), held_at).align = 4
        first = _splat(builder, builder.trunc(args[8], _I32), _IVECTOR)
        number = builder.add(first, ir.Constant(_IVECTOR, list(range(WIDTH))))
        _append(builder, delta, moved, at(6, 7), "f32")
        _append(builder, number, moved, at(5, 7, _IVECTOR), "i32")
        bits = builder.bitcast(moved, ir.IntType(WIDTH))
        ones = _call(builder, f"llvm.ctpop.i{WIDTH}", ir.IntType(WIDTH), bits)
        return builder.add(args[7], builder.zext(ones, args[7].type))

    signature = types.intp(values, types.intp, held, types.intp, types.float32, index, change, types.intp, types.intp)
    return signature, code


def _row_adder(vectors: int):
    """Make `add_rows` for rows of `vectors` x 16 floats, all of them in registers while the list is walked."""

    @intrinsic
    def add_rows(typingctx, y, y_at, matrix, matrix_at, stride, index, change, count):
        """y += sum over k < count of change[k] * matrix[matrix_at + index[k] * stride :].

        A matrix of uint16 holds half-precision floats, widened as they are read: half the bytes, and bytes are
        what a product of a vector waits for.
        """
        half = matrix.dtype == types.uint16

        def code(context, builder, signature, args):
            kinds, (y, y_at, matrix, first, stride, index, change, count) = signature.args, args

            def row(kind, array, at, vector, element=_VECTOR):
                place = builder.add(at, ir.Constant(at.type, vector * WIDTH))
                return _pointer(context, builder, kind, array, place, element)

            def weights(at, vector):
                value = builder.load(row(kinds[2], matrix, at, vector, _HVECTOR if half else _VECTOR))
                value.align = 2 if half else 4
                return builder.fpext(value, _VECTOR) if half else value

            before = [builder.load(row(kinds[0], y, y_at, vector), align=4) for vector in range(vectors)]
            sums = [cgutils.alloca_once_value(builder, value) for value in before]
            with cgutils.for_range(builder, count) as loop:
                number = builder.load(_pointer(context, builder, kinds[5], index, loop.index, _I32))
                at = builder.add(first, builder.mul(builder.sext(number, stride.type), stride))
                factor = _splat(builder, builder.load(_pointer(context, builder, kinds[6], change, loop.index, _F32)))
                for vector, total_at in enumerate(sums):
                    terms = factor, weights(at, vector), builder.load(total_at)
                    product = _call(builder, f"llvm.fma.v{WIDTH}f32", _VECTOR, *terms)
                    builder.store(product, total_at)
            for vector, total_at in enumerate(sums):
                builder.store(builder.load(total_at), row(kinds[0], y, y_at, vector)).align = 4
            return context.get_dummy_value()

        signature = types.void(y, types.intp, matrix, types.intp, types.intp, index, change, types.intp)
        return signature, code

    return add_rows


add_rows_12, add_rows_6, add_rows_2, add_rows_1 = (_row_adder(vectors) for vectors in (12, 6, 2, 1))


def _append(builder, value, mask, pointer, element: str) -> None:
    """Store the masked lanes side by side; what lies behind them is overwritten with rubbish."""
    nothing = ir.Constant(value.type, ir.Undefined)
    packed = _call(builder, f"llvm.experimental.vector.compress.v{WIDTH}{element}", value.type, value, mask, nothing)
    builder.store(packed, pointer).align = 4


@intrinsic
def exp(typingctx, value):
    """e to the power of each lane, for lanes <= 0 and above; below -87 it is 0. Relative error under 2e-7.

    Cody and Waite's reduction by multiples of ln 2, then a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2].
    """

    def code(context, builder, signature, args):
        x = builder.select(builder.fcmp_ordered(">", args[0], _constant(-87.0)), args[0], _constant(-87.0))
        whole = _call(builder, f"llvm.rint.v{WIDTH}f32", _VECTOR, builder.fmul(x, _constant(1.4426950408889634)))
        rest = _call(builder, f"llvm.fma.v{WIDTH}f32", _VECTOR, whole, _constant(-0.693359375), x)
        rest = _call(builder, f"llvm.fma.v{WIDTH}f32", _VECTOR, whole, _constant(2.12194440e-4), rest)
        result = _constant(1 / 720)
        for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
            result = _call(builder, f"llvm.fma.v{WIDTH}f32", _VECTOR, result, rest, _constant(factor))
        exponent = builder.shl(builder.fptosi(whole, _IVECTOR), _constant(23, _IVECTOR))
        scaled = builder.bitcast(builder.add(builder.bitcast(result, _IVECTOR), exponent), _VECTOR)
        return builder.select(builder.fcmp_ordered(">", args[0], _constant(-87.0)), scaled, _constant(0.0))

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
