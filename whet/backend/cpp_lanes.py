"""Expressions of a vector loop as C: a value for every lane at once.

    kind := F | I | M              floats, whole numbers of 32 bits, truth values, one a lane
          | i | w | f | d          one value for all lanes, as in `cpp_scalar`

The loop's variable has become `W*chunk + lane`. Where a condition differs between lanes, what it
guards is read under a mask, unless it is known to lie inside its buffer. What has no place in
lanes (64-bit data that differs, positions that are read from memory) raises `Plain`: the loop then
runs as a loop of scalars, which is as right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from whet.backend.cpp_functions import vector_name
from whet.backend.cpp_scalar import MEMORY, Scalars, cast, number, small_power, spelled
from whet.ir import expr as ex
from whet.ir.expr import COMPARISON, LOGIC, Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.types import DType
from whet.kernel.affine import LANE, Domain, Form, bounds, build, by_value, form, inside, is_index
from whet.kernel.loops import Buffer

_C = {"+": "+", "-": "-", "*": "*", "/": "/", "<": "<", "<=": "<=", "==": "=="}


class Plain(Exception):
    """This loop is better not run in lanes."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """W iterations of a vector loop.

    Attributes:
        domain: loops around, and the lane.
        tail: C of the mask of iterations that exist, None where all do.
        mask: C of the mask of lanes that get here, None where it is `tail`.
        private: scratch that lives within the loop, so has a value in each lane.
    """

    domain: Domain
    tail: str | None
    mask: str | None
    private: frozenset[str]

    @property
    def active(self) -> str | None:
        return self.mask or self.tail

    def under(self, test: str) -> Chunk:
        """Where a condition holds besides."""
        return self.within(test if self.active is None else f"({self.active} & {test})")

    def within(self, mask: str) -> Chunk:
        """Where a mask is set."""
        return Chunk(self.domain, self.tail, mask, self.private)


class Lanes:
    """Prints expressions in lanes.

    Attributes:
        variables: {buffer: {address: C variable}}: what lives in vectors rather than memory.
    """

    def __init__(self, scalars: Scalars, lanes: int) -> None:
        self.scalars = scalars
        self.kernel = scalars.kernel
        self.width = lanes
        self.variables: Mapping[str, Mapping[int, str]] = {}

    # -- kinds -------------------------------------------------------------------------------------
    def floats(self, text: str, kind: str) -> str:
        match kind:
            case "F":
                return text
            case "I":
                return f"to_f({text})"
            case "M":
                return f"to_f(-{text})"
            case "d":
                raise Plain
        return f"splat({cast(text, kind, 'f')})"

    def wholes(self, text: str, kind: str) -> str:
        match kind:
            case "I":
                return text
            case "M":
                return f"(-{text})"
            case "i":
                return f"splat_i((int)({text}))"
        raise Plain

    def truths(self, text: str, kind: str) -> str:
        match kind:
            case "M":
                return text
            case "F" | "I":
                return f"({text} != 0)"
        return f"splat_i(-(({text}) != 0))"

    # -- places ------------------------------------------------------------------------------------
    def varies(self, e: Expr, at: Chunk) -> bool:
        return LANE in ex.free(e) or any(x.tensor in at.private for x in ex.loads(e))

    def address(self, b: Buffer, index: tuple[Expr, ...], at: Chunk) -> tuple[Form, int]:
        """The first lane's address, and the distance from lane to lane."""
        f = form(self.scalars.address(b, index, at.domain), at.domain)
        step = f.coefficient(LANE)
        rest = f.without(LANE)
        if any(self.varies(atom, at) for atom in rest.terms):
            raise Plain
        return rest, step

    def pointer(self, b: Buffer, rest: Form, at: Chunk) -> str:
        offset = self.scalars.whole(build(rest, at.domain), at.domain)
        return f"{spelled(b.name)} + {offset}"

    def variable(self, name: str, index: tuple[Expr, ...], at: Chunk) -> str | None:
        """The vector that holds the element, if it is kept in one."""
        named = self.variables.get(name)
        if named is None:
            return None
        rest, _ = self.address(self.kernel.buffer(name), index, at)
        if rest.terms or rest.constant not in named:
            raise Plain
        return named[rest.constant]

    def load(self, e: Load, at: Chunk) -> tuple[str, str]:
        b = self.kernel.buffer(e.tensor)
        if b.dtype in (DType.f64, DType.i64):
            raise Plain
        kind = "F" if b.dtype.is_float else "I"
        name = self.variable(e.tensor, e.index, at)
        if name is not None:
            return name, kind
        picked = self.picked(b, e.index, at)
        if picked is not None:
            return picked, kind
        rest, step = self.address(b, e.index, at)
        if b.name in at.private:
            raise Plain
        mask = at.tail
        if at.mask and not all(
            inside(i, n, at.domain) for i, n in zip(e.index, b.sizes, strict=True)
        ):
            mask = at.mask
        return self.fetched(b, rest, step, mask, at), kind

    def picked(self, b: Buffer, index: tuple[Expr, ...], at: Chunk) -> str | None:
        """Elements that lie within one vector, which is read once; None where they do not, or lie
        one step apart."""
        f = form(self.scalars.address(b, index, at.domain), at.domain)
        lanes = at.domain[LANE]
        apart = any(LANE in ex.free(a) and a != Index(LANE) for a in f.terms)
        if not apart or at.mask or not b.dtype.is_float or not isinstance(lanes, int):
            return None
        found = by_value(f, LANE, lanes)
        if found is None:
            return None
        rest, places = found
        first, last = min(places), max(places)
        if last - first >= self.width or any(self.varies(a, at) for a in rest.terms):
            return None
        pointer = self.pointer(b, rest.plus(Form({}, first)), at)
        name, mask = f"ld_{MEMORY[b.dtype]}", f", iota() <= {last - first}"
        whole = (
            f"{name}_m({pointer}{mask})" if last - first + 1 < self.width else f"{name}({pointer})"
        )
        lane = [*(p - first for p in places), *[0] * (self.width - lanes)]
        return f"__builtin_shuffle({whole}, (vi){{{', '.join(map(str, lane))}}})"

    def fetched(self, b: Buffer, rest: Form, step: int, mask: str | None, at: Chunk) -> str:
        arguments = [self.pointer(b, rest, at)]
        if step != 1:
            arguments.append(str(step))
        if mask:
            arguments.append(mask)
        name = ("ld" if step == 1 else "lds") + f"_{MEMORY[b.dtype]}" + ("_m" if mask else "")
        return f"{name}({', '.join(arguments)})"

    def store(self, b: Buffer, rest: Form, step: int, value: tuple[str, str], at: Chunk) -> str:
        """The statement that writes a value for every lane."""
        if b.dtype is DType.f64:
            raise Plain
        if b.dtype.is_float:
            text = self.floats(*value)
        elif b.dtype is DType.bool:
            text = f"(-{self.truths(*value)})"
        else:
            text = self.wholes(*value)
        arguments = [self.pointer(b, rest, at), *([str(step)] if step != 1 else []), text]
        if at.active:
            arguments.append(at.active)
        name = ("st" if step == 1 else "sts") + f"_{MEMORY[b.dtype]}"
        return f"{name}{'_m' if at.active else ''}({', '.join(arguments)});"

    # -- expressions -------------------------------------------------------------------------------
    def text(self, e: Expr, at: Chunk) -> tuple[str, str]:
        """An expression, and its kind."""
        if not self.varies(e, at):
            return self.uniform(e, at)
        match e:
            case Index() | Call() if is_index(e):
                return self.position(e, at), "I"
            case Load():
                return self.load(e, at)
            case Select(test, then, other):
                return self.select(test, then, other, at)
            case Call("not", (a,)):
                return f"(~{self.truths(*self.text(a, at))})", "M"
            case Call(fn, (a, b)) if fn in LOGIC:
                first = self.truths(*self.text(a, at))
                then_at = at.under(first if fn == "and" else f"(~{first})")
                second = self.truths(*self.text(b, then_at))
                return f"({first} {'&' if fn == 'and' else '|'} {second})", "M"
            case Call(fn, args):
                return self.call(fn, args, at)
        raise Plain

    def uniform(self, e: Expr, at: Chunk) -> tuple[str, str]:
        text, kind = self.scalars.text(e, at.domain)
        large = isinstance(e, Num) and isinstance(e.value, int) and abs(e.value) >= 2**31
        if large or (isinstance(e, Load) and self.kernel.buffer(e.tensor).dtype == DType.i64):
            raise Plain  # lanes hold 32 bits
        if at.mask and not all(
            inside(i, n, at.domain)
            for x in ex.loads(e)
            for i, n in zip(x.index, self.kernel.buffer(x.tensor).sizes, strict=True)
        ):
            text = f"(any({at.mask}) ? {text} : 0)"
        return text, kind

    def position(self, e: Expr, at: Chunk) -> str:
        low, high = bounds(e, at.domain)
        f = form(e, at.domain)
        rest, step = f.without(LANE), f.coefficient(LANE)
        if any(self.varies(a, at) for a in rest.terms) or low < -(2**30) or high > 2**30:
            raise Plain
        start = self.scalars.whole(build(rest, at.domain), at.domain)
        lanes = "iota()" if step == 1 else f"iota() * {step}"
        return f"({lanes} + (int)({start}))"

    def select(self, test: Expr, then: Expr, other: Expr, at: Chunk) -> tuple[str, str]:
        if self.varies(test, at):
            where = self.truths(*self.text(test, at))
            a = self.text(then, at.under(where))
            b = self.text(other, at.under(f"(~{where})"))
        else:
            where, (a, b) = "", (self.text(then, at), self.text(other, at))
        kinds = {a[1], b[1]}
        if "d" in kinds:
            raise Plain
        if kinds & {"F", "f", "w"}:
            one, two, kind, suffix = self.floats(*a), self.floats(*b), "F", ""
        else:
            one, two, kind, suffix = self.wholes(*a), self.wholes(*b), "I", "_i"
        if not where:
            lanes = {"F": "vf", "I": "vi"}[kind]  # gcc tells a product of these from what they are
            return (
                f"({self.scalars.truth(test, at.domain)} ? ({lanes}){one} : ({lanes}){two})",
                kind,
            )
        return f"sel{suffix}({where}, {one}, {two})", kind

    def call(self, fn: str, args: tuple[Expr, ...], at: Chunk) -> tuple[str, str]:
        parts = [self.text(a, at) for a in args]
        floating = any(k in "Ffw" for _, k in parts)
        if any(k == "d" for _, k in parts):
            raise Plain
        if fn in COMPARISON:
            make = self.floats if floating else self.wholes
            return f"({make(*parts[0])} {_C[fn]} {make(*parts[1])})", "M"
        if fn in FUNCTIONS and FUNCTIONS[fn].kind != "same":
            floating = True
        if not floating and fn != "/":
            if fn in ("maximum", "minimum"):
                return f"v{fn[:3]}_i({self.wholes(*parts[0])}, {self.wholes(*parts[1])})", "I"
            raise Plain  # whole numbers might need more than 32 bits
        if fn == "/" and parts[1][1] in "fw":
            return f"over({self.floats(*parts[0])}, {cast(*parts[1], 'f')})", "F"
        texts = [self.floats(*p) for p in parts]
        if fn in _C and len(texts) == 2:
            return f"({texts[0]} {_C[fn]} {texts[1]})", "F"
        if fn == "-":
            return f"(-{texts[0]})", "F"
        if fn in ("maximum", "minimum"):
            return f"v{fn[:3]}({texts[0]}, {texts[1]})", "F"
        if fn in ("**", "pow"):
            times = small_power(args[1])
            if times is not None:
                return f"({' * '.join([texts[0]] * times)})", "F"
            fn = "pow"
        if fn not in FUNCTIONS:
            raise Plain
        self.scalars.functions.add(fn)
        return f"{vector_name(fn)}({', '.join(texts)})", "M" if FUNCTIONS[
            fn
        ].kind == "bool" else "F"


def chunk_index(var: str, chunk: Expr, lanes: int) -> Mapping[str, Expr]:
    """What the loop's variable is in a chunk."""
    return {var: ex.call("+", ex.call("*", Num(lanes), chunk), Index(LANE))}


def neutral_lanes(how: str) -> str:
    """What an update leaves as it is, in every lane."""
    return f"splat({number(ex.REDUCTIONS[how], 'f')})"
