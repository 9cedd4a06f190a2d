"""Compiled loops of the stacked forward and backward pass on a CPU, float32.

One example's head fits the innermost cache: scores are made, used and dropped there, and nothing of size pos x pos is
written to memory. Rows are handled one by one with the same instructions, so that a member's numbers do not depend on
which others are in the stack.

Write `@no_type_check` under each kernel: the tests check shapes by wrapping functions, and a wrapped function cannot be
compiled. Check shapes in the Python function that calls the kernel.
"""

from __future__ import annotations

from typing import no_type_check

import numba
import numpy as np

# Compiled on first use and kept on disk; they do not hold the interpreter lock while they run.
_inner = numba.njit(error_model="numpy", fastmath={"contract"}, inline="always")
_exact = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
_reordered = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})

_LOG2_E, _LN_2 = np.float32(np.log2(np.e)), np.float32(np.log(2))
# Below this power of two a float32 is no longer normal.
_LOWEST = np.float32(-126)
# Buffers are this many numbers wide, or a multiple of it.
_LANES = 16


@_inner
@no_type_check
def _power_of_two(x):
    """`2^x` to float32 rounding for x <= 0, and 0 below `2^-126`; not a number stays so."""
    held = _LOWEST if x < _LOWEST else x
    whole = np.rint(held)
    part = held - whole
    # Minimax polynomial on [-1/2, 1/2] (Cephes, exp2f).
    y = np.float32(1.535336188319500e-4)
    y = y * part + np.float32(1.339887440266574e-3)
    y = y * part + np.float32(9.618437357674640e-3)
    y = y * part + np.float32(5.550332471162809e-2)
    y = y * part + np.float32(2.402264791363012e-1)
    y = y * part + np.float32(6.931472028550421e-1)
    y = y * part + np.float32(1)
    exponent = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23))
    return np.float32(0) if x < _LOWEST else y * exponent.view(np.float32)


