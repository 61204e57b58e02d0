"""A scheduled kernel as Triton: parallel loops are the grid, and blocks are tiles.

    Kernel → Module = text, (Program, …)            one launch each parallel loop of the body
    Program         = name, grid, buffers           buffers: the pointers that it takes, in order

What a loop is decides how it is said: `parallel` is the program's number (or a for over tiles, as
many at a time as there are persistent programs), `serial` a for, `unroll`
a static range; nested blocks around one statement are one expression over a tile. Extents of tiles
are padded to powers of two and masked. Scratch that one program uses is a tile in registers;
what several use is the caller's memory, since they wait for one another only at launches.
A sum over one axis of a product of two tiles, with nothing shared but that axis, is a `tl.dot`
(`whet.backend.triton_tile`). Loads of what the program does not write are made once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from whet.backend.triton_tile import Tile
from whet.backend.triton_words import HELPERS, TYPES, prelude
from whet.errors import UnsupportedError
from whet.ir.expr import Expr
from whet.kernel.block import Launch
from whet.kernel.legal import writes
from whet.kernel.limits import Grid, grid_of, launches
from whet.kernel.loops import Buffer, Extent, If, Kernel, Loop, Stmt, Store, Update, touched
from whet.kernel.pad import widths

HEAD = """\
import triton
import triton.language as tl
{helpers}
"""


@dataclass(frozen=True, slots=True)
class Program:
    """One launch.

    Attributes:
        name: of the function.
        grid: programs that run.
        buffers: names of the kernel's buffers that it takes pointers to, in order.
    """

    name: str
    grid: int
    buffers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel in Triton.

    Attributes:
        text: a whole Python module.
        programs: in the order in which they run.
        launch: how.
        buffers: of the kernel, which says their types and sizes.
    """

    text: str
    programs: tuple[Program, ...]
    launch: Launch
    buffers: tuple[Buffer, ...]

    @property
    def workspace(self) -> tuple[Buffer, ...]:
        """Scratch that the caller gives: what one program leaves for another."""
        taken = {name for p in self.programs for name in p.buffers}
        return tuple(b for b in self.buffers if b.is_scratch and b.name in taken)


def module(name: str, k: Kernel, launch: Launch) -> Module:
    """A scheduled kernel as Triton.

    Raises:
        UnsupportedError: a function or type has no word; a buffer that lives in a loop cannot be a
            tile, for it is read at other places than it was written; a loop that tiles do not know.
    """
    groups = launches(k.body, launch.beside)
    used = [touched(g) for g in groups]
    local = {b.name for b in k.scratch if sum(b.name in u for u in used) == 1}
    texts, programs = [], []
    for n, group in enumerate(groups):
        p = _Writer(k, local, launch)
        grid = p.top(group)
        program = Program(f"{name}_{n}", grid, p.pointers(group))
        texts.append(p.function(program))
        programs.append(program)
    body = "\n\n".join(texts)
    text = HEAD.format(helpers=prelude(_used(body))) + body
    return Module(text, tuple(programs), launch, k.buffers)


def _used(body: str) -> str:
    """A text with the names of helpers that the body needs."""
    return " ".join(name for name in HELPERS if name in body)


