"""Element-wise operators: tables first, then what needs more than a name."""

from __future__ import annotations

import functools
import math

from whet.capture.onnx.call import (
    ROWS,
    Call,
    NoMapping,
    Value,
    aligned,
    axis_in,
    broadcast,
    cast,
    dtype_of,
    expand,
    filled,
    literal,
    onnx,
    reshape,
    sizes,
)
from whet.ir.graph import Node, apply
from whet.ir.types import DType

# ONNX's name: the table's
UNARY = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh",
    "Atan": "atan", "Atanh": "atanh", "BitwiseNot": "bitwise_not", "Ceil": "ceil", "Cos": "cos",
    "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "HardSwish": "hardswish",
    "IsNaN": "isnan", "Log": "log", "Neg": "neg", "Not": "logical_not",
    "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid",
    "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Sqrt": "sqrt", "Tan": "tan", "Tanh": "tanh",
}  # fmt: skip
BINARY = {
    "Add": "add", "And": "logical_and", "BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or",
    "BitwiseXor": "bitwise_xor", "Equal": "eq", "Greater": "gt", "GreaterOrEqual": "ge",
    "Less": "lt", "LessOrEqual": "le", "Mul": "mul", "Or": "logical_or", "Sub": "sub",
    "Xor": "logical_xor",
}  # fmt: skip
VARIADIC = {"Max": "maximum", "Min": "minimum", "Sum": "add"}


def _unary(op: str, call: Call, x: Node, consumed_inputs: object = None) -> Node:
    return cast(apply(op, x), DType.bool if op in ("isnan", "logical_not") else x.dtype)


def _binary(
    op: str, call: Call, x: Node, z: Node, broadcast: int = 0, axis: int | None = None,
    consumed_inputs: object = None,
) -> Node:  # fmt: skip
    return apply(op, *_same(x, _placed(call, x, z, broadcast, axis)))


def _placed(call: Call, x: Node, z: Node, broadcast: int, axis: int | None) -> Node:
    """The right operand where versions before 7 put it: at an axis of the left one."""
    if call.opset >= 7 or not broadcast or axis is None:
        return z
    return aligned(z, len(x.shape), axis_in(axis, len(x.shape)))


def _same(x: Node, z: Node) -> tuple[Node, Node]:
    if x.dtype is not z.dtype:
        raise NoMapping(f"operands of types {x.dtype} and {z.dtype}")
    return x, z


def _variadic(op: str, call: Call, *xs: Node) -> Node:
    return functools.reduce(lambda a, b: apply(op, a, b), xs)


for _name, _op in UNARY.items():
    ROWS[_name] = functools.partial(_unary, _op)
for _name, _op in BINARY.items():
    ROWS[_name] = functools.partial(_binary, _op)
for _name, _op in VARIADIC.items():
    ROWS[_name] = functools.partial(_variadic, _op)


@onnx("Mean")
def mean(call: Call, *xs: Node) -> Node:
    """The mean of tensors, element by element."""
    return apply("div", _variadic("add", call, *xs), literal(len(xs), xs[0]))


@onnx("Div")
def div(call: Call, x: Node, z: Node, broadcast: int = 0, axis: int | None = None) -> Node:
    """Division; of integers, towards zero."""
    x, z = _same(x, _placed(call, x, z, broadcast, axis))
    if x.dtype.is_float:
        return apply("div", x, z)
    # Without the remainder, which has the dividend's sign, integers divide without rounding.
    return cast(apply("floor_divide", apply("sub", x, apply("fmod", x, z)), z), x.dtype)


@onnx("Mod")
def mod(call: Call, x: Node, z: Node, fmod: int = 0) -> Node:
    """The remainder, with the divisor's sign, or with the dividend's."""
    x, z = _same(x, z)
    return cast(apply("fmod" if fmod else "remainder", x, z), x.dtype)


@onnx("Pow")
def power(call: Call, x: Node, z: Node, broadcast: int = 0, axis: int | None = None) -> Node:
    """Powers, in the base's type; the common literal ones have operators of their own."""
    z = _placed(call, x, z, broadcast, axis)
    data = call.known(z) if z.op != "parameter" else None
    exponent = float(data.reshape(()).item()) if data is not None and data.numel() == 1 else None
    shape = broadcast_shape(x, z)
    if exponent == 1:
        return expand(x, shape)
    if exponent == 2:
        return expand(apply("square", x), shape)
    if exponent == 0.5 and x.dtype.is_float:
        return expand(apply("sqrt", x), shape)
    if exponent == -1 and x.dtype.is_float:
        return expand(apply("reciprocal", x), shape)
    if x.dtype.is_float:
        return apply("pow", x, cast(z, x.dtype))
    if z.dtype.is_float:
        return cast(apply("pow", cast(x, z.dtype), z), x.dtype)
    return cast(apply("pow", x, cast(z, x.dtype)), x.dtype)


