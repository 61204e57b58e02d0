"""The C text of a native program: one function that makes every call of the body in its place.

    int NAME(void *const *in, void *const *out, void *const *constants, void *arena)
    int NAME_timed(…, double *seconds)    the same; seconds[k] is when call k ended, [-1] the start
    void NAME_close(void *arena)          gives back what an arena holds of the library's

    arena := frame, scratch, values          frame: torch's handles of places in this arena, made at
                                             its first use; it must hold zeros before that

Nothing but calls stands between kernels: no allocation of ours, no Python. Tensors that a library
returns are held in the frame until their last use. A call that fails ends the program with a number
other than 0, and what was held is given back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from whet.backend.boxed import DECLARED
from whet.backend.piece import (
    Body,
    Generated,
    Handle,
    Library,
    Packed,
    Piece,
    Pointer,
    Strides,
    Value,
    dense,
    same_strides,
)
from whet.backend.shim import PROTOTYPES
from whet.run.memory import ALIGNMENT, Plan, Storage

PRELUDE = """\
typedef int int32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef struct tensor *Tensor;
int aoti_torch_create_tensor_from_blob(void *, int64_t, const int64_t *, const int64_t *, int64_t,
                                       int32_t, int32_t, int32_t, Tensor *);
int aoti_torch_new_tensor_handle(Tensor, Tensor *);
int aoti_torch_delete_tensor_object(Tensor);
int aoti_torch_get_data_ptr(Tensor, void **);
int aoti_torch_get_strides(Tensor, int64_t **);
int aoti_torch_empty_strided(int64_t, const int64_t *, const int64_t *, int32_t, int32_t, int32_t,
                             Tensor *);
