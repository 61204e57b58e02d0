"""How Triton says what the tables of functions, types and reductions name.

    WORDS      function -> expression over {0}, {1}; what is absent has no word, and no kernel
    HELPERS    definitions that a module begins with, as far as it uses them

Only what the compiler and its interpreter both know is used, so that every kernel can be tested
without a device: no calls of the device's own library. Where a formula loses digits near zero, a
series takes over there.
"""

from __future__ import annotations

from collections.abc import Mapping

from whet.ir.types import DType

TYPES: Mapping[DType, str] = {
    DType.f64: "tl.float64", DType.f32: "tl.float32", DType.f16: "tl.float16",
    DType.bf16: "tl.bfloat16", DType.i64: "tl.int64", DType.i32: "tl.int32",
    DType.i16: "tl.int16", DType.i8: "tl.int8", DType.u8: "tl.uint8", DType.bool: "tl.int1",
}  # fmt: skip

WORDS: Mapping[str, str] = {
    "exp": "tl.exp({0})",
    "exp2": "tl.exp2({0})",
    "expm1": "w_expm1({0})",
    "log": "tl.log({0})",
    "log2": "tl.log2({0})",
    "log10": "(tl.log({0}) * 0.4342944819032518)",
    "log1p": "w_log1p({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "tl.rsqrt({0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "tan": "(tl.sin({0}) / tl.cos({0}))",
    "tanh": "w_tanh({0})",
    "erf": "tl.erf({0})",
    "sigmoid": "(1 / (1 + tl.exp(-({0}))))",
    "abs": "tl.abs({0})",
    "sign": "w_sign({0})",
    "floor": "tl.floor({0})",
    "ceil": "tl.ceil({0})",
    "trunc": "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))",
    "round": "w_round({0})",
    "isnan": "({0} != {0})",
    "isinf": '(tl.abs({0}) == float("inf"))',
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "bitwise_and": "({0} & {1})",
    "bitwise_or": "({0} | {1})",
    "bitwise_xor": "({0} ^ {1})",
    "bitwise_not": "(~{0})",
}

WHOLE = frozenset({"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not"})  # over integers
NEUTRAL_SAME = frozenset({"floor", "ceil", "trunc", "round"})  # leave integers as they are

HELPERS: Mapping[str, str] = {
    "w_tanh": """
@triton.jit
def w_tanh(x):
    t = tl.exp(-2 * tl.abs(x))
    far = (1 - t) / (1 + t)
    s = x * x
    near = x * (1 + s * (-0.3333333333333333 + s * (0.13333333333333333 + s * (
        -0.05396825396825397 + s * (0.021869488536155203 + s * -0.008863235529902197)))))
    return tl.where(tl.abs(x) < 0.3, near, tl.where(x < 0, -far, far))
""",
    "w_expm1": """
@triton.jit
def w_expm1(x):
    near = x * (1 + x * (0.5 + x * (0.16666666666666666 + x * (0.041666666666666664 + x * (
        0.008333333333333333 + x * 0.001388888888888889)))))
    return tl.where(tl.abs(x) < 0.3, near, tl.exp(x) - 1)
""",
    "w_log1p": """
@triton.jit
def w_log1p(x):
    u = 1 + x
    part = tl.where(u == 1, 1.0, u - 1)
    return tl.where(u == 1, x, tl.log(u) * (x / part))
""",
    "w_sign": """
@triton.jit
def w_sign(x):
    return tl.where(x > 0, 1, 0) - tl.where(x < 0, 1, 0)
""",
    "w_round": """
@triton.jit
def w_round(x):
    low = tl.floor(x)
    part = x - low
    odd = low - 2 * tl.floor(low * 0.5)
    up = (part > 0.5) | ((part == 0.5) & (odd == 1))
    return low + tl.where(up, 1.0, 0.0)
""",
    "w_product": """
@triton.jit
def w_product(a, b):
    return a * b
""",
    "w_max": """
@triton.jit
def w_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "w_min": """
@triton.jit
def w_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
""",
    "w_mod": """
@triton.jit
def w_mod(a, b):
    return ((a % b) + b) % b
""",
    "w_floordiv": """
@triton.jit
def w_floordiv(a, b):
    return (a - ((a % b) + b) % b) // b
""",
}


def prelude(text: str) -> str:
    """The helpers that a text uses, itself not among them."""
    return "".join(code for name, code in HELPERS.items() if f"{name}" in text)