def broadcast_shape(x: Node, z: Node) -> tuple[int, ...]:
    """The shape in which two operands meet."""
    return broadcast(sizes(x), sizes(z))


@onnx("BitShift")
def bit_shift(call: Call, x: Node, z: Node, direction: str) -> Node:
    """Multiplication by, or division without rest through, powers of two."""
    if direction == "RIGHT" and x.dtype is not DType.u8:
        raise NoMapping("shifts of signed integers to the right")
    factor = apply("pow", filled(2, DType.i64, sizes(z)), cast(z, DType.i64))
    op = "mul" if direction == "LEFT" else "floor_divide"
    return cast(apply(op, cast(x, DType.i64), factor), x.dtype)


@onnx("Where")
def where(call: Call, condition: Node, x: Node, z: Node) -> Node:
    """x where the condition holds, else z."""
    return apply("where", condition, *_same(x, z))


@onnx("IsInf")
def is_inf(call: Call, x: Node, detect_positive: int = 1, detect_negative: int = 1) -> Node:
    """Whether an element is infinite, on the sides asked for."""
    y = apply("isinf", x)
    if not detect_positive:
        y = apply("logical_and", y, apply("lt", x, literal(0, x)))
    if not detect_negative:
        y = apply("logical_and", y, apply("gt", x, literal(0, x)))
    return y


@onnx("Cast")
def to(call: Call, x: Node, to: int) -> Node:
    """Another element type."""
    return cast(x, dtype_of(to))


@onnx("CastLike")
def cast_like(call: Call, x: Node, like: Node) -> Node:
    """The element type of another tensor."""
    return cast(x, like.dtype)


@onnx("Identity")
def identity(call: Call, x: Value) -> Value:
    """The same value, a sequence too."""
    return [x]


@onnx("Dropout")
def dropout(
    call: Call, x: Node, ratio: Node | None = None, training_mode: Node | None = None,
    is_test: int = 1,
) -> Value:  # fmt: skip
    """The identity, when it is not training."""
    training = training_mode is not None and call.scalar(training_mode, "training_mode") != 0
    if (training or not is_test) and (ratio is None or call.scalar(ratio, "ratio") != 0):
        raise NoMapping("draws random numbers")
    return [x, filled(1, DType.bool, sizes(x))]


# -- activations ---------------------------------------------------------------------------------
@onnx("Clip")
def clip(
    call: Call, x: Node, low: Node | None = None, high: Node | None = None,
    consumed_inputs: object = None,
) -> Node:  # fmt: skip
    """x kept between two bounds, either of which may be missing."""
    bounds = [None if b is None or b.op == "parameter" else call.known(b) for b in (low, high)]
    if bounds[0] is not None and bounds[1] is not None:
        plain = float if x.dtype.is_float else int
        a, b = (plain(t.reshape(()).item()) for t in bounds if t is not None)
        return apply("clamp", x, low=a, high=b)
    if low is not None:
        x = apply("maximum", x, cast(reshape(low, ()), x.dtype))
    if high is not None:
        x = apply("minimum", x, cast(reshape(high, ()), x.dtype))
    return x


@onnx("LeakyRelu")
def leaky_relu(call: Call, x: Node, alpha: float = 0.01, consumed_inputs: object = None) -> Node:
    """x, scaled where it is negative."""
    return apply("leaky_relu", x, slope=alpha)


@onnx("PRelu")
def prelu(call: Call, x: Node, slope: Node, consumed_inputs: object = None) -> Node:
    """x, scaled by a weight where it is negative; before version 7 one weight a channel."""
    if call.opset < 7 and len(x.shape) > 1 and len(slope.shape) == 1 and slope.shape != (1,):
        slope = aligned(slope, len(x.shape), 1)
    return apply("where", apply("lt", x, literal(0, x)), apply("mul", x, slope), x)


