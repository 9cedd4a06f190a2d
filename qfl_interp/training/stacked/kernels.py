"""Compiled loops of causal attention and its gradients on a CPU, float32.

They work on 16 heads of examples at once, one a lane: a number of all of them is a vector, so that no example is
too short for the processor, and the lanes above the diagonal cost nothing. One such block fits the inner caches:
scores are made, used and dropped there, and nothing of size pos x pos is written to memory. A lane's instructions are
the same wherever it stands, so that a member's numbers do not depend on which others are in the stack.

Write `@no_type_check` under each kernel: the tests check shapes by wrapping functions, and a wrapped function cannot be
compiled. Check shapes in the Python function that calls the kernel.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

from qfl_interp.training.stacked.lanes import (
    LANES,
    add,
    add_product,
    divide,
    gather,
    gather_four,
    larger,
    load,
    multiply,
    power_of_two,
    scatter,
    scatter_four,
    splat,
    store,
    subtract,
)

# Compiled on first use and kept on disk; they do not hold the interpreter lock while they run.
_inner = numba.njit(error_model="numpy", inline="always")
_part = numba.njit(error_model="numpy")
_kernel = numba.njit(cache=True, nogil=True, error_model="numpy")

_LOG2_E, _LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2))
# Bytes of a cache's line: a vector across two of them costs twice.
_LINE = 64
# Queries whose scores are made before they are used: a chunk of all keys is then read from the innermost cache.
_QUERIES = 8


@_part
@no_type_check
def _zeros(n_vectors):
    """A flat array of vectors, each within a line of the cache."""
    array = np.zeros(n_vectors * LANES + _LINE // 4, np.float32)
    start = (-array.ctypes.data % _LINE) // 4
    return array[start : start + n_vectors * LANES]


@_part
@no_type_check
def _buffer(n_rows, d_head):
    """Vectors [chunk, row, coordinate of the chunk], flat: a head's coordinates in chunks of four, padded by zeros."""
    return _zeros((d_head + 3) // 4 * n_rows * 4)


@_inner
@no_type_check
def _place(c, row, n_rows):
    """Where in a buffer the vector of a coordinate and a row is."""
    return ((c // 4 * n_rows + row) * 4 + c % 4) * LANES


@_part
@no_type_check
def _place_lanes(block, n_examples, n_heads, example_size, d_head):
    """Where each lane's head of an example starts in an array; lanes past the last repeat it, reading and writing."""
    offsets = np.zeros(LANES, np.int64)
    for lane in range(LANES):
        number = min(block * LANES + lane, n_examples * n_heads - 1)
        offsets[lane] = number // n_heads * example_size + number % n_heads * d_head
    return offsets


@_part
@no_type_check
def _read_heads(source, at, offsets, n_rows, row_size, d_head, out):
    """Fill a buffer with a block's heads, their rows `row_size` numbers apart in `source`."""
    whole = d_head // 4 * 4
    for row in range(n_rows):
        start = row * row_size + at
        for c in range(0, whole, 4):
            v0, v1, v2, v3 = gather_four(source, offsets, start + c)
            to = _place(c, row, n_rows)
            store(out, to, v0)
            store(out, to + LANES, v1)
            store(out, to + 2 * LANES, v2)
            store(out, to + 3 * LANES, v3)
        for c in range(whole, d_head):
            store(out, _place(c, row, n_rows), gather(source, offsets, start + c))


@_part
@no_type_check
def _write_heads(buffer, at, offsets, n_rows, row_size, d_head, out):
    """The inverse of `_read_heads`."""
    whole = d_head // 4 * 4
    for row in range(n_rows):
        start = row * row_size + at
        for c in range(0, whole, 4):
            place = _place(c, row, n_rows)
            v0, v1 = load(buffer, place), load(buffer, place + LANES)
            v2, v3 = load(buffer, place + 2 * LANES), load(buffer, place + 3 * LANES)
            scatter_four(out, offsets, start + c, (v0, v1, v2, v3))
        for c in range(whole, d_head):
            scatter(out, offsets, start + c, load(buffer, _place(c, row, n_rows)))


@_part
@no_type_check
def _turn_heads(buffer, n_rows, turn, first, sign, scale):
    """Turn a buffer's pairs by their positions' angles, counted from `first`, times `sign`, and scale all, in place."""
    if turn.shape[1] == 0:
        for at in range(0, buffer.size, LANES):
            store(buffer, at, multiply(load(buffer, at), splat(scale)))
    for row in range(n_rows):
        for pair in range(turn.shape[1]):
            cos, sin = turn[first + row, pair, 0] * scale, turn[first + row, pair, 1] * sign * scale
            at = _place(2 * pair, row, n_rows)
            even, odd = load(buffer, at), load(buffer, at + LANES)
            store(buffer, at, subtract(multiply(even, splat(cos)), multiply(odd, splat(sin))))
            store(buffer, at + LANES, add_product(even, splat(sin), multiply(odd, splat(cos))))


@_part
@no_type_check
def _multiply_rows(rows, n_rows, columns, n_columns, start, stop, first, out):
    """Products of rows `start` to `stop` with the columns they see, [row, column]."""
    for c in range(0, rows.size // (n_rows * LANES), 4):
        for a in range(start, stop):
            at = _place(c, a, n_rows)
            r0, r1 = load(rows, at), load(rows, at + LANES)
            r2, r3 = load(rows, at + 2 * LANES), load(rows, at + 3 * LANES)
            for j in range(first + a + 1):
                to, place = ((a - start) * n_columns + j) * LANES, _place(c, j, n_columns)
                total = load(out, to) if c else splat(np.float32(0))
                total = add_product(r0, load(columns, place), total)
                total = add_product(r1, load(columns, place + LANES), total)
                total = add_product(r2, load(columns, place + 2 * LANES), total)
                store(out, to, add_product(r3, load(columns, place + 3 * LANES), total))


@_part
@no_type_check
def _average_values(weights, values, n_columns, shares, start, stop, first, n_rows, out):
    """Values under the rows' weights, times the rows' shares."""
    for c in range(0, values.size // (n_columns * LANES), 4):
        for a in range(start, stop):
            o0 = o1 = o2 = o3 = splat(np.float32(0))
            for j in range(first + a + 1):
                weight = load(weights, ((a - start) * n_columns + j) * LANES)
                place = _place(c, j, n_columns)
                o0 = add_product(weight, load(values, place), o0)
                o1 = add_product(weight, load(values, place + LANES), o1)
                o2 = add_product(weight, load(values, place + 2 * LANES), o2)
                o3 = add_product(weight, load(values, place + 3 * LANES), o3)
            at, share = _place(c, a, n_rows), load(shares, (a - start) * LANES)
            store(out, at, multiply(o0, share))
            store(out, at + LANES, multiply(o1, share))
            store(out, at + 2 * LANES, multiply(o2, share))
            store(out, at + 3 * LANES, multiply(o3, share))


@_kernel
@no_type_check
def attend(q, q_at, kv, k_at, v_at, turn, scale, first, n_heads, z, levels):
    """Causal attention of rotated heads, the scores of some queries of a block in a small buffer.

    Args:
        q: [example, asked, ...], queries from column `q_at` on, heads side by side.
        q_at: See `q`.
        kv: [example, pos, ...], keys from column `k_at`, values from column `v_at` on.
        k_at: See `kv`.
        v_at: See `kv`.
        turn: [pos, pair, 2], cosine and sine of the rotary angles; no pairs: no rotation.
        scale: Attention scale.
        first: The position of the first query; the others follow.
        n_heads: Heads.
        z: [example, asked, heads side by side], written.
        levels: [block, asked, 2, lane], written: a query's largest score in powers of two, and one over the sum of
            its weights relative to that score's.
    """
    n_examples, n_asked, q_size = q.shape
    _, n_pos, kv_size = kv.shape
    z_size, d_head = z.shape[2], z.shape[2] // n_heads
    queries, out = _buffer(n_asked, d_head), _buffer(n_asked, d_head)
    keys, values = _buffer(n_pos, d_head), _buffer(n_pos, d_head)
    scores, shares = _zeros(_QUERIES * n_pos), _zeros(_QUERIES)
    flat_q, flat_kv, flat_z, flat_levels = q.reshape(-1), kv.reshape(-1), z.reshape(-1), levels.reshape(-1)
    one = np.float32(1)
    for block in range(levels.shape[0]):
        of_q = _place_lanes(block, n_examples, n_heads, n_asked * q_size, d_head)
        of_kv = _place_lanes(block, n_examples, n_heads, n_pos * kv_size, d_head)
        _read_heads(flat_q, q_at, of_q, n_asked, q_size, d_head, queries)
        _read_heads(flat_kv, k_at, of_kv, n_pos, kv_size, d_head, keys)
        _read_heads(flat_kv, v_at, of_kv, n_pos, kv_size, d_head, values)
        _turn_heads(queries, n_asked, turn, first, one, scale * _LOG2_E)
        _turn_heads(keys, n_pos, turn, 0, one, one)
        for start in range(0, n_asked, _QUERIES):
            stop = min(start + _QUERIES, n_asked)
            _multiply_rows(queries, n_asked, keys, n_pos, start, stop, first, scores)
            for a in range(start, stop):
                row, n_seen = (a - start) * n_pos * LANES, (first + a + 1) * LANES
                top, total = load(scores, row), splat(np.float32(0))
                for j in range(row, row + n_seen, LANES):
                    top = larger(load(scores, j), top)
                for j in range(row, row + n_seen, LANES):
                    weight = power_of_two(subtract(load(scores, j), top))
                    store(scores, j, weight)
                    total = add(total, weight)
                share, level = divide(splat(one), total), (block * n_asked + a) * 2 * LANES
                store(shares, (a - start) * LANES, share)
                store(flat_levels, level, top)
                store(flat_levels, level + LANES, share)
            _average_values(scores, values, n_pos, shares, start, stop, first, n_asked, out)
        of_z = _place_lanes(block, n_examples, n_heads, n_asked * z_size, d_head)
        _write_heads(out, 0, of_z, n_asked, z_size, d_head, flat_z)


@_inner
@no_type_check
def _add_four(buffer, at, weight, v0, v1, v2, v3):
    """Add four weighted vectors to a chunk."""
    store(buffer, at, add_product(weight, v0, load(buffer, at)))
    store(buffer, at + LANES, add_product(weight, v1, load(buffer, at + LANES)))
    store(buffer, at + 2 * LANES, add_product(weight, v2, load(buffer, at + 2 * LANES)))
    store(buffer, at + 3 * LANES, add_product(weight, v3, load(buffer, at + 3 * LANES)))


@_part
@no_type_check
def _add_gradients(
    pattern, dscores, start, stop, first, n_rows, n_columns, queries, keys, dout, dqueries, dkeys, dvalues
):
    """What the queries from `start` to `stop` give to the gradients of a block."""
    for c in range(0, keys.size // (n_columns * LANES), 4):
        for a in range(start, stop):
            at = _place(c, a, n_rows)
            q0, q1 = load(queries, at), load(queries, at + LANES)
            q2, q3 = load(queries, at + 2 * LANES), load(queries, at + 3 * LANES)
            g0, g1 = load(dout, at), load(dout, at + LANES)
            g2, g3 = load(dout, at + 2 * LANES), load(dout, at + 3 * LANES)
            d0 = d1 = d2 = d3 = splat(np.float32(0))
            for j in range(first + a + 1):
                row, to = ((a - start) * n_columns + j) * LANES, _place(c, j, n_columns)
                weight, ds = load(pattern, row), load(dscores, row)
                d0 = add_product(ds, load(keys, to), d0)
                d1 = add_product(ds, load(keys, to + LANES), d1)
                d2 = add_product(ds, load(keys, to + 2 * LANES), d2)
                d3 = add_product(ds, load(keys, to + 3 * LANES), d3)
                _add_four(dkeys, to, ds, q0, q1, q2, q3)
                _add_four(dvalues, to, weight, g0, g1, g2, g3)
            store(dqueries, at, d0)
            store(dqueries, at + LANES, d1)
            store(dqueries, at + 2 * LANES, d2)
            store(dqueries, at + 3 * LANES, d3)


@_kernel
@no_type_check
def attend_backward(q, q_at, kv, k_at, v_at, turn, scale, first, n_heads, levels, dz, dq, dkv):
    """Gradients of `attend`, the attention pattern made again from its levels.

    `dv_j = sum_a p_ja dz_a`, `ds_ja = p_ja (dz_a . v_j - sum_i p_ia dz_a . v_i)`, `dq_a = sum_j ds_ja k_j`,
    `dk_j = sum_a ds_ja q_a`.

    Arguments up to `n_heads` are those of `attend`, and `levels` is what it wrote; `dz` is the gradient of `z`. `dq`
    and `dkv` are written at the columns of queries, and of keys and values.
    """
    n_examples, n_asked, q_size = q.shape
    _, n_pos, kv_size = kv.shape
    z_size, d_head = dz.shape[2], dz.shape[2] // n_heads
    queries, dout, dqueries = _buffer(n_asked, d_head), _buffer(n_asked, d_head), _buffer(n_asked, d_head)
    keys, values = _buffer(n_pos, d_head), _buffer(n_pos, d_head)
    dkeys, dvalues = _buffer(n_pos, d_head), _buffer(n_pos, d_head)
    pattern, dscores = _zeros(_QUERIES * n_pos), _zeros(_QUERIES * n_pos)
    flat_q, flat_kv, flat_dz, flat_levels = q.reshape(-1), kv.reshape(-1), dz.reshape(-1), levels.reshape(-1)
    flat_dq, flat_dkv = dq.reshape(-1), dkv.reshape(-1)
    one = np.float32(1)
    for block in range(levels.shape[0]):
        of_q = _place_lanes(block, n_examples, n_heads, n_asked * q_size, d_head)
        of_kv = _place_lanes(block, n_examples, n_heads, n_pos * kv_size, d_head)
        of_z = _place_lanes(block, n_examples, n_heads, n_asked * z_size, d_head)
        _read_heads(flat_q, q_at, of_q, n_asked, q_size, d_head, queries)
        _read_heads(flat_kv, k_at, of_kv, n_pos, kv_size, d_head, keys)
        _read_heads(flat_kv, v_at, of_kv, n_pos, kv_size, d_head, values)
        _read_heads(flat_dz, 0, of_z, n_asked, z_size, d_head, dout)
        _turn_heads(queries, n_asked, turn, first, one, scale * _LOG2_E)
        _turn_heads(keys, n_pos, turn, 0, one, one)
        dkeys[:] = 0
        dvalues[:] = 0
        for start in range(0, n_asked, _QUERIES):
            stop = min(start + _QUERIES, n_asked)
            _multiply_rows(queries, n_asked, keys, n_pos, start, stop, first, pattern)
            _multiply_rows(dout, n_asked, values, n_pos, start, stop, first, dscores)
            for a in range(start, stop):
                row, n_seen = (a - start) * n_pos * LANES, (first + a + 1) * LANES
                level = (block * n_asked + a) * 2 * LANES
                top, share, along = load(flat_levels, level), load(flat_levels, level + LANES), splat(np.float32(0))
                for j in range(row, row + n_seen, LANES):
                    weight = multiply(power_of_two(subtract(load(pattern, j), top)), share)
                    store(pattern, j, weight)
                    along = add_product(weight, load(dscores, j), along)
                for j in range(row, row + n_seen, LANES):
                    store(dscores, j, multiply(load(pattern, j), subtract(load(dscores, j), along)))
            _add_gradients(
                pattern, dscores, start, stop, first, n_asked, n_pos, queries, keys, dout, dqueries, dkeys, dvalues
            )
        _turn_heads(dqueries, n_asked, turn, first, -one, scale)
        _turn_heads(dkeys, n_pos, turn, 0, -one, _LN_2)
        _write_heads(dqueries, q_at, of_q, n_asked, q_size, d_head, flat_dq)
        _write_heads(dkeys, k_at, of_kv, n_pos, kv_size, d_head, flat_dkv)
        _write_heads(dvalues, v_at, of_kv, n_pos, kv_size, d_head, flat_dkv)
