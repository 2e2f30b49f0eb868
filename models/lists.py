"""Lists of what moved: the delta gate makes them, sixteen channels at a time, and a matrix product walks them."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from models.vectors import (
    FLOAT,
    FLOATS,
    INTEGERS,
    SHORT,
    SHORTS,
    WIDTH,
    broadcast,
    call,
    constant,
    fused,
    how_many,
    numbers_from,
    pointer_to,
)


@intrinsic
def move(typingctx, values, value_offset, held, held_offset, theta, index, change, count, first):
    """The delta gate on sixteen channels.

    Compares `values` with `held`; where they differ by more than theta, updates `held` and appends channel
    numbers (`first` + lane) to `index` from place `count` on. All differences go to `change[first : first + 16]`.

    Returns:
        `count` plus the channels that moved. `index` needs sixteen places of room behind; what lies there is
        overwritten with rubbish.
    """

    def code(context, builder, signature, args):
        def at(array, offset, element=FLOATS):
            return pointer_to(context, builder, signature.args[array], args[array], args[offset], element)

        held_at = at(2, 3)
        new, old = builder.load(at(0, 1)), builder.load(held_at)
        for loaded in (new, old):
            loaded.align = 4
        delta = builder.fsub(new, old)
        size = call(builder, f"llvm.fabs.v{WIDTH}f32", FLOATS, delta)
        moved = builder.fcmp_ordered(">", size, broadcast(builder, args[4]))
        builder.store(builder.select(moved, new, old), held_at).align = 4
        builder.store(delta, at(6, 8)).align = 4
        # Stores that cross a cache line are slow, so what is packed is as small as can be: sixteen bits a channel.
        numbers, nothing = numbers_from(builder, args[8]), ir.Constant(INTEGERS, ir.Undefined)
        compress = f"llvm.experimental.vector.compress.v{WIDTH}i32"
        packed = call(builder, compress, INTEGERS, numbers, moved, nothing)
        builder.store(builder.trunc(packed, SHORTS), at(5, 7, SHORTS)).align = 2
        return builder.add(args[7], how_many(builder, moved, args[7].type))

    signature = types.intp(values, types.intp, held, types.intp, types.float32, index, change, types.intp, types.intp)
    return signature, code


def _row_adder(vectors: int):
    """Make `add_rows` for rows of `vectors` x 16 floats, all of them in registers while the list is walked."""

    @intrinsic
    def add_rows(typingctx, y, y_at, matrix, matrix_at, stride, index, change, count):
        """y += sum over k < count of change[i] * matrix[matrix_at + i * stride :], with i = index[k].

        A matrix of uint16 holds bfloat16, two vectors in the halves of sixteen words (`models.packed`): half the
        bytes, and each is widened by one operation, where half-precision floats take several.
        """
        half = matrix.dtype == types.uint16

        def code(context, builder, signature, args):
            kinds, (y, y_at, matrix, first, stride, index, change, count) = signature.args, args

            def row(kind, array, at, vector, element=FLOATS):
                place = builder.add(at, ir.Constant(at.type, vector * WIDTH))
                return pointer_to(context, builder, kind, array, place, element)

            def weights(at, vector):
                if not half:
                    return builder.load(row(kinds[2], matrix, at, vector), align=4)
                words = builder.load(row(kinds[2], matrix, at, vector // 2 * 2, INTEGERS), align=2)
                upper = builder.and_(words, constant(0xFFFF0000, INTEGERS))
                return builder.bitcast(upper if vector % 2 else builder.shl(words, constant(16, INTEGERS)), FLOATS)

            before = [builder.load(row(kinds[0], y, y_at, vector), align=4) for vector in range(vectors)]
            sums = [cgutils.alloca_once_value(builder, value) for value in before]
            with cgutils.for_range(builder, count) as loop:
                number = builder.load(pointer_to(context, builder, kinds[5], index, loop.index, SHORT))
                number = builder.zext(number, stride.type)
                at = builder.add(first, builder.mul(number, stride))
                factor = builder.load(pointer_to(context, builder, kinds[6], change, number, FLOAT))
                factors = broadcast(builder, factor)
                for vector, total_at in enumerate(sums):
                    builder.store(fused(builder, factors, weights(at, vector), builder.load(total_at)), total_at)
            for vector, total_at in enumerate(sums):
                builder.store(builder.load(total_at), row(kinds[0], y, y_at, vector)).align = 4
            return context.get_dummy_value()

        signature = types.void(y, types.intp, matrix, types.intp, types.intp, index, change, types.intp)
        return signature, code

    return add_rows


add_rows_12, add_rows_6, add_rows_2, add_rows_1 = (_row_adder(vectors) for vectors in (12, 6, 2, 1))
