"""True rules changed in one place: what a prover must not accept unless it is true all the same."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from whet.rewrite.conjecture import Conjecture

EXCHANGED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
}  # fmt: skip
OTHER = {
    "add": "mul", "mul": "add", "sub": "add", "div": "mul", "maximum": "minimum", "relu": "abs",
    "matmul": "matmul", "tril": "triu", "sum": "amax", "amax": "sum", "mean": "sum", "exp": "tanh",
    "max_pool2d": "max_pool2d", "softmax": "log_softmax",
}  # fmt: skip


def mutants(c: Conjecture) -> Iterator[str]:
    """Texts that differ from a conjecture in one place of its right side, or lack its guard."""
    body = c.text.partition(":")[2].strip()
    if c.condition is not None:
        body, _, _ = body.rpartition(" if ")
        yield f"mutant: {body}"
    whole = ast.parse(body, mode="eval").body
    right = whole.comparators[0]  # type: ignore[attr-defined]
    count = sum(1 for _ in ast.walk(right))
    for place in range(count):
        for how in range(5):
            changed = copy.deepcopy(whole)
            target = list(ast.walk(changed.comparators[0]))[place]  # type: ignore[attr-defined]
            if _mutate(target, how, changed):
                yield f"mutant: {ast.unparse(changed)}"


def _mutate(e: ast.AST, how: int, whole: ast.AST) -> bool:
    match e:
        case ast.Call(args=[first, second, *_]) if how == 0:
            e.args[0], e.args[1] = second, first
        case ast.Call(func=ast.Name(id=name)) if how == 4 and OTHER.get(name, name) != name:
            e.func = ast.Name(OTHER[name])
        case ast.Tuple(elts=[first, second, *_]) if how == 0:
            e.elts[0], e.elts[1] = second, first
        case ast.BinOp(left=left, right=right) if how == 0:
            e.left, e.right = right, left
        case ast.BinOp(op=op) if how == 1 and type(op) in EXCHANGED:
            e.op = EXCHANGED[type(op)]()
        case ast.Constant(value=int() as value) if how in (0, 1) and not isinstance(value, bool):
            e.value = value + (1 if how == 0 else -1)
        case ast.Name(id=name) if how in (2, 3):
            others = sorted({x.id for x in ast.walk(whole) if isinstance(x, ast.Name)} - {name})
            same = [n for n in others if n.isupper() == name.isupper() and len(n) == len(name)]
            if len(same) < how - 1:
                return False
            e.id = same[how - 2]
        case _:
            return False
    return True
