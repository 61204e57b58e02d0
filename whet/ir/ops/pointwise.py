"""Pointwise operators, casts and generators. A new one is two lines of record."""

from __future__ import annotations

from whet.ir.functions import FUNCTIONS

_UNARY = [n for n, f in FUNCTIONS.items() if f.arity == 1]
_BINARY = [n for n, f in FUNCTIONS.items() if f.arity == 2]

RECORDS = [f"y = {f}(x[*b])\ny[*b] = {f}(x[*b])" for f in _UNARY]
RECORDS += [f"y = {f}(x[*b], z[*b])\ny[*b] = {f}(x[*b], z[*b])" for f in _BINARY]
RECORDS += [
    f"y = {name}(x[*b], z[*b])\ny[*b] = {body}"
    for name, body in {
        "add": "x[*b] + z[*b]",
        "sub": "x[*b] - z[*b]",
        "mul": "x[*b] * z[*b]",
        "div": "x[*b] / z[*b]",
        "floor_divide": "x[*b] // z[*b]",
        "remainder": "x[*b] % z[*b]",
        "lt": "[x[*b] < z[*b]]",
        "le": "[x[*b] <= z[*b]]",
        "gt": "[x[*b] > z[*b]]",
        "ge": "[x[*b] >= z[*b]]",
        "eq": "[x[*b] == z[*b]]",
        "ne": "[x[*b] != z[*b]]",
        "logical_and": "[x[*b] != 0 and z[*b] != 0]",
        "logical_or": "[x[*b] != 0 or z[*b] != 0]",
        "logical_xor": "[(x[*b] != 0 and z[*b] == 0) or (x[*b] == 0 and z[*b] != 0)]",
    }.items()
]
RECORDS += [
    f"y = {name}(x[*b])\ny[*b] = {body}"
    for name, body in {
        "neg": "-1 * x[*b]",
        "square": "x[*b] * x[*b]",
        "reciprocal": "1 / x[*b]",
        "relu": "maximum(x[*b], 0)",
        "gelu": "x[*b] * 0.5 * (1 + erf(x[*b] * 0.7071067811865476))",
        "gelu_tanh": "x[*b] * 0.5 * (1 + tanh(0.7978845608028654 * (x[*b] + 0.044715 * x[*b]**3)))",
        "silu": "x[*b] * sigmoid(x[*b])",
        "hardsigmoid": "minimum(maximum(x[*b] + 3, 0), 6) / 6",
        "hardswish": "x[*b] * minimum(maximum(x[*b] + 3, 0), 6) / 6",
        "logical_not": "[x[*b] == 0]",
    }.items()
]
RECORDS += [
    """y = leaky_relu(x[*b], slope=slope)
       y[*b] = x[*b] if x[*b] > 0 else slope * x[*b]""",
    """y = elu(x[*b], alpha=alpha)
       y[*b] = x[*b] if x[*b] > 0 else alpha * expm1(x[*b])""",
    """y = softplus(x[*b], beta=beta, threshold=threshold)
       y[*b] = x[*b] if x[*b] * beta > threshold else log1p(exp(x[*b] * beta)) / beta""",
    """y = clamp(x[*b], low=low, high=high)
       y[*b] = minimum(maximum(x[*b], low), high)""",
    """y = where(c[*b], x[*b], z[*b])
       y[*b] = x[*b] if c[*b] != 0 else z[*b]""",
    """y = cast(x[*b], dtype=dtype)
       y[*b] = x[*b]""",
    """y = full(size=(*b,), value=value, dtype=dtype)
       y[*b] = value""",
    """y = arange(size=I, start=start, step=step, dtype=dtype)
       y[i] = start + i * step""",
]