int aoti_torch_copy_(Tensor, Tensor, int32_t);
struct moment { long s, ns; };
int clock_gettime(int, struct moment *);
static const double whet_zero = 0, *const whet_nil_ = &whet_zero;
#define whet_nil (*(const double **)&whet_nil_)
static const char *whet_none = "";
static inline double whet_now(void) {
  struct moment t;
  clock_gettime(1, &t);
  return t.s + 1e-9 * t.ns;
}
static inline Tensor whet_blob(void *p, int n, const int64_t *sizes, const int64_t *strides,
                               int type) {
  Tensor t = 0;
  return aoti_torch_create_tensor_from_blob(p, n, sizes, strides, 0, type, 0, 0, &t) ? 0 : t;
}
static inline void whet_drop(Tensor *t) {
  if (*t) aoti_torch_delete_tensor_object(*t);
  *t = 0;
}
/* What a library returned, in the layout that was planned; copied where it chose another one. */
static inline int whet_take(Tensor *t, int n, const int64_t *sizes, const int64_t *strides,
                            int type, void **p) {
  int64_t *got;
  if (aoti_torch_get_strides(*t, &got)) return 1;
  for (int i = 0; i < n; i++)
    if (sizes[i] > 1 && got[i] != strides[i]) {
      Tensor other;
      if (aoti_torch_empty_strided(n, sizes, strides, type, 0, -1, &other)) return 1;
      int failed = aoti_torch_copy_(other, *t, 0);
      aoti_torch_delete_tensor_object(*t);
      *t = other;
      if (failed) return 1;
      break;
    }
  return aoti_torch_get_data_ptr(*t, p);
}
"""

TYPES = {  # torch's numbers of element types
    "u8": 0, "i8": 1, "i16": 2, "i32": 3, "i64": 4, "f16": 5, "f32": 6, "f64": 7, "c64": 9,
    "bool": 11, "bf16": 15,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Constant:
    """An entry of `constants`: the address of a packed value, or its handle seen in a shape."""

    packed: Packed
    handle: bool = False
    shape: tuple[int, ...] | None = None
    strides: Strides | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """The text, what it wants for constants, and bytes of an arena, frame included."""

    text: str
    constants: tuple[Constant, ...]
    arena: int


def entry(body: Body, plan: Plan, name: str) -> Entry:
    """The C text of a body under a plan."""
    return _Writer(body, plan, name).entry()


@dataclass
class _Writer:
    body: Body
    plan: Plan
    name: str
    constants: dict[Constant, int] = field(default_factory=dict)
    views: dict[tuple[int, tuple[int, ...], Strides, int], int] = field(default_factory=dict)
    arrays: dict[tuple[int, ...], str] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)  # handles of the call at hand
    lines: list[str] = field(default_factory=list)

    def entry(self) -> Entry:
        given = [s for s in self.plan.storages if s.kind in ("given", "loose")]
        first: dict[int, list[Storage]] = {}
        last: dict[int, list[Storage]] = {}
        for s in given:
            last.setdefault(s.last, []).append(s)
            if s.kind == "loose":
                first.setdefault(s.first, []).append(s)
        for step, piece in enumerate(self.body.pieces):
            for s in first.get(step, ()):
                sizes, strides = self._array((s.bytes,)), self._array((1,))
                self.lines.append(
                    f"  if (aoti_torch_empty_strided(1, {sizes}, {strides}, 0, 0, -1,"
                    f" &f->given[{s.index}]) ||"
                    f" aoti_torch_get_data_ptr(f->given[{s.index}], &g[{s.index}])) goto failed;"
                )
            self._piece(step, piece)
            for s in last.get(step, ()):
                self.lines.append(f"  whet_drop(&f->given[{s.index}]);")
        for k, v in self.plan.copies:
            self._out(k, self._address(v), v.bytes)
        for k, r in enumerate(self.body.results):
            if isinstance(r, Packed):
                self._out(k, self._constant(Constant(r)), Value(r.node).bytes)
        for s in last.get(len(self.body.pieces), ()):
            self.lines.append(f"  whet_drop(&f->given[{s.index}]);")
        pointers = 1 + max(1, len(self.views)) + max(1, len(given))
        frame = -(-8 * pointers // ALIGNMENT) * ALIGNMENT
        return Entry(self._text(frame, len(given)), tuple(self.constants), frame + self.plan.arena)

    def _text(self, frame: int, given: int) -> str:
        calls = [p.call for p in self.body.pieces]
        sources = {c.function: c.source for c in calls if isinstance(c, Library)}
        symbols = dict.fromkeys(c.symbol for c in calls if isinstance(c, Generated))
        opened = [
            f"  if (!(f->h[{i}] = whet_blob(a + {offset}, {len(shape)}, {self._array(shape)},"
            f" {self._array(strides)}, {kind}))) return 1;"
            for (offset, shape, strides, kind), i in self.views.items()
        ]
        lines = [PRELUDE]
        if any(sources.values()):
            lines.append(DECLARED)
        for f, source in sources.items():
            lines.append(source or PROTOTYPES[f].replace(" F(", f" {f}("))
        lines += [f"void {s}(void *const *, void *);" for s in symbols]
        for values, array in self.arrays.items():
            listed = ", ".join(map(str, values)) or 0
            lines.append(f"static const int64_t {array}[] = {{{listed}}};")
        lines.append(
            f"struct frame {{ long ready; Tensor h[{max(1, len(self.views))}],"
            f" given[{max(1, given)}]; }};"
        )
        n = self.name
        lines.append(f"void {n}_close(void *arena) {{\n  struct frame *f = arena;")
        lines.append(f"  for (int i = 0; i < {len(self.views)}; i++) whet_drop(&f->h[i]);")
        lines.append(f"  for (int i = 0; i < {given}; i++) whet_drop(&f->given[i]);")
        lines.append("  f->ready = 0;\n}")
        lines.append(f"static int {n}_open(struct frame *f, char *a) {{")
        lines += opened
        lines.append("  f->ready = 1;\n  return 0;\n}")
        lines.append(
            f"static inline __attribute__((always_inline)) int {n}_run(void *const *in,"
            " void *const *out, void *const *constants, void *arena, double *seconds) {"
        )
        lines.append("  struct frame *const f = arena;")
        lines.append(f"  char *const scratch = (char *)arena + {frame}, *const a = scratch;")
        lines.append(f"  void *g[{max(1, given)}];")
        lines.append(f"  if (!f->ready && {n}_open(f, a)) goto failed;")
        lines.append("  (void)in, (void)out, (void)constants, (void)scratch, (void)g;")
        lines.append("  if (seconds) seconds[-1] = whet_now();")
        lines += self.lines
        lines.append(f"  return 0;\nfailed:\n  {n}_close(arena);\n  return 1;\n}}")
        heads = "void *const *in, void *const *out, void *const *constants, void *arena"
        lines.append(
            f"int {n}({heads}) {{ return {n}_run(in, out, constants, arena, 0); }}\n"
            f"int {n}_timed({heads}, double *seconds)"
            f" {{ return {n}_run(in, out, constants, arena, seconds); }}\n"
        )
        return "\n".join(lines)

    # -- one call ---------------------------------------------------------------------------------
    def _piece(self, step: int, piece: Piece) -> None:
        slots: list[Value | Packed | None] = [*piece.operands, *piece.results]
        names = "+".join(n.op for n in piece.nodes) or "copy"
        self.lines.append(f"  /* {step}: {names} */")
        if isinstance(piece.call, Generated):
            listed = ", ".join(self._slot(s) for s in slots)
            self.lines.append(
                f"  {{ void *args[] = {{{listed}}}; {piece.call.symbol}(args, scratch); }}"
            )
        else:
            self._library(piece.call, piece, slots)
        self.lines.append(f"  if (seconds) seconds[{step}] = whet_now();")

    def _slot(self, slot: Value | Packed | None) -> str:
        if slot is None:
            return "0"
        if isinstance(slot, Packed):
            return self._constant(Constant(slot))
        return self._address(slot)

    def _library(self, call: Library, piece: Piece, slots: Sequence[Value | Packed | None]) -> None:
        self.extra = []
        arguments = [self._argument(a, slots) for a in call.arguments]
        body: list[str] = []
        if call.before:
            pointers = ", ".join(f"*p{k} = {self._slot(s)}" for k, s in enumerate(slots))
            used = ", ".join(f"(void)p{k}" for k in range(len(slots)))
            body += [f"char {pointers};", f"{used};", call.before]
        for k, made in enumerate(self.extra):
            body.append(f"Tensor x{k} = {made};")
        results = [self._storage(v) for v in piece.results] if call.gives else []
        arguments += [f"&f->given[{s.index}]" for s in results]
        arguments += [f"&r{k}" for k in range(len(results), call.gives)]
        body += [f"Tensor r{k} = 0;" for k in range(len(results), call.gives)]
        text = f"{call.function}({', '.join(arguments)})"
        if not call.source and PROTOTYPES[call.function].startswith("void"):
            body += [f"{text};"]
            failed = ""
        else:
            body.append(f"int failed = {text};")
            failed = "  if (failed) goto failed;"
        body += [f"whet_drop(&x{k});" for k in range(len(self.extra))]
        body += [f"whet_drop(&r{k});" for k in range(len(results), call.gives)]
        body += [failed] if failed else []
        for v, s in zip(piece.results, results, strict=False):
            body.append(
                f"if (whet_take(&f->given[{s.index}], {len(v.shape)}, {self._array(v.shape)},"
                f" {self._array(v.strides)}, {_type(v)}, &g[{s.index}])) goto failed;"
            )
        self.lines += ["  {", *(f"    {line.strip()}" for line in body), "  }"]

    def _argument(self, argument: object, slots: Sequence[Value | Packed | None]) -> str:
        match argument:
            case str():
                return argument
            case Pointer(k):
                return f"(void *)({self._slot(slots[k])})"
            case Handle(k, optional, shape, strides, packed):
                slot = slots[k]
                if slot is None:
                    return "0"
                if isinstance(slot, Packed):
                    if packed:
                        shape = strides = None
                    text = self._constant(Constant(slot, True, shape, strides))
                else:
                    text = self._handle(slot, shape, strides)
                return f"&(Tensor){{{text}}}" if optional else text
        raise TypeError(argument)

    def _handle(self, v: Value, shape: tuple[int, ...] | None, strides: Strides | None) -> str:
        """The handle of a value, seen in a shape."""
        sizes = v.shape if shape is None else shape
        steps = v.strides if shape is None else dense(sizes)
        steps = steps if strides is None else strides
        storage, offset = self.plan.places[v]
        if storage.kind == "arena":
            key = (self.plan.scratch + storage.offset + offset, sizes, steps, _type(v))
            return f"f->h[{self.views.setdefault(key, len(self.views))}]"
        made = (
            f"whet_blob({self._address(v)}, {len(sizes)}, {self._array(sizes)},"
            f" {self._array(steps)}, {_type(v)})"
        )
        if storage.kind == "given" and not offset and self._is_given(storage, sizes, steps, v):
            return f"f->given[{storage.index}]"
        if made not in self.extra:
            self.extra.append(made)
        return f"x{self.extra.index(made)}"

    def _is_given(
        self, storage: Storage, shape: tuple[int, ...], strides: Strides, v: Value
    ) -> bool:
        """Whether a library's own tensor has these sizes and strides."""
        for w, (s, offset) in self.plan.places.items():
            if s is storage and w in self._made():
                return (
                    not offset and w.shape == shape and w.node.dtype == v.node.dtype
                    and same_strides(shape, w.strides, strides)
                )  # fmt: skip
        return False

    def _made(self) -> set[Value]:
        return {v for p in self.body.pieces for v in p.results}

    # -- places -----------------------------------------------------------------------------------
    def _storage(self, v: Value) -> Storage:
        return self.plan.places[v][0]

    def _address(self, v: Value) -> str:
        storage, offset = self.plan.places[v]
        match storage.kind:
            case "arena":
                return f"a + {self.plan.scratch + storage.offset + offset}"
            case "input":
                base = f"(char *)in[{storage.index}]"
            case "output":
                base = f"(char *)out[{storage.index}]"
            case _:
                base = f"(char *)g[{storage.index}]"
        return f"{base} + {offset}" if offset else base

    def _constant(self, c: Constant) -> str:
        k = self.constants.setdefault(c, len(self.constants))
        return f"constants[{k}]"

    def _array(self, values: Sequence[int]) -> str:
        return self.arrays.setdefault(tuple(values), f"n{len(self.arrays)}")

    def _out(self, k: int, source: str, size: int) -> None:
        self.lines.append(f"  __builtin_memcpy(out[{k}], {source}, {size});")


def _type(v: Value) -> int:
    return TYPES[v.node.dtype.name]
