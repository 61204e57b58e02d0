"""What a kernel computes: the meaning of the Loop IR, run one statement after the other.

    run(kernel, {"x0": array, …}) -> {"y0": array, …}

Floats are computed in double precision, whatever their type; integers keep their width. Data lies
where the layouts say, so a layout that folds two elements onto one place shows. Scratch is filled
with rubbish wherever its lifetime begins, and an index is checked unless it is provably inside: a
kernel that reads what it did not write, or past an end, does not get away with it.

A kernel is printed as Python, once, and that is run: a hundred times faster than walking the tree,
and the order of execution is there to be read (`source`).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from whet.ir.expr import Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.nest import integral
from whet.ir.types import DType
from whet.kernel.affine import Domain, inside, simplify
from whet.kernel.loops import (
    Buffer,
    If,
    Kernel,
    KernelError,
    Loop,
    Stmt,
    Store,
    Update,
    bound,
    scope,
)

Array = np.ndarray[Any, Any]
RUBBISH = {True: math.nan, False: -0x5EED_5EED}
_INFIX = frozenset({"+", "-", "*", "<", "<=", "==", "and", "or"})


def run(kernel: Kernel, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of a kernel.

    Args:
        kernel: well formed.
        arrays: one for each input buffer, of its sizes.

    Returns:
        One array for each output: float64 for floats, else int64.

    Raises:
        KernelError: an index is out of range, or an array has other sizes than its buffer.
    """
    memory: dict[str, list[float]] = {}
    for b in kernel.buffers:
        memory[b.name] = [RUBBISH[b.dtype.is_float]] * max(b.layout.elements, 1)
        if b.role == "in":
            _fill(b, arrays[b.name], memory[b.name])
    with np.errstate(all="ignore"):
        compiled(kernel)(memory)
    return {b.name: _read(b, memory[b.name]) for b in kernel.outputs}


@functools.lru_cache(maxsize=64)
def compiled(kernel: Kernel) -> Callable[[Mapping[str, list[float]]], None]:
    """The kernel as a Python function over its buffers' memory."""
    names: dict[str, Any] = dict(_NAMES)
    exec(compile(source(kernel), "<kernel>", "exec"), names)
    function: Callable[[Mapping[str, list[float]]], None] = names["kernel"]
    return function


def source(kernel: Kernel) -> str:
    """The kernel as Python."""
    births: dict[str, list[Buffer]] = {}
    for b in kernel.scratch:
        births.setdefault(("", *scope(kernel, b.name))[-1], []).append(b)
    lines = ["def kernel(memory):"]
    lines += [f"    {b.name} = memory['{b.name}']" for b in kernel.buffers]
    lines += _Printer(kernel, births).block(kernel.body, {}, "    ", "")
    return "\n".join([*lines, "    return", ""])


class _Printer:
    def __init__(self, kernel: Kernel, births: Mapping[str, list[Buffer]]) -> None:
        self.kernel, self.births = kernel, births

    def block(
        self, body: tuple[Stmt, ...], domain: Domain, indent: str, loop: str | None
    ) -> Iterator[str]:
        for b in self.births.get(loop, ()) if loop is not None else ():
            rubbish = "nan" if b.dtype.is_float else str(RUBBISH[False])
            yield f"{indent}{b.name}[:] = [{rubbish}] * len({b.name})"
        for s in body:
            yield from self.statement(s, domain, indent)

    def statement(self, s: Stmt, domain: Domain, indent: str) -> Iterator[str]:
        match s:
            case Loop(var, extent, body):
                size = self.text(simplify(bound(extent), domain), domain)
                yield f"{indent}for {var} in range({size}):"
                yield from self.block(body, {**domain, var: extent}, indent + "    ", var)
            case If(test, body):
                yield f"{indent}if {self.text(test, domain)}:"
                yield from self.block(body, domain, indent + "    ", None)
            case Store(name, index, value):
                stored = self.stored(name, value, domain)
                yield f"{indent}{self.element(name, index, domain)} = {stored}"
            case Update(name, index, how, value):
                place = self.element(name, index, domain)
                text = f"{how}_({place}, {self.text(value, domain)})"
                yield f"{indent}{place} = {text}"

    def element(self, name: str, index: tuple[Expr, ...], domain: Domain) -> str:
        b = self.kernel.buffer(name)
        checks = [
            f"within({self.text(i, domain)}, {n}, '{name}')"
            for i, n in zip(index, b.sizes, strict=True)
            if not inside(i, n, domain)
        ]
        address = self.text(simplify(b.layout.address(index), domain), domain)
        if checks:
            address = f"({', '.join(checks)}, {address})[-1]"
        return f"{name}[{address}]"

    def stored(self, name: str, value: Expr, domain: Domain) -> str:
        text = self.text(value, domain)
        dtype = self.kernel.buffer(name).dtype
        if dtype.is_float:
            return text
        if dtype is DType.bool:
            known = {b.name: b.dtype for b in self.kernel.buffers}
            bits = isinstance(value, Call) and value.fn in FUNCTIONS and integral(value, known)
            return f"({text}) & 1" if bits else f"int({text} != 0)"
        return f"whole({text}, {dtype.bits}, {dtype is not DType.u8})"

    def text(self, e: Expr, domain: Domain) -> str:
        match e:
            case Num(value):
                return f"({value!r})"
            case Index(name):
                return name
            case Load(name, index):
                return self.element(name, index, domain)
            case Select(test, then, other):
                parts = (self.text(x, domain) for x in (then, test, other))
                return "({} if {} else {})".format(*parts)
            case Call(fn, args):
                texts = [self.text(a, domain) for a in args]
                if fn in _INFIX:
                    return f"({texts[0]} {fn} {texts[1]})"
                if fn in _CALLED:
                    return f"{_CALLED[fn]}({', '.join(texts)})"
                return "(" + FUNCTIONS[fn].c.format(*(f"({t})" for t in texts)) + ")"
        raise KernelError("no expression of a kernel", got=e)


