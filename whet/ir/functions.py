"""Scalar functions: everything that whet knows about each, one row a function.

name        as written in records
arity       number of arguments
derivative  one expression per argument, in record notation over x, z and y (y: the result);
            None where the function is piecewise constant or not differentiable
c           C expression over {0}, {1}
kind        "float": float in, float out (integers become float32); "same": keeps its argument's
            type; "bool": gives a truth value
laws        what a normal form may use, see `LAWS`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LAWS: Mapping[str, str] = {
    "sum_to_product": "f(x + z) = f(x) * f(z)",
    "product_to_sum": "f(x * z) = f(x) + f(z) for positive x, z",
    "odd": "f(-x) = -f(x)",
    "even": "f(-x) = f(x)",
    "commutative": "f(x, z) = f(z, x)",
    "associative": "f(f(x, z), w) = f(x, f(z, w))",
    "idempotent": "f(x, x) = x",
    "plus_distributes": "f(x + c, z + c) = f(x, z) + c",
    "positively_homogeneous": "f(c*x, c*z) = c*f(x, z) for c > 0",
    "monotone": "x <= z implies f(x) <= f(z)",
    "multiplicative": "f(x * z) = f(x) * f(z)",
    "positive": "f(x) > 0",
}


@dataclass(frozen=True, slots=True)
class Function:
    """One scalar function; see the module's docstring for the fields."""

    name: str
    arity: int
    derivative: tuple[str, ...] | None
    c: str
    kind: str = "float"
    laws: frozenset[str] = frozenset()


def _row(
    name: str, derivative: str | tuple[str, ...] | None, c: str, kind: str = "float", laws: str = ""
) -> Function:
    both = "{1}" in c
    parts = (derivative,) if isinstance(derivative, str) else derivative
    return Function(name, 2 if both else 1, parts, c, kind, frozenset(laws.split()))


_EXTREMUM = "commutative associative idempotent plus_distributes positively_homogeneous monotone"

FUNCTIONS: Mapping[str, Function] = {
    f.name: f
    for f in (
        #    name          derivative                                   C                        kind, laws
        _row("exp",        "y",                                         "exp({0})",              laws="sum_to_product positive monotone"),
        _row("exp2",       "y * 0.6931471805599453",                    "exp2({0})",             laws="sum_to_product positive monotone"),
        _row("expm1",      "y + 1",                                     "expm1({0})",            laws="monotone"),
        _row("log",        "1 / x",                                     "log({0})",              laws="product_to_sum monotone"),
        _row("log2",       "1 / (x * 0.6931471805599453)",              "log2({0})",             laws="product_to_sum monotone"),
        _row("log10",      "1 / (x * 2.302585092994046)",               "log10({0})",            laws="product_to_sum monotone"),
        _row("log1p",      "1 / (1 + x)",                               "log1p({0})",            laws="monotone"),
        _row("sqrt",       "0.5 / y",                                   "sqrt({0})",             laws="monotone multiplicative"),
        _row("rsqrt",      "-0.5 * y * y * y",                          "(1 / sqrt({0}))",       laws="multiplicative positive"),
        _row("sin",        "cos(x)",                                    "sin({0})",              laws="odd"),
        _row("cos",        "-1 * sin(x)",                               "cos({0})",              laws="even"),
        _row("tan",        "1 + y * y",                                 "tan({0})",              laws="odd"),
        _row("asin",       "rsqrt(1 - x * x)",                          "asin({0})",             laws="odd monotone"),
        _row("acos",       "-1 * rsqrt(1 - x * x)",                     "acos({0})"),
        _row("atan",       "1 / (1 + x * x)",                           "atan({0})",             laws="odd monotone"),
        _row("sinh",       "cosh(x)",                                   "sinh({0})",             laws="odd monotone"),
        _row("cosh",       "sinh(x)",                                   "cosh({0})",             laws="even positive"),
        _row("tanh",       "1 - y * y",                                 "tanh({0})",             laws="odd monotone"),
        _row("asinh",      "rsqrt(x * x + 1)",                          "asinh({0})",            laws="odd monotone"),
        _row("acosh",      "rsqrt(x * x - 1)",                          "acosh({0})",            laws="monotone"),
        _row("atanh",      "1 / (1 - x * x)",                           "atanh({0})",            laws="odd monotone"),
        _row("erf",        "1.1283791670955126 * exp(-1 * x * x)",      "erf({0})",              laws="odd monotone"),
        _row("sigmoid",    "y * (1 - y)",                               "(1 / (1 + exp(-({0}))))", laws="positive monotone"),
        _row("abs",        "sign(x)",                                   "fabs({0})",             "same", "even multiplicative"),
        _row("sign",       None,                                        "(({0} > 0) - ({0} < 0))", "same", "odd monotone multiplicative"),
        _row("floor",      None,                                        "floor({0})",            "same", "monotone"),
        _row("ceil",       None,                                        "ceil({0})",             "same", "monotone"),
        _row("trunc",      None,                                        "trunc({0})",            "same", "odd monotone"),
        _row("round",      None,                                        "nearbyint({0})",        "same", "odd monotone"),
        _row("isnan",      None,                                        "isnan({0})",            "bool"),
        _row("isinf",      None,                                        "isinf({0})",            "bool"),
        _row("maximum",    ("1 if z < x else 0.5 if z == x else 0", "1 if x < z else 0.5 if z == x else 0"), "fmax({0}, {1})", "same", _EXTREMUM),
        _row("minimum",    ("1 if x < z else 0.5 if z == x else 0", "1 if z < x else 0.5 if z == x else 0"), "fmin({0}, {1})", "same", _EXTREMUM),
        _row("pow",        ("z * pow(x, z - 1) if z != 0 else 0", "0 if x == 0 and 0 <= z else y * log(x)"), "pow({0}, {1})",         "same"),
        _row("atan2",      ("z / (x*x + z*z)", "-1 * x / (x*x + z*z)"), "atan2({0}, {1})"),
        _row("fmod",       ("1", "-1 * trunc(x / z)"),                  "fmod({0}, {1})",        "same"),
        _row("bitwise_and", None,                                       "({0} & {1})",           "same", "commutative associative idempotent"),
        _row("bitwise_or", None,                                        "({0} | {1})",           "same", "commutative associative idempotent"),
        _row("bitwise_xor", None,                                       "({0} ^ {1})",           "same", "commutative associative"),
        _row("bitwise_not", None,                                       "(~{0})",                "same"),
    )
}  # fmt: skip
