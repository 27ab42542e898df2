"""The orthonormal rotation M_n that spreads outliers over a vector: what it is, and its numpy form.

    M_n = (B_b (x) S_p) / sqrt(n),   n = b * p,   p a power of two,   S_p the Sylvester matrix, B_b a base of +1 and -1

Element i * p + j of a vector is row i of the base (outer, slow axis) and row j of the Sylvester matrix (inner).  The bases
are Paley's (On orthogonal matrices, 1933): 12 and 20 of the first type, which is not symmetric, so rotating twice is NOT the
identity there; 28 of the second, which is.  A size that no base covers (an odd part other than 1, 3, 5, 7) is rotated in
blocks of the largest power of two that divides it.

"R x" in the ops and in Quamba2 (arXiv 2503.22879, section 4) is `rotate(x)` = x M.
"""

from __future__ import annotations

from functools import cache

import numpy as np

BASES = (1, 12, 20, 28)


def base_and_power(n: int) -> tuple[int, int]:
    """(b, p) of the block b * p that divides n: n itself where a base covers it, else (1, largest power of two in n)."""
    if n < 1:
        raise ValueError(f"a rotation has at least one row, not {n}")
    for b in BASES:
        p = n // b
        if n % b == 0 and p & (p - 1) == 0:
            return b, p
    return 1, n & -n


@cache
def base_matrix(b: int) -> np.ndarray:
    """B_b, float64 (b, b) of +1 and -1 with B B^T = b I; read-only."""
    if b not in BASES:
        raise ValueError(f"no base of order {b}: there are {BASES}")
    matrix = np.ones((1, 1)) if b == 1 else _paley(b - 1) if b in (12, 20) else _paley_double(b // 2 - 1)
    assert matrix.shape == (b, b) and (np.abs(matrix) == 1).all() and (matrix @ matrix.T == b * np.eye(b)).all()
    matrix.setflags(write=False)
    return matrix


def sylvester(p: int) -> np.ndarray:
    """S_p, float64 (p, p): element [i, j] is -1 to the number of ones that i and j have in common."""
    matrix = np.ones((1, 1))
    while len(matrix) < p:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert len(matrix) == p, f"{p} is not a power of two"
    return matrix


def rotate(x: np.ndarray) -> np.ndarray:
    """x (..., n) -> x M_n, computed in x's own float dtype."""
    b, p = base_and_power(x.shape[-1])
    return _transform(x, base_matrix(b), p)


def unrotate(x: np.ndarray) -> np.ndarray:
    """x (..., n) -> x M_n^T, which undoes `rotate`."""
    b, p = base_and_power(x.shape[-1])
    return _transform(x, base_matrix(b).T, p)


def matrix(n: int) -> np.ndarray:
    """M_n itself, float64 (n, n): for tests and small sizes."""
    b, p = base_and_power(n)
    block = np.kron(base_matrix(b), sylvester(p)) / np.sqrt(b * p)
    return np.kron(np.eye(n // (b * p)), block)


def _transform(x: np.ndarray, base: np.ndarray, p: int) -> np.ndarray:
    """Butterflies over the inner axis, then one small product over the outer; Sylvester matrices are symmetric."""
    assert np.issubdtype(x.dtype, np.floating), f"a rotation of {x.dtype}"
    b = len(base)
    values = x.reshape(-1, b, p)
    half = 1
    while half < p:
        pairs = values.reshape(-1, p // (2 * half), 2, half)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        values = np.stack([low + high, low - high], axis=2)
        half *= 2
    values = values.reshape(-1, b, p)
    if b > 1:
        values = np.einsum("xij,ik->xkj", values, base.astype(x.dtype))
    return (values * x.dtype.type((b * p) ** -0.5)).reshape(x.shape)


def _residues(q: int) -> np.ndarray:
    """Jacobsthal matrix Q (q, q) of a prime q: Q[i, j] is the quadratic character of i - j."""
    character = np.full(q, -1.0)
    character[[i * i % q for i in range(q)]] = 1
    character[0] = 0
    index = np.arange(q)
    return character[(index[:, None] - index) % q]


def _bordered(q: int, sign: int) -> np.ndarray:
    """The conference matrix of order q + 1: zero diagonal, first row ones, first column sign * ones, Q inside."""
    out = np.zeros((q + 1, q + 1))
    out[0, 1:], out[1:, 0], out[1:, 1:] = 1, sign, _residues(q)
    return out


def _paley(q: int) -> np.ndarray:
    """Type I, q = 3 mod 4: the identity plus a skew-symmetric conference matrix; order q + 1."""
    return np.eye(q + 1) + _bordered(q, -1)


def _paley_double(q: int) -> np.ndarray:
    """Type II, q = 1 mod 4: every 0 of a symmetric conference matrix becomes one 2 x 2 block, every +-1 another; order 2 (q + 1)."""
    conference = _bordered(q, 1)
    return np.kron(conference, [[1, 1], [1, -1]]) + np.kron(np.eye(q + 1), [[1, -1], [-1, -1]])