# -- what the printed text calls -------------------------------------------------------------------
def _divided(a: float, b: float) -> float:
    if b != 0:
        return a / b
    if a == 0 or a != a or b != b:
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1, b)


def _quotient(a: float, b: float) -> float:
    return a // b if b != 0 and math.isfinite(a) else math.nan


def _remainder(a: float, b: float) -> float:
    return a % b if b != 0 and math.isfinite(a) else math.nan


def _greater(a: float, b: float) -> float:
    return a if a != a or a > b else b


def _smaller(a: float, b: float) -> float:
    return a if a != a or a < b else b


def _power(a: float, b: float) -> float:
    if isinstance(a, int) and isinstance(b, int) and b >= 0:
        return int(a**b)
    return float(np.power(float(a), float(b)))


def _whole(x: float, bits: int, signed: bool) -> int:
    if x != x or math.isinf(x):
        return -(2 ** (bits - 1)) if signed else 0
    low = -(2 ** (bits - 1)) if signed else 0
    around: int = 2**bits
    return (int(x) - low) % around + low


def _within(index: int, size: int, name: str) -> int:
    if not 0 <= index < size:
        raise KernelError(
            "an index is out of range", expected=f"0 to {size - 1}", got=index, where=name
        )
    return index


_CALLED = {"/": "divided", "//": "quotient", "%": "remainder", "**": "power", "not": "not ",
           "maximum": "max_", "minimum": "min_", "pow": "power"}  # fmt: skip
_NAMES: Mapping[str, Any] = {
    **{name: getattr(np, name) for name in """exp exp2 expm1 log log2 log10 log1p sqrt sin cos tan
       sinh cosh tanh floor ceil trunc fmod isnan isinf""".split()},
    **{f"a{name}": getattr(np, f"arc{name}") for name in "sin cos tan sinh cosh tanh".split()},
    "atan2": np.arctan2, "erf": math.erf, "fabs": abs, "nearbyint": np.rint,
    "inf": math.inf, "nan": math.nan, "divided": _divided, "quotient": _quotient,
    "remainder": _remainder, "power": _power, "whole": _whole, "within": _within,
    "sum_": lambda a, b: a + b, "prod_": lambda a, b: a * b, "max_": _greater, "min_": _smaller,
}  # fmt: skip


# -- data ------------------------------------------------------------------------------------------
def _fill(b: Buffer, array: Array, memory: list[float]) -> None:
    if tuple(array.shape) != b.sizes:
        raise KernelError(f"{b.name} has other sizes", expected=b.sizes, got=tuple(array.shape))
    values = array.astype(np.float64 if b.dtype.is_float else np.int64)
    for index, value in zip(_addresses(b), values.reshape(-1).tolist(), strict=True):
        memory[index] = value


def _read(b: Buffer, memory: list[float]) -> Array:
    values = [memory[index] for index in _addresses(b)]
    return np.array(values, np.float64 if b.dtype.is_float else np.int64).reshape(b.sizes)


def _addresses(b: Buffer) -> Iterator[int]:
    outermost = {p.dim: max(q.step for q in b.layout.parts if q.dim == p.dim)
                 for p in b.layout.parts}  # fmt: skip
    for index in itertools.product(*map(range, b.sizes)):
        total = 0
        for p in b.layout.parts:
            at = index[p.dim] // p.step
            total += (at if p.step == outermost[p.dim] else at % p.size) * p.stride
        yield total
