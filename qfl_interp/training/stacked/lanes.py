"""Sixteen float32 numbers as one value in compiled loops, with the processor's own vector instructions.

Left to itself the compiler makes vectors of loops only where it can prove that arrays do not overlap, and then of the
width it likes. Here a `Vector` is a type of its own: every operation is the same instruction on all lanes, so that a
lane's result does not depend on what stands in the others. Shorter registers take a vector in several pieces.

Arrays are flat; a vector is at a place in them. Numba's cache watches a kernel's own file alone: after a change here,
change or touch the files that use it.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16

# Minimax polynomial of 2^x on [-1/2, 1/2] (Cephes, exp2f), the highest power first.
POWER_OF_TWO = tuple(
    np.float32(coefficient)
    for coefficient in (
        1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2,
        2.402264791363012e-1, 6.931472028550421e-1, 1.0,
    )
)  # fmt: skip
# Below this power of two a float32 is no longer normal.
LOWEST_POWER = np.float32(-126)

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS, _QUAD = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES), ir.VectorType(_FLOAT, 4)


class _Vector(types.Type):
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name=f"Vector{LANES}")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    """A vector is held in a register."""

    def __init__(self, manager: Any, numba_type: Any) -> None:
        super().__init__(manager, numba_type, _FLOATS)


VECTOR = _Vector()
_FOUR = types.UniTuple(VECTOR, 4)


def _all(value: float | np.floating) -> ir.Constant:
    """A number in all lanes."""
    return ir.Constant(_FLOATS, [ir.Constant(_FLOAT, float(np.float32(value)))] * LANES)


def _fused(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a b + c`, in one rounding where the processor can."""
    signature = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.fmuladd.v{LANES}f32")
    return builder.call(function, [a, b, c])


