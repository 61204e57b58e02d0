"""Kernels as text, and back.

kernel  := buffer* stmt*                          Python's syntax, read by `ast`, never executed
buffer  := NAME: role[DTYPE, SIZE, …]             role: input output memory stack register
         | NAME: role[DTYPE, SIZE, …] @ "LAYOUT"  where it is not dense and row-major
         | … @ ahead                              where it is asked for before it is read
stmt    := for VAR in kind(EXTENT):  stmt+        kind: range parallel vector unroll block
         | if TEST:  stmt+
         | T[e, …] = e
         | T[e, …] += e  |  T[e, …] *= e
         | T[e, …] = max(T[e, …], e)  |  … min …
e       := as in records; an element of rank 0 is T[()]
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from whet.ir import expr as ex
from whet.ir.expr import Call, Expr, Index, Load, Num, Select
from whet.ir.types import DType
from whet.kernel import layout as lay
from whet.kernel.loops import Buffer, If, Kernel, KernelError, Loop, Stmt, Store, Update, check

_ROLE = {"in": "input", "out": "output", "memory": "memory", "stack": "stack",
         "register": "register"}  # fmt: skip
_KIND = {
    "serial": "range",
    "parallel": "parallel",
    "vector": "vector",
    "unroll": "unroll",
    "block": "block",
}
_INFIX = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//",
          ast.Mod: "%", ast.Pow: "**", ast.Lt: "<", ast.LtE: "<=", ast.Eq: "==",
          ast.And: "and", ast.Or: "or"}  # fmt: skip


# -- writing ---------------------------------------------------------------------------------------
def show(k: Kernel) -> str:
    """The whole kernel."""
    return "\n".join([*map(_buffer, k.buffers), *lines(k.body)])


def _buffer(b: Buffer) -> str:
    inner = ", ".join([b.dtype.name, *map(str, b.sizes)])
    text = f"{b.name}: {_ROLE[b.role]}[{inner}]"
    text += "" if b.layout == lay.dense(b.sizes) else f' @ "{b.layout}"'
    return f"{text} @ ahead" if b.ahead else text


def lines(body: Iterable[Stmt], indent: str = "") -> Iterator[str]:
    """Statements, one a line."""
    for s in body:
        match s:
            case Loop(var, extent, inner, kind):
                size = extent if isinstance(extent, int) else ex.show(extent)
                yield f"{indent}for {var} in {_KIND[kind]}({size}):"
                yield from lines(inner, indent + "    ")
            case If(test, inner):
                yield f"{indent}if {ex.show(test)}:"
                yield from lines(inner, indent + "    ")
            case Store(buffer, index, value):
                yield f"{indent}{ex.show(Load(buffer, index))} = {ex.show(value)}"
            case Update(buffer, index, how, value):
                at, text = ex.show(Load(buffer, index)), ex.show(value)
                if how in ("sum", "prod"):
                    yield f"{indent}{at} {'+' if how == 'sum' else '*'}= {text}"
                else:
                    yield f"{indent}{at} = {how}({at}, {text})"


# -- reading ---------------------------------------------------------------------------------------
def parse(text: str) -> Kernel:
    """The kernel that a text says, checked.

    Raises:
        KernelError: the text is not a kernel; shows the line.
    """
    import textwrap

    try:
        module = ast.parse(textwrap.dedent(text).strip())
    except SyntaxError as fault:
        raise KernelError(f"not a kernel: {fault.msg}", where=fault.text) from None
    buffers = [_read_buffer(n) for n in module.body if isinstance(n, ast.AnnAssign)]
    body = [_read_stmt(n) for n in module.body if not isinstance(n, ast.AnnAssign)]
    return check(Kernel(tuple(buffers), tuple(body)))


def _fault(node: ast.AST, expected: str) -> KernelError:
    return KernelError("not a kernel", expected=expected, got=ast.unparse(node))


def _read_buffer(node: ast.AnnAssign) -> Buffer:
    match node:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
            layout: str | None = None
            ahead = False
            match kind:
                case ast.BinOp(left=left, right=ast.Name("ahead")):
                    kind, ahead = left, True
            match kind:
                case ast.BinOp(left=left, right=ast.Constant(value=str(layout))):
                    kind = left
            if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
                inner = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else [kind.slice]
                roles = {v: k for k, v in _ROLE.items()}
                sizes = tuple(int(ast.literal_eval(e)) for e in inner[1:])
                role = roles.get(kind.value.id)
                if role is not None:
                    dtype = DType[ast.unparse(inner[0])]
                    laid = lay.parse(layout) if layout else lay.dense(sizes)
                    return Buffer(name, sizes, dtype, role, laid, ahead)
    raise _fault(node, "NAME: role[DTYPE, SIZE, …]")


def _read_stmt(node: ast.stmt) -> Stmt:
    match node:
        case ast.For(
            target=ast.Name(id=var), iter=ast.Call(func=ast.Name(id=kind), args=[e]), body=inner
        ):
            kinds = {v: k for k, v in _KIND.items()}
            if kind not in kinds:
                raise _fault(node.iter, ", ".join(kinds))
            extent = expr(e)
            whole = isinstance(extent, Num) and isinstance(extent.value, int)
            size = extent.value if whole else extent  # type: ignore[union-attr]
            return Loop(var, size, tuple(map(_read_stmt, inner)), kinds[kind])  # type: ignore[arg-type]
        case ast.If(test=test, body=inner):
            return If(expr(test), tuple(map(_read_stmt, inner)))
        case ast.AugAssign(target=target, op=ast.Add() | ast.Mult() as op, value=value):
            at = _read_load(target)
            return Update(
                at.tensor, at.index, "sum" if isinstance(op, ast.Add) else "prod", expr(value)
            )
        case ast.Assign(
            targets=[target],
            value=ast.Call(func=ast.Name(id="max" | "min" as how), args=[first, value]),
        ) if ast.unparse(first) == ast.unparse(target):
            at = _read_load(target)
            return Update(at.tensor, at.index, how, expr(value))
        case ast.Assign(targets=[target], value=value):
            at = _read_load(target)
            return Store(at.tensor, at.index, expr(value))
    raise _fault(node, "a loop, a condition or an assignment")


def _read_load(node: ast.expr) -> Load:
    load = expr(node)
    if not isinstance(load, Load):
        raise _fault(node, "T[e, …]")
    return load


def expr(node: ast.expr | str) -> Expr:
    """An expression, in the notation that `whet.ir.expr.show` writes."""
    if isinstance(node, str):
        return expr(ast.parse(node, mode="eval").body)
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return Num(value)
        case ast.Name(id="inf"):
            return Num(float("inf"))
        case ast.Name(id="nan"):
            return Num(float("nan"))
        case ast.Name(id=name):
            return Index(name)
        case ast.UnaryOp(op=ast.USub(), operand=e):
            inner = expr(e)
            return Num(-inner.value) if isinstance(inner, Num) else ex.call("-", inner)
        case ast.UnaryOp(op=ast.Not(), operand=e):
            return Call("not", (expr(e),))
        case ast.BinOp(left=a, op=op, right=b):
            return Call(_INFIX[type(op)], (expr(a), expr(b)))
        case ast.BoolOp(op=op, values=[first, *rest]):
            total = expr(first)
            for e in rest:
                total = Call(_INFIX[type(op)], (total, expr(e)))
            return total
        case ast.Compare(left=a, ops=[op], comparators=[b]):
            return Call(_INFIX[type(op)], (expr(a), expr(b)))
        case ast.IfExp(test=t, body=a, orelse=b):
            return Select(expr(t), expr(a), expr(b))
        case ast.List(elts=[t]):
            return Select(expr(t), ex.ONE, ex.ZERO)
        case ast.Subscript(value=ast.Name(id=name), slice=index):
            parts = index.elts if isinstance(index, ast.Tuple) else [index]
            return Load(name, tuple(map(expr, parts)))
        case ast.Call(func=ast.Name(id=fn), args=args):
            return Call(fn, tuple(map(expr, args)))
    raise _fault(node, "an expression")
