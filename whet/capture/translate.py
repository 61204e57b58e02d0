"""The walk over a traced program: one library call after the other becomes nodes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import operator
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from whet.backend.library import Operand, write_call
from whet.capture import exported
from whet.capture.aten import Call, Handler, NoMapping, Refused, handler_of
from whet.capture.aten.call import cast, dtype_of
from whet.capture.captured import Foreign
from whet.errors import CaptureError, RecordError, UnsupportedError
from whet.ir.graph import Node, item, leaf, opaque
from whet.ir.types import DType, TensorType

# Arguments that place memory and change no value.
PLACEMENT = frozenset(
    "layout device pin_memory memory_format non_blocking copy requires_grad".split()
)
# Calls without a result that state what the trace has already established.
SETTLED = frozenset(
    "aten._assert_tensor_metadata.default aten.sym_constrain_range_for_size.default "
    "aten.sym_constrain_range.default".split()
)
# Checks of values at run time, which a graph without effects does not carry.
CHECKS = frozenset(
    "aten._assert_async.msg aten._assert_async.default aten._assert_scalar.default".split()
)
# Regions that only change how torch records, by the place of the region among their arguments.
REGIONS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4, "hints_wrapper": 0}


# Backward calls, and what of the forward call's by-products they take that a gradient derived from
# the record does without.
UNREAD = {
    "aten.max_pool2d_with_indices_backward.default": ("indices",),
    "aten.max_pool3d_with_indices_backward.default": ("indices",),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward.default": ("logsumexp",),
    "aten.native_batch_norm_backward.default": ("save_mean", "save_invstd"),
}


class Translation:
    """What a walk has found so far: constants, lines, counts, foreign calls.

    Args:
        drawn: flags that calls draw become inputs of the graph: equal ones for whoever computes it.
    """

    def __init__(self, *, drawn: bool = False) -> None:
        self.drawn: dict[Node, float] | None = {} if drawn else None
        self.constants: dict[str, Tensor] = {}
        self.where: dict[Node, str] = {}
        self.coverage: Counter[str] = Counter()
        self.foreign: list[Foreign] = []
        self.dropped: list[str] = []
        self.draws = 0

    def run(self, module: fx.GraphModule, values: Sequence[object]) -> list[object]:
        """The results of a traced module for the values of its placeholders."""
        known: dict[fx.Node, object] = {}
        given = iter(values)
        for n in module.graph.nodes:
            if n.op == "placeholder":
                known[n] = next(given)
            elif n.op == "get_attr":
                known[n] = self._attribute(module, n)
            elif n.op == "output":
                result = _values(n.args[0], known)
                return list(result) if isinstance(result, list | tuple) else [result]
            elif n.target is operator.getitem:
                source, index = n.args
                known[n] = self._part(known[source], index, n)
            else:
                known[n] = self._call(n, known)
        raise CaptureError("a traced module without results")

    def _attribute(self, module: fx.GraphModule, n: fx.Node) -> object:
        found: object = functools.reduce(getattr, str(n.target).split("."), module)
        return self.constant(found, str(n.target)) if isinstance(found, Tensor) else found

    def _part(self, value: object, index: object, n: fx.Node) -> object:
        if isinstance(value, list | tuple) and isinstance(index, int):
            return value[index] if index < len(value) else None  # `_used` says nobody reads it
        raise CaptureError(
            "a result is read that its call does not give", got=n, where=exported.user_line(n)
        )

    # -- one call --------------------------------------------------------------------------------
    def _call(self, n: fx.Node, known: dict[fx.Node, object]) -> object:
        line = exported.user_line(n)
        if not isinstance(n.target, torch._ops.OpOverload):
            return self._region(n, known, line)
        target = str(n.target)
        if target in SETTLED:
            return None
        if target in CHECKS:
            self.dropped.append(f"{target} at {line}")
            return None
        self.coverage[target] += 1
        types = self._types(n)
        arguments = {k: _values(v, known) for k, v in exported.arguments(n).items()}
        handler = handler_of(target)
        reason = "no record computes it"
        if not exported.pure(n):
            raise CaptureError(f"{target} writes to its operands", where=line)
        if any(d is DType.c64 for d in _dtypes(types, arguments)):
            handler, reason = None, "complex numbers"
        if handler is not None:
            try:
                value = self._handled(handler, n, target, types, arguments)
                return self._checked(value, types, target, line)
            except NoMapping as why:
                reason = str(why)
            except Refused as why:
                raise CaptureError(f"{target} cannot be captured: {why}", where=line) from None
            except RecordError as fault:
                raise CaptureError(
                    f"{target} does not fit the operator table: {fault.summary}",
                    expected=fault.expected, got=fault.got, where=line or fault.where,
                ) from fault  # fmt: skip
        return self._opaque(n, types, known, reason, line)

    def _handled(
        self,
        handler: Handler,
        n: fx.Node,
        target: str,
        types: tuple[TensorType | None, ...],
        arguments: dict[str, object],
    ) -> object:
        named = {
            {"self": "x", "input": "x"}.get(k, k): v
            for k, v in arguments.items()
            if k not in PLACEMENT
        }
        draw = None if self.drawn is None else self._draw
        call = Call(target, types, _used(n), self.constant, self.data, _dense(n), draw)
        try:
            inspect.signature(handler).bind(call, **named)
        except TypeError:
            raise NoMapping("no record computes this overload") from None
        return handler(call, **named)

    def _checked(
        self, value: object, types: tuple[TensorType | None, ...], target: str, line: str
    ) -> object:
        """The value, its types held against torch's, its new nodes given the user's line."""
        several = isinstance(value, list | tuple)
        values = list(value) if isinstance(value, list | tuple) else [value]
        for k, (found, type_) in enumerate(zip(values, types, strict=False)):
            if not isinstance(found, Node) or type_ is None:
                continue
            if found.type != type_ and found.shape == type_.shape:
                # A record that keeps more precision than the library's result has is rounded.
                if (
                    found.dtype.is_float
                    and type_.dtype.is_float
                    and found.dtype.bits > type_.dtype.bits
                ):
                    found = values[k] = cast(found, type_.dtype)
            if found.type != type_:
                raise CaptureError(
                    f"{target} was mapped to another type than torch gives it",
                    expected=type_, got=found.type, where=line,
                    hint="this is a fault of whet: please report it with the model",
                )  # fmt: skip
            self._place(found, line)
        return values if several else values[0]

    def _place(self, root: Node, line: str) -> None:
        stack = [root] if line else []
        while stack:
            node = stack.pop()
            if not node.is_leaf and node not in self.where:
                self.where[node] = line
                stack += node.operands

    def _region(self, n: fx.Node, known: dict[fx.Node, object], line: str) -> object:
        name = str(getattr(n.target, "__name__", n.target))
        at = REGIONS.get(name)
        args = [_values(a, known) for a in n.args]
        inner = args[at] if at is not None and at < len(args) else None
        if at is not None and isinstance(inner, fx.GraphModule):
            return self.run(inner, args[at + 1 :])
        if isinstance(n.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            raise CaptureError(
                "a shape depends on data", got=n.format_node(), where=line,
                hint="only models whose shapes follow from their inputs' shapes can be captured",
            )  # fmt: skip
        raise CaptureError(
            f"control flow by {name} cannot be captured", where=line,
            hint="compute both sides and choose with torch.where, or unroll the loop",
        )  # fmt: skip

    def _draw(self, shape: tuple[int, ...], probability: float) -> Node:
        """An input of flags."""
        assert self.drawn is not None
        made = leaf("input", f"drawn_{len(self.drawn)}", TensorType(DType.bool, shape))
        self.drawn[made] = probability
        return made

    # -- types -----------------------------------------------------------------------------------
    def _types(self, n: fx.Node) -> tuple[TensorType | None, ...]:
        value = n.meta.get("val")
        values = value if isinstance(value, list | tuple) else (value,)
        return tuple(self.type_of(v, n) if isinstance(v, Tensor) else None for v in values)

    def type_of(self, value: Tensor, n: fx.Node) -> TensorType:
        """What torch says of a tensor.

        Raises:
            CaptureError: a size depends on data, or the table has no such element type.
        """
        if not all(isinstance(size, int) for size in value.shape):
            raise CaptureError(
                f"the shape of a result of {n.target} depends on data",
                got=list(value.shape), where=exported.user_line(n),
                hint="only models whose shapes follow from their inputs' shapes can be captured",
            )  # fmt: skip
        dtype = dtype_of(value.dtype)
        if dtype is None or value.layout is not torch.strided:
            raise CaptureError(
                f"whet has no tensors of {value.dtype}, {value.layout}",
                got=n.target, where=exported.user_line(n),
            )  # fmt: skip
        return TensorType(dtype, tuple(int(size) for size in value.shape))

    # -- constants -------------------------------------------------------------------------------
    def constant(self, data: Tensor, name: str = "constant") -> Node:
        """A constant leaf; its name tells its content, so equal constants are one leaf."""
        data = data.detach().contiguous()
        dtype = dtype_of(data.dtype)
        if dtype is None:
            raise CaptureError(f"whet has no tensors of {data.dtype}", got=f"constant {name}")
        content = data.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        key = f"{dtype.name}{list(data.shape)}".encode() + content
        full = f"constant_{hashlib.blake2b(key, digest_size=8).hexdigest()}"
        self.constants.setdefault(full, data)
        return leaf("constant", full, TensorType(dtype, tuple(data.shape)))

    def data(self, node: Node) -> Tensor | None:
        """The tensor behind a constant leaf."""
        return self.constants.get(node.name) if node.op == "constant" else None

    # -- foreign calls ---------------------------------------------------------------------------
    def _opaque(
        self,
        n: fx.Node,
        types: tuple[TensorType | None, ...],
        known: dict[fx.Node, object],
        reason: str,
        line: str,
    ) -> object:
        target = str(n.target)
        operands: list[Node] = []

        def place(value: object) -> object:
            if isinstance(value, Node):
                if value not in operands:
                    operands.append(value)
                return Operand(operands.index(value))
            return [place(v) for v in value] if isinstance(value, list | tuple) else value

        args = [place(_values(a, known)) for a in n.args]
        kwargs = {k: place(_values(v, known)) for k, v in n.kwargs.items()}
        note = ""
        if exported.draws(n.target):
            self.draws += 1
            note = f"draw {self.draws}"
        flat = [t for t in types if t is not None]
        nested = isinstance(n.meta.get("val"), list | tuple)
        try:
            statics = write_call(target, args, kwargs, note)
        except UnsupportedError as fault:
            raise CaptureError(
                f"{target} cannot be carried: {fault.summary}", got=fault.got, where=line
            ) from fault
        if not flat:
            raise CaptureError(
                f"{target} gives a number that depends on data, or nothing", where=line,
                hint="keep it a tensor: x.sum() instead of x.sum().item()",
            )  # fmt: skip
        node = opaque(target, operands, statics, flat)
        self.foreign.append(Foreign(node, target, line, reason))
        self._place(node, line)
        if not nested:
            return node
        numbers = iter(range(len(flat)))
        return [None if t is None else item(node, next(numbers)) for t in types]


def _values(argument: object, known: Mapping[fx.Node, object]) -> object:
    """An argument of a traced call with the values of the calls it refers to."""
    if isinstance(argument, fx.Node):
        return known[argument]
    if isinstance(argument, list | tuple):
        return [_values(a, known) for a in argument]
    return argument


def _dtypes(types: Sequence[TensorType | None], arguments: object) -> set[DType]:
    """Element types of a call's results and operands."""
    found = {t.dtype for t in types if t is not None}
    pending = [arguments]
    while pending:
        value = pending.pop()
        if isinstance(value, Node):
            found.add(value.dtype)
        elif isinstance(value, dict):
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _reads(reader: fx.Node, value: fx.Node) -> bool:
    """Whether a call makes anything of an argument."""
    unread = UNREAD.get(str(reader.target))
    if unread is None:
        return True
    return any(a is value for k, a in exported.arguments(reader).items() if k not in unread)


def _dense(n: fx.Node) -> bool:
    """Whether the first operand fills its memory in order, with nothing around it."""
    value = n.args[0].meta.get("val") if n.args and isinstance(n.args[0], fx.Node) else None
    if not isinstance(value, Tensor):
        return False
    room = value.untyped_storage().nbytes() // value.element_size()
    return value.is_contiguous() and value.storage_offset() == 0 and room == value.numel()


def _used(n: fx.Node) -> frozenset[int]:
    """Numbers of a call's results that are read; every one where the whole is handed on."""
    if not isinstance(n.meta.get("val"), list | tuple):
        return frozenset({0})
    found: set[int] = set()
    for user in n.users:
        if user.target is operator.getitem and isinstance(user.args[1], int):
            if any(_reads(reader, user) for reader in user.users):
                found.add(user.args[1])
        else:
            found.update(range(len(n.meta["val"])))
    return frozenset(found)
