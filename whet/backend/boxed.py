"""Any library operator from C: a call by name, its arguments boxed as its schema says.

    value := tensor handle (the callee takes it) | int | float | bool | list of ints or tensors
           | None | a value in a box of its own, where the schema has it optional

torch's stable C interface finds the operator, unboxes and runs it. That costs a microsecond, so it
is for calls that do much at a time, and for those that have no record.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from whet.backend.library import Operand, resolve
from whet.errors import UnsupportedError

DECLARED = """\
int torch_call_dispatcher(const char *, const char *, uint64_t *, uint64_t);
int torch_new_stable_ivalue(uint64_t **);
int torch_new_list_reserve_size(uint64_t, void **);
int torch_list_push_back(void *, uint64_t);
uint64_t aoti_torch_abi_version(void);
static inline int whet_own(Tensor t, uint64_t *to) {
  Tensor one = 0;
  if (aoti_torch_new_tensor_handle(t, &one)) return 1;
  *to = (uint64_t)one;
  return 0;
}
static inline int whet_box(uint64_t *value) {
  uint64_t *box;
  if (torch_new_stable_ivalue(&box)) return 1;
  *box = *value, *value = (uint64_t)box;
  return 0;
}
"""


def boxed(
    target: str, args: Sequence[object], kwargs: Mapping[str, object], tensors: int, results: int
) -> tuple[str, str]:
    """A C function `int NAME(Tensor operand, …, Tensor *result, …)` that makes the call.

    Args:
        target: "namespace.name.overload".
        args, kwargs: as written; tensors are `Operand`s.
        tensors, results: how many operands and results there are.

    Returns:
        Its name and its text.

    Raises:
        UnsupportedError: an argument has a type that cannot be boxed.
    """
    found: Any = resolve(target)
    schema = found._schema
    lines = ["{", f"  uint64_t stack[{max(len(schema.arguments), results)}] = {{0}};"]
    for k, argument in enumerate(schema.arguments):
        if k < len(args):
            value = args[k]
        elif argument.name in kwargs:
            value = kwargs[argument.name]
        else:
            value = argument.default_value
        lines += _boxed(f"stack[{k}]", str(argument.type), value, target)
    name, overload = schema.name, schema.overload_name
    lines.append(
        f'  if (torch_call_dispatcher("{name}", "{overload}", stack, aoti_torch_abi_version()))'
        " return 1;"
    )
    lines += [f"  *r{k} = (Tensor)stack[{k}];" for k in range(results)]
    lines += ["  return 0;", "}", ""]
    heads = [*(f"Tensor t{k}" for k in range(tensors)), *(f"Tensor *r{k}" for k in range(results))]
    text = f"({', '.join(heads)}) " + "\n".join(lines)
    symbol = "whet_boxed_" + hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return symbol, f"static int {symbol}{text}"


def _boxed(place: str, kind: str, value: object, target: str) -> list[str]:
    """Statements that put a value into its place on the stack."""
    inner = kind.removeprefix("Optional[").removesuffix("]") if "Optional[" in kind else kind
    if value is None:
        return []
    lines: list[str]
    match inner, value:
        case "Tensor", Operand(index):
            lines = [f"  if (whet_own(t{index}, &{place})) return 1;"]
        case "int" | "SymInt", int():
            lines = [f"  {place} = (uint64_t){int(value)}l;"]
        case "bool", bool() | int():
            lines = [f"  {place} = {int(value)};"]
        case "float", int() | float():
            (bits,) = struct.unpack("<Q", struct.pack("<d", float(value)))
            lines = [f"  {place} = {bits}ul; /* {value} */"]
        case "List[int]" | "List[SymInt]" | "List[Tensor]", list() | tuple():
            lines = [
                "  {",
                "  void *list;",
                f"  if (torch_new_list_reserve_size({len(value)}, &list)) return 1;",
                "  uint64_t one = 0;",
            ]
            for v in value:
                lines += _boxed("one", inner[5:-1], v, target)
                lines.append("  if (torch_list_push_back(list, one)) return 1;")
            lines += [f"  {place} = (uint64_t)list;", "  }"]
        case _:
            raise UnsupportedError(
                "a library call with an argument that C cannot pass",
                expected="tensors, ints, floats, flags and lists of these",
                got=f"{kind} = {value!r} in {target}",
            )
    return [*lines, f"  if (whet_box(&{place})) return 1;"] if inner != kind else lines
