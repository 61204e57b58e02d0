"""Many operators at once: one record evaluated for a whole stack of operands.

    before:  y[m, n] = sum[k](x[m, k] * z[k, n])
    after:   y[@, m, n] = sum[k](x[@, m, k] * z[@, k, n])          @: which of the stack

The stack is one more axis of the record, so nothing has to be said about operators one by one.
Stacks of equal type are compared by fingerprints: random linear forms of their elements, exact in
the field; in floats, numbers that equal tensors share up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whet.ir import ops
from whet.ir.expr import Call, Expr, Index, Load, Reduce, Select
from whet.ir.graph import Graph, Node
from whet.ir.interp import FLOAT64, PRIME, Ring, evaluate, run_instance, sample
from whet.ir.interp.ring import KEYED, Field, seeded
from whet.ir.record import Instance, Shape, Slots
from whet.ir.types import DType, TensorType

_STACK = "@"
Rows = NDArray[np.int64]


def stacked(instance: Instance, count: int) -> Instance:
    """The instance with one more axis, in front of every operand and result."""

    def deeper(e: Expr) -> Expr:
        match e:
            case Load(tensor, index, outside):
                inner = tuple(deeper(i) for i in index)
                return Load(
                    tensor, (Index(_STACK), *inner), None if outside is None else deeper(outside)
                )
            case Reduce(kind, axes, body):
                return Reduce(kind, axes, deeper(body))
            case Select(test, then, other):
                return Select(deeper(test), deeper(then), deeper(other))
            case Call(fn, args):
                return Call(fn, tuple(map(deeper, args)))
        return e

    def slots(s: Slots) -> Slots:
        return Slots(((_STACK,), *s.axes), (0, *(d + 1 for d in s.dims)))

    return replace(
        instance,
        extents={**instance.extents, _STACK: count},
        operands={n: slots(s) for n, s in instance.operands.items()},
        lets=tuple(replace(x, axes=(_STACK, *x.axes), body=deeper(x.body)) for x in instance.lets),
        results={n: slots(s) for n, s in instance.results.items()},
    )


@dataclass(frozen=True, slots=True)
class Stack:
    """Tensors of one type: values [count, *shape] in a ring."""

    values: Tensor
    ring: Ring

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Rows) -> Stack:
        """Some of them, in this order."""
        return Stack(self.values[torch.from_numpy(rows)], self.ring)

    def joined(self, other: Stack) -> Stack:
        """These, then the others."""
        return Stack(torch.cat([self.values, other.values]), self.ring)

    def prints(self, seed: int) -> NDArray[np.float64]:
        """Two numbers for each, equal for equal tensors; NaN where one is not a number."""
        flat = self.values.reshape(len(self), -1).to(torch.float64)
        forms = torch.randint(1, PRIME, (flat.shape[1], 2), generator=seeded(seed))
        if isinstance(self.ring, Field):
            columns = [_residues(flat, forms[:, k]) for k in range(2)]
            return torch.stack(columns, 1).numpy()
        sums: NDArray[np.float64] = (flat @ (forms.to(torch.float64) / PRIME + 0.5)).numpy()
        return sums


def _residues(flat: Tensor, form: Tensor) -> Tensor:
    products = flat.to(torch.int64) * form % PRIME
    return (products.sum(1) % PRIME).to(torch.float64)


def leaves(shapes: Sequence[tuple[int, ...]], exact: bool, seed: int) -> list[Stack]:
    """Random tensors, each a stack of one: residues, or normal floats."""
    ring: Ring = KEYED if exact else FLOAT64
    made = []
    for k, shape in enumerate(shapes):
        t = sample(TensorType(DType.f32, shape), ring, seeded(seed * 1009 + k))
        made.append(Stack(t[None], ring))
    return made


def constant(node: Node, exact: bool) -> Stack:
    """The value of a node over no inputs, a stack of one."""
    ring: Ring = KEYED if exact else FLOAT64
    (value,) = evaluate(Graph((), (node,)), {}, ring)
    return Stack(value[None], ring)


def run_stacked(
    op: str, attrs: Mapping[str, object], operands: Sequence[Stack | None], out: str | None = None
) -> Stack:
    """One operator over stacks of operands, row by row.

    Raises:
        WhetError: the operator does not take such operands or attributes.
    """
    shapes: tuple[Shape | None, ...] = tuple(
        None if s is None else tuple(s.values.shape[1:]) for s in operands
    )
    present = [s for s in operands if s is not None]
    known = {k: v for k, v in attrs.items() if k != "out"}
    bound = ops.instance(op, shapes, tuple(sorted(known.items())))
    count, ring = len(present[0]), present[0].ring
    whole = stacked(bound, count)
    values = [s.values for s in present]
    return Stack(run_instance(whole, values, ring, out, DType.f32), ring)