def _address(context: Any, builder: Any, array_type: Any, array: Any, at: Any, pointee: ir.Type) -> Any:
    """Pointer into a flat array, to something of another type."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), pointee.as_pointer())


def _lane_address(context: Any, builder: Any, kinds: Any, values: Any, lane: int, pointee: ir.Type) -> Any:
    """Pointer to `array[offsets[lane] + at]`."""
    (array_type, offsets_type, _), (array, offsets, at) = kinds[:3], values[:3]
    own = _address(context, builder, offsets_type, offsets, ir.Constant(ir.IntType(64), lane), ir.IntType(64))
    return _address(context, builder, array_type, array, builder.add(builder.load(own), at), pointee)


def _shuffled(builder: Any, a: Any, b: Any, chosen: list[int]) -> Any:
    """Numbers of two vectors side by side, by their place."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(chosen)), chosen))


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Four vectors, every four lanes of them a 4 x 4 matrix, each matrix transposed; its own inverse."""
    quads = range(0, LANES, 4)
    low = [q + i for q in quads for i in (0, LANES, 1, LANES + 1)]
    high = [i + 2 for i in low]
    first = [q + i for q in quads for i in (0, 1, LANES, LANES + 1)]
    last = [i + 2 for i in first]
    halves = [[_shuffled(builder, rows[k], rows[k + 1], which) for k in (0, 2)] for which in (low, high)]
    return [_shuffled(builder, a, b, which) for a, b in halves for which in (first, last)]


@intrinsic
@no_type_check
def load(_, array, at):
    """The vector at a place of a flat array."""

    def make(context, builder, signature, values):
        address = _address(context, builder, signature.args[0], values[0], values[1], _FLOATS)
        return builder.load(address, align=4)

    return VECTOR(array, types.intp), make


@intrinsic
@no_type_check
def store(_, array, at, vector):
    """Write a vector at a place of a flat array."""

    def make(context, builder, signature, values):
        builder.store(values[2], _address(context, builder, signature.args[0], values[0], values[1], _FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, VECTOR), make


@intrinsic
@no_type_check
def gather_four(_, array, offsets, at):
    """Four neighbours of each lane, from `array[offsets[lane] + at]` on, as four vectors."""

    def make(context, builder, signature, values):
        quads = [
            builder.load(_lane_address(context, builder, signature.args, values, lane, _QUAD), align=4)
            for lane in range(LANES)
        ]
        rows = []
        for k in range(4):
            parts = quads[k::4]
            while len(parts) > 1:
                size = list(range(2 * parts[0].type.count))
                parts = [_shuffled(builder, *parts[i : i + 2], size) for i in range(0, len(parts), 2)]
            rows += parts
        return context.make_tuple(builder, signature.return_type, _transposed(builder, rows))

    return _FOUR(array, offsets, types.intp), make


@intrinsic
@no_type_check
def scatter_four(_, array, offsets, at, four):
    """The inverse of `gather_four`."""

    def make(context, builder, signature, values):
        rows = _transposed(builder, cgutils.unpack_tuple(builder, values[3], 4))
        for lane in range(LANES):
            start = lane // 4 * 4
            quad = _shuffled(builder, rows[lane % 4], rows[lane % 4], list(range(start, start + 4)))
            builder.store(quad, _lane_address(context, builder, signature.args, values, lane, _QUAD), align=4)
        return context.get_dummy_value()

    return types.void(array, offsets, types.intp, _FOUR), make


@intrinsic
@no_type_check
def gather(_, array, offsets, at):
    """`array[offsets[lane] + at]` of each lane."""

    def make(context, builder, signature, values):
        vector = ir.Constant(_FLOATS, ir.Undefined)
        for lane in range(LANES):
            number = builder.load(_lane_address(context, builder, signature.args, values, lane, _FLOAT))
            vector = builder.insert_element(vector, number, ir.Constant(_INT, lane))
        return vector

    return VECTOR(array, offsets, types.intp), make


@intrinsic
@no_type_check
def scatter(_, array, offsets, at, vector):
    """The inverse of `gather`."""

    def make(context, builder, signature, values):
        for lane in range(LANES):
            number = builder.extract_element(values[3], ir.Constant(_INT, lane))
            builder.store(number, _lane_address(context, builder, signature.args, values, lane, _FLOAT))
        return context.get_dummy_value()

    return types.void(array, offsets, types.intp, VECTOR), make


@intrinsic
@no_type_check
def splat(_, number):
    """A number in all lanes."""

    def make(_context, builder, _signature, values):
        vector = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), values[0], ir.Constant(_INT, 0))
        return _shuffled(builder, vector, vector, [0] * LANES)

    return VECTOR(types.float32), make


@intrinsic
@no_type_check
def add_product(_, a, b, c):
    """`a b + c`."""
    return VECTOR(VECTOR, VECTOR, VECTOR), lambda _context, builder, _signature, values: _fused(builder, *values)


def _arithmetic(instruction: str) -> Any:
    """An operation on two vectors that is one instruction."""

    @intrinsic
    @no_type_check
    def operation(_, a, b):
        def make(_context, builder, _signature, values):
            return getattr(builder, instruction)(*values)

        return VECTOR(VECTOR, VECTOR), make

    return operation


add, subtract, multiply, divide = (_arithmetic(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
@no_type_check
def larger(_, a, b):
    """The larger of two, `b` where `a` is not a number."""

    def make(_context, builder, _signature, values):
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return VECTOR(VECTOR, VECTOR), make


@intrinsic
@no_type_check
def power_of_two(_, x):
    """`2^x` to float32 rounding for x <= 0, and 0 below `2^-126`; not a number stays so."""

    def make(_context, builder, _signature, values):
        lowest = _all(LOWEST_POWER)
        below = builder.fcmp_ordered("<", values[0], lowest)
        held = builder.select(below, lowest, values[0])
        # At 1.5 2^23 float32s are whole numbers: adding it rounds, and leaves the exponent's bits in the lowest ones.
        shift = _all(1.5 * 2**23 + 127)
        shifted = builder.fadd(held, shift)
        part = builder.fsub(held, builder.fsub(shifted, shift))
        y = _all(POWER_OF_TWO[0])
        for coefficient in POWER_OF_TWO[1:]:
            y = _fused(builder, y, part, _all(coefficient))
        power = builder.shl(builder.bitcast(shifted, _INTS), ir.Constant(_INTS, [ir.Constant(_INT, 23)] * LANES))
        return builder.select(below, _all(0), builder.fmul(y, builder.bitcast(power, _FLOATS)))

    return VECTOR(VECTOR), make
