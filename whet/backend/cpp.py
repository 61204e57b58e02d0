"""C from scheduled kernels: gcc's vector extensions and OpenMP, no headers.

    function(symbol, kernel, target) -> Made            its text, and the scratch that a call needs
    unit([Made, …], target) -> C text                   one compilation unit, any number of kernels
    void SYMBOL(void *const *args, void *scratch)       inputs, then outputs; all 64-byte aligned

    serial loop      for
    parallel loop    omp for, within one parallel region for neighbouring statements; serial loops
                     around it are run by every thread, other statements there by one
    vector loop      chunks of W lanes (`cpp_vector`); a loop of scalars where lanes cannot hold it
    unrolled loop    written out (`cpp_unroll`)

Any schedule that is legal prints as C that computes the same; how fast it is, is the schedule's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from whet.backend.cpp_functions import definitions, prelude
from whet.backend.cpp_lanes import Lanes, Plain
from whet.backend.cpp_registers import assigned
from whet.backend.cpp_scalar import CTYPES, Scalars, combined, spelled
from whet.backend.cpp_scratch import ALIGN, Places, placed
from whet.backend.cpp_unroll import expanded
from whet.backend.cpp_vector import Vectors
from whet.errors import UnsupportedError
from whet.kernel.affine import Domain
from whet.kernel.ahead import FINE, LINE, Asked, asked
from whet.kernel.loops import (
    Buffer,
    Extent,
    If,
    Kernel,
    Loop,
    Stmt,
    Store,
    Update,
    accesses,
    bound,
    scope,
    walk,
)
from whet.machine.target import Target


@dataclass(frozen=True, slots=True)
class Made:
    """One kernel in C.

    Attributes:
        text: of its function.
        functions: scalar functions of the table that it calls.
        scratch: bytes that a call needs, for all threads together.
    """

    text: str
    functions: frozenset[str]
    scratch: int


def unit(made: Iterable[Made], target: Target) -> str:
    """A compilation unit of any number of kernels."""
    made = list(made)
    used = {fn for m in made for fn in m.functions}
    head = f"#define W {target.lanes}\n{prelude()}\nint omp_get_thread_num(void);\n"
    return "\n".join([head, definitions(used), *(m.text for m in made)])


def function(symbol: str, kernel: Kernel, target: Target) -> Made:
    """A kernel's function.

    Raises:
        UnsupportedError: an element type has no C type.
    """
    kernel = meeting(written_out(kernel))
    plain: set[str] = set()
    while True:
        printer = _Function(kernel, target, plain)
        text = printer.text(symbol)
        if not printer.refused:
            scratch = printer.places.bytes(target.threads)
            return Made(text, frozenset(printer.scalars.functions), scratch)
        plain |= printer.refused  # all of them at once: unrolling makes many loops of one


def written_out(kernel: Kernel) -> Kernel:
    """The kernel without unrolled loops, and without loops of one turn."""
    return kernel.with_body(expanded(kernel.body, {}))


def meeting(kernel: Kernel) -> Kernel:
    """The kernel with scratch in memory where one thread makes what all of them read.

    A variable of a loop's body around parallel loops would be each thread's own.
    """
    for b in kernel.scratch:
        home = scope(kernel, b.name)
        own = any(kernel.loop(var).kind == "parallel" for var in home)
        if b.role == "memory" or not home or own:
            continue
        inside = (s for a in accesses(kernel.body) if a.buffer == b.name for s in a.path)
        shared = {s.var for s in inside if isinstance(s, Loop) and s.kind == "parallel"}
        if shared - set(home):
            kernel = kernel.with_buffer(replace(b, role="memory"))
    return kernel


class _Function:
    """Prints one function; a text with `refused` vector loops in it, which have to be loops of
    scalars, is of no use."""

    def __init__(self, kernel: Kernel, target: Target, plain: set[str]) -> None:
        self.kernel, self.target, self.plain = kernel, target, plain
        self.refused: set[str] = set()
        self.scalars = Scalars(kernel)
        registers = assigned(kernel, target.lanes, plain)
        kept = registers.scalars.keys() | registers.vectors.keys()
        memory = [b for b in kernel.buffers if b.name not in kept]
        self.places: Places = placed(replace(kernel, buffers=tuple(memory)), target.threads)
        self.registers = registers
        self.scalars.variables.update({n: dict(v) for n, v in registers.scalars.items()})
        lanes = Lanes(self.scalars, target.lanes)
        lanes.variables = registers.vectors
        declared = {
            loop: tuple(v for b in bs for v in registers.vectors.get(b.name, {}).values())
            for loop, bs in registers.private.items()
        }
        self.vectors = Vectors(lanes, registers.private, declared)
        self.asked = {one.loop: one for one in asked(kernel, target.l2)}
        self.homes: dict[str, list[Buffer]] = {}
        for b in kernel.scratch:
            home = scope(kernel, b.name)
            self.homes.setdefault(home[-1] if home else "", []).append(b)

    # -- the function ------------------------------------------------------------------------------
    def text(self, symbol: str) -> str:
        lines = [f"void {symbol}(void *const *args, void *scratch) {{", "  (void)scratch;"]
        for k, b in enumerate((*self.kernel.inputs, *self.kernel.outputs)):
            const = "const " if b.role == "in" else ""
            kind = f"{const}{ctype(b)} *"
            lines.append(f"  {kind}restrict {spelled(b.name)} = ({kind})args[{k}];")
        lines += self.declared("", "  ")
        lines += self.top(self.kernel.body)
        return "\n".join([*lines, "}", ""])

    def declared(self, home: str, indent: str) -> Iterator[str]:
        """Scratch that lives in a loop's body."""
        local = {b.name for bs in self.places.local.values() for b in bs}
        for b in self.homes.get(home, ()):
            if b.name in self.registers.vectors or b.name in self.registers.scalars:
                for line in self.registers.declarations(b):
                    yield f"{indent}{line}"
                continue
            if b.name in local:
                count = max(b.layout.elements, 1)
                align = f"__attribute__((aligned({ALIGN})))"
                yield f"{indent}{ctype(b)} {spelled(b.name)}[{count}] {align};"
            else:
                base = "own" if b.name in self.places.own else "(char *)scratch"
                only = "restrict " if self.alone(b) else ""
                offset = self.places.offsets[b.name]
                kind = f"{ctype(b)} *"
                yield f"{indent}{kind}{only}{spelled(b.name)} = ({kind})({base} + {offset});"

    def alone(self, b: Buffer) -> bool:
        """Does no other buffer ever lie where this one does?"""
        low = self.places.offsets[b.name]
        for name, at in self.places.offsets.items():
            other = self.kernel.buffer(name)
            same = (name in self.places.own) == (b.name in self.places.own)
            if name != b.name and same and at < low + b.bytes and low < at + other.bytes:
                return False
        return True

    def top(self, body: Sequence[Stmt]) -> Iterator[str]:
        """Statements of the function; those from the first parallel one to the last in a region."""
        shared = [k for k, s in enumerate(body) if self.forks(s)]
        first, last = (shared[0], shared[-1]) if shared else (len(body), -1)
        for s in body[:first]:
            yield from self.statement(s, {}, "  ")
        if shared:
            yield f"  #pragma omp parallel num_threads({self.target.threads})"
            yield "  {"
            if self.places.own:
                start, each = self.places.shared_bytes, self.places.own_bytes
                yield f"    char *own = (char *)scratch + {start} + omp_get_thread_num() * {each};"
                yield "    (void)own;"
            for k in range(first, last + 1):
                yield from self.region(body[k], {}, "    ", last=k == last)
            yield "  }"
        for s in body[max(last + 1, first) :]:
            yield from self.statement(s, {}, "  ")

    def forks(self, s: Stmt) -> bool:
        """Is there anything in it for more than one thread?"""
        if self.target.threads == 1:
            return False
        return any(isinstance(x, Loop) and x.kind == "parallel" for x in walk((s,)))

    def region(self, s: Stmt, domain: Domain, indent: str, *, last: bool = False) -> Iterator[str]:
        """A statement that every thread of a region meets."""
        if not self.forks(s):
            yield f"{indent}#pragma omp single{' nowait' if last else ''}"
            yield f"{indent}{{"
            yield from self.statement(s, domain, indent + "  ")
            yield f"{indent}}}"
            return
        match s:
            case Loop(kind="parallel"):
                yield f"{indent}#pragma omp for schedule(static){' nowait' if last else ''}"
                yield from self.loop(s, domain, indent)
            case Loop(var, extent, body):
                yield self.header(s, domain, indent)
                yield from self.declared(var, indent + "  ")
                for x in body:
                    yield from self.region(x, {**domain, var: extent}, indent + "  ")
                yield f"{indent}}}"
            case If(test, body):
                yield f"{indent}if ({self.scalars.truth(test, domain)}) {{"
                for x in body:
                    yield from self.region(x, domain, indent + "  ")
                yield f"{indent}}}"

    # -- statements --------------------------------------------------------------------------------
    def statement(self, s: Stmt, domain: Domain, indent: str) -> Iterator[str]:
        match s:
            case Loop():
                yield from self.loop(s, domain, indent)
            case If(test, body):
                yield f"{indent}if ({self.scalars.truth(test, domain)}) {{"
                for x in body:
                    yield from self.statement(x, domain, indent + "  ")
                yield f"{indent}}}"
            case Store(name, index, value):
                place = self.scalars.place(name, index, domain)
                yield f"{indent}{place} = {self.scalars.stored(name, value, domain)};"
            case Update(name, index, how, value):
                old, kind = self.scalars.loaded(name, index, domain)
                new, given = self.scalars.text(value, domain)
                if kind == "i" and given != "i":
                    kind = "d"
                wide = {"i": "i64", "f": "float", "d": "double"}[kind]
                text = combined(how, f"({wide}){old}", f"({wide})({new})", kind)
                dtype = self.kernel.buffer(name).dtype
                place = self.scalars.place(name, index, domain)
                yield f"{indent}{place} = {self.scalars.converted(name, dtype, text, kind)};"

    def loop(self, s: Loop, domain: Domain, indent: str) -> Iterator[str]:
        if s.kind == "vector" and s.var not in self.plain:
            try:
                lines = self.vectors.loop(s, domain, indent + "  ")
            except Plain:
                self.refused.add(s.var)
                return
            yield f"{indent}{{"
            yield from lines
            yield f"{indent}}}"
            return
        yield self.header(s, domain, indent)
        yield from self.declared(s.var, indent + "  ")
        inner: dict[str, Extent] = {**domain, s.var: s.extent}
        if s.var in self.asked:
            yield from self.asking(self.asked[s.var], inner, indent + "  ")
        for x in s.body:
            yield from self.statement(x, inner, indent + "  ")
        yield f"{indent}}}"

    def asking(self, one: Asked, domain: Domain, indent: str) -> Iterator[str]:
        """Requests for lines of an input's next block; past the end of it they do nothing."""
        start, step = (self.scalars.whole(e, domain) for e in (one.start, one.step))
        whole, part = divmod(one.pace, FINE)
        way = (
            f"({step}) * {whole}"
            if not part
            else f"((unsigned long)({step}) * {one.pace} / {FINE})"
        )
        for n in range(one.lines):
            at = f"(const char *)({spelled(one.buffer)} + {start}) + {way} + {n * LINE}"
            yield f"{indent}__builtin_prefetch({at}, 0, 3);"

    def header(self, s: Loop, domain: Domain, indent: str) -> str:
        var, size = spelled(s.var), self.scalars.whole(bound(s.extent), domain)
        return f"{indent}for (i64 {var} = 0; {var} < {size}; {var}++) {{"


def ctype(b: Buffer) -> str:
    """The C type of a buffer's elements."""
    if b.dtype not in CTYPES:
        raise UnsupportedError(
            "an element type without a C type", expected=", ".join(d.value for d in CTYPES),
            got=b.dtype.value, where=b.name,
        )  # fmt: skip
    return CTYPES[b.dtype]