@onnx("ThresholdedRelu")
def thresholded_relu(call: Call, x: Node, alpha: float = 1.0) -> Node:
    """x above a threshold, else 0."""
    return apply("where", apply("gt", x, literal(alpha, x)), x, literal(0, x))


@onnx("Elu")
def elu(call: Call, x: Node, alpha: float = 1.0, consumed_inputs: object = None) -> Node:
    """The exponential linear unit."""
    return apply("elu", x, alpha=alpha)


@onnx("Selu")
def selu(
    call: Call, x: Node, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323,
    consumed_inputs: object = None,
) -> Node:  # fmt: skip
    """The scaled exponential linear unit; its defaults are the standard's, as float32."""
    return apply("mul", apply("elu", x, alpha=alpha), literal(gamma, x))


@onnx("Celu")
def celu(call: Call, x: Node, alpha: float = 1.0) -> Node:
    """The exponential linear unit, continuously differentiable for every alpha."""
    bent = apply("mul", apply("expm1", apply("div", x, literal(alpha, x))), literal(alpha, x))
    return apply("where", apply("gt", x, literal(0, x)), x, bent)


@onnx("HardSigmoid")
def hard_sigmoid(call: Call, x: Node, alpha: float = 0.2, beta: float = 0.5) -> Node:
    """A line between 0 and 1."""
    line = apply("add", apply("mul", x, literal(alpha, x)), literal(beta, x))
    return apply("clamp", line, low=0.0, high=1.0)


@onnx("Shrink")
def shrink(call: Call, x: Node, bias: float = 0.0, lambd: float = 0.5) -> Node:
    """Zero around zero, and outside moved towards it."""
    above = apply("where", apply("gt", x, literal(lambd, x)), apply("sub", x, literal(bias, x)),
                  literal(0, x))  # fmt: skip
    below = apply("lt", x, literal(-lambd, x))
    return cast(apply("where", below, apply("add", x, literal(bias, x)), above), x.dtype)


@onnx("Softplus")
def softplus(call: Call, x: Node) -> Node:
    """log(1 + exp(x)); above 40 that is x in every precision."""
    return apply("softplus", x, beta=1.0, threshold=40.0)


@onnx("Softsign")
def softsign(call: Call, x: Node) -> Node:
    """x / (1 + |x|)"""
    return apply("div", x, apply("add", apply("abs", x), literal(1, x)))


@onnx("Mish")
def mish(call: Call, x: Node) -> Node:
    """x * tanh(softplus(x))"""
    return apply("mul", x, apply("tanh", softplus(call, x)))


@onnx("Gelu", "com.microsoft.Gelu")
def gelu(call: Call, x: Node, approximate: str = "none") -> Node:
    """The Gaussian error linear unit, exact or through tanh."""
    return apply({"none": "gelu", "tanh": "gelu_tanh"}[approximate], x)


@onnx("com.microsoft.FastGelu", "com.microsoft.BiasGelu")
def biased_gelu(call: Call, x: Node, bias: Node | None = None) -> Node:
    """The same of x + bias."""
    x = x if bias is None else apply("add", x, bias)
    return apply("gelu_tanh" if call.node.op == "FastGelu" else "gelu", x)


@onnx("Swish", "com.microsoft.QuickGelu")
def swish(call: Call, x: Node, alpha: float | None = None) -> Node:
    """x * sigmoid(alpha * x)"""
    if alpha is None:
        alpha = 1.0 if call.node.op == "Swish" else 1.702
    scaled = x if alpha == 1 else apply("mul", x, literal(alpha, x))
    return apply("silu", x) if alpha == 1 else apply("mul", x, apply("sigmoid", scaled))


@onnx("Hardmax")
def hardmax(call: Call, x: Node, axis: int | None = None) -> Node:
    """One where the first largest element along an axis stands, else zero."""
    if axis is None:
        axis = -1 if call.opset >= 13 else 1
    shape, rank = sizes(x), len(x.shape)
    k = axis_in(axis, rank)
    flat = x if call.opset >= 13 else reshape(x, (math.prod(shape[:k]), math.prod(shape[k:])))
    at = k if call.opset >= 13 else 1
    seen = sizes(flat)
    kept = [1 if d == at else n for d, n in enumerate(seen)]
    first = reshape(apply("argmax", flat, axis=at), kept)
    line = apply("arange", size=seen[at], start=0, step=1, dtype=DType.i64)
    hit = apply("eq", aligned(line, len(seen), at), first)
    return reshape(cast(hit, x.dtype), shape)
