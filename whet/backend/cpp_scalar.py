"""Scalar expressions of the Loop IR as C, with the type that C gives them.

    kind := i | w | f | d          whole number, number that takes the type of what it meets (a
                                   double in C), float, double; a truth value is a whole number

Whole numbers are 64 bits wide, bfloat16 and float16 are floats once they are loaded. A function
of floats is a lane of the vector function, so that a loop computes the same however it runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from whet.backend.cpp_functions import scalar_name
from whet.ir import expr as ex
from whet.ir.expr import COMPARISON, LOGIC, Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.types import DType
from whet.kernel.affine import Domain, bounds, is_index, simplify
from whet.kernel.loops import Buffer, Kernel, KernelError

CTYPES: Mapping[DType, str] = {
    DType.f64: "double", DType.f32: "float", DType.f16: "_Float16", DType.bf16: "u16",
    DType.i64: "i64", DType.i32: "int", DType.i16: "i16", DType.i8: "i8", DType.u8: "u8",
    DType.bool: "u8",
}  # fmt: skip
MEMORY: Mapping[DType, str] = {d: d.name for d in CTYPES} | {DType.bool: "u8"}
KEYWORDS = frozenset(
    """auto break case char const continue default do double else enum extern float for goto if
    inline int long register restrict return short signed sizeof static struct switch typedef union
    unsigned void volatile while asm typeof main args scratch own""".split()
)
_RANK = "iwfd"
_LITERAL = re.compile(r"[0-9.e+-]+")
_C_OPERATOR = {"+": "+", "-": "-", "*": "*", "<": "<", "<=": "<=", "==": "=="}


def spelled(name: str) -> str:
    """A name of the kernel as one of C."""
    clean = re.sub(r"\W", "_", name)
    return f"{clean}_" if clean in KEYWORDS or clean != name else clean


def number(value: float, kind: str) -> str:
    """A literal of a kind."""
    if kind == "i":
        return f"{int(value)}LL" if abs(value) >= 2**31 else str(int(value))
    tail = "f" if kind == "f" else ""
    if math.isnan(value):
        return f'__builtin_nan{tail}("")'
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}__builtin_inf{tail}()"
    if tail and abs(value) > 3.4028235677973366e38:
        return f"{'-' if value < 0 else ''}__builtin_inff()"
    return f"{float(value)!r}{tail}"


def cast(text: str, kind: str, to: str) -> str:
    """A value of one kind as another."""
    if kind == to or (kind, to) == ("w", "d"):
        return text
    if (kind, to) == ("w", "f") and _LITERAL.fullmatch(text):
        return f"{text}f"
    return f"({ {'i': 'i64', 'f': 'float', 'd': 'double', 'w': 'double'}[to] })({text})"


def joined(*kinds: str) -> str:
    """The kind in which values meet."""
    return max(kinds, key=_RANK.index)


class Scalars:
    """Prints expressions of one kernel.

    Attributes:
        variables: {buffer: {address: C variable}}: what lives in variables rather than memory.
        functions: scalar functions that were used, to be defined in front.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.variables: dict[str, dict[int, str]] = {}
        self.functions: set[str] = set()
        wide = any(b.dtype is DType.f64 for b in kernel.buffers)
        self.floating = "d" if wide else "f"  # what whole numbers become

    # -- places ------------------------------------------------------------------------------------
    def address(self, b: Buffer, index: tuple[Expr, ...], domain: Domain) -> Expr:
        """Where the element lies, simplified."""
        return simplify(b.layout.address(index), domain)

    def place(self, name: str, index: tuple[Expr, ...], domain: Domain) -> str:
        """The element as something that C can assign to."""
        b = self.kernel.buffer(name)
        at = self.address(b, index, domain)
        named = self.variables.get(name)
        if named is not None:
            assert isinstance(at, Num)
            return named[int(str(at.value))]
        return f"{spelled(name)}[{self.whole(at, domain)}]"

    def loaded(self, name: str, index: tuple[Expr, ...], domain: Domain) -> tuple[str, str]:
        dtype = self.kernel.buffer(name).dtype
        text = self.place(name, index, domain)
        if dtype is DType.bf16 and name not in self.variables:
            return f"get_bf16({text})", "f"
        if dtype is DType.f64:
            return text, "d"
        if dtype is DType.f16 and name not in self.variables:
            return f"(float){text}", "f"
        return (text, "f") if dtype.is_float else (f"(i64){text}", "i")

    def stored(self, name: str, value: Expr, domain: Domain) -> str:
        """A value as the buffer holds it."""
        dtype = self.kernel.buffer(name).dtype
        text, kind = self.text(value, domain)
        if (
            dtype is DType.bool
            and kind == "i"
            and isinstance(value, Call)
            and value.fn in FUNCTIONS
        ):
            return f"({text}) & 1"
        return self.converted(name, dtype, text, kind)

    def converted(self, name: str, dtype: DType, text: str, kind: str) -> str:
        if dtype is DType.bool:
            return f"({text}) != 0"
        if dtype is DType.bf16 and name not in self.variables:
            return f"put_bf16({cast(text, kind, 'f')})"
        if dtype.is_float:
            return cast(text, kind, "d" if dtype is DType.f64 else "f")
        return f"(i64)({text})"

    # -- expressions -------------------------------------------------------------------------------
    def whole(self, e: Expr, domain: Domain) -> str:
        """An expression of whole numbers."""
        text, kind = self.text(e, domain)
        return cast(text, kind, "i")

    def truth(self, e: Expr, domain: Domain) -> str:
        text, kind = self.text(e, domain)
        return text if kind == "i" else f"({text} != 0)"

    def text(self, e: Expr, domain: Domain) -> tuple[str, str]:
        """An expression, and its kind."""
        match e:
            case Num(value):
                kind = "i" if isinstance(value, int) else "w"
                text = number(float(str(value)) if kind == "w" else int(str(value)), kind)
                return (f"({text})" if text.startswith("-") else text), kind
            case Index(name):
                return spelled(name), "i"
            case Load(name, index):
                return self.loaded(name, index, domain)
            case Select(test, then, other):
                (a, ka), (b, kb) = self.text(then, domain), self.text(other, domain)
                kind = self.meet(ka, kb)
                text = self.truth(test, domain)
                return f"({text} ? {cast(a, ka, kind)} : {cast(b, kb, kind)})", kind
            case Call(fn, args) if fn in LOGIC:
                texts = [self.truth(a, domain) for a in args]
                if fn == "not":
                    return f"(!{texts[0]})", "i"
                return f"({texts[0]} {'&&' if fn == 'and' else '||'} {texts[1]})", "i"
            case Call(fn, args):
                return self.call(fn, args, domain)
        raise KernelError("no expression of a kernel", got=e)

    def meet(self, *kinds: str) -> str:
        """The kind of values that meet: a plain number next to whole ones makes floats."""
        kind = joined(*kinds)
        return self.floating if kind == "w" and "i" in kinds else kind

    def call(self, fn: str, args: tuple[Expr, ...], domain: Domain) -> tuple[str, str]:
        parts = [self.text(a, domain) for a in args]
        kind = self.meet(*(k for _, k in parts))
        if fn == "/" and kind == "i":
            kind = self.floating
        if fn == "-" and len(parts) == 1:
            return f"(-{parts[0][0]})", kind
        texts = [cast(t, k, kind) for t, k in parts]
        if fn in _C_OPERATOR or fn == "/":
            text = f"({texts[0]} {_C_OPERATOR.get(fn, fn)} {texts[1]})"
            return text, "i" if fn in COMPARISON else kind
        if fn in ("//", "%") and kind == "i" and positive(args, domain):
            return f"({texts[0]} {fn[0]} {texts[1]})", kind
        if fn in ("//", "%"):
            name = "div" if fn == "//" else "mod"
            return f"{name}_{_suffix(kind)}({', '.join(texts)})", kind
        if fn in ("**", "pow"):
            return self.power(args, texts, kind)
        if fn in ("maximum", "minimum"):
            return extremum(fn[:3], texts, kind), kind
        return self.function(fn, parts)

    def power(self, args: tuple[Expr, ...], texts: list[str], kind: str) -> tuple[str, str]:
        times = small_power(args[1])
        if times is not None:
            return f"({' * '.join([texts[0]] * times)})", kind
        if kind == "i":
            return f"power_i({', '.join(texts)})", kind
        return f"__builtin_pow{'' if kind == 'd' else 'f'}({', '.join(texts)})", kind

    def function(self, fn: str, parts: list[tuple[str, str]]) -> tuple[str, str]:
        f = FUNCTIONS[fn]
        kind = self.meet(*(k for _, k in parts))
        if kind == "w" or (kind == "i" and f.kind != "same"):
            kind = self.floating
        texts = [cast(t, k, kind) for t, k in parts]
        given = "i" if f.kind == "bool" else kind
        if kind == "f":
            self.functions.add(fn)
            return f"{scalar_name(fn)}({', '.join(texts)})", given
        text = f.c.format(*(f"({t})" for t in texts))
        if kind == "i" and "fabs" in f.c:
            text = f"max_i({texts[0]}, -({texts[0]}))"
        return f"({text})", given


def positive(args: tuple[Expr, ...], domain: Domain) -> bool:
    """Is a quotient or remainder of these what C makes of it?"""
    return is_index(args[0]) and isinstance(args[1], Num) and bounds(args[0], domain)[0] >= 0


def small_power(e: Expr) -> int | None:
    """How many factors a power has, where it is spelled out as a product."""
    if isinstance(e, Num) and float(str(e.value)) in (1, 2, 3, 4):
        return int(float(str(e.value)))
    return None


def extremum(how: str, texts: list[str], kind: str) -> str:
    """The greater or smaller of two; what is not a number wins."""
    return f"{how}_{_suffix(kind)}({', '.join(texts)})"


def combined(how: str, old: str, new: str, kind: str) -> str:
    """An update's new value."""
    if how in ("sum", "prod"):
        return f"{old} {'+' if how == 'sum' else '*'} {new}"
    return extremum(how, [old, new], kind)


def neutral(how: str, kind: str) -> str:
    """What an update leaves as it is."""
    return number(ex.REDUCTIONS[how], kind)


def _suffix(kind: str) -> str:
    return "d" if kind == "w" else kind