@_inner
@no_type_check
def _read_head(source, at, turn, first, scale, out):
    """One head's rows of `source`, turned and scaled, into `out` [coordinate, row]; positions count from `first`."""
    n_rows, d_head = source.shape[0], out.shape[0]
    if turn.shape[1] == 0:
        for row in range(n_rows):
            for c in range(d_head):
                out[c, row] = source[row, at + c] * scale
        return
    for row in range(n_rows):
        for pair in range(d_head // 2):
            cos, sin = turn[first + row, pair, 0], turn[first + row, pair, 1]
            even, odd = source[row, at + 2 * pair], source[row, at + 2 * pair + 1]
            out[2 * pair, row] = (even * cos - odd * sin) * scale
            out[2 * pair + 1, row] = (even * sin + odd * cos) * scale


@_inner
@no_type_check
def _write_head(gradient, at, turn, first, scale, out):
    """The adjoint of `_read_head`: a gradient [coordinate, row] turned back into one head's columns of `out`."""
    n_rows, d_head = out.shape[0], gradient.shape[0]
    if turn.shape[1] == 0:
        for row in range(n_rows):
            for c in range(d_head):
                out[row, at + c] = gradient[c, row] * scale
        return
    for row in range(n_rows):
        for pair in range(d_head // 2):
            cos, sin = turn[first + row, pair, 0], turn[first + row, pair, 1]
            even, odd = gradient[2 * pair, row], gradient[2 * pair + 1, row]
            out[row, at + 2 * pair] = (even * cos + odd * sin) * scale
            out[row, at + 2 * pair + 1] = (odd * cos - even * sin) * scale


@_inner
@no_type_check
def _score_row(keys, j, queries, start, out):
    """Products of key `j` with the queries from `start` on."""
    row, query, key = out[start:], queries[0, start:], keys[0, j]
    for a in range(row.size):
        row[a] = key * query[a]
    for c in range(1, keys.shape[0]):
        query, key = queries[c, start:], keys[c, j]
        for a in range(row.size):
            row[a] += key * query[a]


@_inner
@no_type_check
def _add_value(values, j, row, start, out):
    """Value `j` times its weights, added to the outputs from `start` on."""
    for c in range(values.shape[0]):
        into, value = out[c, start:], values[c, j]
        for a in range(row.size):
            into[a] += value * row[a]


@_inner
@no_type_check
def _sum_products(row, columns, start, j, out):
    """`out[c, j] = row . columns[c, start:]`."""
    for c in range(columns.shape[0]):
        column, total = columns[c, start:], np.float32(0)
        for a in range(row.size):
            total += row[a] * column[a]
        out[c, j] = total


@_exact
@no_type_check
def attend(q, q_at, kv, k_at, v_at, turn, scale, first, n_heads, z, lse):
    """Causal attention of rotated heads, scores head by head in a small buffer.

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
        lse: [example, head, asked], written: log2 of the sum of the scores' exponentials.
    """
    n_examples, n_asked = q.shape[0], q.shape[1]
    n_pos, d_head = kv.shape[1], z.shape[2] // n_heads
    width = (n_asked + _LANES - 1) // _LANES * _LANES
    queries, out = np.zeros((d_head, width), np.float32), np.zeros((d_head, width), np.float32)
    keys, values = np.zeros((d_head, n_pos), np.float32), np.zeros((d_head, n_pos), np.float32)
    scores = np.zeros((n_pos, width), np.float32)
    top, total = np.zeros(width, np.float32), np.zeros(width, np.float32)
    one, plain = np.float32(1), turn[:, :0]
    for n in range(n_examples):
        for head in range(n_heads):
            at = head * d_head
            _read_head(q[n], q_at + at, turn, first, scale * _LOG2_E, queries)
            _read_head(kv[n], k_at + at, turn, 0, one, keys)
            _read_head(kv[n], v_at + at, plain, 0, one, values)
            top[:] = -np.inf
            total[:] = 0
            out[:] = 0
            for j in range(n_pos):
                ahead = max(0, j - first)
                start = ahead // _LANES * _LANES
                _score_row(keys, j, queries, start, scores[j])
                scores[j, start:ahead] = -np.inf
                row, tops = scores[j, start:], top[start:]
                for a in range(row.size):
                    tops[a] = row[a] if row[a] > tops[a] else tops[a]
            for j in range(n_pos):
                ahead = max(0, j - first)
                start = ahead // _LANES * _LANES
                row, tops, totals = scores[j, start:], top[start:], total[start:]
                for a in range(row.size):
                    weight = _power_of_two(row[a] - tops[a])
                    row[a] = weight
                    totals[a] += weight
                _add_value(values, j, row, start, out)
            for a in range(n_asked):
                share = one / total[a]
                for c in range(d_head):
                    z[n, a, at + c] = out[c, a] * share
                lse[n, head, a] = top[a] + np.log2(total[a])


@_reordered
@no_type_check
def attend_backward(q, q_at, kv, k_at, v_at, turn, scale, first, n_heads, z, lse, dz, dq, dkv):
    """Gradients of `attend`, the attention pattern made again from its logarithmic sums.

    `dv_j = sum_a p_ja dz_a`, `ds_ja = p_ja (dz_a . v_j - dz_a . z_a)`, `dq_a = sum_j ds_ja k_j`,
    `dk_j = sum_a ds_ja q_a`.

    Args:
        q: As for `attend`, like all up to `lse`.
        q_at: See above.
        kv: See above.
        k_at: See above.
        v_at: See above.
        turn: See above.
        scale: See above.
        first: See above.
        n_heads: See above.
        z: What `attend` wrote.
        lse: What `attend` wrote.
        dz: Gradient of `z`.
        dq: Written at the columns of the queries.
        dkv: Written at the columns of keys and values.
    """
    n_examples, n_asked = q.shape[0], q.shape[1]
    n_pos, d_head = kv.shape[1], z.shape[2] // n_heads
    width = (n_asked + _LANES - 1) // _LANES * _LANES
    shape, key_shape = (d_head, width), (d_head, n_pos)
    queries, dout, dqueries = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    keys, values = np.zeros(key_shape, np.float32), np.zeros(key_shape, np.float32)
    dkeys, dvalues = np.zeros(key_shape, np.float32), np.zeros(key_shape, np.float32)
    pattern, dscores = np.zeros(width, np.float32), np.zeros(width, np.float32)
    level, along = np.zeros(width, np.float32), np.zeros(width, np.float32)
    one, plain = np.float32(1), turn[:, :0]
    for n in range(n_examples):
        for head in range(n_heads):
            at = head * d_head
            _read_head(q[n], q_at + at, turn, first, scale * _LOG2_E, queries)
            _read_head(kv[n], k_at + at, turn, 0, one, keys)
            _read_head(kv[n], v_at + at, plain, 0, one, values)
            _read_head(dz[n], at, plain, 0, one, dout)
            dqueries[:] = 0
            for a in range(n_asked):
                level[a] = lse[n, head, a]
                product = np.float32(0)
                for c in range(d_head):
                    product += z[n, a, at + c] * dout[c, a]
                along[a] = product
            for j in range(n_pos):
                ahead = max(0, j - first)
                start = ahead // _LANES * _LANES
                _score_row(keys, j, queries, start, pattern)
                _score_row(values, j, dout, start, dscores)
                pattern[start:ahead] = -np.inf
                row, levels, alongs, drow = pattern[start:], level[start:], along[start:], dscores[start:]
                for a in range(row.size):
                    weight = _power_of_two(row[a] - levels[a])
                    row[a] = weight
                    drow[a] = weight * (drow[a] - alongs[a])
                for c in range(d_head):
                    query, douts, dquery = queries[c, start:], dout[c, start:], dqueries[c, start:]
                    key, dkey, dvalue = keys[c, j], np.float32(0), np.float32(0)
                    for a in range(row.size):
                        dquery[a] += drow[a] * key
                        dkey += drow[a] * query[a]
                        dvalue += row[a] * douts[a]
                    dkeys[c, j] = dkey
                    dvalues[c, j] = dvalue
            _write_head(dqueries, q_at + at, turn, first, scale, dq[n])
            _write_head(dkeys, k_at + at, turn, 0, _LN_2, dkv[n])
            _write_head(dvalues, v_at + at, plain, 0, one, dkv[n])


@_exact
@no_type_check
def gated(gate_up, out):
    """`silu(gate) * up` of rows that hold `gate` and `up` side by side."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        gate, up, into = gate_up[row, :width], gate_up[row, width:], out[row]
        for c in range(width):
            into[c] = gate[c] * _sigmoid(gate[c]) * up[c]


@_exact
@no_type_check
def gated_backward(gate_up, dout, dgate_up):
    """Gradient of `gated`: `dgate = dout up s (1 + gate (1 - s))`, `dup = dout gate s` with `s = sigmoid(gate)`."""
    width = dout.shape[1]
    one = np.float32(1)
    for row in range(dout.shape[0]):
        gate, up, d = gate_up[row, :width], gate_up[row, width:], dout[row]
        dgate, dup = dgate_up[row, :width], dgate_up[row, width:]
        for c in range(width):
            s = _sigmoid(gate[c])
            dgate[c] = d[c] * up[c] * s * (one + gate[c] * (one - s))
            dup[c] = d[c] * gate[c] * s


@_inner
@no_type_check
def _sigmoid(x):
    """`1 / (1 + exp(-x))`, through the exponential of `-|x|`, which cannot overflow."""
    one = np.float32(1)
    small = _power_of_two(-abs(x) * _LOG2_E)
    return (one if x > 0 else small) / (one + small)
