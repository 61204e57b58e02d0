"""Conjectures of which nothing is gained on one device, and much may be on several.

What one device computes at once is told apart, so that each part can be cut along axes that the
whole does not have; or what it computes apart is brought together, so that parts of a sum are added
up once. As all others they are proven before they are used; whether one pays is for a simulation.
"""

from __future__ import annotations

from collections.abc import Mapping

from whet.rewrite.conjecture import Conjecture

# fmt: off
_LINES = """
divide product before slice: slice(matmul(x[*B, M, K], w[K, O]), -1, s, t, 1) == matmul(x, slice(w, 1, s, t, 1)) if 0 <= s and s < t and t <= O
divide linear before slice: slice(linear(x[*B, K], w[O, K]), -1, s, t, 1) == linear(x, slice(w, 0, s, t, 1)) if 0 <= s and s < t and t <= O
divide linear with bias before slice: slice(linear(x[*B, K], w[O, K], c[O]), -1, s, t, 1) == linear(x, slice(w, 0, s, t, 1), slice(c, 0, s, t, 1)) if 0 <= s and s < t and t <= O
divide product of two: matmul(concat(x[*B, M, K], y[*B, M, L], axis=-1), w[K + L, O]) == matmul(x, slice(w, 0, 0, K, 1)) + matmul(y, slice(w, 0, K, K + L, 1))
divide linear of two: linear(concat(x[*B, K], y[*B, L], axis=-1), w[O, K + L], c[O] or None) == linear(x, slice(w, 1, 0, K, 1), c) + linear(y, slice(w, 1, K, K + L, 1))
add products: matmul(x[M, K], y[K, O]) + matmul(z[M, L], w[L, O]) == matmul(concat(x, z, axis=1), concat(y, w, axis=0))
"""
# fmt: on

DIVIDING: Mapping[str, Conjecture] = {
    c.name: c for c in map(Conjecture, filter(str.strip, _LINES.splitlines()))
}
