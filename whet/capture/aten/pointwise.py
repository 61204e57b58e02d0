"""Element-wise calls; operands are cast to what the library computes in."""

from __future__ import annotations

import functools

from whet.capture.aten.call import (
    ATEN,
    Call,
    NoMapping,
    Scalar,
    aten,
    cast,
    meet,
    number,
    operand,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

# aten's name where it is not the table's
UNARY = {
    name: name
    for name in (
        "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh "
        "asinh acosh atanh erf sigmoid abs sign floor ceil trunc isnan isinf neg square reciprocal "
        "relu silu hardsigmoid hardswish logical_not"
    ).split()
} | {"sgn": "sign", "round.default": "round", "fix": "trunc"}
ARITHMETIC = {
    "mul": "mul",
    "remainder": "remainder",
    "fmod": "fmod",
    "maximum": "maximum",
    "minimum": "minimum",
    "max.other": "maximum",
    "min.other": "minimum",
    "floor_divide": "floor_divide",
    "atan2": "atan2",
    "bitwise_and": "bitwise_and",
    "bitwise_or": "bitwise_or",
    "bitwise_xor": "bitwise_xor",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
}
COMPARISON = ("lt", "le", "gt", "ge", "eq", "ne")
LOGICAL = ("logical_and", "logical_or", "logical_xor")
# What arithmetic on truth values means.
ON_BOOL = {
    "add": "logical_or",
    "mul": "logical_and",
    "maximum": "logical_or",
    "minimum": "logical_and",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
}


def _unary(op: str, call: Call, x: Node) -> Node:
    if call.dtype.is_float:
        x = cast(x, call.dtype)
    return apply(op, x)


def _arithmetic(op: str, call: Call, x: Node | Scalar, other: Node | Scalar) -> Node:
    if call.dtype is DType.bool:
        op = ON_BOOL[op]
    return apply(op, operand(x, call.dtype), operand(other, call.dtype))


def _comparison(op: str, call: Call, x: Node | Scalar, other: Node | Scalar) -> Node:
    common = meet(x, other)
    return apply(op, operand(x, common), operand(other, common))


for _name, _op in UNARY.items():
    ATEN[_name] = functools.partial(_unary, _op)
for _name, _op in ARITHMETIC.items():
    ATEN[_name] = functools.partial(_arithmetic, _op)
for _name in (*COMPARISON, *LOGICAL):
    ATEN[_name] = functools.partial(_comparison, _name)


@aten("add")
def add(call: Call, x: Node | Scalar, other: Node | Scalar, alpha: Scalar = 1) -> Node:
    """x + alpha * other"""
    return _arithmetic("add", call, x, _scaled(other, alpha, call.dtype))


@aten("sub")
def sub(call: Call, x: Node | Scalar, other: Node | Scalar, alpha: Scalar = 1) -> Node:
    """x - alpha * other"""
    return _arithmetic("sub", call, x, _scaled(other, alpha, call.dtype))


@aten("rsub")
def rsub(call: Call, x: Node, other: Node | Scalar, alpha: Scalar = 1) -> Node:
    """other - alpha * x"""
    return _arithmetic("sub", call, other, _scaled(x, alpha, call.dtype))


def _scaled(x: Node | Scalar, by: Scalar, dtype: DType) -> Node | Scalar:
    if by == 1:
        return x
    return apply("mul", operand(x, dtype), number(by, dtype))


@aten("div", "true_divide")
def div(
    call: Call, x: Node | Scalar, other: Node | Scalar, rounding_mode: str | None = None
) -> Node:
    """Division, rounded down or towards zero on request."""
    if rounding_mode == "floor":
        return _arithmetic("floor_divide", call, x, other)
    a, b = operand(x, call.dtype), operand(other, call.dtype)
    if rounding_mode is None:
        return apply("div", a, b)
    if call.dtype.is_float:
        return apply("trunc", apply("div", a, b))
    # Without the remainder, which has the dividend's sign, integers divide without rounding.
    return apply("floor_divide", apply("sub", a, apply("fmod", a, b)), b)


@aten("pow")
def power(call: Call, x: Node | Scalar, exponent: Node | Scalar) -> Node:
    """Powers; the common literal ones have operators of their own."""
    if isinstance(x, Node) and isinstance(exponent, int | float):
        base = operand(x, call.dtype)
        if exponent == 1:
            return base
        named = {2: "square", -1: "reciprocal", 0.5: "sqrt", -0.5: "rsqrt"}.get(exponent)
        if named == "square" or (named and call.dtype.is_float):
            return apply(named, base)
    return apply("pow", operand(x, call.dtype), operand(exponent, call.dtype))


@aten("bitwise_not")
def bitwise_not(call: Call, x: Node) -> Node:
    """Complement; of a truth value its negation."""
    return apply("logical_not" if x.dtype is DType.bool else "bitwise_not", x)


@aten("where")
def where(call: Call, condition: Node, x: Node | Scalar, other: Node | Scalar) -> Node:
    """x where the condition holds, else other."""
    return apply(
        "where", cast(condition, DType.bool), operand(x, call.dtype), operand(other, call.dtype)
    )


@aten("masked_fill")
def masked_fill(call: Call, x: Node, mask: Node, value: Node | Scalar) -> Node:
    """x, and `value` where the mask holds."""
    return where(call, mask, value, x)


@aten("clamp", "clip")
def clamp(
    call: Call, x: Node, min: Node | Scalar | None = None, max: Node | Scalar | None = None
) -> Node:
    """x kept between two bounds, either of which may be missing."""
    x = cast(x, call.dtype)
    if min is not None and max is not None and not isinstance(min, Node | None):
        if not isinstance(max, Node):
            return _clamped(x, min, max)
    if min is not None:
        x = apply("maximum", x, operand(min, call.dtype))
    if max is not None:
        x = apply("minimum", x, operand(max, call.dtype))
    return x


@aten("clamp_min")
def clamp_min(call: Call, x: Node, min: Node | Scalar) -> Node:
    """x, at least `min`."""
    return clamp(call, x, min, None)


@aten("clamp_max")
def clamp_max(call: Call, x: Node, max: Node | Scalar) -> Node:
    """x, at most `max`."""
    return clamp(call, x, None, max)


@aten("hardtanh")
def hardtanh(call: Call, x: Node, min_val: Scalar = -1, max_val: Scalar = 1) -> Node:
    """x kept between two numbers."""
    return _clamped(x, min_val, max_val)


@aten("relu6")
def relu6(call: Call, x: Node) -> Node:
    """x kept between 0 and 6."""
    return _clamped(x, 0, 6)


def _clamped(x: Node, low: Scalar, high: Scalar) -> Node:
    plain = float if x.dtype.is_float else int
    return apply("clamp", x, low=plain(low), high=plain(high))


@aten("leaky_relu")
def leaky_relu(call: Call, x: Node, negative_slope: Scalar = 0.01) -> Node:
    """x, scaled where it is negative."""
    return apply("leaky_relu", x, slope=float(negative_slope))


@aten("elu")
def elu(call: Call, x: Node, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1) -> Node:
    """The exponential linear unit and its scaled variants."""
    if input_scale != 1:
        bent = apply("expm1", apply("mul", x, number(input_scale, x.dtype)))
        bent = apply("mul", bent, number(alpha, x.dtype))
        y = apply("where", apply("gt", x, number(0, x.dtype)), x, bent)
    else:
        y = apply("elu", x, alpha=float(alpha))
    return y if scale == 1 else apply("mul", y, number(scale, x.dtype))


@aten("softplus")
def softplus(call: Call, x: Node, beta: Scalar = 1, threshold: Scalar = 20) -> Node:
    """log(1 + exp(beta*x)) / beta, linear above a threshold."""
    return apply("softplus", x, beta=float(beta), threshold=float(threshold))


@aten("gelu")
def gelu(call: Call, x: Node, approximate: str = "none") -> Node:
    """The Gaussian error linear unit, exact or through tanh."""
    return apply({"none": "gelu", "tanh": "gelu_tanh"}[approximate], x)


@aten("mish")
def mish(call: Call, x: Node) -> Node:
    """x * tanh(softplus(x))"""
    return apply("mul", x, apply("tanh", softplus(call, x)))


@aten("prelu", "_prelu_kernel")
def prelu(call: Call, x: Node, weight: Node) -> Node:
    """x, scaled by a weight per channel where it is negative."""
    if call.target.startswith("aten.prelu") and len(x.shape) > 1 and weight.shape != (1,):
        shape = [1] * len(x.shape)
        shape[1] = call.shape[1]
        weight = apply("reshape", weight, size=tuple(shape))
    scaled = apply("mul", x, weight)
    return apply("where", apply("gt", x, number(0, x.dtype)), x, scaled)


@aten("to", "_to_copy", "type_as", "prims.convert_element_type")
def to(call: Call, x: Node, dtype: object = None, other: object = None) -> Node:
    """Another element type; what else `to` can change is no business of the graph."""
    return cast(x, call.dtype)


@aten("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
def dropout(call: Call, x: Node, p: float = 0.5, train: bool = False) -> Node:
    """The identity, when it is not training."""
    if train and p > 0:
        raise NoMapping("draws random numbers")
    return x
