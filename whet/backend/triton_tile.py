"""One statement over a tile: expressions of index notation as Triton's, axes, masks and all.

    dims     = the tile's axes in order; a value that does not depend on an axis has size 1 there
    Value    = text, kind (f float, i whole, b truth), the axes it depends on, the load it is

A tile is a power of two along each axis. What is beyond an axis' extent is never loaded nor stored,
and is the neutral element where it would be folded. A guard is strict: what it hides is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from whet.backend.triton_words import NEUTRAL_SAME, TYPES, WHOLE, WORDS
from whet.errors import UnsupportedError
from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Select
from whet.ir.functions import FUNCTIONS
from whet.ir.types import DType
from whet.kernel.affine import bounds, inside, simplify
from whet.kernel.block import Launch
from whet.kernel.loops import Buffer, Extent, Kernel, Leaf, Stmt, Store, Update
from whet.kernel.lower import NARROW, neutral
from whet.kernel.pad import LEAST, Widths
from whet.kernel.tidy import conjuncts

FOLDS = {"sum": "tl.sum({0}, axis={1})", "max": "tl.reduce({0}, {1}, w_max)",
         "min": "tl.reduce({0}, {1}, w_min)", "prod": "tl.reduce({0}, {1}, w_product)"}  # fmt: skip


class Writer(Protocol):
    """What a tile is written to; see `whet.backend.triton_text`."""

    k: Kernel
    local: set[str]
    launch: Launch
    widths: Widths
    written: set[str]
    defined: set[str]

    def emit(self, line: str) -> None: ...

    def named(self, text: str, *, once: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Value:
    """See the module's docstring.

    Attributes:
        loaded: the variable that holds it as it lies in memory, and its type; None where it is
            computed.
        literal: a number, as Python says it.
    """

    text: str
    kind: str
    axes: frozenset[str] = frozenset()
    loaded: tuple[str, DType] | None = None
    literal: bool = False


class Tile:
    """One statement; `axes` are the blocks around it, and `domain` has every loop's extent."""

    def __init__(self, out: Writer, domain: Mapping[str, Extent], axes: Sequence[str]) -> None:
        self.out, self.domain, self.k = out, dict(domain), out.k
        self.sizes = {v: out.widths.blocks[v] for v in axes}
        self.dims: tuple[str, ...] = tuple(axes)

    # -- statements --------------------------------------------------------------------------------
    def statement(self, s: Stmt, tests: Sequence[Expr]) -> None:
        assert isinstance(s, (Store, Update))
        if s.buffer in self.out.local:
            self._into_registers(s, tests)
        elif isinstance(s, Update):
            raise UnsupportedError("memory is not folded into", got=s.buffer)
        else:
            self._into_memory(s, tests)

    def _into_memory(self, s: Store, tests: Sequence[Expr]) -> None:
        b = self.k.buffer(s.buffer)
        value = self.value(s.value, tests)
        if b.dtype is DType.bool and value.kind != "b":
            value = Value(f"({value.text} != 0)", "b", value.axes)
        place = self._address(b, s.index)
        if missing := set(self.dims) - place.axes:
            raise UnsupportedError("iterations store to one place", got=", ".join(missing))
        mask = self._mask(self.dims, tests)
        self.out.emit(f"tl.store({b.name} + {place.text}, {value.text}{_given('mask', mask)})")

    def _into_registers(self, s: Leaf, tests: Sequence[Expr]) -> None:
        b = self.k.buffer(s.buffer)
        own = self._places(b, s.index)
        folded = [v for v in self.dims if v not in own]
        if isinstance(s, Store):
            if folded:
                raise UnsupportedError("iterations store to one place", got=", ".join(folded))
            self.dims = own
            text = self._whole(self.value(s.value, tests), own, b.dtype)
            if tests and b.name in self.out.defined:
                text = f"tl.where({self._all(tests)}, {text}, {b.name})"
            self.out.emit(f"{b.name} = {text}")
            self.out.defined.add(b.name)
            return
        if s.how == "sum" and len(folded) == 1 and not tests and self._dot(b, s, own, folded[0]):
            return
        self.dims = (*own, *folded)
        value = self.value(s.value, tests)
        text = self._whole(value, self.dims, b.dtype)
        mask = self._mask(folded, tests)
        if mask:
            start = _number(neutral(s.how, not b.dtype.is_float))
            text = f"tl.where({mask}, {text}, {start})"
        for axis in range(len(self.dims) - 1, len(own) - 1, -1):
            text = FOLDS[s.how].format(text, axis)
        whole = {"sum": "{0} + {1}", "prod": "{0} * {1}", "max": WORDS["maximum"],
                 "min": WORDS["minimum"]}[s.how]  # fmt: skip
        new = whole.format(b.name, text)
        self.out.emit(f"{b.name} = ({new}).to({TYPES[b.dtype]})")

    # -- products ----------------------------------------------------------------------------------
    def _dot(self, b: Buffer, s: Update, own: tuple[str, ...], along: str) -> bool:
        """The update as a product of tiles, where it is one."""
        if len(own) != 2 or b.dtype is not DType.f32:
            return False
        if min(self.sizes[v] for v in (*own, along)) < LEAST:
            return False
        parts = self._factors(s.value)
        if parts is None:
            return False
        sides: list[list[Expr]] = [[], []]
        rest: list[Expr] = []
        for p in parts:
            used = self._axes(p)
            if used >= set(own):
                return False
            (sides[0] if own[0] in used else sides[1] if own[1] in used else rest).append(p)
        if not all(sides):
            return False
        sides[0] += rest
        left = self._side(sides[0], (own[0], along), along)
        right = self._side(sides[1], (along, own[1]), along)
        kinds = [*left[1], *right[1]]
        narrow = {t for t in kinds if t is not None}
        to = narrow.pop() if len(narrow) == 1 else DType.f32
        if to not in NARROW:
            to = DType.f32
        texts = [self._as(side, to) for side in (left, right)]
        precision = f', input_precision="{self.out.launch.precision}"' if to is DType.f32 else ""
        self.out.emit(f"{b.name} = tl.dot({texts[0]}, {texts[1]}, {b.name}{precision})")
        return True

    def _factors(self, e: Expr) -> list[Expr] | None:
        """What is multiplied; a condition around a product belongs to each factor that it may."""
        match e:
            case Call("*", (a, b)):
                left, right = self._factors(a), self._factors(b)
                return None if left is None or right is None else [*left, *right]
            case Select(test, then, other) if other == ex.ZERO:
                inner = self._factors(then)
                if inner is None or len(inner) < 2:
                    return [e]
                used = self._axes(test)
                for n, p in enumerate(inner):
                    if used <= self._axes(p):
                        return [*inner[:n], Select(test, p, other), *inner[n + 1 :]]
                return None
        return [e]

    def _axes(self, e: Expr) -> set[str]:
        return {v for v in ex.free(e) if v in self.sizes}

    def _side(
        self, parts: Sequence[Expr], dims: tuple[str, str], along: str
    ) -> tuple[Value, list[DType | None], tuple[str, str]]:
        """A side of a product over its own two axes, zero beyond what is summed over."""
        self.dims = dims
        e = parts[0]
        for p in parts[1:]:
            e = Call("*", (e, p))
        value = self.value(e, ())
        kinds = [
            self.k.buffer(x.tensor).dtype if x.tensor not in self.out.local else None
            for x in ex.loads(e)
        ]
        kinds = [t for t in kinds if t is None or t.is_float]
        clean = isinstance(e, Load) or (
            isinstance(e, Select) and isinstance(e.then, Load) and e.other == ex.ZERO
        )
        if not (clean and value.loaded) and (mask := self._mask((along,), ())):
            value = Value(f"tl.where({mask}, {value.text}, 0.0)", "f", value.axes | {along})
        return value, kinds, dims

    def _as(self, side: tuple[Value, list[DType | None], tuple[str, str]], to: DType) -> str:
        value, _, dims = side
        self.dims = dims
        if value.loaded and value.loaded[1] is to and value.axes == set(dims):
            return value.loaded[0]
        return f"({self._whole(value, dims, to)})"

    # -- values ------------------------------------------------------------------------------------
    def scalar(self, e: Extent) -> str:
        """A number that no axis changes."""
        return str(e) if isinstance(e, int) else self.value(e, ()).text

    def truth(self, e: Expr) -> str:
        """A condition."""
        return _true(self.value(e, ()))

    def value(self, e: Expr, tests: Sequence[Expr]) -> Value:
        """An expression; loads in it are made where `tests` hold, and nowhere else."""
        match e:
            case Num(n):
                whole = not isinstance(n, float)
                return Value(_number(e), "i" if whole else "f", literal=True)
            case Index(name):
                return self._index(name)
            case Load():
                return self._load(e, tests, None)
            case Select(test, then, other):
                return self._select(test, then, other, tests)
            case Call(fn, args):
                return self._call(fn, [self.value(a, tests) for a in args], e)
        raise UnsupportedError("an expression that tiles do not know", got=ex.show(e))

    def _index(self, name: str) -> Value:
        if name not in self.sizes:
            return Value(name, "i")
        if name not in self.dims:
            raise UnsupportedError("a product's side depends on the other's axis", got=name)
        text = f"tl.arange(0, {self.sizes[name]}){self._spread([name])}"
        return Value(text, "i", frozenset({name}))

    def _spread(self, axes: Sequence[str]) -> str:
        """How axes, in order, stand among all dims."""
        if len(axes) == len(self.dims):
            return ""
        return "[" + ", ".join(":" if v in axes else "None" for v in self.dims) + "]"

    def _select(self, test: Expr, then: Expr, other: Expr, tests: Sequence[Expr]) -> Value:
        seen = [*tests, *conjuncts(test)]
        if isinstance(then, Load) and isinstance(other, Num) and not tests:
            if then.tensor not in self.out.local:
                return self._load(then, seen, other)
        cond = self.value(test, tests)
        a, b = self.value(then, seen), self.value(other, [*tests, Call("not", (test,))])
        kind = a.kind if a.kind == b.kind else "f" if "f" in (a.kind, b.kind) else "i"
        left, right = (_numeric(v) if kind != "b" else v.text for v in (a, b))
        axes = cond.axes | a.axes | b.axes
        return Value(f"tl.where({_true(cond)}, {left}, {right})", kind, axes)

    def _call(self, fn: str, args: list[Value], e: Call) -> Value:
        axes = frozenset().union(*(a.axes for a in args))
        kind = "f" if any(a.kind == "f" for a in args) else "i"
        if fn in ex.LOGIC:
            truths = [_true(a) for a in args]
            text = f"({truths[0]} == 0)" if fn == "not" else _LOGIC[fn].format(*truths)
            return Value(text, "b", axes)
        texts = [_numeric(a) for a in args]
        if fn in ex.COMPARISON:
            return Value(f"({texts[0]} {fn} {texts[1]})", "b", axes)
        match fn:
            case "+" | "-" | "*":
                return Value(f"({texts[0]} {fn} {texts[1]})", kind, axes)
            case "/":
                return Value(f"({texts[0]} / {texts[1]})", "f", axes)
            case "//" | "%":
                return self._division(fn, texts, kind, axes, e)
            case "**" | "pow":
                return self._power(args, texts, kind, axes, e)
        if fn not in WORDS:
            raise UnsupportedError("a function without a word in Triton", got=fn)
        if kind == "i" and fn in NEUTRAL_SAME:
            return Value(texts[0], kind, axes)
        if kind == "i" and (FUNCTIONS[fn].kind == "float" or fn in ("isnan", "isinf")):
            texts = [f"({t} * 1.0)" if a.literal else f"({t}).to(tl.float32)"
                     for t, a in zip(texts, args, strict=True)]  # fmt: skip
        if fn in WHOLE and all(a.kind == "b" for a in args) and fn != "bitwise_not":
            return Value(WORDS[fn].format(*(a.text for a in args)), "b", axes)
        if all(a.literal for a in args):
            texts = [f"tl.full([], {t}, tl.float32)" for t in texts]
        elif WORDS[fn].count("{0}") > 1 and not texts[0].isidentifier():
            texts = [self.out.named(texts[0], once=False), *texts[1:]]
        kinds = {"float": "f", "same": kind, "bool": "b"}
        return Value(WORDS[fn].format(*texts), kinds[FUNCTIONS[fn].kind], axes)

    def _division(
        self, fn: str, texts: list[str], kind: str, axes: frozenset[str], e: Call
    ) -> Value:
        a, b = texts
        if kind == "f":
            low = f"tl.floor({a} / {b})"
            return Value(low if fn == "//" else f"({a} - {b} * {low})", "f", axes)
        known = bounds(e.args[0], self.domain)[0] >= 0 and bounds(e.args[1], self.domain)[0] > 0
        if known:
            return Value(f"({a} {fn} {b})", "i", axes)
        return Value(f"{'w_floordiv' if fn == '//' else 'w_mod'}({a}, {b})", "i", axes)

    def _power(
        self, args: list[Value], texts: list[str], kind: str, axes: frozenset[str], e: Call
    ) -> Value:
        power = e.args[1].value if isinstance(e.args[1], Num) else None
        if power in (0.5, -0.5):
            return Value(WORDS["sqrt" if power == 0.5 else "rsqrt"].format(texts[0]), "f", axes)
        if not isinstance(power, (int, float)) or power != int(power) or not 0 < abs(power) <= 8:
            raise UnsupportedError("a power without a word in Triton", got=ex.show(e))
        base = texts[0] if args[0].literal else self.out.named(texts[0], once=False)
        text = "(" + " * ".join([base] * int(abs(power))) + ")"
        return Value(text if power > 0 else f"(1.0 / {text})", kind if power > 0 else "f", axes)

    # -- elements ----------------------------------------------------------------------------------
    def _load(self, e: Load, tests: Sequence[Expr], other: Num | None) -> Value:
        b = self.k.buffer(e.tensor)
        if b.name in self.out.local:
            return self._register(b, e.index)
        place = self._address(b, e.index)
        near = [t for t in tests if self._axes(t) <= place.axes]
        far = [t for t in tests if t not in near]
        sure = all(inside(i, n, self.domain) for i, n in zip(e.index, b.sizes, strict=True))
        if other is None and sure:
            near, far = [], []
        text, axes = place.text, place.axes
        if far and (other is not None or not sure):
            cond = self.value(self._and(far), ())
            text, axes = f"({text} + 0 * {_true(cond)}.to(tl.int32))", axes | cond.axes
            near = list(tests)
        mask = self._mask(sorted(axes & place.axes, key=self.dims.index), near)
        fill = _number(other) if other is not None else "0.0" if b.dtype.is_float else "0"
        made = f"tl.load({b.name} + {text}{_given('mask', mask)}"
        made += (_given("other", fill) if mask else "") + ")"
        raw = self.out.named(made, once=b.name not in self.out.written)
        kind = "f" if b.dtype.is_float else "b" if b.dtype is DType.bool else "i"
        if b.dtype in NARROW:
            return Value(f"{raw}.to(tl.float32)", kind, axes, (raw, b.dtype))
        if kind == "b":
            return Value(f"({raw} != 0)", kind, axes)
        return Value(raw, kind, axes, (raw, b.dtype))

    def _address(self, b: Buffer, index: Sequence[Expr]) -> Value:
        place = self.value(simplify(b.layout.address(index), self.domain), ())
        if b.layout.elements >= 1 << 31:
            wide = [v for v in ex.free(b.layout.address(index)) if v not in self.sizes]
            if wide:
                names = {v: Index(f"{v}.to(tl.int64)") for v in wide}
                at = ex.substitute(simplify(b.layout.address(index), self.domain), names)
                place = replace(self.value(at, ()), axes=place.axes)
        return place

    def _places(self, b: Buffer, index: Sequence[Expr]) -> tuple[str, ...]:
        """The axes that run through a tile in registers, in the order of its dims."""
        found = []
        for dim, (i, n) in enumerate(zip(index, b.sizes, strict=True)):
            if n == 1 and i == ex.ZERO:
                continue
            if not isinstance(i, Index) or i.name not in self.sizes:
                raise UnsupportedError("a tile is reached along its axes only", got=ex.show(i),
                                       where=f"{b.name}{list(b.sizes)}")  # fmt: skip
            if self.sizes[i.name] != self.out.widths.dim(b.name, dim, n):
                raise UnsupportedError("a tile is reached as a whole", expected=n,
                                       got=self.sizes[i.name], where=b.name)  # fmt: skip
            found.append(i.name)
        if len(set(found)) != len(found):
            raise UnsupportedError("a tile's diagonal", got=b.name)
        return tuple(found)

    def _register(self, b: Buffer, index: Sequence[Expr]) -> Value:
        own = self._places(b, index)
        text = b.name
        order = sorted(own, key=self.dims.index)
        if list(own) != order:
            turned = ", ".join(str(own.index(v)) for v in order)
            text = f"tl.permute({text}, ({turned}))"
        text += self._spread(order) if order else ""
        kind = "f" if b.dtype.is_float else "b" if b.dtype is DType.bool else "i"
        return Value(text, kind, frozenset(own))

    # -- shapes and masks --------------------------------------------------------------------------
    def _whole(self, v: Value, dims: Sequence[str], to: DType) -> str:
        """A value over all of `dims`, of a type."""
        shape = ", ".join(str(self.sizes[d]) for d in dims)
        text, word = _numeric(v), TYPES[to]
        if to is DType.bool:
            text = _true(v)
        if v.literal or not v.axes:
            return f"tl.full([{shape}], {text}, {word})"
        if v.axes != set(dims):
            text = f"tl.broadcast_to({text}, [{shape}])"
        return f"({text}).to({word})"

    def _and(self, tests: Sequence[Expr]) -> Expr:
        total = tests[0]
        for t in tests[1:]:
            total = Call("and", (total, t))
        return total

    def _all(self, tests: Sequence[Expr]) -> str:
        return self.truth(self._and(tests))

    def _mask(self, axes: Iterable[str], tests: Sequence[Expr]) -> str:
        """Where axes are within their extents and tests hold; empty where that is everywhere."""
        parts = []
        for v in axes:
            n = self.domain[v]
            if n != self.sizes[v]:
                parts.append(f"({self._index(v).text} < {self.scalar(n)})")
        parts += [self.truth(t) for t in dict.fromkeys(tests)]
        return " & ".join(parts)


_LOGIC: Mapping[str, str] = {"and": "({0} & {1})", "or": "({0} | {1})"}


def _given(name: str, text: str) -> str:
    return f", {name}={text}" if text else ""


def _number(e: Expr) -> str:
    assert isinstance(e, Num)
    n = e.value
    if isinstance(n, float) and (math.isinf(n) or math.isnan(n)):
        return f'float("{n}")'
    text = repr(n)
    return f"({text})" if text.startswith("-") else text


def _true(v: Value) -> str:
    return v.text if v.kind == "b" else f"({v.text} != 0)"


def _numeric(v: Value) -> str:
    return f"({v.text}).to(tl.int32)" if v.kind == "b" else v.text