class _Writer:
    """One program's text."""

    def __init__(self, k: Kernel, local: set[str], launch: Launch) -> None:
        self.k, self.local, self.launch, self.widths = k, local, launch, widths(k)
        self.lines: list[str] = []
        self.indent = "    "
        self.known: list[dict[str, str]] = [{}]  # loads made, by text, innermost scope last
        self.defined: set[str] = set()
        self.written: set[str] = set()
        self.count = 0

    def pointers(self, body: tuple[Stmt, ...]) -> tuple[str, ...]:
        used = touched(body)
        return tuple(b.name for b in self.k.buffers if b.name in used and b.name not in self.local)

    def function(self, p: Program) -> str:
        head = f"@triton.jit\ndef {p.name}({', '.join(p.buffers)}):"
        return "\n".join([head, *(self.lines or ["    pass"])]) + "\n"

    # -- what tiles ask of it ----------------------------------------------------------------------
    def emit(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def named(self, text: str, *, once: bool) -> str:
        """A variable with that value; the same one again where `once`, and it is in scope."""
        if once:
            for scope in self.known:
                if text in scope:
                    return scope[text]
        name = f"v{self.count}"
        self.count += 1
        self.emit(f"{name} = {text}")
        if once:
            self.known[-1][text] = name
        return name

    # -- statements --------------------------------------------------------------------------------
    def top(self, body: tuple[Stmt, ...]) -> int:
        """One launch; gives how many programs run it."""
        self.written = writes(body)
        grids = [grid_of(s) for s in body]
        tiles = sum(g.programs for g in grids)
        if not any(g.axes for g in grids):
            self.body(body, {})
            return 1
        here = self.launch.persistent if 0 < self.launch.persistent < tiles else 0
        if here:
            self._opened(f"for tile in range(tl.program_id(0), {tiles}, {here}):")
        number, first = "tile" if here else "tl.program_id(0)", 0
        for g in grids:
            if len(grids) > 1:
                bounds = f"({number} >= {first}) & ({number} < {first + g.programs})"
                self._opened(f"if {bounds}:")
            self._tiles(g, f"({number} - {first})" if first else number)
            first += g.programs
            if len(grids) > 1:
                self._closed()
        if here:
            self._closed()
        return here or tiles

    def _tiles(self, g: Grid, number: str) -> None:
        """One nest; which of its tiles is told from a number."""
        step = 1
        for n, axis in enumerate(reversed(g.axes)):
            text = number + (f" // {step}" if step > 1 else "")
            last = n == len(g.axes) - 1
            self.emit(f"{axis.var} = {text}" + ("" if last else f" % {axis.extent}"))
            step *= int(str(axis.extent))
        self.body(g.body, {a.var: a.extent for a in g.axes})

    def body(self, body: Iterable[Stmt], domain: Mapping[str, Extent]) -> None:
        for s in body:
            match s:
                case Loop(kind="block") | Store() | Update():
                    self._tile(s, domain)
                case Loop(var, extent, inner, kind) if kind in ("serial", "unroll"):
                    if kind == "unroll":
                        head = f"tl.static_range({extent})"
                    else:
                        head = f"range(0, {Tile(self, domain, ()).scalar(extent)})"
                    self._nested(f"for {var} in {head}:", inner, {**domain, var: extent})
                case If(test, inner):
                    text = Tile(self, domain, ()).truth(test)
                    self._nested(f"if {text}:", inner, domain)
                case _:
                    raise UnsupportedError("a loop that tiles do not know", got=s)

    def _nested(self, head: str, body: Iterable[Stmt], domain: Mapping[str, Extent]) -> None:
        self._opened(head)
        self.body(body, domain)
        self._closed()

    def _opened(self, head: str) -> None:
        self.emit(head)
        self.indent += "    "
        self.known.append({})

    def _closed(self) -> None:
        self.known.pop()
        self.indent = self.indent[:-4]

    def _tile(
        self, s: Stmt, domain: Mapping[str, Extent], axes: tuple[str, ...] = (),
        tests: tuple[Expr, ...] = (),
    ) -> None:  # fmt: skip
        """Statements over blocks, each for all of a tile."""
        match s:
            case Loop(var, extent, inner, kind):
                if kind != "block":
                    raise UnsupportedError("a tile holds blocks only", got=f"{kind} {var}")
                for x in inner:
                    self._tile(x, {**domain, var: extent}, (*axes, var), tests)
            case If(test, inner):
                for x in inner:
                    self._tile(x, domain, axes, (*tests, test))
            case _:
                Tile(self, domain, axes).statement(s, tests)


def signature(m: Module, p: Program) -> dict[str, str]:
    """Types of a program's pointers, as the compiler calls them."""
    by_name = {b.name: b for b in m.buffers}
    short = {t: _short(word) for t, word in TYPES.items()}
    return {name: f"*{short[by_name[name].dtype]}" for name in p.buffers}


def _short(word: str) -> str:
    """The compiler's short name of a type."""
    kind = word.removeprefix("tl.")
    names = {"float": "fp", "bfloat": "bf", "uint": "u", "int": "i"}
    for long, short in names.items():
        if kind.startswith(long):
            return short + kind.removeprefix(long)
    return kind


__all__ = ["Module", "Program", "module", "signature"]
